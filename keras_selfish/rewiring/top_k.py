"""Selections of an exact number of positions of an array, by score or at random.

A matrix has tens of millions of positions, and its mask looks random to the processor: boolean indexing, one
branch per position, costs ten times as much here as finding the indices first, and a sort more than all the
rest.
"""

import math

import numpy as np

__all__ = ["largest", "largest_of_groups", "smallest", "uniform"]

# Below this size, and where few candidates are left over, the candidates are simply listed.
_LISTED = 1 << 16
_SPARSE = 1 / 16

# Standard deviations by which random thinning aims below the count: it overshoots once in millions of times.
_SAFETY = 5.0


def smallest(scores, among, count):
    """The `count` positions with the smallest scores; of equal scores the first ones.

    Args:
        scores: Array of real numbers.
        among: Boolean array of the same shape: the positions to choose from.
        count: How many to choose, at most as many as there are.

    Returns:
        A boolean array of the same shape with exactly `count` True.

    Raises:
        ValueError: if a score is NaN.
    """
    if count == 0:
        return np.zeros(among.shape, bool)
    candidates = scores.reshape(-1).take(np.flatnonzero(among))
    if np.isnan(candidates.max()):
        raise ValueError("`scores` must be numbers. Received: NaN")
    limit = _nth_smallest(candidates, count - 1)
    chosen = scores <= limit
    chosen &= among
    if excess := np.count_nonzero(chosen) - count:
        ties = np.flatnonzero((scores == limit) & among)
        chosen.reshape(-1)[ties[-excess:]] = False
    return chosen


def _nth_smallest(values, index):
    """The value at `index` once `values` are sorted; their order changes."""
    lowest = values.min()
    ties = np.count_nonzero(values == lowest)
    if index < ties:
        return lowest
    if ties > values.size // 8:
        # New connections that have not yet learnt are all zero, and with that many equal values NumPy's
        # partition takes twenty times as long.
        values = values.take(np.flatnonzero(values > lowest))
        index -= ties
    values.partition(index)
    return values[index]


def largest(scores, among, count):
    """The `count` positions with the largest scores; of equal scores the first ones. See `smallest`."""
    return smallest(np.negative(scores), among, count)


def largest_of_groups(scores, among, pattern, kept):
    """The positions with the largest scores that complete each group to `n` of `m`.

    Args:
        scores: Array (..., inputs, units) of real numbers.
        among: Boolean array of the same shape: the positions to choose from.
        pattern: `(n, m)`; a group is `m` consecutive positions along the inputs.
        kept: Boolean array of the same shape: the positions that count already, at most `n` in each group.

    Returns:
        A boolean array of the same shape: of equal scores the first positions.
    """
    n, m = pattern
    *leading, inputs, units = scores.shape
    groups = (*leading, inputs // m, m, units)
    order = np.argsort(np.where(among, -scores, np.inf).reshape(groups), axis=-2, kind="stable")
    missing = n - np.count_nonzero(kept.reshape(groups), axis=-2, keepdims=True)
    chosen = np.zeros(groups, bool)
    np.put_along_axis(chosen, order, np.arange(m)[:, None] < missing, axis=-2)
    return chosen.reshape(scores.shape)


def uniform(among, count, generator):
    """`count` positions uniformly at random: every subset of that size is equally likely.

    A large array is thinned by one random byte per position to a few less than `count`, and positions drawn
    one by one fill it up. Given its size the thinned subset is uniform, so the filled one is.

    Args:
        among: Boolean array: the positions to choose from.
        count: How many to choose, at most as many as there are.
        generator: A `numpy.random.Generator`.

    Returns:
        A boolean array of the same shape with exactly `count` True.
    """
    available = np.count_nonzero(among)
    chosen = np.zeros(among.size, bool)
    if count and among.size >= _LISTED:
        aim = max(count - _SAFETY * math.sqrt(count), 0.0)
        chosen = _thinned(among.reshape(-1), aim / available, generator)
    excess = np.count_nonzero(chosen) - count
    if excess > 0:
        chosen[_draw(chosen, excess, generator)] = False
    elif among.size < _LISTED or available - count < _SPARSE * among.size:
        chosen[_draw(among.reshape(-1) & ~chosen, -excess, generator)] = True
    else:
        _fill(chosen, among.reshape(-1), count, available, generator)
    return chosen.reshape(among.shape)


def _thinned(among, share, generator):
    """Keeps each position of `among` with probability `share`, rounded down to 1/256."""
    words = generator.bit_generator.random_raw(-(-among.size // 8))
    chosen = words.view(np.uint8)[: among.size] < int(256 * share)
    chosen &= among
    return chosen


def _draw(among, count, generator):
    """Indices of `count` different positions."""
    return generator.choice(np.flatnonzero(among), count, replace=False, shuffle=False)


def _fill(chosen, among, count, available, generator):
    """Adds positions one by one until `count` are chosen; draws of occupied positions are repeated."""
    free_share = (available - count) / among.size
    while missing := count - np.count_nonzero(chosen):
        drawn = generator.integers(0, among.size, int(missing / free_share) + 1)
        free = drawn[among[drawn] > chosen[drawn]]
        # A position may be among these twice, so that they are at most as many as are missing.
        chosen[free[:missing]] = True
