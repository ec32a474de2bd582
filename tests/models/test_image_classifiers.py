"""The published networks: their sizes, and that any dense layer fits in."""

import functools

import keras
import numpy as np
import pytest

from keras_selfish import SparseDense, SwitchedDense, image_classifier
from keras_selfish.models import NETWORKS

# Trainable parameters as published: LeNets in papers on pruning, the others in the well-known CIFAR forms.
PARAMETERS = {
    "lenet_300_100": 266_610,
    "lenet_5": 431_080,
    "vgg_16": 15_253_578,
    "resnet_18": 11_173_962,
    "resnet_34": 21_282_122,
    "mobilenet": 3_217_226,
}


def shape_of(network):
    return (28, 28, 1) if network.startswith("lenet") else (32, 32, 3)


@pytest.mark.parametrize("network", NETWORKS)
def test_number_of_parameters_is_the_published_one(network):
    model = image_classifier(network, shape_of(network), 10)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == PARAMETERS[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_forward_pass_of_a_narrow_network_with_switched_layers(network):
    model = image_classifier(network, shape_of(network), 7, SwitchedDense, width=0.05)
    logits = keras.ops.convert_to_numpy(model(np.full((2, *shape_of(network)), 255, "uint8")))
    assert logits.shape == (2, 7)
    assert np.isfinite(logits).all()
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert all(type(layer) is SwitchedDense for layer in dense)
    assert dense[-1].units == 7


def test_moving_statistics_follow_within_tens_of_steps():
    model = image_classifier("mobilenet", (8, 8, 3), 7, width=0.1)
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    beginning = keras.Model(model.inputs, [first.input, first.output])
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype("uint8")
    for _ in range(40):
        features, _ = beginning(images, training=True)
    variance = np.var(features, (0, 1, 2))
    assert abs(variance - 1).min() > 0.5  # where it begins
    np.testing.assert_allclose(first.moving_variance, variance, rtol=0, atol=0.02)


def test_hidden_and_last_layers_may_differ():
    hidden = functools.partial(SparseDense, sparsity=0.9)
    model = image_classifier("lenet_5", (28, 28, 1), 10, hidden, keras.layers.Dense)
    assert [type(layer).__name__ for layer in model.layers[-2:]] == ["SparseDense", "Dense"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("alexnet", (28, 28, 1), 10),
            "`network` must be one of lenet_300_100, .* Received: network='alexnet'",
        ),
        (
            ("lenet_5", (8, 8, 1), 10),
            r"`input_shape` must be .* at least 16 for lenet_5. Received: .*\(8, 8, 1\)",
        ),
        (("lenet_5", (28, 28, 1), 10, SwitchedDense, None, 0.0), "`width` must be a number over 0"),
        (("lenet_5", (28, 28, 1), 10, SwitchedDense, None, float("inf")), "`width` must be a number over 0"),
        (
            ("lenet_300_100", (28, 28, 1), 10, SwitchedDense, None, 1e6),
            r"`width` must fit .* take [\d,.]+ T",
        ),
        (("resnet_18", (32, 32, 3), 10, SwitchedDense, None, 1e4), "`width` must fit into memory"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_classifier(*arguments)
