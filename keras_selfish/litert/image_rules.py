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
from keras_selfish.litert.parts import Exact, for_each, in_dtype, padding_code, pair, reshape, rules_in, spec

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
    if operation.data_format != "channels_last":
        raise lowering.refusal("a pooling other than channels last")
    strides = operation.strides or operation.pool_size
    if rank == 3:
        pool = ops.max_pool if code == "MAX_POOL_2D" else ops.average_pool
        settings = for_each(operation.pool_size, 3), for_each(strides, 3), operation.padding
        return lowering.call(lambda x: _pool_volumes(x, pool, *settings), (x,), {})
    height, width = pair(operation.pool_size, rank)
    shape = operation.compute_output_spec(spec(x)).shape
    options = {"filterHeight": height, "filterWidth": width}
    return _over_images(lowering, operation, code, [x], strides, shape, **options)


def _pool_volumes(x, pool, size, strides, padding):
    """Each slice as an image, then what is left of a column of slices as a row of an image."""
    depth, channels = x.shape[1], x.shape[-1]
    x = pool(ops.reshape(x, (-1, *x.shape[2:])), size[1:], strides[1:], padding, "channels_last")
    sides = x.shape[1:3]
    x = ops.reshape(x, (-1, depth, sides[0] * sides[1], channels))
    x = pool(x, (size[0], 1), (strides[0], 1), padding, "channels_last")
    return ops.reshape(x, (-1, x.shape[1], *sides, channels))


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
    if settings.crop_to_aspect_ratio or settings.pad_to_aspect_ratio:
        raise lowering.refusal("a resize that crops or pads")
    if settings.data_format != "channels_last" or len(x.shape) != 4:
        raise lowering.refusal("a resize other than of images, channels last")
    code = {"bilinear": "RESIZE_BILINEAR", "nearest": "RESIZE_NEAREST_NEIGHBOR"}.get(settings.interpolation)
    if code is None or settings.antialias:
        return _resized_by_products(lowering, settings, x, size)
    shape = (x.shape[0], *size, x.shape[-1])
    size = lowering.constant(np.array(size, np.int32))
    return lowering.graph.apply(code, [x, size], shape, halfPixelCenters=True)


def _resized_by_products(lowering, settings, x, size):
    """By a matrix for each of the two axes: what Keras makes of an image of one column a row."""

    def matrix(before, after):
        columns = np.eye(before, dtype="float32").reshape(1, before, 1, before)
        how = {"interpolation": settings.interpolation, "antialias": settings.antialias}
        columns = ops.image.resize(columns, (after, 1), data_format="channels_last", **how)
        return Exact(ops.convert_to_numpy(columns).reshape(after, before).T)

    rows, columns = (matrix(*sizes) for sizes in zip(x.shape[1:3], size, strict=True))

    def resize(x):
        x = ops.moveaxis(ops.matmul(ops.moveaxis(x, 1, -1), rows), -1, 1)
        return ops.moveaxis(ops.matmul(ops.moveaxis(x, 2, -1), columns), -1, 2)

    return lowering.call(resize, (in_dtype(lowering, x, "float32"),), {})


# Pieces of images


@_rule("DepthToSpace", "SpaceToDepth")
def _depth_or_space(lowering, operation, x):
    if operation.data_format != "channels_last":
        raise lowering.refusal("a change of depth and space other than channels last")
    code = "DEPTH_TO_SPACE" if type(operation).__name__ == "DepthToSpace" else "SPACE_TO_DEPTH"
    shape = operation.compute_output_spec(spec(x)).shape
    return lowering.graph.apply(code, [x], shape, dtype=x.dtype, blockSize=operation.block_size)


@_rule("ExtractPatches")
def _patches(lowering, operation, x):
    """The entries of each patch side by side: by their places if no patches overlap, else by strides."""
    if operation.data_format != "channels_last" or len(x.shape) != 4 or len(operation.size) != 2:
        raise lowering.refusal("patches other than of images, channels last")
    size = tuple(operation.size)
    strides, dilations = pair(operation.strides, 2), pair(operation.dilation_rate, 2)
    shape = operation.compute_output_spec(spec(x)).shape
    reach = [(part - 1) * dilation + 1 for part, dilation in zip(size, dilations, strict=True)]
    needed = [
        (count - 1) * stride + far for count, stride, far in zip(shape[1:3], strides, reach, strict=True)
    ]

    def extract(x):
        for axis, whole in enumerate(needed, start=1):
            missing = max(whole - x.shape[axis], 0)
            x = _padded(x, axis, missing // 2, missing - missing // 2)
        if tuple(strides) == size and reach == list(size):
            (rows, columns), channels = shape[1:3], x.shape[-1]
            x = x[:, : needed[0], : needed[1]]
            x = ops.reshape(x, (-1, rows, size[0], columns, size[1] * channels))
            return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4)), (-1, rows, columns, shape[-1]))
        parts = []
        for place in np.ndindex(size):
            begin = [at * dilation for at, dilation in zip(place, dilations, strict=True)]
            rows, columns = (
                slice(first, first + (count - 1) * stride + 1, stride)
                for first, count, stride in zip(begin, shape[1:3], strides, strict=True)
            )
            parts.append(x[:, rows, columns])
        return ops.concatenate(parts, axis=-1)

    return lowering.call(extract, (x,), {})


@_rule("RGBToGrayscale")
def _gray(lowering, operation, x):
    if operation.data_format != "channels_last":
        raise lowering.refusal("a change of colours other than channels last")
    if x.shape[-1] == 1:
        return x
    weights = Exact([[0.2989], [0.587], [0.114]])
    return lowering.call(lambda x: ops.matmul(x, weights), (x,), {})


@_rule("PadImages")
def _padded_images(lowering, operation, x):
    amounts = _around(lowering, operation, x, "padding", 1)
    return lowering.call(lambda x: ops.pad(x, [(0, 0), *amounts, (0, 0)]), (x,), {})


@_rule("CropImages")
def _cropped_images(lowering, operation, x):
    (top, bottom), (left, right) = _around(lowering, operation, x, "cropping", -1)
    height, width = x.shape[1:3]
    return lowering.call(lambda x: x[:, top : height - bottom, left : width - right], (x,), {})


def _around(lowering, operation, x, what, sign):
    """How much is added or cut at both ends of the height and of the width."""
    if operation.data_format != "channels_last" or len(x.shape) != 4:
        raise lowering.refusal("a change of the size other than of images, channels last")
    found = []
    for axis, target, ends in (
        (1, operation.target_height, ("top", "bottom")),
        (2, operation.target_width, ("left", "right")),
    ):
        first, last = (getattr(operation, f"{end}_{what}") for end in ends)
        change = None if target is None else sign * (target - x.shape[axis])
        first = change - last if first is None else first
        found.append((first, change - first if last is None else last))
    return found


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
