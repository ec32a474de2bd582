"""Optimizers are built before a training step is traced, where it is sure that they make it."""

import keras
import numpy as np
import pytest

from keras_selfish import SNTASGD, LanguageModel, SelfishRewiring, SparseDense
from keras_selfish.backend import BACKEND
from keras_selfish.optimizers.wrappers import build_before_trace


class CountedLoss(keras.losses.Loss):
    """The mean of the outputs; counts how often Python computes it."""

    count = 0

    def call(self, y_true, y_pred):
        self.count += 1
        return keras.ops.mean(y_pred, axis=-1)


def dense_model():
    return keras.Sequential([keras.Input((4,)), SparseDense(6, sparsity=0.5), SparseDense(2, sparsity=0.5)])


def fit(model):
    rewiring = SelfishRewiring(pruning_rate=0.5, total_steps=8)
    model.fit(np.ones((8, 4)), np.ones((8, 2)), batch_size=2, epochs=2, verbose=0, callbacks=[rewiring])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's traces")
@pytest.mark.parametrize("optimizer", [lambda: SNTASGD(0.1), lambda: keras.optimizers.Adam(0.1)])
def test_rewired_step_is_traced_once(optimizer):
    model, loss = dense_model(), CountedLoss()
    model.compile(optimizer(), loss)
    fit(model)
    assert loss.count == 1


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's traces")
def test_step_of_a_language_model_is_traced_once():
    model = LanguageModel(9, 4, batch_size=2, sparsity=0.5)
    loss = CountedLoss()
    model.compile(SNTASGD(0.1), loss)
    tokens = np.ones((2, 5), "int32")
    model.fit({"tokens": tokens, "first": np.ones(2, "int32")}, tokens, batch_size=2, epochs=2, verbose=0)
    assert loss.count == 1


class Adversaries(keras.Model):
    """Two networks, each with an optimizer of its own; that of `compile` has nothing to do."""

    def __init__(self):
        inputs = keras.Input((4,))
        self.inner = dense_model()
        super().__init__(inputs, self.inner(inputs))
        self.own = SNTASGD(0.1, clip_norm_of="active")

    def train_step(self, data):
        raise AssertionError("is not called")


def test_optimizer_that_may_have_nothing_to_do_is_left_alone():
    model = Adversaries()
    model.compile()
    build_before_trace(model)
    assert not model.optimizer.built


def test_model_without_an_input_is_left_to_its_first_batch():
    model = keras.Sequential([SparseDense(6, sparsity=0.5), SparseDense(2, sparsity=0.5)])
    model.compile(SNTASGD(0.1), "mse")
    build_before_trace(model)
    assert not model.optimizer.built
    fit(model)
    assert len(model.optimizer.averages) == len(model.trainable_variables) == 4


def test_weights_that_are_frozen_before_training_are_not_trained():
    model = dense_model()
    model.compile(SNTASGD(0.1), "mse")
    model.layers[0].trainable = False
    before = [np.array(weight) for weight in model.weights]
    fit(model)
    assert len(model.optimizer.averages) == 2
    changed = [not np.array_equal(old, new) for old, new in zip(before, model.weights, strict=True)]
    assert not changed[0]
    assert any(changed)
