"""Selections of an exact number of positions of an array, by score or at random."""

import numpy as np

__all__ = ["largest", "smallest", "uniform"]


def smallest(scores, among, count):
    """The `count` positions with the smallest scores; of equal scores the first ones.

    Args:
        scores: Array of real numbers without NaN.
        among: Boolean array of the same shape: the positions to choose from.
        count: How many to choose, at most as many as there are.

    Returns:
        A boolean array of the same shape with exactly `count` True.
    """
    if count == 0:
        return np.zeros(among.shape, bool)
    limit = np.partition(scores[among], count - 1)[count - 1]
    chosen = among & (scores < limit)
    missing = count - np.count_nonzero(chosen)
    ties = np.flatnonzero(among & (scores == limit))[:missing]
    chosen.reshape(-1)[ties] = True
    return chosen


def largest(scores, among, count):
    """The `count` positions with the largest scores; of equal scores the first ones. See `smallest`."""
    return smallest(np.negative(scores), among, count)


def uniform(among, count, generator):
    """`count` positions uniformly at random: every subset of that size is equally likely.

    Args:
        among: Boolean array: the positions to choose from.
        count: How many to choose, at most as many as there are.
        generator: A `numpy.random.Generator`.

    Returns:
        A boolean array of the same shape with exactly `count` True.
    """
    chosen = np.zeros(among.shape, bool)
    candidates = np.flatnonzero(among)
    chosen.reshape(-1)[generator.choice(candidates, count, replace=False, shuffle=False)] = True
    return chosen
