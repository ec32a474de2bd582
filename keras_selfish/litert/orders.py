"""Operations of Keras that order, place or count entries, as several others of Keras, for LiteRT.

Each is a function of the operation, which has its settings, and of its arguments.
"""

from collections.abc import Callable

import numpy as np
from keras import ops


def _one_axis(operation, x):
    """The axis, not negative, of an operation that is written along one of a known size."""
    axes = operation.axis if isinstance(operation.axis, (list, tuple)) else [operation.axis]
    if len(axes) != 1 or axes[0] is None:
        raise ValueError(f"the operation {type(operation).__name__} along other than one axis")
    axis = axes[0] % len(x.shape)
    _known_size(operation, x, axis)
    return axis


def _known_size(operation, x, axis):
    if x.shape[axis] is None:
        raise ValueError(f"the operation {type(operation).__name__} along the batch or another open axis")
    return x.shape[axis]


def _ordered(x, axis):
    """The entries along an axis in rising order, and their places; of equal ones the first comes first."""
    values, places = ops.top_k(-ops.moveaxis(x, axis, -1), x.shape[axis])
    return ops.moveaxis(-values, -1, axis), ops.moveaxis(places, -1, axis)


def _sorted(operation, x):
    return _ordered(x, _one_axis(operation, x))[0]


def _places_in_order(operation, x):
    return _ordered(x, _one_axis(operation, x))[1]


def _median(operation, x):
    axis = _one_axis(operation, x)
    return _between(x, axis, 0.5 * (x.shape[axis] - 1), operation.keepdims)


def _quantile(operation, x, q):
    axis = _one_axis(operation, x)
    if operation.method != "linear" or np.ndim(q) > 1:
        raise ValueError(f"quantiles by the method {operation.method!r}, or of several axes")
    if type(operation).__name__ == "Percentile":
        q = np.asarray(q) / 100
    places = np.asarray(q, "float64") * (x.shape[axis] - 1)
    if np.ndim(q):
        return ops.stack([_between(x, axis, place, operation.keepdims) for place in places])
    return _between(x, axis, float(places), operation.keepdims)


def _between(x, axis, place, keepdims):
    """What stands at a place among the entries in rising order, between two of them in proportion."""
    low, high = int(np.floor(place)), int(np.ceil(place))
    ordered, before = _ordered(x, axis)[0], (slice(None),) * axis
    lower, upper = (ordered[(*before, slice(at, at + 1))] for at in (low, high))
    value = lower if low == high else lower + (upper - lower) * (place - low)
    return value if keepdims else ops.squeeze(value, axis)


def _one_hot(operation, x):
    axis = operation.axis % (len(x.shape) + 1)
    shape = [1] * len(x.shape)
    shape.insert(axis, operation.num_classes)
    is_class = ops.equal(
        ops.expand_dims(x, axis), np.arange(operation.num_classes, dtype="int32").reshape(shape)
    )
    return ops.cast(is_class, operation.dtype or "float32")


def _multi_hot(operation, x):
    vectors = ops.one_hot(x, operation.num_classes, axis=operation.axis, dtype=operation.dtype)
    return ops.max(vectors, axis=1 if len(x.shape) > 1 else 0)


def _taken_along(operation, x, indices):
    """Entries at computed places, each a sum with a single one."""
    axis = _one_axis(operation, x)
    size = x.shape[axis]
    indices = ops.moveaxis(ops.cast(indices, "int32"), axis, -1)
    is_place = ops.equal(ops.expand_dims(ops.mod(indices, size), -1), np.arange(size, dtype="int32"))
    entries = ops.expand_dims(ops.moveaxis(x, axis, -1), -2)
    return ops.moveaxis(ops.sum(ops.where(is_place, entries, ops.zeros_like(entries)), -1), -1, axis)


def _rolled(operation, x):
    if operation.axis is None:
        raise ValueError("a roll of all entries")
    axes, shifts = np.broadcast_arrays(np.atleast_1d(operation.axis), np.atleast_1d(operation.shift))
    for axis, shift in zip(axes.tolist(), shifts.tolist(), strict=True):
        axis %= len(x.shape)
        shift %= _known_size(operation, x, axis)
        if shift:
            kept = [slice(None)] * axis
            parts = [x[(*kept, slice(-shift, None))], x[(*kept, slice(None, -shift))]]
            x = ops.concatenate(parts, axis=axis)
    return x


def _turned(operation, x):
    """By quarters of a turn, from the first axis to the second."""
    first, second = (axis % len(x.shape) for axis in operation.axes)
    turns = operation.k % 4
    if turns == 2:
        return ops.flip(x, (first, second))
    if turns == 1:
        return ops.swapaxes(ops.flip(x, second), first, second)
    return ops.flip(ops.swapaxes(x, first, second), second) if turns else x


def _differences(operation, x):
    axis = operation.axis % len(x.shape)
    kept = [slice(None)] * axis
    for _ in range(operation.n):
        x = x[(*kept, slice(1, None))] - x[(*kept, slice(None, -1))]
    return x


def _cumulative_product(operation, x):
    """Products over 1, 2, 4, ... entries up to each."""
    axis = _one_axis(operation, x)
    before, width = (slice(None),) * axis, 1
    while width < x.shape[axis]:
        first, last = (x[(*before, part)] for part in (slice(width), slice(-width)))
        x = x * ops.concatenate([ops.ones_like(first), last], axis=axis)
        width *= 2
    return x


def _triangle(operation, x):
    ones = np.ones(x.shape[-2:], bool)
    is_lower = type(operation).__name__ == "Tril"
    return ops.where(np.tril(ones, operation.k) if is_lower else np.triu(ones, operation.k), x, 0.0)


def _diagonal(operation, x):
    x = ops.moveaxis(x, (operation.axis1, operation.axis2), (-2, -1))
    rows, columns = (_known_size(operation, x, axis) for axis in (-2, -1))
    first, last = max(operation.offset, 0), min(columns, rows + operation.offset)
    on_it = ops.where(np.eye(rows, columns, operation.offset, bool), x, ops.zeros_like(x))
    return ops.sum(on_it, axis=-2)[..., first:last]


def _count(operation, x):
    return ops.sum(ops.cast(ops.not_equal(x, 0), "int32"), axis=operation.axis)


def _number_of_range(_, x, bins):
    if not isinstance(bins, np.ndarray):
        raise ValueError("ranges that are computed")
    return ops.sum(ops.cast(ops.expand_dims(x, -1) >= bins.astype("float32"), "int32"), axis=-1)


def _selected(_, conditions, choices, default=0):
    value = default * ops.ones_like(choices[-1])
    for condition, choice in zip(reversed(conditions), reversed(choices), strict=True):
        value = ops.where(condition, choice, value)
    return value


ORDERS: dict[str, Callable] = {
    "Sort": _sorted,
    "Argsort": _places_in_order,
    "Median": _median,
    "Quantile": _quantile,
    "Percentile": _quantile,
    "OneHot": _one_hot,
    "MultiHot": _multi_hot,
    "TakeAlongAxis": _taken_along,
    "Roll": _rolled,
    "Rot90": _turned,
    "Fliplr": lambda _, x: ops.flip(x, 1),
    "Diff": _differences,
    "Cumprod": _cumulative_product,
    "Tril": _triangle,
    "Triu": _triangle,
    "Diagonal": _diagonal,
    "Trace": lambda operation, x: ops.sum(_diagonal(operation, x), axis=-1),
    "CountNonzero": _count,
    "Digitize": _number_of_range,
    "Select": _selected,
    "Hstack": lambda _, tensors: ops.concatenate(tensors, axis=1),
    "Dstack": lambda _, tensors: ops.concatenate(tensors, axis=2),
    "Append": lambda operation, left, right: ops.concatenate([left, right], axis=operation.axis),
}
