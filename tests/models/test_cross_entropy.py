"""The cross-entropy of tokens against Keras's and by hand."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_selfish import TokenCrossEntropy
from keras_selfish.models.cross_entropy import cross_entropy


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


def test_dynamic_shapes_in_a_graph():
    signature = [tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None, 7), tf.float32)]
    graph = tf.function(cross_entropy, input_signature=signature)
    rng = np.random.default_rng(0)
    for time in (2, 3):
        targets, logits = rng.integers(0, 7, (2, time)), rng.normal(size=(2, time, 7)).astype("float32")
        expected = keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
        np.testing.assert_allclose(graph(targets.astype("int32"), logits), expected, rtol=1e-5)


def test_config():
    loss = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(TokenCrossEntropy("sum"))
    )
    assert loss.reduction == "sum"
