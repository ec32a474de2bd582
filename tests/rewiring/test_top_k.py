"""Selections: exact counts, ties, uniformity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_selfish.rewiring import top_k


def booleans(text):
    return np.array([letter == "x" for letter in text])


@pytest.mark.parametrize(
    ("scores", "among", "count", "expected"),
    [
        ([3, 1, 2, 5, 4], "xxxxx", 2, ".xx.."),
        ([3, 1, 2, 5, 4], "x.x.x", 2, "x.x.."),
        ([3, 1, 2, 5, 4], "xxxxx", 0, "....."),
        ([3, 1, 2, 5, 4], "xxxxx", 5, "xxxxx"),
        ([1, 1, 1, 1, 0], "xxxxx", 3, "xx..x"),  # of equal scores the first ones
        ([0, 1, 1, 1, 1], ".xxxx", 2, ".xx.."),
        ([0, 0, -0.0, 0, 1], "x.xxx", 2, "x.x.."),  # the two zeros are equal
        ([2, np.inf, np.inf, 1, 3], ".xx..", 1, ".x..."),
        ([0, 0, 7, 0, 5], "xxxxx", 4, "xx.xx"),
    ],
)
def test_smallest(scores, among, count, expected):
    chosen = top_k.smallest(np.array(scores, np.float32), booleans(among), count)
    np.testing.assert_array_equal(chosen, booleans(expected))


def test_largest():
    scores = np.array([3, 1, 5, 5, 5], np.float32)
    np.testing.assert_array_equal(top_k.largest(scores, booleans("xx.xx"), 1), booleans("...x."))
    np.testing.assert_array_equal(top_k.largest(scores, booleans("xxxxx"), 4), booleans("x.xxx"))


def test_the_scores_stay_as_they_are():
    scores = np.array([3, 1, 2], np.float32)
    top_k.smallest(scores, booleans("xxx"), 2)
    np.testing.assert_array_equal(scores, [3, 1, 2])


@pytest.mark.parametrize("count", [1, 3])
def test_a_score_that_is_no_number_is_refused(count):
    scores = np.array([3, np.nan, 2], np.float32)
    with pytest.raises(ValueError, match="NaN"):
        top_k.smallest(scores, booleans("xxx"), count)


def test_a_score_outside_the_candidates_is_not_looked_at():
    scores = np.array([3, np.nan, 2], np.float32)
    np.testing.assert_array_equal(top_k.smallest(scores, booleans("x.x"), 1), booleans("..x"))


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 8), st.floats(0, 1), st.floats(0, 1))
def test_smallest_is_a_stable_sort(seed, size, levels, share, fraction):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, size).astype(np.float32)
    among = generator.random(size) < share
    count = int(fraction * among.sum())
    order = [index for index in np.argsort(scores, kind="stable") if among[index]]
    expected = np.zeros(size, bool)
    expected[order[:count]] = True
    np.testing.assert_array_equal(top_k.smallest(scores, among, count), expected)


LARGE = 1 << 17


@given(
    st.integers(0, 2**32),
    st.one_of(st.integers(1, 300), st.integers(LARGE, LARGE + 9)),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_uniform_chooses_exactly_as_many_as_asked(seed, size, share, fraction):
    generator = np.random.default_rng(seed)
    among = generator.random(size) < share
    count = int(fraction * among.sum())
    chosen = top_k.uniform(among, count, generator)
    assert chosen.shape == among.shape
    assert chosen.sum() == count
    assert not (chosen & ~among).any()


@pytest.mark.parametrize("left", [0, 1])
def test_uniform_at_its_edges(left):
    among = np.arange(LARGE) % 2 == 0
    chosen = top_k.uniform(among, among.sum() - left, np.random.default_rng(0))
    assert (among & ~chosen).sum() == left


def test_too_many_after_thinning_are_thinned_again(monkeypatch):
    monkeypatch.setattr(top_k, "_SAFETY", -5.0)  # what chance does once in millions of times
    among = np.arange(LARGE) % 2 == 0
    chosen = top_k.uniform(among, 5000, np.random.default_rng(0))
    assert chosen.sum() == 5000
    assert not (chosen & ~among).any()


@pytest.mark.parametrize(
    ("size", "candidates", "count", "draws"),
    [
        (12, 9, 4, 6000),  # the candidates are listed
        (LARGE, LARGE // 2, LARGE // 6, 60),  # thinned, then filled
        (LARGE, LARGE // 2, LARGE // 2 - 1000, 60),  # thinned, then the rest is listed
        (LARGE, LARGE - 1, 20, 400),  # filled only
    ],
)
def test_uniform_is_uniform(size, candidates, count, draws):
    """Counts per position (or per bin of them), and pairs of neighbours, against what chance gives."""
    generator = np.random.default_rng(7)
    among = np.zeros(size, bool)
    among[generator.permutation(size)[:candidates]] = True
    counts = np.zeros(size)
    together = 0
    positions = np.flatnonzero(among)
    for _ in range(draws):
        chosen = top_k.uniform(among, count, generator)
        counts += chosen
        together += (chosen[positions[:-1]] & chosen[positions[1:]]).sum()
    bins = np.array([part.sum() for part in np.array_split(counts[positions], min(candidates, 64))])
    sizes = np.array([part.size for part in np.array_split(positions, min(candidates, 64))])
    share = count / candidates
    expected = draws * share * sizes
    # Without replacement the variance is smaller by 1 - share.
    chi_square = ((bins - expected) ** 2 / expected).sum() / (1 - share)
    freedom = len(bins) - 1
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)
    pairs = draws * (candidates - 1) * share * (count - 1) / (candidates - 1)
    assert abs(together - pairs) < 6 * np.sqrt(pairs) + 1


def test_uniform_repeats_with_its_seed():
    among = np.arange(LARGE) % 3 != 0
    first, again, other = (top_k.uniform(among, 30000, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
