"""One rewiring of a whole model: how dropped and grown connections are divided among its matrices."""

import dataclasses
import math

from keras_selfish.rewiring.budget import rewired_count, share_out
from keras_selfish.rewiring.matrix_change import (
    active_blocks,
    choose_change,
    choose_grown,
    choose_kept,
    drop_scores,
    make_change,
    not_a_number,
)

__all__ = ["DROP_SCOPES", "check_equal_blocks", "choose_changes", "lost_together"]

DROP_SCOPES = ("matrix", "model")
FULL = 0.99  # of its free places that a matrix gets


def choose_changes(
    matrices,
    each=map,
    *,
    rate,
    drop,
    grow,
    drop_scope="matrix",
    redistribution=None,
    reset_regrown=False,
    rounding=math.ceil,
):
    """Chooses the connections of all matrices to drop and to grow; their total stays exactly the same.

    Args:
        matrices: List of `rules.Matrix`, each with its generator.
        each: `map`, or one that works in parallel.
        rate: Fraction of the connections to rewire, in [0, 1].
        drop: Drop rule (see `rules`).
        grow: Grow rule.
        drop_scope: `"matrix"`: the fraction of each matrix; `"model"`: the fraction of all connections, those
            with the smallest scores anywhere. No matrix then loses its last connection.
        redistribution: Redistribution rule; None for as many as the matrix has lost.
        reset_regrown: Whether a connection that is dropped and regrown counts as new.
        rounding: As in `rewired_count`.

    Returns:
        A list of `Change`, or of None where nothing changes.

    Raises:
        ValueError: if a connection has no score, for its weight is NaN, or blocks of different sizes would be
            exchanged.
    """
    if not matrices:
        return []
    if drop_scope == "matrix" and redistribution is None:
        return list(each(lambda m: choose_change(m, rate, drop, grow, reset_regrown, rounding), matrices))
    check_equal_blocks(matrices)
    shares = None if redistribution is None else list(map(redistribution, matrices))
    if drop_scope == "model":
        sizes = map(sum, zip(*map(_sizes, matrices), strict=True))
        lost = lost_together(matrices, each, rewired_count(rate, *sizes, rounding=rounding), drop)
    else:
        lost = _lost(matrices, shares, rate, rounding)
    kept = list(each(lambda m, count: choose_kept(m, count, drop), matrices, lost))
    gained = lost
    if shares is not None:
        if getattr(redistribution, "after_dropping", False):
            shares = [redistribution(_without(m, blocks)) for m, blocks in zip(matrices, kept, strict=True)]
        left = [matrix.arrays.count(blocks) for matrix, blocks in zip(matrices, kept, strict=True)]
        free = [math.prod(blocks.shape) - count for blocks, count in zip(kept, left, strict=True)]
        gained = _gained(left, free, sum(lost), shares, getattr(redistribution, "overflow", "shares"))

    def complete(matrix, kept, lost, gained):
        if lost == gained == 0:
            return None
        return make_change(matrix, kept, choose_grown(matrix, kept, gained, grow), reset_regrown)

    return list(each(complete, matrices, kept, lost, gained))


def _sizes(matrix):
    """How many blocks of a matrix exist, and how many could."""
    active = active_blocks(matrix)
    return matrix.arrays.count(active), math.prod(active.shape)


def _lost(matrices, shares, rate, rounding):
    """Number of blocks to drop from each matrix: fewer if it is nearly dense and grows more than others."""
    mean = None if shares is None else sum(shares) / len(shares)
    counts = []
    for index, matrix in enumerate(matrices):
        capped = shares is not None and shares[index] > mean
        counts.append(rewired_count(rate, *_sizes(matrix), capped, rounding))
    return counts


def lost_together(matrices, each, count, drop):
    """Number of connections to drop from each matrix: the `count` smallest scores of all matrices.

    Raises:
        ValueError: if a connection has no score, for its weight is NaN.
    """

    def candidates(matrix):
        # Where several arrays share the count, an infinite score is that of no candidate.
        lowest = matrix.arrays.each_smallest(drop_scores(matrix, drop))
        found = matrix.arrays.candidates(lowest, active_blocks(matrix))
        if matrix.arrays.has_nan(found):
            raise not_a_number(matrix.masked_weight)
        return found

    if not matrices:
        return []
    return matrices[0].arrays.common_threshold(list(each(candidates, matrices)), count)


def _without(matrix, kept):
    """The matrix with the kept blocks only."""
    mask = matrix.arrays.expand_blocks(kept, matrix.masked_weight.block_shape)
    weight = matrix.arrays.where(mask, matrix.weight, 0.0)
    return dataclasses.replace(matrix, mask=mask, weight=weight)


def _gained(left, free, total, shares, overflow):
    """Number of blocks to grow in each matrix by its share, from one connection to 99% of its free places.

    As in the published code; where that leaves too little room, all free places count.
    """
    floors = [int(count == 0) for count in left]
    ceilings = [max(floor, int(FULL * places)) for floor, places in zip(floors, free, strict=True)]
    return share_out(total, shares, floors, ceilings if sum(ceilings) >= total else free, overflow)


def check_equal_blocks(matrices):
    """Raises `ValueError` if the blocks of some weights are larger than those of others."""
    sizes = {math.prod(matrix.masked_weight.block_shape) for matrix in matrices}
    if len(sizes) > 1:
        raise ValueError(
            "`block_shape` must have the same size in all layers if connections move from one weight to "
            f"another. Received: blocks of {sorted(sizes)} weights"
        )
