"""Units that are switched off leave the stripped model, and nothing changes."""

import keras
import numpy as np
import pytest

from keras_selfish import SparseDense, SwitchedDense, strip

X = np.random.default_rng(0).normal(size=(7, 6)).astype("float32")


def switched(units, activation="relu", keep=None, **arguments):
    layer = SwitchedDense(units, activation, granularity="neuron", bias_initializer="normal", **arguments)
    layer.wanted = np.ones(units, bool)
    layer.wanted[:: 2 if keep is None else 1] = False
    return layer


def set_switches(model):
    for layer in model._flatten_layers():
        if hasattr(layer, "wanted"):
            layer.set_switches(layer.wanted, np.linspace(0.5, 2, layer.units))


def check(model, units):
    """The stripped model computes the same and has these units in its dense layers."""
    set_switches(model)
    stripped = strip(model)
    np.testing.assert_allclose(stripped(X), model(X), rtol=1e-5, atol=1e-6)
    dense = [layer for layer in stripped._flatten_layers() if isinstance(layer, keras.layers.Dense)]
    assert sorted(layer.units for layer in dense) == sorted(units)
    return stripped


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", None])
def test_a_chain(activation):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            switched(10, activation),
            keras.layers.Dropout(0.5),
            switched(8, activation),
            keras.layers.Activation("tanh"),
            keras.layers.Dense(3),
        ]
    )
    stripped = check(model, [5, 4, 3])
    assert stripped.count_params() == 6 * 5 + 5 + 5 * 4 + 4 + 4 * 3 + 3


def test_two_readers():
    inputs = keras.Input((6,))
    hidden = switched(10, "sigmoid")(inputs)
    outputs = keras.layers.Concatenate()([SwitchedDense(4)(hidden), keras.layers.Dense(3)(hidden)])
    check(keras.Model(inputs, outputs), [5, 4, 3])


def test_a_layer_without_any_unit_keeps_a_silent_one():
    model = keras.Sequential([keras.Input((6,)), switched(10, "sigmoid", keep=0), keras.layers.Dense(3)])
    check(model, [1, 3])


@pytest.mark.parametrize(
    "between", ["sigmoid activation", "normalisation", "sum", "output", "shared", "sparse"]
)
def test_units_that_something_else_needs_stay(between):
    inputs = keras.Input((6,))
    layer = switched(6)
    hidden, units = layer(inputs), [6, 3]
    if between == "sigmoid activation":
        outputs = keras.layers.Dense(3)(keras.layers.Activation("sigmoid")(hidden))
    elif between == "normalisation":
        outputs = keras.layers.Dense(3)(keras.layers.LayerNormalization()(hidden))
    elif between == "sum":
        outputs = keras.layers.Dense(3)(keras.layers.Add()([hidden, inputs]))
    elif between == "output":
        outputs = [hidden, keras.layers.Dense(3)(hidden)]
        outputs = keras.layers.Concatenate()(outputs)
    elif between == "shared":
        outputs, units = keras.layers.Dense(3)(layer(hidden)), [6, 3]
    else:
        outputs = SparseDense(3, sparsity=0.5)(hidden)
    check(keras.Model(inputs, outputs), units)


def test_inside_a_nested_model():
    inner = keras.Sequential([keras.Input((6,)), switched(10), keras.layers.Dense(4)])
    check(keras.Sequential([keras.Input((6,)), inner, keras.layers.Dense(3)]), [5, 4, 3])


def test_a_unit_that_cannot_go_must_be_silent():
    model = keras.Sequential([keras.Input((6,)), switched(4, "sigmoid")])
    set_switches(model)
    with pytest.raises(ValueError, match="activation that is zero at zero"):
        strip(model)


def test_connections_are_not_taken_out():
    model = keras.Sequential([keras.Input((6,)), SwitchedDense(4), keras.layers.Dense(2)])
    model.layers[0].set_switches(np.zeros((6, 4)))
    stripped = strip(model)
    assert stripped.layers[0].units == 4
    assert not stripped.layers[0].kernel.numpy().any()
    np.testing.assert_array_equal(stripped(X), model(X))
