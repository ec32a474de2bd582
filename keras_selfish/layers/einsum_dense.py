"""Sparse product of any two axes of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish.layers.forms import sparse_form_of
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.typing import Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import SparseEinsumDenseOptions


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.EinsumDense)
class SparseEinsumDense(SparseLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` whose kernel is sparse from the first step on; the bias is dense.

    The equation says what the axes of the kernel are. Blocks lie over its last two, as they come: in
    `"abc,cd->abd"` (input weights, units); in `"abc,cde->abde"`, as attention projects to its heads,
    (heads, features of a head).

    Args:
        equation: Einsum equation of two operands, the inputs and the kernel.
        output_shape: Shape of the outputs without the batch axis.
        *args: As in `keras.layers.EinsumDense`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.EinsumDense`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide the kernel.

    Example:

    >>> import numpy as np
    >>> layer = SparseEinsumDense("abc,cde->abde", output_shape=(None, 2, 4), sparsity=0.75)
    >>> layer(np.ones((2, 3, 8), "float32")).shape == (2, 3, 2, 4)
    True
    >>> int(np.count_nonzero(layer.kernel))
    16
    """

    masked_names = ("kernel",)

    if TYPE_CHECKING:

        def __init__(
            self,
            equation: str,
            output_shape: int | Sequence[int | None],
            *args: Any,
            **kwargs: Unpack[SparseEinsumDenseOptions],
        ) -> None: ...

    def call(self, inputs: TensorLike, training: bool | None = None) -> Tensor:
        with self.effective_weights():
            return super().call(inputs, training=training)
