"""Changes chosen where the weights are: those of the host's code, or as random. No GPU is needed for it."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_selfish import (
    DSR,
    GMP,
    GSE,
    SET,
    SNFS,
    SNIP,
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
from keras_selfish.rewiring import PolynomialDecay, device_arrays, host_arrays, rules, top_k
from keras_selfish.rewiring.matrix_change import choose_change, read_matrix
from keras_selfish.rewiring.model_change import choose_changes, lost_together

pytestmark = pytest.mark.backends("tensorflow", "jax")


def masked_weight_of(shape, block_shape=(1, 1), values=None, seed=0, n_of_m=None):
    options = {"sparsity": 0.5, "block_shape": block_shape} if n_of_m is None else {"n_of_m": n_of_m}
    layer = SparseDense(shape[1], mask_seed=seed, **options)
    layer.build((None, shape[0]))
    (masked_weight,) = masked_weights(layer)
    drawn = np.random.default_rng(seed).integers(-3, 4, size=shape) / 4  # many are equal
    masked_weight.weight.assign(drawn if values is None else values)
    masked_weight.project()
    return masked_weight


def gradient_of(shape, seed):
    return np.random.default_rng(seed + 1).integers(-2, 3, size=shape).astype("float32")


def on_both(weights, seed=0):
    """Lists of matrices: of arrays on the host, and of tensors."""
    return [
        [
            read_matrix(weight, None, gradient_of(weight.shape, seed), np.random.default_rng(seed), arrays)
            for weight in weights
        ]
        for arrays in (host_arrays, device_arrays)
    ]


def assert_same(found, expected):
    if expected is None:
        assert found is None
        return
    for by_device, by_host in zip(numpy_of(found), numpy_of(expected), strict=True):
        np.testing.assert_array_equal(by_device, by_host)
    np.testing.assert_array_equal(ops.convert_to_numpy(found.empty), expected.empty)


def numpy_of(change):
    return [ops.convert_to_numpy(each) for each in (change.mask, change.dropped, change.grown)]


@settings(max_examples=15)
@given(
    drop=st.sampled_from(list(rules.DROP_RULES.values())),
    grow=st.sampled_from(list(rules.GROW_RULES.values())),
    shape=st.sampled_from([(4, 6), (8, 4), (12, 10)]),
    block_shape=st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 2)]),
    rate=st.sampled_from([0.05, 0.3, 0.8, 1.0]),
    reset_regrown=st.booleans(),
    seed=st.integers(0, 99),
)
def test_each_rule_chooses_what_it_chooses_on_the_host(
    drop, grow, shape, block_shape, rate, reset_regrown, seed
):
    """Random growth, too: on a CPU, the host draws."""
    by_host, by_device = on_both([masked_weight_of(shape, block_shape, seed=seed)], seed)
    expected = choose_change(by_host[0], rate, drop, grow, reset_regrown)
    found = choose_change(by_device[0], rate, drop, grow, reset_regrown)
    assert not isinstance(found.mask, np.ndarray)
    assert_same(found, expected)


@settings(max_examples=20)
@given(
    shape=st.sampled_from([(4, 6), (8, 4), (12, 10)]),
    block_shape=st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 2)]),
    rate=st.sampled_from([0.05, 0.3, 0.8, 1.0]),
    reset_regrown=st.booleans(),
    seed=st.integers(0, 99),
)
def test_growth_by_gradient_is_that_of_the_host(shape, block_shape, rate, reset_regrown, seed):
    by_host, by_device = on_both([masked_weight_of(shape, block_shape, seed=seed)], seed)
    options = (rate, rules.magnitude, rules.gradient, reset_regrown)
    assert_same(choose_change(by_device[0], *options), choose_change(by_host[0], *options))


@pytest.mark.parametrize("block_shape", [(1, 1), (2, 1)])
def test_on_cpus_random_growth_is_that_of_the_host(block_shape):
    by_host, by_device = on_both([masked_weight_of((12, 10), block_shape)], seed=7)
    expected = choose_change(by_host[0], 0.4, rules.magnitude, rules.random)
    assert_same(choose_change(by_device[0], 0.4, rules.magnitude, rules.random), expected)


@settings(max_examples=15)
@given(
    drop=st.sampled_from([rules.magnitude, rules.magnitude_by_sign, rules.sensitivity]),
    drop_scope=st.sampled_from(["matrix", "model"]),
    redistribution=st.sampled_from(list(rules.REDISTRIBUTION_RULES.values())),
    block_shape=st.sampled_from([(1, 1), (2, 1)]),
    rate=st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 99),
)
def test_each_way_to_divide_connections_is_that_of_the_host(
    drop, drop_scope, redistribution, block_shape, rate, seed
):
    shapes = [(4, 6), (12, 10)]
    weights = [masked_weight_of(shape, block_shape, seed=seed + i) for i, shape in enumerate(shapes)]
    options = {"rate": rate, "drop": drop, "grow": rules.gradient, "drop_scope": drop_scope}
    changes = [
        choose_changes(matrices, redistribution=redistribution, **options)
        for matrices in on_both(weights, seed)
    ]
    for expected, found in zip(*changes, strict=True):
        assert_same(found, expected)
    if rate and redistribution is not None:
        assert any(change is not None for change in changes[0])


@settings(max_examples=8)
@given(
    grow=st.sampled_from([rules.random, rules.gradient]),
    pattern=st.sampled_from([(1, 4), (2, 4), (3, 4), (1, 2)]),
    rate=st.sampled_from([0.05, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_patterns_are_those_of_the_host(grow, pattern, rate, seed):
    by_host, by_device = on_both([masked_weight_of((8, 6), seed=seed, n_of_m=pattern)], seed)
    expected = choose_change(by_host[0], rate, rules.magnitude, grow)
    assert_same(choose_change(by_device[0], rate, rules.magnitude, grow), expected)


@settings(max_examples=8)
@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_one_threshold_for_all_is_that_of_the_host(share, seed):
    weights = [masked_weight_of(shape, seed=seed + i) for i, shape in enumerate([(2, 2), (4, 6), (12, 10)])]
    count = round(share * sum(weight.active for weight in weights))
    expected, found = (lost_together(each, map, count, rules.magnitude) for each in on_both(weights, seed))
    assert found == expected


def test_random_growth_is_exact_repeatable_and_even(monkeypatch):
    monkeypatch.setattr(device_arrays, "on_gpu", lambda: True)
    masked_weight = masked_weight_of((8, 10), values=np.random.default_rng(5).normal(size=(8, 10)))
    before = ops.convert_to_numpy(masked_weight.mask)

    def choose(seed):
        generator = np.random.default_rng(seed)
        matrix = read_matrix(masked_weight, generator=generator, arrays=device_arrays)
        return choose_change(matrix, 0.5, rules.magnitude, rules.random)

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


def test_the_smallest_are_those_of_the_host():
    """Also of many equal scores, of zeros of either sign and of numbers near the limits of their type."""
    draw = np.random.default_rng(2)
    values = np.array([-3e38, -1.0, -2e-38, -0.0, 0.0, 2e-38, 1.0, 3e38], "float32")
    scores = draw.choice(values, (6, 5, 4)).astype("float32")
    among = draw.random(scores.shape) < 0.7
    for count in range(np.count_nonzero(among) + 1):
        found = device_arrays.smallest(ops.convert_to_tensor(scores), ops.convert_to_tensor(among), count)
        np.testing.assert_array_equal(ops.convert_to_numpy(found), top_k.smallest(scores, among, count))


def test_a_weight_that_is_no_number_is_named():
    masked_weight = masked_weight_of((4, 6))
    values = ops.convert_to_numpy(masked_weight.weight).copy()
    values[ops.convert_to_numpy(masked_weight.mask)] = np.nan
    masked_weight.weight.assign(values)
    matrix = read_matrix(masked_weight, arrays=device_arrays)
    for drop in (rules.magnitude, rules.magnitude_by_sign):
        with pytest.raises(ValueError, match=r"weights that are numbers.*kernel"):
            choose_change(matrix, 0.3, drop, rules.random)
        with pytest.raises(ValueError, match=r"weights that are numbers.*kernel"):
            lost_together([matrix], map, 2, drop)


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


GRADIENTS_DECIDE = (RigL, SNFS, GMP, SNIP)
EXCHANGE = (DSR, SNFS, SNIP)  # connections, between weights


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [(each, "snt_asgd") for each in (SelfishRewiring, RigL, SET, DSR, SNFS, GSE, GMP, SNIP)]
    + [(SNFS, "adam")],  # whose momentum decides
)
def test_in_fit(method, optimizer, monkeypatch):
    """The same connections as on the host where nothing is random; the counts, and zeros, in any case."""
    draw = np.random.default_rng(0).normal
    data = draw(size=(8, 5, 6)).astype("float32"), draw(size=(8, 3)).astype("float32")
    results, used = [], []
    lowest_of = device_arrays.lowest_of
    monkeypatch.setattr(device_arrays, "lowest_of", lambda *a: used.append(on_gpu) or lowest_of(*a))
    for on_gpu in (False, True):
        monkeypatch.setattr(device_arrays, "on_gpu", lambda on_gpu=on_gpu: on_gpu)
        keras.utils.set_random_seed(0)  # what GMP and SNIP open starts from random values
        model = model_of(SNTASGD(0.1, global_clipnorm=1.0) if optimizer == "snt_asgd" else "adam")
        counts = [weight.active for weight in masked_weights(model)]
        before = [ops.convert_to_numpy(weight.mask) for weight in masked_weights(model)]
        options = {"gradient_data": data} if method in (RigL, SNFS, GSE, SNIP) else {}
        if method is GMP:
            rewiring = GMP(PolynomialDecay(0.0, 0.5, begin_step=0, end_step=4, frequency=2))
        elif method is SNIP:
            rewiring = SNIP(**options)
        else:
            rewiring = method(0.3, frequency=2, total_steps=100, seed=3, **options)
        model.fit(*data, batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=[rewiring])
        assert sum(weight.active for weight in masked_weights(model)) == sum(counts)
        if method not in EXCHANGE:
            assert [weight.active for weight in masked_weights(model)] == counts
        found = [ops.convert_to_numpy(weight.mask) for weight in masked_weights(model)]
        assert any((mask != old).any() for mask, old in zip(found, before, strict=True))
        for weight, mask in zip(masked_weights(model), found, strict=True):
            assert (ops.convert_to_numpy(weight.weight)[~mask] == 0).all()
        if optimizer == "snt_asgd":
            births = [b for b in model.optimizer.births if b is not None]
            for birth, mask in zip(births, found, strict=True):
                np.testing.assert_array_equal(ops.convert_to_numpy(birth) >= 0, mask)
        results.append(found)
    assert set(used) == {True}
    if method in GRADIENTS_DECIDE:
        for host, on_device in zip(*results, strict=True):
            np.testing.assert_array_equal(on_device, host)


def test_rules_of_ones_own_get_tensors_if_they_say_so(monkeypatch):
    monkeypatch.setattr(device_arrays, "on_gpu", lambda: True)
    kinds = []

    def drop(matrix):
        kinds.append(isinstance(matrix.weight, np.ndarray))
        return abs(matrix.weight)

    for rule in (drop, rules.reads_tensors(lambda matrix: drop(matrix))):
        model = model_of("sgd")
        counts = [weight.active for weight in masked_weights(model)]
        rewiring = SelfishRewiring(0.5, drop=rule)
        rewiring.set_model(model)
        rewiring.rewire(0.5, step=1)
        assert [weight.active for weight in masked_weights(model)] == counts
    assert kinds == [True] * 3 + [False] * 3


def test_on_the_host_stay_double_precision_and_a_cpu(monkeypatch):
    model = model_of("sgd")
    assert not device_arrays.serve(model)
    monkeypatch.setattr(device_arrays, "on_gpu", lambda: True)
    assert device_arrays.serve(model)
    model = keras.Sequential([keras.Input((4,)), SparseDense(4, sparsity=0.5, dtype="float64")])
    assert not device_arrays.serve(model)


def test_a_mean_is_that_of_the_host():
    values = np.random.default_rng(0).normal(size=(50, 70)).astype("float32")
    among = values > 0.3
    found = device_arrays.mean(ops.convert_to_tensor(values), ops.convert_to_tensor(among))
    assert found == pytest.approx(host_arrays.mean(values, among), rel=1e-6)
    assert device_arrays.mean(ops.convert_to_tensor(values), ops.convert_to_tensor(among & False)) == 0.0


def test_there_are_the_same_functions_for_arrays_and_tensors():
    assert sorted(host_arrays.__all__) == sorted(set(device_arrays.__all__) - {"serve"})
    for arrays in (host_arrays, device_arrays):
        assert all(callable(getattr(arrays, name, None)) for name in arrays.__all__)


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
