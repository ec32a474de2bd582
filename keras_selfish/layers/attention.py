"""Attention whose projections are sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish.layers.einsum_dense import SparseEinsumDense
from keras_selfish.layers.masked import MASK_ARGUMENTS, SparseLayer
from keras_selfish.typing import BlockShape, Distribution, Pattern

if TYPE_CHECKING:
    from keras_selfish.layers.options import GroupQueryAttentionOptions, MultiHeadAttentionOptions

MOST_PROJECTIONS = 8  # so that layers with different seeds have no mask in common


class _SparseAttention(SparseLayer):
    """Mixin, placed before a Keras attention layer, that makes its projections sparse.

    Keras's `build` makes each of them an `EinsumDense` and sets it as an attribute; here the attribute
    becomes its sparse form, which has its own mask.
    """

    def __init__(
        self,
        *args: Any,
        sparsity: float | None = None,
        distribution: Distribution = "uniform",
        block_shape: BlockShape = (1, 1),
        n_of_m: Pattern | None = None,
        mask_seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # One that is never built checks them, and says which sparsity a pattern fixes.
        checked = SparseEinsumDense(
            "ab,bc->ac",
            1,
            sparsity=sparsity,
            distribution=distribution,
            block_shape=block_shape,
            n_of_m=n_of_m,
            mask_seed=mask_seed,
        )
        for name in MASK_ARGUMENTS:
            setattr(self, name, getattr(checked, name))
        self._projections = 0

    def __setattr__(self, name, value):
        if type(value) is keras.layers.EinsumDense and self.sparsity:
            arguments = {argument: getattr(self, argument) for argument in MASK_ARGUMENTS}
            if self.mask_seed is not None:
                arguments["mask_seed"] = MOST_PROJECTIONS * self.mask_seed + self._projections
            self._projections += 1
            value = SparseEinsumDense.from_config({**value.get_config(), **arguments})
        super().__setattr__(name, value)


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseMultiHeadAttention(_SparseAttention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` whose projections are sparse from the first step on.

    The kernels of query, key and value are (inputs, heads, features of a head), that of the output is
    (heads, features of a head, outputs). Each has a mask of its own and the same sparsity; biases are dense.
    At sparsity 0 the layer makes no mask and is Keras's.

    Args:
        num_heads: Number of heads.
        key_dim: Features of a head for query and key.
        sparsity: Fraction of zeros in each kernel, in [0, 1). None (default) is 0.67, or what `n_of_m`
            fixes.
        distribution: `"uniform"` (default), `"erdos_renyi"` or `"erk"`; within one kernel they agree.
        block_shape: Shape over a kernel's last two axes, as they come, of the blocks in which connections
            come and go; it must divide all kernels. Default `(1, 1)`.
        n_of_m: `(n, m)` for exactly n of each m consecutive weights along the last axis but one, such as
            `(2, 4)`; it fixes the sparsity. Default None.
        mask_seed: Integer seed of the initial masks; None (default) draws one.
        *args: As in `keras.layers.MultiHeadAttention`.
        **kwargs: As in `keras.layers.MultiHeadAttention`.

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

    keras_layer = keras.layers.MultiHeadAttention

    if TYPE_CHECKING:

        def __init__(
            self, num_heads: int, key_dim: int, *args: Any, **kwargs: Unpack[MultiHeadAttentionOptions]
        ) -> None: ...


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseGroupQueryAttention(_SparseAttention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` whose projections are sparse from the first step on.

    Args: see `SparseMultiHeadAttention` for `sparsity`, `distribution`, `block_shape`, `n_of_m` and
        `mask_seed`; the others are those of `keras.layers.GroupQueryAttention`.

    Example:

    >>> import numpy as np
    >>> layer = SparseGroupQueryAttention(4, 4, 2, sparsity=0.75)
    >>> x = np.ones((3, 5, 8), "float32")
    >>> layer(x, x).shape == (3, 5, 8)
    True
    """

    keras_layer = keras.layers.GroupQueryAttention

    if TYPE_CHECKING:

        def __init__(
            self,
            head_dim: int,
            num_query_heads: int,
            num_key_value_heads: int,
            *args: Any,
            **kwargs: Unpack[GroupQueryAttentionOptions],
        ) -> None: ...
