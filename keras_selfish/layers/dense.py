"""Sparse fully connected layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import keras
from keras import ops

from keras_selfish.layers.forms import sparse_form_of
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.layers.products import is_padded, product
from keras_selfish.typing import Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import SparseDenseOptions

HALF_PRECISION = ("bfloat16", "float16")


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.Dense)
class SparseDense(SparseLayer, keras.layers.Dense):
    """`keras.layers.Dense` whose kernel (inputs, units) is sparse from the first step on; the bias is dense.

    Args:
        units: Number of units.
        *args: As in `keras.layers.Dense`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.Dense`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide the kernel.

    Example:

    >>> import numpy as np
    >>> layer = SparseDense(8, sparsity=0.75, block_shape=(4, 1))
    >>> layer(np.ones((2, 16), "float32")).shape == (2, 8)
    True
    >>> int(np.count_nonzero(layer.kernel))
    32
    """

    masked_names = ("kernel",)

    if TYPE_CHECKING:

        def __init__(self, units: int, *args: Any, **kwargs: Unpack[SparseDenseOptions]) -> None: ...

    def call(self, inputs: TensorLike, training: bool | None = None) -> Tensor:
        with self.effective_weights():
            half = self.use_bias and self.bias.dtype in HALF_PRECISION
            if not (half or is_padded(self.kernel)):
                return super().call(inputs, training=training)
            outputs = product(inputs, self.kernel)
            if half:
                outputs = add_bias(outputs, ops.cast(ops.convert_to_tensor(self.bias), self.bias.dtype))
            elif self.use_bias:
                outputs = ops.add(outputs, self.bias)
            return outputs if self.activation is None else self.activation(outputs)


def add_bias(outputs, bias):
    """Adds a bias whose gradient is summed in float32.

    Backends that sum it in half precision stop at 256 times a term in bfloat16: of the many small terms that
    the softmax over a vocabulary gives most are lost, the few large ones are not, and the bias drifts.

    Args:
        outputs: Tensor (..., units).
        bias: Tensor (units,) of the same dtype.
    """

    def add(outputs, bias):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            rows = ops.reshape(upstream, (-1, bias.shape[0]))
            # Products take half precision and sum in float32; a cast would be a pass over all outputs more.
            ones = ops.ones((1, ops.shape(rows)[0]), rows.dtype)
            return upstream, ops.squeeze(ops.matmul(ones, rows), 0)

        return ops.add(outputs, bias), gradient

    return ops.custom_gradient(add)(outputs, bias)
