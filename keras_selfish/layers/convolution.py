"""Sparse convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish.layers.forms import sparse_form_of
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.typing import OpenShape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import (
        ConvOptions,
        ConvTransposeOptions,
        DepthwiseConvOptions,
        SeparableConvOptions,
    )


class _SparseConvolution(SparseLayer):
    masked_names: Sequence[str] = ("kernel",)

    def call(self, inputs: TensorLike) -> Tensor:
        with self.effective_weights():
            return super().call(inputs)


class _SparseConv(_SparseConvolution):
    if TYPE_CHECKING:

        def __init__(
            self, filters: int, kernel_size: int | Sequence[int], *args: Any, **kwargs: Unpack[ConvOptions]
        ) -> None: ...


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.Conv1D)
class SparseConv1D(_SparseConv, keras.layers.Conv1D):
    """`keras.layers.Conv1D` whose kernel (steps, channels, filters) is sparse from the first step on.

    Args: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.Conv1D`.

    Example:

    >>> import numpy as np
    >>> SparseConv1D(8, 3, padding="causal")(np.ones((2, 5, 4), "float32")).shape == (2, 5, 8)
    True
    """


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.Conv2D)
class SparseConv2D(_SparseConv, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose kernel is sparse from the first step on; the bias is dense.

    The kernel (height, width, channels, filters) has a matrix (input weights, units) for each place of the
    window: its last two axes. At sparsity 0 the layer makes no mask and is Keras's.

    Args:
        filters: Number of filters, the units of this layer.
        kernel_size: Height and width of the window.
        *args: As in `keras.layers.Conv2D`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.Conv2D`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide the kernel.

    Example:

    >>> import numpy as np
    >>> layer = SparseConv2D(8, 3, sparsity=0.75, block_shape=(4, 1))
    >>> layer(np.ones((2, 6, 6, 4), "float32")).shape == (2, 4, 4, 8)
    True
    >>> int(np.count_nonzero(layer.kernel))
    72
    """


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.Conv3D)
class SparseConv3D(_SparseConv, keras.layers.Conv3D):
    """`keras.layers.Conv3D` whose kernel is sparse from the first step on; the bias is dense.

    The kernel is (depth, height, width, channels, filters).

    Args: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.Conv3D`.

    Example:

    >>> import numpy as np
    >>> SparseConv3D(8, 3)(np.ones((2, 6, 6, 6, 4), "float32")).shape == (2, 4, 4, 4, 8)
    True
    """


class _SparseConvTranspose(_SparseConvolution):
    if TYPE_CHECKING:

        def __init__(
            self,
            filters: int,
            kernel_size: int | Sequence[int],
            *args: Any,
            **kwargs: Unpack[ConvTransposeOptions],
        ) -> None: ...


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.Conv1DTranspose)
class SparseConv1DTranspose(_SparseConvTranspose, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` whose kernel is sparse from the first step on; the bias is dense.

    The kernel is (steps, filters, channels).

    Args: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.Conv1DTranspose`.

    Example:

    >>> import numpy as np
    >>> SparseConv1DTranspose(8, 3)(np.ones((2, 5, 4), "float32")).shape == (2, 7, 8)
    True
    """


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.Conv2DTranspose)
class SparseConv2DTranspose(_SparseConvTranspose, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` whose kernel is sparse from the first step on; the bias is dense.

    The kernel (height, width, filters, channels) has filters and channels in another order than that of
    `SparseConv2D`. Blocks and patterns lie over its last two axes, as they come.

    Args:
        filters: Number of filters, the units of this layer.
        kernel_size: Height and width of the window.
        *args: As in `keras.layers.Conv2DTranspose`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of
            `keras.layers.Conv2DTranspose`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide the kernel.

    Example:

    >>> import numpy as np
    >>> layer = SparseConv2DTranspose(8, 3, sparsity=0.75)
    >>> layer(np.ones((2, 4, 4, 4), "float32")).shape == (2, 6, 6, 8)
    True
    >>> int(np.count_nonzero(layer.kernel))
    72
    """


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.Conv3DTranspose)
class SparseConv3DTranspose(_SparseConvTranspose, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` whose kernel is sparse from the first step on; the bias is dense.

    The kernel is (depth, height, width, filters, channels).

    Args: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.Conv3DTranspose`.

    Example:

    >>> import numpy as np
    >>> SparseConv3DTranspose(8, 3)(np.ones((2, 2, 2, 2, 4), "float32")).shape == (2, 4, 4, 4, 8)
    True
    """


class _SparseSeparableConv(_SparseConvolution):
    masked_names = ("depthwise_kernel", "pointwise_kernel")

    if TYPE_CHECKING:

        def __init__(
            self,
            filters: int,
            kernel_size: int | Sequence[int],
            *args: Any,
            **kwargs: Unpack[SeparableConvOptions],
        ) -> None: ...

    def build(self, input_shape: OpenShape) -> None:
        channels: Any = input_shape[1 if self.data_format == "channels_first" else -1]
        window = (1,) * len(self.kernel_size)
        self.plan_masks(
            {
                "depthwise_kernel": (*self.kernel_size, channels, self.depth_multiplier),
                "pointwise_kernel": (*window, channels * self.depth_multiplier, self.filters),
            }
        )
        super().build(input_shape)


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.SeparableConv1D)
class SparseSeparableConv1D(_SparseSeparableConv, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` whose two kernels are sparse from the first step on.

    Args: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.SeparableConv1D`.

    Example:

    >>> import numpy as np
    >>> SparseSeparableConv1D(8, 3)(np.ones((2, 5, 4), "float32")).shape == (2, 3, 8)
    True
    """


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.SeparableConv2D)
class SparseSeparableConv2D(_SparseSeparableConv, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` whose two kernels are sparse from the first step on; the bias is dense.

    They are the depthwise kernel (height, width, channels, depth multiplier) and the pointwise kernel
    (1, 1, channels * depth multiplier, filters), which has nearly all of the weights.

    Args:
        filters: Number of filters, the units of this layer.
        kernel_size: Height and width of the window.
        *args: As in `keras.layers.SeparableConv2D`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of
            `keras.layers.SeparableConv2D`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide a kernel.

    Example:

    >>> import numpy as np
    >>> layer = SparseSeparableConv2D(8, 3, sparsity=0.75)
    >>> layer(np.ones((2, 6, 6, 4), "float32")).shape == (2, 4, 4, 8)
    True
    >>> int(np.count_nonzero(layer.pointwise_kernel))
    8
    """


class _SparseDepthwiseConv(_SparseConvolution):
    if TYPE_CHECKING:

        def __init__(
            self, kernel_size: int | Sequence[int], *args: Any, **kwargs: Unpack[DepthwiseConvOptions]
        ) -> None: ...


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.DepthwiseConv1D)
class SparseDepthwiseConv1D(_SparseDepthwiseConv, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` whose kernel is sparse from the first step on; the bias is dense.

    The kernel is (steps, channels, depth multiplier).

    Args: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.DepthwiseConv1D`.

    Example:

    >>> import numpy as np
    >>> SparseDepthwiseConv1D(3)(np.ones((2, 6, 4), "float32")).shape == (2, 4, 4)
    True
    """


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.DepthwiseConv2D)
class SparseDepthwiseConv2D(_SparseDepthwiseConv, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` whose kernel is sparse from the first step on.

    The kernel is (height, width, channels, depth multiplier): a filter reads one channel, so that a whole
    filter of zeros silences a feature map. Such a kernel is a small part of its network; sparser than the
    1x1 convolution beside it is seldom what one wants.

    Args: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.DepthwiseConv2D`.

    Example:

    >>> import numpy as np
    >>> SparseDepthwiseConv2D(3)(np.ones((2, 6, 6, 4), "float32")).shape == (2, 4, 4, 4)
    True
    """
