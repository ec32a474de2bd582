"""Sparse convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish.layers.masked import MaskedAttribute, MaskedLayer
from keras_selfish.typing import BlockShape, Distribution, OpenShape, Pattern, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import (
        ConvOptions,
        ConvTransposeOptions,
        DepthwiseConvOptions,
        SeparableConvOptions,
    )


class _SparseConvolution(MaskedLayer):
    masked_names = {"kernel": ()}

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
        self._init_masks(sparsity, distribution, block_shape, mask_seed, n_of_m)

    def input_channels(self, input_shape: OpenShape) -> int:
        """Number of channels of an input of this shape."""
        channels = input_shape[1 if self.data_format == "channels_first" else -1]
        return channels  # type: ignore[return-value] # which Keras knows when it builds the layer

    def call(self, inputs: TensorLike) -> Tensor:
        with self.effective_weights():
            return super().call(inputs)


class _SparseConv(_SparseConvolution):
    saves_named_weights_only = True

    if TYPE_CHECKING:

        def __init__(
            self, filters: int, kernel_size: int | Sequence[int], *args: Any, **kwargs: Unpack[ConvOptions]
        ) -> None: ...

    def masked_shapes(self, input_shape: OpenShape) -> dict[str, OpenShape]:
        return {"kernel": (*self.kernel_size, self.input_channels(input_shape) // self.groups, self.filters)}

    @property
    def kernel(self) -> Tensor:
        return self.weight_to_use("kernel", super().kernel)


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseConv1D(_SparseConv, keras.layers.Conv1D):
    """`keras.layers.Conv1D` whose kernel (steps, channels, filters) is sparse from the first step on.

    Args: see `SparseConv2D` for `sparsity`, `distribution`, `block_shape`, `n_of_m` and `mask_seed`; the
        others are those of `keras.layers.Conv1D`.

    Example:

    >>> import numpy as np
    >>> SparseConv1D(8, 3, padding="causal")(np.ones((2, 5, 4), "float32")).shape == (2, 5, 8)
    True
    """

    keras_layer = keras.layers.Conv1D


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseConv2D(_SparseConv, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose kernel is sparse from the first step on; the bias is dense.

    The kernel (height, width, channels, filters) has a matrix (input weights, units) for each place of the
    window: its last two axes. At sparsity 0 the layer makes no mask and is Keras's.

    Args:
        filters: Number of filters, the units of this layer.
        kernel_size: Height and width of the window.
        sparsity: Fraction of zeros in the kernel, in [0, 1). None (default) is 0.67, or what `n_of_m`
            fixes.
        distribution: `"uniform"` (default), `"erdos_renyi"` or `"erk"`; with one kernel they agree.
        block_shape: (channels, filters) of the blocks in which connections come and go; it must divide
            the kernel's last two axes. Default `(1, 1)`.
        n_of_m: `(n, m)` for exactly n of each m consecutive channels of a filter at a place of the window,
            such as `(2, 4)`; it fixes the sparsity. Default None.
        mask_seed: Integer seed of the initial mask; None (default) draws one.
        *args: As in `keras.layers.Conv2D`.
        **kwargs: As in `keras.layers.Conv2D`.

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

    keras_layer = keras.layers.Conv2D


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseConv3D(_SparseConv, keras.layers.Conv3D):
    """`keras.layers.Conv3D` whose kernel is sparse from the first step on; the bias is dense.

    The kernel is (depth, height, width, channels, filters).

    Args: see `SparseConv2D` for `sparsity`, `distribution`, `block_shape`, `n_of_m` and `mask_seed`; the
        others are those of `keras.layers.Conv3D`.

    Example:

    >>> import numpy as np
    >>> SparseConv3D(8, 3)(np.ones((2, 6, 6, 6, 4), "float32")).shape == (2, 4, 4, 4, 8)
    True
    """

    keras_layer = keras.layers.Conv3D


class _SparseConvTranspose(_SparseConvolution):
    kernel = MaskedAttribute()

    if TYPE_CHECKING:

        def __init__(
            self,
            filters: int,
            kernel_size: int | Sequence[int],
            *args: Any,
            **kwargs: Unpack[ConvTransposeOptions],
        ) -> None: ...

    def masked_shapes(self, input_shape: OpenShape) -> dict[str, OpenShape]:
        return {"kernel": (*self.kernel_size, self.filters, self.input_channels(input_shape))}


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseConv1DTranspose(_SparseConvTranspose, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` whose kernel is sparse from the first step on; the bias is dense.

    The kernel is (steps, filters, channels).

    Args: see `SparseConv2DTranspose` for `sparsity`, `distribution`, `block_shape`, `n_of_m` and `mask_seed`;
        the others are those of `keras.layers.Conv1DTranspose`.

    Example:

    >>> import numpy as np
    >>> SparseConv1DTranspose(8, 3)(np.ones((2, 5, 4), "float32")).shape == (2, 7, 8)
    True
    """

    keras_layer = keras.layers.Conv1DTranspose


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseConv2DTranspose(_SparseConvTranspose, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` whose kernel is sparse from the first step on; the bias is dense.

    The kernel (height, width, filters, channels) has filters and channels in another order than that of
    `SparseConv2D`. Blocks and patterns lie over its last two axes, as they come.

    Args:
        filters: Number of filters, the units of this layer.
        kernel_size: Height and width of the window.
        sparsity: Fraction of zeros in the kernel, in [0, 1). None (default) is 0.67, or what `n_of_m`
            fixes.
        distribution: `"uniform"` (default), `"erdos_renyi"` or `"erk"`; with one kernel they agree.
        block_shape: (filters, channels) of the blocks in which connections come and go; it must divide
            the kernel's last two axes. Default `(1, 1)`.
        n_of_m: `(n, m)` for exactly n of each m consecutive filters that read a channel at a place of the
            window, such as `(2, 4)`; it fixes the sparsity. Default None.
        mask_seed: Integer seed of the initial mask; None (default) draws one.
        *args: As in `keras.layers.Conv2DTranspose`.
        **kwargs: As in `keras.layers.Conv2DTranspose`.

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

    keras_layer = keras.layers.Conv2DTranspose


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseConv3DTranspose(_SparseConvTranspose, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` whose kernel is sparse from the first step on; the bias is dense.

    The kernel is (depth, height, width, filters, channels).

    Args: see `SparseConv2DTranspose` for `sparsity`, `distribution`, `block_shape`, `n_of_m` and `mask_seed`;
        the others are those of `keras.layers.Conv3DTranspose`.

    Example:

    >>> import numpy as np
    >>> SparseConv3DTranspose(8, 3)(np.ones((2, 2, 2, 2, 4), "float32")).shape == (2, 4, 4, 4, 8)
    True
    """

    keras_layer = keras.layers.Conv3DTranspose


class _SparseSeparableConv(_SparseConvolution):
    masked_names = {"depthwise_kernel": (), "pointwise_kernel": ()}
    depthwise_kernel = MaskedAttribute()
    pointwise_kernel = MaskedAttribute()

    if TYPE_CHECKING:

        def __init__(
            self,
            filters: int,
            kernel_size: int | Sequence[int],
            *args: Any,
            **kwargs: Unpack[SeparableConvOptions],
        ) -> None: ...

    def masked_shapes(self, input_shape: OpenShape) -> dict[str, OpenShape]:
        channels = self.input_channels(input_shape)
        window = (1,) * len(self.kernel_size)
        return {
            "depthwise_kernel": (*self.kernel_size, channels, self.depth_multiplier),
            "pointwise_kernel": (*window, channels * self.depth_multiplier, self.filters),
        }


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseSeparableConv1D(_SparseSeparableConv, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` whose two kernels are sparse from the first step on.

    Args: see `SparseSeparableConv2D` for `sparsity`, `distribution`, `block_shape`, `n_of_m` and `mask_seed`;
        the others are those of `keras.layers.SeparableConv1D`.

    Example:

    >>> import numpy as np
    >>> SparseSeparableConv1D(8, 3)(np.ones((2, 5, 4), "float32")).shape == (2, 3, 8)
    True
    """

    keras_layer = keras.layers.SeparableConv1D


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseSeparableConv2D(_SparseSeparableConv, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` whose two kernels are sparse from the first step on; the bias is dense.

    They are the depthwise kernel (height, width, channels, depth multiplier) and the pointwise kernel
    (1, 1, channels * depth multiplier, filters), which has nearly all of the weights.

    Args:
        filters: Number of filters, the units of this layer.
        kernel_size: Height and width of the window.
        sparsity: Fraction of zeros in both kernels together, in [0, 1). None (default) is 0.67, or what
            `n_of_m` fixes.
        distribution: How they share the connections: `"uniform"` (default), `"erdos_renyi"` or `"erk"`.
        block_shape: Shape over the last two axes of the blocks in which connections come and go; it must
            divide both kernels. Default `(1, 1)`.
        n_of_m: `(n, m)` for exactly n of each m consecutive input channels, such as `(2, 4)`; it fixes the
            sparsity. Default None.
        mask_seed: Integer seed of the initial masks; None (default) draws one.
        *args: As in `keras.layers.SeparableConv2D`.
        **kwargs: As in `keras.layers.SeparableConv2D`.

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

    keras_layer = keras.layers.SeparableConv2D


class _SparseDepthwiseConv(_SparseConvolution):
    kernel = MaskedAttribute()

    if TYPE_CHECKING:

        def __init__(
            self, kernel_size: int | Sequence[int], *args: Any, **kwargs: Unpack[DepthwiseConvOptions]
        ) -> None: ...

    def masked_shapes(self, input_shape: OpenShape) -> dict[str, OpenShape]:
        return {"kernel": (*self.kernel_size, self.input_channels(input_shape), self.depth_multiplier)}


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseDepthwiseConv1D(_SparseDepthwiseConv, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` whose kernel is sparse from the first step on; the bias is dense.

    The kernel is (steps, channels, depth multiplier).

    Args: see `SparseDepthwiseConv2D`; the others are those of `keras.layers.DepthwiseConv1D`.

    Example:

    >>> import numpy as np
    >>> SparseDepthwiseConv1D(3)(np.ones((2, 6, 4), "float32")).shape == (2, 4, 4)
    True
    """

    keras_layer = keras.layers.DepthwiseConv1D


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseDepthwiseConv2D(_SparseDepthwiseConv, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` whose kernel is sparse from the first step on.

    The kernel is (height, width, channels, depth multiplier): a filter reads one channel, so that a whole
    filter of zeros silences a feature map. Such a kernel is a small part of its network; sparser than the
    1x1 convolution beside it is seldom what one wants.

    Args: see `SparseConv2D` for `sparsity`, `distribution`, `block_shape` (channels, multiplier), `n_of_m`
        and `mask_seed`; the others are those of `keras.layers.DepthwiseConv2D`.

    Example:

    >>> import numpy as np
    >>> SparseDepthwiseConv2D(3)(np.ones((2, 6, 6, 4), "float32")).shape == (2, 4, 4, 4)
    True
    """

    keras_layer = keras.layers.DepthwiseConv2D
