"""Sparse recurrent highway networks against a loop in NumPy and differences."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import SparseRHN
from keras_selfish.masks import masked_weights

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf

also_on_jax = pytest.mark.backends("tensorflow", "jax")
# JAX computes in float32 unless told otherwise when it starts.
TOLERANCE = 1e-12 if BACKEND == "tensorflow" else 1e-5

BATCH, TIME, FEATURES, UNITS, DEPTH = 3, 4, 5, 2, 3
PADDING = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def built(**options):
    """A layer in float64 with other weights than those that it starts from."""
    options = {"depth": DEPTH, "sparsity": 0.4, "mask_seed": 1, "dtype": "float64", **options}
    layer = SparseRHN(UNITS, return_sequences=True, return_state=True, **options)
    layer.build((None, None, FEATURES))
    for index, weight in enumerate(layer.trainable_weights):
        weight.assign(draw(*weight.shape, seed=index))
    for masked_weight in masked_weights(layer):
        masked_weight.project()
    return layer


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_loop(layer, sequences, initial, padding=None, seen_inputs=None, seen_states=None):
    """The published equations, a text, a time step and a depth after the other."""
    kernel, *recurrent = (ops.convert_to_numpy(weight) for weight in layer.trainable_weights)
    biases = recurrent.pop() if layer.cell.use_bias else [0.0] * layer.cell.depth
    sequence_of_states, last = [], []
    for row in range(len(sequences)):
        state, states = initial[row], []
        for time in range(sequences.shape[1]):
            if padding is None or padding[row, time]:
                for depth, bias in enumerate(biases):
                    seen = state if seen_states is None else state * seen_states[row]
                    total = seen @ recurrent[depth] + bias
                    if depth == 0:
                        x = sequences[row, time]
                        total = total + (x if seen_inputs is None else x * seen_inputs[row]) @ kernel
                    h = np.tanh(total[:UNITS])
                    t = sigmoid(total[UNITS : 2 * UNITS])
                    c = 1 - t if layer.cell.coupled else sigmoid(total[2 * UNITS :])
                    state = h * t + state * c
            states.append(state)
        sequence_of_states.append(states)
        last.append(state)
    return np.array(sequence_of_states), np.array(last)


@also_on_jax
@pytest.mark.parametrize(
    "options", [{}, {"coupled": False}, {"use_bias": False}, {"depth": 1}, {"sparsity": 0.0}], ids=str
)
@pytest.mark.parametrize("padding", [None, PADDING], ids=["plain", "padded"])
def test_equals_a_loop_in_numpy(options, padding):
    layer = built(**options)
    sequences, initial = draw(BATCH, TIME, FEATURES), draw(BATCH, UNITS)
    mask = None if padding is None else ops.convert_to_tensor(padding)
    outputs, state = layer(sequences, initial_state=[initial], mask=mask)
    expected_outputs, expected_state = numpy_loop(layer, sequences, initial, padding)
    real = np.ones((BATCH, TIME), bool) if padding is None else padding
    np.testing.assert_allclose(
        ops.convert_to_numpy(outputs)[real], expected_outputs[real], rtol=0, atol=TOLERANCE
    )
    np.testing.assert_allclose(state, expected_state, rtol=0, atol=TOLERANCE)


@also_on_jax
def test_dropout_masks_are_those_of_all_steps_and_depths(monkeypatch):
    layer = built(dropout=0.5, recurrent_dropout=0.5)
    sequences, initial = draw(BATCH, TIME, FEATURES), draw(BATCH, UNITS)
    seen_inputs = 2.0 * (draw(BATCH, FEATURES, seed=1) > 0)
    seen_states = 2.0 * (draw(BATCH, UNITS, seed=2) > 0)
    monkeypatch.setattr(layer.cell, "get_dropout_mask", lambda _: ops.convert_to_tensor(seen_inputs))
    monkeypatch.setattr(
        layer.cell, "get_recurrent_dropout_mask", lambda _: ops.convert_to_tensor(seen_states)
    )
    results = layer(sequences, initial_state=[initial], training=True)
    expected = numpy_loop(layer, sequences, initial, None, seen_inputs, seen_states)
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=0, atol=TOLERANCE)
    assert np.abs(expected[0] - numpy_loop(layer, sequences, initial)[0]).max() > 0.01


@pytest.mark.parametrize("coupled", [True, False])
def test_gradient_equals_differences(coupled, assert_gradients_are_differences):
    layer = built(coupled=coupled)
    sequences, factors = draw(BATCH, TIME, FEATURES), draw(BATCH, TIME, UNITS, seed=5)
    weights = layer.trainable_weights

    def loss():
        return tf.reduce_sum(layer(sequences, mask=tf.constant(PADDING))[0] * factors)

    assert_gradients_are_differences(loss, weights)


@also_on_jax
def test_weights_and_their_first_values():
    layer = SparseRHN(4, depth=2, coupled=False, sparsity=0.5, bias_initializer="ones", transform_bias=-3)
    layer.build((None, None, 6))
    assert [weight.name for weight in layer.trainable_weights] == [
        "kernel",
        "recurrent_kernel_0",
        "recurrent_kernel_1",
        "bias",
    ]
    weights = masked_weights(layer)
    assert [(weight.shape, weight.active) for weight in weights] == [
        ((6, 12), 36),
        ((4, 12), 24),
        ((4, 12), 24),
    ]
    assert {weight.gates for weight in weights} == {("h", "t", "c")}
    np.testing.assert_array_equal(layer.cell.bias, [[1] * 4 + [-3] * 4 + [1] * 4] * 2)
    coupled = SparseRHN(4, transform_bias=None, bias_initializer="ones")
    coupled.build((None, None, 6))
    np.testing.assert_array_equal(coupled.cell.bias, np.ones((10, 8)))


@also_on_jax
def test_a_transform_gate_that_is_shut_carries_the_state():
    layer = SparseRHN(4, depth=10, sparsity=0, transform_bias=-40.0)
    state = draw(BATCH, 4).astype("float32")
    np.testing.assert_allclose(
        layer(draw(BATCH, TIME, FEATURES).astype("float32"), initial_state=[state]), state, atol=1e-6
    )


@pytest.mark.parametrize("depth", [0, -1, 2.0, True, None])
def test_bad_depths(depth):
    with pytest.raises(ValueError, match=rf"`depth` must be a positive integer\. Received: depth={depth}"):
        SparseRHN(4, depth=depth)
