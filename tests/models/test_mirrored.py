"""The whole method under `MirroredStrategy`: two devices must do what one does."""

import keras
import numpy as np
import pytest

from keras_selfish import (
    SNTASGD,
    LanguageModel,
    NonMonotonicAveraging,
    Perplexity,
    SelfishRewiring,
    masked_weights,
)
from keras_selfish.data import Windows
from keras_selfish.rewiring.gradients import DenseGradients

COLUMNS, UNITS, EPOCHS = 4, 16, 4
TOKENS = np.random.default_rng(0).integers(0, 30, COLUMNS * 52)
VALIDATION = np.random.default_rng(1).integers(0, 30, COLUMNS * 24)


def make_model(replicas):
    model = LanguageModel(30, UNITS, layers=1, dropout=0.0, batch_size=COLUMNS // replicas, seed=3)
    model.compile(
        SNTASGD(5.0, global_clipnorm=0.25, weight_decay=1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[Perplexity()],
    )
    return model


def train(model):
    """Random text cannot be learnt, so validation gets worse and averaging begins."""
    return model.fit(
        Windows(TOKENS, COLUMNS, 7).dataset(),
        validation_data=Windows(VALIDATION, COLUMNS, 7).dataset(),
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[
            SelfishRewiring(pruning_rate=0.5, seed=7),
            NonMonotonicAveraging(monitor="val_perplexity", patience=1),
        ],
    ).history


@pytest.fixture(scope="module")
def both(two_replicas):
    """One model trained on one device, one on two; their histories."""
    single = make_model(1)
    with two_replicas.scope():
        mirrored = make_model(2)
    return single, mirrored, train(single), train(mirrored)


def replicas(variable):
    """The values of a variable on each replica."""
    return [keras.ops.convert_to_numpy(value) for value in variable.value.values]


def test_same_loss_curve(both):
    *_, single, mirrored = both
    for name in ("loss", "perplexity", "val_loss", "val_perplexity", "sparsity"):
        assert mirrored[name] == pytest.approx(single[name], rel=1e-4), name


def test_same_masks_weights_and_averages_on_both_replicas(both):
    single, mirrored, *_ = both
    assert float(single.optimizer.trigger) > 0, "averaging has not begun; the test shows nothing"
    for one, two in zip(masked_weights(single), masked_weights(mirrored), strict=True):
        first, second = replicas(two.mask)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, keras.ops.convert_to_numpy(one.mask))
    pairs = zip(
        [*single.trainable_variables, *single.optimizer.averages],
        [*mirrored.trainable_variables, *mirrored.optimizer.averages],
        strict=True,
    )
    for one, two in pairs:
        first, second = replicas(two)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, keras.ops.convert_to_numpy(one), atol=2e-4)


def test_gradients_on_demand_leave_each_replica_its_states(both):
    _, mirrored, *_ = both
    states = [v for v in mirrored.variables if "_state_" in v.path]
    before = [replicas(state) for state in states]
    assert abs(before[0][0] - before[0][1]).max() > 2e-4
    windows = Windows(TOKENS, COLUMNS, 7)
    DenseGradients(windows)(mirrored, masked_weights(mirrored), step=3, batches=2)
    np.testing.assert_array_equal([replicas(state) for state in states], before)


def test_each_replica_follows_its_own_columns(both):
    single, mirrored, *_ = both
    names = [v.path for v in single.variables if "_state_" in v.path]
    assert len(names) == 4  # two each for training and for evaluation
    for name in names:
        one = next(v for v in single.variables if v.path == name)
        two = next(v for v in mirrored.variables if v.path == name)
        first, second = replicas(two)
        assert abs(first - second).max() > 2e-4
        joined = np.concatenate([first, second])
        np.testing.assert_allclose(joined, keras.ops.convert_to_numpy(one), atol=5e-5)
