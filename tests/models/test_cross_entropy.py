"""The cross-entropy of tokens against Keras's and by hand."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_selfish import TokenCrossEntropy
from keras_selfish.models.cross_entropy import cross_entropy
from keras_selfish.models.cross_entropy_tensorflow import SMALLEST_COMPILED


@hypothesis.given(
    seed=st.integers(0, 1000), batch=st.integers(1, 4), time=st.integers(1, 5), size=st.integers(2, 30)
)
@hypothesis.settings(max_examples=15)
def test_losses_and_gradients_are_keras_own(seed, batch, time, size):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, size, (batch, time))
    logits = tf.constant(rng.normal(scale=5, size=(batch, time, size)), "float32")
    results = []
    for loss in (TokenCrossEntropy(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(targets, logits)
        results.append((value.numpy(), tape.gradient(value, logits).numpy()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-7)


def test_by_hand():
    """softmax([0, log 3]) = (1/4, 3/4); the gradient is the probabilities less the one of the target."""
    logits = tf.constant([[0.0, np.log(3.0)]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = cross_entropy(tf.constant([0]), logits)
    assert losses.numpy() == pytest.approx([np.log(4.0)], rel=1e-6)
    np.testing.assert_allclose(tape.gradient(losses, logits), [[-0.75, 0.75]], rtol=1e-6)


def test_a_target_whose_probability_underflows():
    losses = cross_entropy(tf.constant([0]), tf.constant([[-500.0, 0.0, 0.0]]))
    assert losses.numpy() == pytest.approx([500.0 + np.log(2.0)], rel=1e-6)


def test_a_loss_that_is_no_number_shows():
    assert np.isnan(float(TokenCrossEntropy()([[0]], [[[np.nan, 0.0]]])))


@pytest.mark.parametrize("size", [7, SMALLEST_COMPILED])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2), ("float64", 1e-12)])
def test_dynamic_shapes_in_a_graph(size, dtype, tolerance):
    """Losses and gradients are those of the softmax in float64, also where XLA compiles them."""

    @tf.function(
        input_signature=[tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None, size), dtype)]
    )
    def graph(targets, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = cross_entropy(targets, logits)
        return losses, tape.gradient(losses, logits)

    rng = np.random.default_rng(0)
    for time in (2, 3):
        targets = rng.integers(0, size, (2, time)).astype("int32")
        logits = tf.cast(rng.normal(size=(2, time, size), scale=3), dtype)
        exponentials = np.exp(logits.numpy().astype("float64"))
        probabilities = exponentials / exponentials.sum(-1, keepdims=True)
        of_target = np.take_along_axis(probabilities, targets[..., None], -1)[..., 0]
        losses, gradient = graph(targets, logits)
        assert losses.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(losses.numpy().astype("float64"), -np.log(of_target), rtol=tolerance)
        np.testing.assert_allclose(
            gradient.numpy().astype("float64"),
            probabilities - (np.arange(size) == targets[..., None]),
            rtol=2 * tolerance,
            atol=1e-7 if dtype == "float32" else 0.002 if dtype == "bfloat16" else 1e-15,
        )


def test_config():
    loss = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(TokenCrossEntropy("sum"))
    )
    assert loss.reduction == "sum"
