"""What convolutions, poolings and the layers of images are in LiteRT.

A rule is a function of the `Lowering`, the operation or layer, and its arguments, as in `rules` and in
`layer_rules`.
"""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_selfish.convolutions import call_in_groups, is_in_groups
from keras_selfish.litert.parts import for_each, padding_code, pair, reshape, rules_in, spec

OPERATIONS: dict[str, Any] = {}
LAYERS: dict[Any, Any] = {}


_rule = rules_in(OPERATIONS)  # by the names of their classes
_layer_rule = rules_in(LAYERS)  # by their classes


@_rule("Conv")
def _convolution(lowering, operation, x, kernel):
    if kernel.ndim == 5:
        return _convolution_of_volumes(lowering, operation, x, kernel)
    name = getattr(kernel, "path", None) or "/".join([*lowering.path, "kernel"])
    stored = np.ascontiguousarray(np.moveaxis(_of_two_dimensions(lowering, operation, kernel), -1, 0))

    def convolve(weight):
        return _sliding(lowering, operation, "CONV_2D", x, kernel, weight)

    return lowering.matrices.convolution(lowering.graph, stored, convolve, name)


@_rule("DepthwiseConv")
def _depthwise_convolution(lowering, operation, x, kernel):
    stored = _of_two_dimensions(lowering, operation, kernel)
    weight = lowering.graph.constant(stored.reshape(1, *stored.shape[:2], -1))
    return _sliding(
        lowering, operation, "DEPTHWISE_CONV_2D", x, kernel, weight, depthMultiplier=kernel.shape[-1]
    )


@_rule("SeparableConv")
def _separable_convolution(lowering, operation, x, depthwise_kernel, pointwise_kernel):
    settings = operation.strides, operation.padding, operation.data_format, operation.dilation_rate

    def in_two(x):
        x = ops.depthwise_conv(x, depthwise_kernel, *settings)
        return ops.conv(x, pointwise_kernel, 1, "valid", operation.data_format, 1)

    return lowering.call(in_two, (x,), {})


def _of_two_dimensions(lowering, operation, kernel):
    """The kernel of a convolution of images, or of sequences as images of one row."""
    if operation.data_format != "channels_last" or kernel.ndim not in (3, 4):
        raise lowering.refusal("a convolution other than in one to three dimensions, channels last")
    kernel = np.asarray(kernel, np.float32)
    return kernel if kernel.ndim == 4 else kernel[np.newaxis]


def _sliding(lowering, operation, code, x, kernel, weight, **options):
    """A convolution; in one dimension as in two, of which the first has one row."""
    shape = operation.compute_output_spec(spec(x), spec(kernel)).shape
    down, right = pair(operation.dilation_rate, kernel.ndim - 2)
    others = [weight, lowering.constant(np.zeros(shape[-1], np.float32))]
    options |= {"dilationHFactor": down, "dilationWFactor": right}
    return _over_images(lowering, operation, code, [x, *others], operation.strides, shape, **options)


def _over_images(lowering, operation, code, inputs, strides, shape, **options):
    """An operation of LiteRT over images, or over sequences as images of one row."""
    x, *others = inputs
    rank = len(x.shape) - 2
    height, width = pair(strides, rank)
    outputs = lowering.graph.apply(
        code,
        [x if rank == 2 else reshape(lowering, x, (x.shape[0], 1, *x.shape[1:])), *others],
        shape if rank == 2 else (shape[0], 1, *shape[1:]),
        padding=padding_code(operation.padding),
        strideH=height,
        strideW=width,
        **options,
    )
    return reshape(lowering, outputs, shape)


def _convolution_of_volumes(lowering, operation, x, kernel):
    if operation.data_format != "channels_last":
        raise lowering.refusal("a convolution other than channels last")
    strides, dilations = for_each(operation.strides, 3), for_each(operation.dilation_rate, 3)
    return lowering.graph.apply(
        "CONV_3D",
        [x, lowering.constant(np.ascontiguousarray(kernel, np.float32))],
        operation.compute_output_spec(spec(x), spec(kernel)).shape,
        padding=padding_code(operation.padding),
        strideD=strides[0],
        strideH=strides[1],
        strideW=strides[2],
        dilationDFactor=dilations[0],
        dilationHFactor=dilations[1],
        dilationWFactor=dilations[2],
    )


def _pooling(code, lowering, operation, x):
    rank = len(x.shape) - 2
    if operation.data_format != "channels_last" or rank not in (1, 2):
        raise lowering.refusal("a pooling other than in one or two dimensions, channels last")
    height, width = pair(operation.pool_size, rank)
    strides = operation.strides or operation.pool_size
    shape = operation.compute_output_spec(spec(x)).shape
    options = {"filterHeight": height, "filterWidth": width}
    return _over_images(lowering, operation, code, [x], strides, shape, **options)


OPERATIONS["MaxPool"] = functools.partial(_pooling, "MAX_POOL_2D")
OPERATIONS["AveragePool"] = functools.partial(_pooling, "AVERAGE_POOL_2D")


@_rule("ConvTranspose")
def _transposed_convolution(lowering, operation, x, kernel):
    """A convolution of the inputs with zeros between them, with the kernel turned round."""
    rank = kernel.ndim - 2
    if operation.data_format != "channels_last":
        raise lowering.refusal("a transposed convolution other than channels last")
    sizes = operation.compute_output_spec(spec(x), spec(kernel)).shape[1:-1]
    strides, dilations = for_each(operation.strides, rank), for_each(operation.dilation_rate, rank)
    turned = np.swapaxes(np.flip(np.asarray(kernel), range(rank)), -1, -2)

    def spread(x):
        for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True), start=1):
            reach, size = dilation * (kernel.shape[axis - 1] - 1), sizes[axis - 1]
            x = _with_zeros_between(x, axis, stride)
            whole = x.shape[axis] + reach
            before = max(whole - size, 0) // 2 if operation.padding == "same" else 0
            x = _padded(x, axis, reach - before, size + before - whole + reach)
        return ops.conv(x, turned, 1, "valid", "channels_last", dilations)

    return lowering.call(spread, (x,), {})


def _with_zeros_between(x, axis, stride):
    """`stride - 1` zeros between the entries along an axis."""
    if stride == 1:
        return x
    shape = list(x.shape)
    x = _padded(ops.expand_dims(x, axis + 1), axis + 1, 0, stride - 1)
    shape[axis] *= stride
    x = ops.reshape(x, [-1 if size is None else size for size in shape])
    return _padded(x, axis, 0, 1 - stride)


def _padded(x, axis, before, after):
    """So many zeros along an axis, or less of it where they are fewer than none."""
    size, padding = x.shape[axis], [[0, 0] for _ in x.shape]
    kept = [slice(None)] * len(x.shape)
    kept[axis] = slice(max(-before, 0), size - max(-after, 0))
    padding[axis] = [max(before, 0), max(after, 0)]
    x = x[tuple(kept)] if kept[axis] != slice(0, size) else x
    return ops.pad(x, padding) if any(padding[axis]) else x


@_rule("Resize")
def _resize_rule(lowering, operation, x):
    return _resized(lowering, operation, x, operation.size)


def _resized(lowering, settings, x, size):
    """Images of another size, as the operation or layer says that has the settings."""
    if settings.antialias or settings.crop_to_aspect_ratio or settings.pad_to_aspect_ratio:
        raise lowering.refusal("a resize that smooths, crops or pads")
    code = {"bilinear": "RESIZE_BILINEAR", "nearest": "RESIZE_NEAREST_NEIGHBOR"}.get(settings.interpolation)
    if code is None or settings.data_format != "channels_last" or len(x.shape) != 4:
        raise lowering.refusal("a resize other than bilinear or to the nearest, of images, channels last")
    shape = (x.shape[0], *size, x.shape[-1])
    size = lowering.constant(np.array(size, np.int32))
    return lowering.graph.apply(code, [x, size], shape, halfPixelCenters=True)


# Layers


@_layer_rule(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
def _convolution_layer(lowering, layer, x):
    """`keras.ops` has no convolution in groups."""
    if is_in_groups(layer):
        return lowering.call(lambda x: call_in_groups(layer, x), (x,), {})
    return lowering.call(layer.call, (x,), {})


@_layer_rule(keras.layers.CenterCrop)
def _center_crop(lowering, layer, x):
    size = layer.height, layer.width
    above, left = ((whole - part) // 2 for whole, part in zip(x.shape[1:3], size, strict=True))
    if layer.data_format != "channels_last" or len(x.shape) != 4 or min(above, left) < 0:
        raise lowering.refusal("a crop other than of images that are large enough, channels last")
    return lowering.call(lambda x: x[:, above : above + size[0], left : left + size[1]], (x,), {})


@_layer_rule(keras.layers.Resizing)
def _resizing(lowering, layer, x):
    return _resized(lowering, layer, x, (layer.height, layer.width))


# Layers that change images in training only.
_AUGMENTATIONS = (
    "AugMix",
    "CutMix",
    "MixUp",
    "RandAugment",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomColorJitter",
    "RandomContrast",
    "RandomElasticTransform",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHue",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSaturation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
)


@_layer_rule(*(getattr(keras.layers, name) for name in _AUGMENTATIONS if hasattr(keras.layers, name)))
def _augmentation(lowering, _, x):
    return x
