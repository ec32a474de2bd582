"""Binary switches and the gradients that pass them."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish.switcher.estimators import binary


def gradient(function, values):
    """The gradient of the sum of function(values), on any backend, by an optimizer's step of one."""
    variable = keras.Variable(np.asarray(values, "float32"))

    class Sum(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.values = variable

        def call(self, inputs):
            return inputs * ops.sum(function(ops.convert_to_tensor(self.values)))

    before = ops.convert_to_numpy(variable)
    model = keras.Sequential([keras.Input((1,)), Sum()])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: p)
    model.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))
    return before - ops.convert_to_numpy(variable)


@pytest.mark.backends("tensorflow", "jax")
def test_straight_through_by_hand():
    logits = np.array([-2.0, -0.1, 0.0, 0.1, 3.0], "float32")
    np.testing.assert_array_equal(
        ops.convert_to_numpy(binary(ops.convert_to_tensor(logits))), [0, 0, 0, 1, 1]
    )
    sigmoid = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(gradient(binary, logits), sigmoid * (1 - sigmoid), rtol=1e-5, atol=1e-7)


@pytest.mark.backends("tensorflow", "jax")
def test_hard_concrete_by_hand():
    logits = np.array([-3.0, -0.2, 0.2, 1.0, 6.0], "float32")
    noise = np.array([0.5, 0.7, 0.2, 0.6, 0.5], "float32")
    gates = [
        1 / (1 + np.exp(-(np.log(u / (1 - u)) + logit) / (2 / 3)))
        for u, logit in zip(noise, logits, strict=True)
    ]
    stretched = np.array(gates) * 1.2 - 0.1
    drawn = binary(ops.convert_to_tensor(logits), ops.convert_to_tensor(noise))
    np.testing.assert_array_equal(ops.convert_to_numpy(drawn), np.clip(stretched, 0, 1) > 0.5)
    inside = (stretched > 0) & (stretched < 1)
    expected = np.where(inside, 1.2 * np.array(gates) * (1 - np.array(gates)) * 1.5, 0)
    assert 0 < inside.sum() < 5
    np.testing.assert_allclose(gradient(lambda v: binary(v, noise), logits), expected, rtol=1e-4, atol=1e-6)


def test_hard_concrete_is_open_as_often_as_its_logit_says():
    noise = np.random.default_rng(0).uniform(size=20_000).astype("float32")
    is_open = ops.convert_to_numpy(binary(ops.full((20_000,), 0.7), ops.convert_to_tensor(noise)))
    # The gate is over one half where logistic noise is over minus the logit.
    assert is_open.mean() == pytest.approx(1 / (1 + np.exp(-0.7)), abs=0.01)
