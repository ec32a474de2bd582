"""Attention whose projections are sparse."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish.layers.einsum_dense import SparseEinsumDense
from keras_selfish.layers.forms import sparse_form_of
from keras_selfish.layers.masked import SparseLayer

if TYPE_CHECKING:
    from keras_selfish.layers.options import GroupQueryAttentionOptions, MultiHeadAttentionOptions

MOST_PROJECTIONS = 8  # so that layers with different seeds have no mask in common


class _SparseAttention(SparseLayer):
    """Base, placed before a Keras attention layer, that makes its projections sparse.

    Keras's `build` makes each of them an `EinsumDense` and sets it as an attribute; here the attribute
    becomes its sparse form, which has its own mask.
    """

    _projections = 0

    def __setattr__(self, name, value):
        if type(value) is keras.layers.EinsumDense and self.sparsity:
            spec = self.mask_spec
            if spec.mask_seed is not None:
                seed = MOST_PROJECTIONS * spec.mask_seed + self._projections
                spec = dataclasses.replace(spec, mask_seed=seed)
            self._projections += 1
            value = SparseEinsumDense.from_config({**value.get_config(), **spec.get_config()})
        super().__setattr__(name, value)


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.MultiHeadAttention)
class SparseMultiHeadAttention(_SparseAttention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` whose projections are sparse from the first step on.

    The kernels of query, key and value are (inputs, heads, features of a head), that of the output is
    (heads, features of a head, outputs). Each has a mask of its own and the same sparsity; biases are dense.
    Blocks and patterns lie over a kernel's last two axes, as they come.
    At sparsity 0 the layer makes no mask and is Keras's.

    Args:
        num_heads: Number of heads.
        key_dim: Features of a head for query and key.
        *args: As in `keras.layers.MultiHeadAttention`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of
            `keras.layers.MultiHeadAttention`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide a kernel.

    Example:

    >>> import numpy as np
    >>> from keras_selfish import masked_weights
    >>> layer = SparseMultiHeadAttention(2, 4, sparsity=0.75)
    >>> x = np.ones((3, 5, 8), "float32")
    >>> layer(x, x).shape == (3, 5, 8)
    True
    >>> [weight.active for weight in masked_weights(layer)]
    [16, 16, 16, 16]
    """

    if TYPE_CHECKING:

        def __init__(
            self, num_heads: int, key_dim: int, *args: Any, **kwargs: Unpack[MultiHeadAttentionOptions]
        ) -> None: ...


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.GroupQueryAttention)
class SparseGroupQueryAttention(_SparseAttention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` whose projections are sparse from the first step on.

    Args: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.GroupQueryAttention`.

    Example:

    >>> import numpy as np
    >>> layer = SparseGroupQueryAttention(4, 4, 2, sparsity=0.75)
    >>> x = np.ones((3, 5, 8), "float32")
    >>> layer(x, x).shape == (3, 5, 8)
    True
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            head_dim: int,
            num_query_heads: int,
            num_key_value_heads: int,
            *args: Any,
            **kwargs: Unpack[GroupQueryAttentionOptions],
        ) -> None: ...
