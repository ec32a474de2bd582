"""Sparse product of any two axes of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish.layers.masked import MaskedLayer
from keras_selfish.typing import BlockShape, Distribution, OpenShape, Pattern, Shape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import EinsumDenseOptions


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseEinsumDense(MaskedLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` whose kernel is sparse from the first step on; the bias is dense.

    The equation says what the axes of the kernel are. Blocks lie over its last two, as they come: in
    `"abc,cd->abd"` (input weights, units); in `"abc,cde->abde"`, as attention projects to its heads,
    (heads, features of a head).

    Args:
        equation: Einsum equation of two operands, the inputs and the kernel.
        output_shape: Shape of the outputs without the batch axis.
        sparsity: Fraction of zeros in the kernel, in [0, 1). None (default) is 0.67, or what `n_of_m`
            fixes.
        distribution: `"uniform"` (default), `"erdos_renyi"` or `"erk"`; with one kernel they agree.
        block_shape: Shape over the kernel's last two axes of the blocks in which connections come and go;
            it must divide them, and be `(1, 1)` (default) for a kernel of one axis.
        n_of_m: `(n, m)` for exactly n of each m consecutive weights along the last axis but one, such as
            `(2, 4)`; it fixes the sparsity. Default None.
        mask_seed: Integer seed of the initial mask; None (default) draws one.
        *args: As in `keras.layers.EinsumDense`.
        **kwargs: As in `keras.layers.EinsumDense`.

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

    keras_layer = keras.layers.EinsumDense
    masked_names = {"kernel": ()}
    saves_named_weights_only = True

    def __init__(
        self,
        equation: str,
        output_shape: int | Sequence[int | None],
        *args: Any,
        sparsity: float | None = None,
        distribution: Distribution = "uniform",
        block_shape: BlockShape = (1, 1),
        n_of_m: Pattern | None = None,
        mask_seed: int | None = None,
        **kwargs: Unpack[EinsumDenseOptions],
    ) -> None:
        super().__init__(equation, output_shape, *args, **kwargs)
        self._init_masks(sparsity, distribution, block_shape, mask_seed, n_of_m)

    def masked_shapes(self, input_shape: OpenShape) -> dict[str, OpenShape]:
        # Keras reads the equation in its own `build`, and tells the kernel's shape to `add_weight`.
        return {}

    def add_weight(
        self, shape: Shape | None = None, *args: Any, name: str | None = None, **kwargs: Any
    ) -> keras.Variable:
        if name == "kernel" and self.sparsity:
            self._plan_masks({"kernel": shape})
        return super().add_weight(shape, *args, name=name, **kwargs)

    @property
    def kernel(self) -> Tensor:
        return self.weight_to_use("kernel", super().kernel)

    def call(self, inputs: TensorLike, training: bool | None = None) -> Tensor:
        with self.effective_weights():
            return super().call(inputs, training=training)
