"""A dense layer with switches set by hand; how they are decided is tested with the switcher."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import SwitchedDense, masked_weights
from keras_selfish.analysis import report

pytestmark = pytest.mark.backends("tensorflow", "jax")

X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")


def make(granularity="connection", **arguments):
    model = keras.Sequential(
        [keras.Input((6,)), SwitchedDense(4, bias_initializer="normal", granularity=granularity, **arguments)]
    )
    return model, model.layers[0]


@pytest.mark.parametrize("granularity", ["connection", "neuron"])
@pytest.mark.parametrize(
    "arguments", [{}, {"activation": "tanh"}, {"use_bias": False}, {"dtype": "mixed_bfloat16"}]
)
def test_alone_it_is_its_parent(granularity, arguments):
    _, layer = make(granularity, **arguments)
    parent = keras.layers.Dense(4, **arguments)
    parent.build((None, 6))
    parent.set_weights(layer.get_weights()[: len(parent.weights)])
    ours, theirs = (ops.convert_to_numpy(ops.cast(one(X), "float32")) for one in (layer, parent))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_output_is_that_of_a_loop(activation):
    generator = np.random.default_rng(1)
    act = {"relu": lambda v: max(v, 0.0), "sigmoid": lambda v: 1 / (1 + np.exp(-v))}[activation]
    mask, on, scale = generator.uniform(size=(6, 4)) < 0.5, np.array([1, 0, 1, 1]), np.array([0.5, 1, 2, 1.5])
    _, connections = make(activation=activation)
    _, units = make("neuron", activation=activation)
    connections.set_switches(mask)
    units.set_switches(on, scale)
    for layer in (connections, units):
        kernel, bias = ops.convert_to_numpy(layer.kernel), ops.convert_to_numpy(layer.bias)
        expected = np.empty((5, 4))
        for n, j in np.ndindex(5, 4):
            if layer is connections:
                expected[n, j] = act(sum(X[n, i] * kernel[i, j] * mask[i, j] for i in range(6)) + bias[j])
            else:
                expected[n, j] = on[j] * act(
                    scale[j] * (sum(X[n, i] * kernel[i, j] for i in range(6)) + bias[j])
                )
        np.testing.assert_allclose(ops.convert_to_numpy(layer(X)), expected, rtol=1e-5, atol=1e-6)


def test_a_connection_that_is_off_keeps_its_weight_until_it_is_frozen():
    model, layer = make()
    kernel = ops.convert_to_numpy(layer.kernel)
    mask = np.zeros((6, 4), bool)
    mask[2] = True
    layer.set_switches(mask)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.kernel), kernel)
    before = ops.convert_to_numpy(layer(X))
    layer.freeze()
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.kernel), kernel * mask)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(X)), before)
    assert report(model).weights[0].non_zeros == masked_weights(model)[0].active == 4


@pytest.mark.parametrize("granularity", ["connection", "neuron"])
def test_save_and_load(granularity, tmp_path):
    model, layer = make(granularity)
    layer.set_switches(
        np.arange(4) % 2 == 0 if granularity == "neuron" else np.arange(24).reshape(6, 4) % 3 == 0
    )
    if granularity == "neuron":
        layer.scale.assign([0.5, 1, 2, 3])
    layer.freeze()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].get_config() == layer.get_config()
    assert loaded.layers[0].frozen
    np.testing.assert_array_equal(*(one.predict(X, verbose=0) for one in (model, loaded)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SwitchedDense(3, granularity="layer"), "`granularity` must be one of connection, neuron"),
        (lambda: SwitchedDense(3, lora_rank=2), "`lora_rank` and `quantization_config` must be None"),
        (lambda: SwitchedDense(3, "softmax", granularity="neuron"), "`activation` must be elementwise"),
        (lambda: make()[1].set_switches(np.ones((4, 6))), r"`mask` must have shape \(6, 4\)"),
        (lambda: make()[1].set_switches(np.ones((6, 4)), np.ones(4)), "`scale` must be None"),
        (lambda: make()[1].enable_lora(2), "low-rank product"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
