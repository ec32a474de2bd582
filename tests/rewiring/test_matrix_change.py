"""One rewiring of one matrix: by hand, against a plain loop, and its invariants."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_selfish.layers import SparseDense
from keras_selfish.masks import masked_weights
from keras_selfish.rewiring import rules
from keras_selfish.rewiring.matrix_change import apply_change, choose_change, read_matrix, rewired_count


def masked_matrix(shape, sparsity=0.5, block_shape=(1, 1), seed=0):
    """The masked weight of a layer, with random values."""
    layer = SparseDense(shape[1], sparsity=sparsity, block_shape=block_shape, mask_seed=seed)
    layer.build((None, shape[0]))
    (masked_weight,) = masked_weights(layer)
    masked_weight.weight.assign(np.random.default_rng(seed).normal(size=shape))
    masked_weight.project()
    return masked_weight


def arrays(masked_weight):
    return tuple(keras.ops.convert_to_numpy(v) for v in (masked_weight.weight, masked_weight.mask))


def rewire(masked_weight, rate, grow=rules.random, seed=0, **kwargs):
    matrix = read_matrix(masked_weight, generator=np.random.default_rng(seed))
    change = choose_change(matrix, rate, rules.magnitude, grow, **kwargs)
    if change is not None:
        apply_change(masked_weight, change)
    return change


def table(text):
    return np.array([[letter == "x" for letter in row] for row in text.split()])


WEIGHT = np.array([[0.5, -0.1, 0.0, 0.0], [0.2, -0.9, 0.3, 0.0]], np.float32)
MASK = table("xx.. xxx.")


@pytest.mark.parametrize(
    ("rate", "best_growth", "reset_regrown", "mask", "dropped", "grown", "weight"),
    [
        # -0.1 and 0.2 go; two of the three empty places come.
        (0.4, "..xx ...x", False, "x.xx .xx.", ".x.. x...", "..xx ....", [[0.5, 0, 0, 0], [0, -0.9, 0.3, 0]]),
        # -0.1 comes back: with its value, and so unchanged, or from zero.
        (
            0.4,
            ".x.. ...x",
            False,
            "xx.. .xxx",
            ".... x...",
            ".... ...x",
            [[0.5, -0.1, 0, 0], [0, -0.9, 0.3, 0]],
        ),
        (0.4, ".x.. ...x", True, "xx.. .xxx", ".... x...", ".x.. ...x", [[0.5, 0, 0, 0], [0, -0.9, 0.3, 0]]),
        # All go, five of eight come.
        (1.0, "xxxx x...", False, "xxxx x...", ".... .xx.", "..xx ....", [[0.5, -0.1, 0, 0], [0.2, 0, 0, 0]]),
        (1.0, "xxxx x...", True, "xxxx x...", ".... .xx.", "xxxx x...", [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_by_hand(rate, best_growth, reset_regrown, mask, dropped, grown, weight):
    masked_weight = masked_matrix((2, 4))
    masked_weight.mask.assign(MASK)
    masked_weight.weight.assign(WEIGHT)
    change = rewire(
        masked_weight, rate, lambda matrix: table(best_growth).astype("float32"), reset_regrown=reset_regrown
    )
    np.testing.assert_array_equal(change.mask, table(mask))
    np.testing.assert_array_equal(change.dropped, table(dropped))
    np.testing.assert_array_equal(change.grown, table(grown))
    new_weight, new_mask = arrays(masked_weight)
    np.testing.assert_array_equal(new_mask, table(mask))
    np.testing.assert_array_equal(new_weight, np.float32(weight))


def test_blocks_by_hand():
    # The blocks of the left column have the L2 norms 0.5 and (none), those of the right 0.45 and 0.6.
    masked_weight = masked_matrix((4, 2), block_shape=(2, 1))
    masked_weight.mask.assign(table("xx xx .x .x"))
    masked_weight.weight.assign([[0.3, 0.45], [-0.4, 0.0], [0.0, 0.6], [0.0, 0.0]])
    scores = np.array([[0, 0], [0, 0], [0.1, 0], [0, 0]], np.float32)
    change = rewire(masked_weight, 1 / 3, lambda matrix: scores)
    np.testing.assert_array_equal(change.mask, table("x. x. xx xx"))
    np.testing.assert_array_equal(change.dropped, table(".x .x .. .."))
    np.testing.assert_array_equal(change.grown, table(".. .. x. x."))
    weight, mask = arrays(masked_weight)
    np.testing.assert_array_equal(mask, change.mask)
    np.testing.assert_array_equal(weight, np.float32([[0.3, 0], [-0.4, 0], [0, 0.6], [0, 0]]))


@pytest.mark.parametrize(
    ("rate", "active", "total", "count"),
    [
        (0.8, 330, 1000, 264),
        (0.5, 5, 100, 3),
        (0.25, 5, 100, 2),
        (0.1, 30, 100, 3),  # not what is over it in floating point
        (0.005, 90, 1000, 1),
        (0.0, 500, 1000, 0),
        (1.0, 500, 1000, 500),
        (0.8, 900, 1000, 720),
    ],
)
def test_rewired_count(rate, active, total, count):
    assert rewired_count(rate, active, total) == count
    down = rewired_count(rate, active, total, rounding=math.floor)
    assert down == (count if abs(rate * active - count) < 1e-9 else count - 1)


@pytest.mark.parametrize(
    ("rate", "active", "count"),
    [(0.8, 800, 640), (0.8, 900, 90), (0.05, 900, 45), (0.8, 1000, 0)],
    ids=["not over 80%", "capped by the sparsity", "under it", "full"],
)
def test_rewired_count_where_it_is_capped(rate, active, count):
    assert rewired_count(rate, active, 1000, capped=True) == count


def test_a_rate_without_a_whole_connection():
    assert rewire(masked_matrix((4, 4)), 0.0) is None
    assert rewire(masked_matrix((4, 4)), 0.01, reset_regrown=True).grown.sum() == 1


def test_a_weight_that_is_no_number_is_refused():
    masked_weight = masked_matrix((4, 4), seed=3)
    weight, mask = arrays(masked_weight)
    weight[tuple(np.argwhere(mask)[0])] = np.nan
    masked_weight.weight.assign(weight)
    with pytest.raises(ValueError, match=r"NaN in '.*kernel'"):
        rewire(masked_weight, 0.5)
    np.testing.assert_array_equal(arrays(masked_weight)[1], mask)


def test_weights_of_exactly_zero_go_first_and_in_order():
    masked_weight = masked_matrix((2, 4))
    masked_weight.mask.assign(MASK)
    masked_weight.weight.assign([[0.5, -0.0, 0, 0], [0.0, 0.1, 0.0, 0]])
    # Of three zeros the first two go, whatever their sign; the last column comes.
    change = rewire(masked_weight, 0.4, lambda matrix: table("...x ...x").astype("float32"))
    np.testing.assert_array_equal(change.mask, table("x..x .xxx"))


def test_half_precision_weights():
    keras.config.set_dtype_policy("bfloat16")
    masked_weight = masked_matrix((8, 8))
    assert masked_weight.weight.dtype == "bfloat16"
    before = masked_weight.active
    assert rewire(masked_weight, 0.5) is not None
    weight, mask = arrays(masked_weight)
    assert mask.sum() == before
    assert (weight[~mask] == 0).all()


def rewired_by_a_loop(weight, mask, count, growth):
    """One connection after the other: drops `count` of them, then opens the places of `growth`."""
    weight, mask = weight.copy(), mask.copy()
    old = weight.copy()
    for _ in range(count):
        smallest = None
        for place in np.ndindex(*mask.shape):
            if mask[place] and (smallest is None or abs(weight[place]) < abs(weight[smallest])):
                smallest = place
        mask[smallest] = False
        weight[smallest] = 0.0
    kept = mask.copy()
    for place in np.ndindex(*mask.shape):
        if growth[place] and not kept[place]:
            mask[place] = True
            weight[place] = old[place]  # zero where there was no connection
    return weight, mask


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8, 1.0])
def test_against_a_loop(rate):
    masked_weight = masked_matrix((5, 7), sparsity=0.6)
    for seed in range(3):
        weight, mask = arrays(masked_weight)
        count = rewired_count(rate, mask.sum(), mask.size)
        change = rewire(masked_weight, rate, seed=seed)
        expected = rewired_by_a_loop(weight, mask, count, change.mask)
        for actual, wanted in zip(arrays(masked_weight), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    block_shape=st.sampled_from([(1, 1), (4, 1), (1, 3), (2, 2)]),
    sparsity=st.floats(0.01, 0.99),
    rate=st.floats(0, 1),
    reset_regrown=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_invariants(rows, columns, block_shape, sparsity, rate, reset_regrown, seed):
    shape = (rows * block_shape[0], columns * block_shape[1])
    masked_weight = masked_matrix(shape, sparsity, block_shape, seed % 1000)
    active = masked_weight.active
    for repetition in range(3):
        old_weight, old_mask = arrays(masked_weight)
        change = rewire(masked_weight, rate, seed=[seed, repetition], reset_regrown=reset_regrown)
        weight, mask = arrays(masked_weight)
        assert mask.dtype == bool
        assert mask.sum() == active
        assert not weight[~mask].any()
        assert not np.signbit(weight[~mask]).any()  # zero, and not -0.0
        if change is None:
            np.testing.assert_array_equal(mask, old_mask)
            continue
        np.testing.assert_array_equal(mask, change.mask)
        np.testing.assert_array_equal(change.dropped, old_mask & ~mask)
        blocks = mask.reshape(rows, block_shape[0], columns, block_shape[1])
        assert (blocks == blocks[:, :1, :, :1]).all()
        same = mask & ~change.grown
        np.testing.assert_array_equal(weight[same], old_weight[same])
        assert not weight[change.grown].any()
        if not reset_regrown:
            np.testing.assert_array_equal(change.grown, mask & ~old_mask)
        # Values to tell connections apart in the next round.
        masked_weight.weight.assign(weight + np.random.default_rng(seed).normal(size=shape) * mask)


def test_growth_is_uniform_over_what_is_free_and_what_was_just_dropped():
    masked_weight = masked_matrix((6, 8), sparsity=0.75)
    matrix = read_matrix(masked_weight)
    counts = np.zeros(matrix.mask.shape)
    draws = 3000
    for seed in range(draws):
        drawn = dataclasses.replace(matrix, generator=np.random.default_rng(seed))
        counts += choose_change(drawn, 0.5, rules.magnitude, rules.random, True).grown
    # Of 12 connections the 6 largest stay; 6 grow among the 42 other places.
    assert (counts == 0).sum() == 6
    free = counts[counts > 0]
    expected = draws * 6 / 42
    chi_square = ((free - expected) ** 2 / expected).sum() / (1 - 6 / 42)
    assert abs(chi_square - 41) < 5 * np.sqrt(2 * 41)
