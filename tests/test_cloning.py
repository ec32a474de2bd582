"""Models whose layers call functions, and consist of classes, that no config can describe."""

import gc
import json

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_selfish import WeightDrop, sparsify, strip
from keras_selfish.cloning import config_of, from_config
from keras_selfish.layers import SparseLSTM, SparseRHN

FACTOR = 3.0


def wave(x):
    return ops.sin(x) * FACTOR


def tanh(x):
    """Not Keras's, though of its name."""
    return ops.cos(x)


def scaled_by(factor):
    return lambda x: x * factor


def drawn(shape, dtype=None):
    return ops.full(shape, 0.1 * FACTOR, dtype)


def block():
    return keras.Sequential([keras.Input((6,)), layers.Dense(6, activation=lambda x: ops.sin(x) * FACTOR)])


class Cell(layers.Layer):
    """A recurrent cell that is not registered."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1] + self.units, self.units))

    def call(self, inputs, states):
        output = ops.tanh(ops.concatenate([inputs, states[0]], -1) @ self.kernel)
        return output, [output]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Centred(keras.constraints.Constraint):
    def __call__(self, weights):
        return weights - ops.mean(weights)


@keras.saving.register_keras_serializable("tests_cloning")
class Described(keras.Model):
    """A Functional model whose config does not list its layers."""

    def __init__(self, units, **kwargs):
        inputs = keras.Input((6,))
        super().__init__(inputs, layers.Dense(units, activation="relu")(inputs), **kwargs)
        self.units = units

    def get_config(self):
        return {"units": self.units}


class Halved(layers.Layer):
    def call(self, inputs):
        return inputs / 2

    def compute_output_shape(self, input_shape):
        return input_shape


class Holder(layers.Layer):
    """Shows a layer in its config under another name than it has as an attribute."""

    def __init__(self, held, **kwargs):
        super().__init__(**kwargs)
        self.inner = held

    def call(self, inputs):
        return self.inner(inputs)

    def get_config(self):
        return {**super().get_config(), "held": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("held")), **config)


LAYERS = {
    "a name of the program": lambda: layers.Lambda(lambda x: ops.sin(x) * FACTOR),
    "a function of the program": lambda: layers.Lambda(wave),
    "a function of Keras": lambda: layers.Lambda(ops.sin),
    "a closure": lambda: layers.Lambda(scaled_by(2.0)),
    "its shape": lambda: layers.Lambda(wave, output_shape=lambda shape: shape),
    "its arguments": lambda: layers.Lambda(lambda x, by: ops.sin(x) * by, arguments={"by": 2.0}),
    "an activation": lambda: layers.Dense(6, activation=wave),
    "one of a known name": lambda: layers.Dense(6, activation=tanh),
    "a layer": lambda: layers.Activation(lambda x: ops.sin(x) * FACTOR),
    "an initializer": lambda: layers.Dense(6, kernel_initializer=drawn),
    "a regularizer": lambda: layers.Dense(6, kernel_regularizer=lambda w: 0.0),
    "within a wrapper": lambda: layers.TimeDistributed(layers.Lambda(wave)),
    "within a model within a wrapper": lambda: layers.TimeDistributed(block()),
    "within a model that describes itself": lambda: layers.TimeDistributed(Described(6)),
    "within cells": lambda: layers.RNN(
        [layers.LSTMCell(6, activation=wave), layers.GRUCell(6)], return_sequences=True
    ),
    "a cell": lambda: layers.RNN(Cell(6), return_sequences=True),
    "a cell among others": lambda: layers.RNN([layers.GRUCell(3), Cell(6)], return_sequences=True),
    "a layer within a wrapper": lambda: layers.TimeDistributed(Halved()),
    "a constraint": lambda: layers.Dense(6, kernel_constraint=Centred()),
    "a constraint of a sparse layer": lambda: SparseRHN(
        6, kernel_constraint=Centred(), return_sequences=True
    ),
    "a sparse layer": lambda: SparseLSTM(6, activation=wave, return_sequences=True),
    "a hoisted sparse layer": lambda: SparseRHN(6, activation=wave, return_sequences=True),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.backends("tensorflow", "jax")
def test_copies_call_the_same_functions(name, since_keras):
    if name == "a regularizer":
        since_keras("3.15")
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")

    def model_of(last):
        return keras.Sequential([keras.Input((5, 6)), LAYERS[name](), last])

    model = model_of(SparseLSTM(4, sparsity=0.5))
    np.testing.assert_allclose(strip(model)(x), model(x), atol=1e-6)
    dense = model_of(layers.LSTM(4))
    np.testing.assert_allclose(sparsify(dense, sparsity=0.0)(x), dense(x), atol=1e-6)


def test_a_scope_around_a_copy_is_seen_within():
    """Of a class that Keras makes anew by its name, and a function as well."""
    held = [Holder(Halved(name="halved")), layers.Dense(6, activation=wave), SparseLSTM(4)]
    model = keras.Sequential([keras.Input((5, 6)), *held])
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    with keras.saving.custom_object_scope({"Halved": Halved}):
        stripped = strip(model)
    np.testing.assert_allclose(stripped(x), model(x), atol=1e-6)


def test_weight_drop_keeps_an_activation():
    dropped = WeightDrop(layers.LSTM(4, activation=wave), 0.5)
    assert dropped.weight_drop == 0.5
    assert dropped.activation is wave


def test_a_config_names_only_what_cannot_be_described():
    """All else stands in it as Keras writes it, and no function that is gone is kept."""
    layer = layers.Dense(4, activation="relu", kernel_regularizer="l2")
    assert config_of(layer) == layer.get_config()
    config = config_of(layers.Dense(4, activation=lambda x: x + 1))
    json.dumps(config)
    gc.collect()
    with pytest.raises(TypeError, match="Could not locate function"):
        from_config(layers.Dense, config)
