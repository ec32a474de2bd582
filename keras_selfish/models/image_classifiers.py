"""The networks of the published experiments on images, with dense layers of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import keras

from keras_selfish import checks
from keras_selfish.models.memory import check_bytes

__all__ = ["NETWORKS", "image_classifier"]

VGG_16 = (64, 64, "pool", 128, 128, "pool", *[256] * 3, "pool", *[512] * 3, "pool", *[512] * 3, "pool")
# Filters and stride of each block.
MOBILENET = (
    *[(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)],
    *[(512, 1)] * 5,
    *[(1024, 2), (1024, 1)],
)


def image_classifier(
    network: Literal["lenet_300_100", "lenet_5", "vgg_16", "resnet_18", "resnet_34", "mobilenet"],
    input_shape: Sequence[int],
    classes: int,
    dense: Callable[..., keras.Layer] = keras.layers.Dense,
    output_dense: Callable[..., keras.Layer] | None = None,
    width: float = 1.0,
    name: str | None = None,
) -> keras.Model:
    """A network for small images, whose fully connected layers are made by a function of your choice.

    The forms are those for MNIST and CIFAR: LeNet-300-100 and LeNet-5 with 20 and 50 filters (LeCun et al.
    1998, as used in papers on pruning); VGG-16 with batch normalisation and two hidden layers of 512
    units; ResNet-18, ResNet-34 and MobileNet that begin with a 3 × 3 convolution of stride 1. Pixels are
    whole numbers up to 255, as in the files; the model scales them.

    Args:
        network: `"lenet_300_100"`, `"lenet_5"`, `"vgg_16"`, `"resnet_18"`, `"resnet_34"` or `"mobilenet"`.
        input_shape: (height, width, channels) of an image.
        classes: Number of classes.
        dense: Makes a hidden fully connected layer from its units, `activation` and `name`, such as
            `SwitchedDense`. Default `keras.layers.Dense`.
        output_dense: The same for the last layer, which has no activation; None (default) for `dense`.
        width: Factor of all numbers of filters and hidden units, rounded. Default 1.0.
        name: Name of the model; None (default) for `network`.

    Returns:
        A Functional `keras.Model` from images (batch, *input_shape) to logits (batch, classes).

    Raises:
        ValueError: for an unknown network, a width that is not over 0 or needs more memory than there is, or
            images that are too small.

    Example:

    >>> model = image_classifier("lenet_300_100", (28, 28, 1), classes=10)
    >>> model.count_params()
    266610

    Reference: LeCun et al. 1998; Simonyan and Zisserman 2014, arXiv 1409.1556; He et al. 2015, arXiv
    1512.03385; Howard et al. 2017, arXiv 1704.04861.
    """
    checks.one_of("network", network, NETWORKS)
    checks.number("width", width, "(0, inf)")
    build, smallest = NETWORKS[network]
    if len(input_shape) != 3 or min(input_shape[:2]) < smallest:
        raise ValueError(
            f"`input_shape` must be (height, width, channels) with sides of at least {smallest} for "
            f"{network}. Received: input_shape={tuple(input_shape)}"
        )

    if width > 4:  # all of these networks are small up to there
        with keras.StatelessScope(initialize_variables=False):  # variables of a shape, without values
            weights = _build(build, input_shape, classes, keras.layers.Dense, None, width).weights
            needed = sum(4 * math.prod(weight.shape) for weight in weights)
        check_bytes(needed, "`width`", f"width={width}")
    return _build(build, input_shape, classes, dense, output_dense, width, name or network)


def _build(build, input_shape, classes, dense, output_dense, width, name=None):
    def scaled(number):
        return max(1, round(number * width))

    inputs = keras.Input(input_shape, name="images")
    features = keras.layers.Rescaling(1 / 255, name="rescaling")(inputs)
    features = build(features, dense, scaled)
    outputs = (output_dense or dense)(classes, activation=None, name="logits")(features)
    return keras.Model(inputs, outputs, name=name)


def _lenet_300_100(features, dense, scaled):
    features = keras.layers.Flatten()(features)
    for index, units in enumerate((300, 100)):
        features = dense(scaled(units), activation="relu", name=f"dense_{index}")(features)
    return features


def _lenet_5(features, dense, scaled):
    for filters in (20, 50):
        features = keras.layers.Conv2D(scaled(filters), 5)(features)
        features = keras.layers.MaxPooling2D()(features)
    features = keras.layers.Flatten()(features)
    return dense(scaled(500), activation="relu", name="dense_0")(features)


def _vgg_16(features, dense, scaled):
    for filters in VGG_16:
        if filters == "pool":
            features = keras.layers.MaxPooling2D()(features)
        else:
            features = _normalised(keras.layers.Conv2D(scaled(filters), 3, padding="same"), features)
    features = keras.layers.Flatten()(features)
    for index in range(2):
        features = keras.layers.Dropout(0.5)(features)
        features = dense(scaled(512), activation="relu", name=f"dense_{index}")(features)
    return features


def _resnet(blocks):
    def build(features, dense, scaled):
        features = _normalised(_convolution(scaled(64)), features)
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage and not block else 1
                features = _residual(features, scaled(64 * 2**stage), stride)
        return keras.layers.GlobalAveragePooling2D()(features)

    return build


def _residual(features, filters, stride):
    shortcut = features
    if stride > 1 or features.shape[-1] != filters:
        shortcut = _normalised(_convolution(filters, 1, stride), features, activation=False)
    features = _normalised(_convolution(filters, 3, stride), features)
    features = _normalised(_convolution(filters), features, activation=False)
    return keras.layers.ReLU()(keras.layers.Add()([features, shortcut]))


def _mobilenet(features, dense, scaled):
    features = _normalised(_convolution(scaled(32)), features)
    for filters, stride in MOBILENET:
        depthwise = keras.layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)
        features = _normalised(depthwise, features)
        features = _normalised(_convolution(scaled(filters), 1), features)
    return keras.layers.GlobalAveragePooling2D()(features)


def _convolution(filters, size=3, stride=1):
    return keras.layers.Conv2D(filters, size, stride, padding="same", use_bias=False)


def _normalised(layer, features, activation=True):
    # With Keras's 0.99 moving variances are hundreds of steps behind, and in a deep chain that multiplies.
    features = keras.layers.BatchNormalization(momentum=0.9)(layer(features))
    return keras.layers.ReLU()(features) if activation else features


# How each is built, and the smallest side of an image that it takes.
NETWORKS = {
    "lenet_300_100": (_lenet_300_100, 1),
    "lenet_5": (_lenet_5, 16),
    "vgg_16": (_vgg_16, 32),
    "resnet_18": (_resnet((2, 2, 2, 2)), 8),
    "resnet_34": (_resnet((3, 4, 6, 3)), 8),
    "mobilenet": (_mobilenet, 8),
}
