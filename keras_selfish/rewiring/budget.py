"""Numbers of connections to drop from and to grow in each matrix: whole, with an exact total."""

import math
import operator

import numpy as np

__all__ = ["common_threshold", "rewired_count", "share_out", "target_count"]


def rewired_count(rate, active, total, capped=False, rounding=math.ceil):
    """Number of blocks to rewire out of `active`: `rate * active`, rounded.

    Args:
        rate: Fraction of the blocks to rewire, in [0, 1].
        active: Number of blocks that exist.
        total: Number of blocks that could exist.
        capped: Whether a matrix that is over 80% dense loses no larger fraction than its sparsity. The
            published code does so where connections move between matrices, in those whose share of them is
            above the mean.
        rounding: `math.ceil` (default), as in the published code, or `math.floor`, as in that of RigL.
    """
    if capped and active > 0.8 * total:
        rate = min(rate, 1.0 - active / total)
    # Floating point may add to a whole number, or take from it, what must not be rounded up.
    exact = rate * active
    return round(exact) if abs(exact - round(exact)) < 1e-9 * max(active, 1) else rounding(exact)


def target_count(sparsity, total):
    """Number of blocks out of `total` at a sparsity: rounded to the nearest, halves up, at least one."""
    return max(1, math.floor((1.0 - sparsity) * total + 0.5 + 1e-9))


def common_threshold(scores, count):
    """Number of connections to drop from each matrix: the `count` smallest scores of all matrices together.

    Every matrix keeps one connection. Of equal scores those of the first matrices are dropped.

    Args:
        scores: A list of one-dimensional arrays: the scores of the connections of each matrix.
        count: Number to drop in all; fewer where a matrix would lose its last connection.

    Returns:
        A list of integers.

    Example:

    >>> common_threshold([np.array([1.0, 2.0, 7.0]), np.array([3.0, 4.0])], count=3)
    [2, 1]
    """
    scores = [np.delete(each, each.argmax()) for each in scores]
    together = np.concatenate([*scores, []])
    count = min(count, together.size)
    if count == 0:
        return [0] * len(scores)
    limit = np.partition(together, count - 1)[count - 1]
    below, ties = (
        [int(np.count_nonzero(compare(each, limit))) for each in scores]
        for compare in (operator.lt, operator.eq)
    )
    return with_first_ties(count, below, ties)


def with_first_ties(count, below, ties):
    """Number of scores of each matrix among the `count` smallest of all.

    Args:
        count: A whole number.
        below: For each matrix how many of its scores are below the largest of those.
        ties: How many equal it; those of the first matrices count.
    """
    left = count - sum(below)
    counts = []
    for smaller, equal in zip(below, ties, strict=True):
        counts.append(smaller + min(left, equal))
        left -= min(left, equal)
    return counts


def share_out(total, shares, floors, ceilings, overflow="shares"):
    """Divides a number among matrices in proportion to their shares.

    Args:
        total: Whole number, between the sums of the floors and of the ceilings.
        shares: A number of zero or more for each matrix.
        floors: The least that each matrix gets.
        ceilings: The most that each matrix gets.
        overflow: How the others divide what a matrix cannot take: `"shares"` (default), in proportion to
            their shares, and to free space where they have none; `"equal"`, in equal parts.

    Returns:
        A list of integers that add up to `total`.

    Raises:
        ValueError: if a share is negative or not a number, or no division is possible.

    Example: the second can take only 5 of the 15 that are its part.

    >>> share_out(20, shares=[1.0, 3.0], floors=[0, 0], ceilings=[100, 5])
    [15, 5]
    >>> share_out(20, shares=[1.0, 1.0, 6.0], floors=[0, 0, 0], ceilings=[100, 100, 5])
    [8, 7, 5]
    >>> share_out(20, shares=[1.0, 3.0, 6.0], floors=[0, 0, 0], ceilings=[100, 100, 4], overflow="equal")
    [6, 10, 4]
    """
    shares = np.array(shares, float)
    floors, ceilings = np.asarray(floors, np.int64), np.asarray(ceilings, np.int64)
    if not (np.isfinite(shares).all() and (shares >= 0).all()):
        raise ValueError(f"`shares` must be numbers of zero or more. Received: shares={shares.tolist()}")
    if (floors > ceilings).any() or not floors.sum() <= total <= ceilings.sum():
        raise ValueError(
            f"`total` must lie between the sums of floors and ceilings. Received: total={total}, "
            f"floors={floors.tolist()}, ceilings={ceilings.tolist()}"
        )
    shares[shares < np.finfo(float).tiny] = 0.0  # such numbers are not exact
    room = ceilings - floors
    fill = _filled_equally if overflow == "equal" else _filled
    exact = fill(total - floors.sum(), shares, room)
    counts = np.minimum(np.floor(exact + 1e-9).astype(np.int64), room)
    for index in np.argsort(counts - exact, kind="stable"):
        if counts.sum() + floors.sum() == total:
            break
        counts[index] += counts[index] < room[index]
    return (floors + counts).tolist()


def _filled(total, shares, room):
    """Real numbers in proportion to the shares, none over its room, that add up to `total`."""
    full = np.zeros(len(shares), bool)
    while True:
        rest = np.where(full, 0.0, shares)
        if not rest.any():
            rest = np.where(full, 0.0, room)
        rest /= rest.max() or 1.0  # shares may be so small or large that their sum is no number
        left = total - room[full].sum()
        exact = np.where(full, room, left * (rest / (rest.sum() or 1.0)))
        over = (exact > room) & ~full
        if not over.any():
            return exact
        full |= over


def _filled_equally(total, shares, room):
    """As `_filled`, but each takes an equal part of what others have no room for, besides its own."""
    full = np.zeros(len(shares), bool)
    scaled = shares / (shares.max() or 1.0)  # shares may be so small or large that their sum is no number
    own = total * (scaled / (scaled.sum() or 1.0))
    while True:
        left = total - room[full].sum() - own[~full].sum()
        exact = np.where(full, room, own + left / max(np.count_nonzero(~full), 1))
        over = (exact > room) & ~full
        if not over.any():
            return exact
        full |= over
