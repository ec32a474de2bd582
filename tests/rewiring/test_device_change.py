"""Changes chosen where the weights are: those of the host's code, or as random. No GPU is needed for it."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_selfish import (
    SNTASGD,
    LanguageModel,
    NonMonotonicAveraging,
    Perplexity,
    RigL,
    SelfishRewiring,
    TokenCrossEntropy,
)
from keras_selfish.data import Windows
from keras_selfish.layers import SparseDense, SparseLSTM
from keras_selfish.masks import masked_weights
from keras_selfish.rewiring import device_change, rules, top_k
from keras_selfish.rewiring.matrix_change import choose_change, read_matrix

pytestmark = pytest.mark.backends("tensorflow", "jax")


def masked_weight_of(shape, block_shape=(1, 1), values=None, seed=0):
    layer = SparseDense(shape[1], sparsity=0.5, block_shape=block_shape, mask_seed=seed)
    layer.build((None, shape[0]))
    (masked_weight,) = masked_weights(layer)
    drawn = np.random.default_rng(seed).integers(-3, 4, size=shape) / 4  # many are equal
    masked_weight.weight.assign(drawn if values is None else values)
    masked_weight.project()
    return masked_weight


def numpy_of(change):
    return [ops.convert_to_numpy(each) for each in (change.mask, change.dropped, change.grown)]


@settings(max_examples=20)
@given(
    shape=st.sampled_from([(4, 6), (8, 4), (12, 10)]),
    block_shape=st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 2)]),
    rate=st.sampled_from([0.05, 0.3, 0.8, 1.0]),
    reset_regrown=st.booleans(),
    seed=st.integers(0, 99),
)
def test_growth_by_gradient_is_that_of_the_host(shape, block_shape, rate, reset_regrown, seed):
    masked_weight = masked_weight_of(shape, block_shape, seed=seed)
    gradient = np.random.default_rng(seed + 1).integers(-2, 3, size=shape).astype("float32")
    matrix = read_matrix(masked_weight, gradient=gradient)
    expected = choose_change(matrix, rate, rules.magnitude, rules.gradient, reset_regrown)
    options = {"rate": rate, "reset_regrown": reset_regrown, "rounding": math.ceil}
    found = device_change.choose_change(masked_weight, ops.convert_to_tensor(gradient), None, **options)
    for by_device, by_host in zip(numpy_of(found), numpy_of(expected), strict=True):
        np.testing.assert_array_equal(by_device, by_host)
    np.testing.assert_array_equal(ops.convert_to_numpy(found.empty), expected.empty)


def test_random_growth_is_exact_repeatable_and_even(monkeypatch):
    monkeypatch.setattr(device_change, "on_gpu", lambda: True)
    masked_weight = masked_weight_of((8, 10), values=np.random.default_rng(5).normal(size=(8, 10)))
    options = {"rate": 0.5, "reset_regrown": False, "rounding": math.ceil}
    before = ops.convert_to_numpy(masked_weight.mask)

    def choose(seed):
        return device_change.choose_change(masked_weight, None, np.random.default_rng(seed), **options)

    kept = before & ~numpy_of(choose(0))[1]
    came = np.zeros((8, 10))
    for seed in range(300):
        mask, dropped, grown = numpy_of(choose(seed))
        assert mask.sum() == before.sum()
        assert not (dropped & ~before).any()
        assert not (grown & before).any()
        came += mask & ~kept
    again = numpy_of(choose(299))[0]
    np.testing.assert_array_equal(again, mask)
    # 20 of 60 places a draw: 100 of 300 each, with a standard deviation of 8.
    free = ~(before & (came == 0))
    assert came[free].min() > 60
    assert came[free].max() < 140


@pytest.mark.parametrize("block_shape", [(1, 1), (2, 1)])
def test_on_cpus_random_growth_is_that_of_the_host(block_shape):
    masked_weight = masked_weight_of((12, 10), block_shape)
    matrix = read_matrix(masked_weight, generator=np.random.default_rng(7))
    expected = choose_change(matrix, 0.4, rules.magnitude, rules.random)
    options = {"rate": 0.4, "reset_regrown": False, "rounding": math.ceil}
    found = device_change.choose_change(masked_weight, None, np.random.default_rng(7), **options)
    for by_device, by_host in zip(numpy_of(found), numpy_of(expected), strict=True):
        np.testing.assert_array_equal(by_device, by_host)


def test_the_smallest_are_those_of_the_host():
    """Also of many equal scores, of zeros of either sign and of numbers near the limits of their type."""
    draw = np.random.default_rng(2)
    values = np.array([-3e38, -1.0, -2e-38, -0.0, 0.0, 2e-38, 1.0, 3e38], "float32")
    scores = draw.choice(values, (6, 5, 4)).astype("float32")
    among = draw.random(scores.shape) < 0.7
    for count in range(1, np.count_nonzero(among) + 1):
        found = device_change.smallest(ops.convert_to_tensor(scores), ops.convert_to_tensor(among), count)
        np.testing.assert_array_equal(ops.convert_to_numpy(found), top_k.smallest(scores, among, count))


def test_a_weight_that_is_no_number_is_named():
    masked_weight = masked_weight_of((4, 6))
    values = ops.convert_to_numpy(masked_weight.weight).copy()
    values[ops.convert_to_numpy(masked_weight.mask)] = np.nan
    masked_weight.weight.assign(values)
    with pytest.raises(ValueError, match=r"weights that are numbers.*kernel"):
        device_change.choose_change(masked_weight, None, 0, rate=0.3, reset_regrown=False, rounding=math.ceil)


def model_of(optimizer):
    model = keras.Sequential(
        [
            keras.Input((5, 6)),
            SparseLSTM(8, sparsity=0.5, mask_seed=1),
            SparseDense(3, sparsity=0.5, mask_seed=2),
        ]
    )
    for index, weight in enumerate(model.trainable_weights):
        weight.assign(np.random.default_rng(index).normal(size=weight.shape))
    for masked_weight in masked_weights(model):
        masked_weight.project()
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("method", [SelfishRewiring, RigL])
def test_in_fit(method, monkeypatch):
    """The same connections as on the host where gradients decide; the counts, and zeros, in any case."""
    draw = np.random.default_rng(0).normal
    data = draw(size=(8, 5, 6)).astype("float32"), draw(size=(8, 3)).astype("float32")
    results, used = [], []
    choose = device_change.choose_change
    monkeypatch.setattr(device_change, "choose_change", lambda *a, **k: used.append(1) or choose(*a, **k))
    for on_gpu in (False, True):
        monkeypatch.setattr(device_change, "on_gpu", lambda on_gpu=on_gpu: on_gpu)
        model = model_of(SNTASGD(0.1, global_clipnorm=1.0))
        counts = [weight.active for weight in masked_weights(model)]
        before = [ops.convert_to_numpy(weight.mask) for weight in masked_weights(model)]
        options = {"gradient_data": data} if method is RigL else {}
        rewiring = method(0.3, frequency=2, total_steps=100, seed=3, **options)
        model.fit(*data, batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=[rewiring])
        assert [weight.active for weight in masked_weights(model)] == counts
        found = [ops.convert_to_numpy(weight.mask) for weight in masked_weights(model)]
        assert any((mask != old).any() for mask, old in zip(found, before, strict=True))
        for weight, mask in zip(masked_weights(model), found, strict=True):
            assert (ops.convert_to_numpy(weight.weight)[~mask] == 0).all()
        births = [b for b in model.optimizer.births if b is not None]
        for birth, mask in zip(births, found, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(birth) >= 0, mask)
        results.append(found)
    assert used
    if method is RigL:
        for host, on_device in zip(*results, strict=True):
            np.testing.assert_array_equal(on_device, host)


def test_other_rules_stay_on_the_host(monkeypatch):
    monkeypatch.setattr(device_change, "on_gpu", lambda: True)
    model = model_of("sgd")
    usual = (rules.magnitude, rules.random, "matrix", None)
    assert device_change.serves(model, *usual)
    assert not device_change.serves(model, rules.magnitude_by_sign, *usual[1:])
    assert not device_change.serves(model, rules.magnitude, rules.momentum, "matrix", None)
    assert not device_change.serves(model, rules.magnitude, rules.random, "model", None)
    assert not device_change.serves(model, rules.magnitude, rules.random, "matrix", rules.mean_magnitude)


@pytest.mark.backends("jax")
def test_fit_reads_nothing_from_the_device_between_steps(monkeypatch):
    """A read would make each step wait for the one before to end."""
    from jax._src import array

    place, reads = ["before"], []

    def read(found, original=array.ArrayImpl._value):
        reads.append(place[0])
        return original.fget(found)

    monkeypatch.setattr(array.ArrayImpl, "_value", property(read))
    begins = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: place.__setitem__(0, batch)
    )
    model = LanguageModel(24, batch_size=4, units=8, layers=1, sparsity=0.6)
    windows = Windows(np.random.default_rng(0).integers(0, 24, 4 * (6 * 9 + 1)), 4, 6)
    model.compile(SNTASGD(1.0, global_clipnorm=0.25), TokenCrossEntropy(), metrics=[Perplexity()])
    model.fit(
        windows.batches(),
        validation_data=windows.batches(),
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[begins, SelfishRewiring(0.4, total_steps=100), NonMonotonicAveraging(patience=2)],
    )
    # Rewiring reads before the first step of an epoch, validation after the last one.
    assert set(reads) == {"before", 0, 8}
