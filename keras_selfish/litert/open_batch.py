"""Tensors of as many rows as a batch has, while a layer is shown symbols, whose batch is not known.

A layer that makes such a tensor (`ops.zeros((ops.shape(x)[0], 8))`, a token that is put before each sequence)
finds None for the size of the batch there, and Keras makes no tensor of that.
"""

import contextlib
import functools
import inspect
import math

import keras
import numpy as np
from keras import ops


@contextlib.contextmanager
def open_batch(symbols):
    """Within the block functions of `keras.ops` take None as a first size: that of the symbols' batch."""
    like = next((symbol for symbol in symbols if symbol.shape and symbol.shape[0] is None), None)
    originals = {name: getattr(ops, name) for name in _MAKERS} if like is not None else {}
    for name, original in originals.items():
        setattr(ops, name, _choosing(original, functools.partial(_MAKERS[name], like)))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(ops, name, original)


def _choosing(original, maker):
    """Calls the maker where the shape, or how often something is repeated, is None or begins with it."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def choose(*args, **kwargs):
        named = signature.bind(*args, **kwargs).arguments
        size = next(named[name] for name in ("shape", "newshape", "repeats") if name in named)
        first = size[0] if isinstance(size, (list, tuple)) and size else size
        return maker(**named) if first is None else original(*args, **kwargs)

    return choose


def _zeros_of_batch(like, rank):
    """int32 zeros (batch, 1, ..., 1) for the batch of a symbol."""
    column = ops.cast(like[(slice(None), *[0] * (len(like.shape) - 1))], "int32")
    return ops.reshape(ops.zeros_like(column), [-1] + [1] * (rank - 1))


def _full(like, shape, fill_value, dtype=None):
    values = np.full((1, *shape[1:]), fill_value, "float32")
    return ops.cast(_zeros_of_batch(like, len(shape)) + values, dtype or keras.config.floatx())


def _broadcast_to(like, x, shape):
    if len(x.shape) == len(shape) and x.shape[0] not in (None, 1):
        raise ValueError(f"{x.shape[0]} rows, each as often as a batch has rows")
    dtype = keras.backend.standardize_dtype(x.dtype)
    rows = _zeros_of_batch(like, len(shape)) + np.zeros((1, *shape[1:]), "int32")
    if dtype == "bool":
        return ops.cast(rows + ops.cast(x, "int32"), dtype)
    return ops.cast(rows, dtype) + x


def _tile(like, x, repeats):
    repeats = repeats if isinstance(repeats, (list, tuple)) else [repeats]
    if len(repeats) < len(x.shape):
        raise ValueError("a `tile` along another axis as often as a batch has rows")
    x = ops.tile(x, [1, *repeats[1:]])
    return _broadcast_to(like, x, (None, *x.shape[1:]))


def _repeat(like, x, repeats, axis=None):
    if axis != 0:
        raise ValueError("a `repeat` along another axis than the first as often as a batch has rows")
    return _broadcast_to(like, x, (repeats, *x.shape[1:]))


def _reshape(like, x, newshape):
    """Finds the size that is -1, which Keras leaves open beside that of the batch."""
    rest = list(newshape[1:])
    if -1 in rest and x.shape[0] is None and None not in (*x.shape[1:], *rest):
        rest[rest.index(-1)] = math.prod(x.shape[1:]) // -math.prod(rest)
        return ops.reshape(x, (-1, *rest))
    return ops.numpy.reshape(x, newshape)


_MAKERS = {
    "zeros": lambda like, shape, dtype=None: _full(like, shape, 0, dtype),
    "ones": lambda like, shape, dtype=None: _full(like, shape, 1, dtype),
    "full": _full,
    "broadcast_to": _broadcast_to,
    "tile": _tile,
    "repeat": _repeat,
    "reshape": _reshape,
}
