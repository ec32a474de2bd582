"""One rewiring of one matrix: choosing a change of connections and applying it."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator

import numpy as np
from keras import ops

from keras_selfish.optimizers.slot_reset import reset_state
from keras_selfish.optimizers.wrappers import holders
from keras_selfish.rewiring import host_arrays, rules
from keras_selfish.rewiring.budget import rewired_count, share_out
from keras_selfish.typing import TensorLike
from keras_selfish.variables import fill

__all__ = [
    "Change",
    "active_blocks",
    "apply_change",
    "choose_change",
    "choose_dropped",
    "choose_grown",
    "choose_kept",
    "drop_scores",
    "make_change",
    "not_a_number",
    "read_matrix",
]


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of connections.

    Args:
        mask: Boolean array, or tensor as the others: the connections after the change.
        dropped: Boolean array: the connections that were dropped.
        grown: Boolean array: the connections that were grown and start from zero. With `reset_regrown` these
            include the ones that were dropped and regrown, which otherwise are in neither array.
    """

    mask: TensorLike
    dropped: TensorLike
    grown: TensorLike

    @property
    def empty(self):
        """Positions at which the weight is zero after the change."""
        if isinstance(self.mask, np.ndarray):
            return self.mask <= self.grown
        return ops.logical_or(ops.logical_not(self.mask), self.grown)


def read_matrix(masked_weight, optimizer=None, gradient=None, generator=None, arrays=host_arrays):
    """A masked weight as rules read it, a `rules.Matrix` of arrays of this kind."""
    weight, mask = arrays.read(masked_weight.weight), arrays.read(masked_weight.mask)
    gradient = None if gradient is None else arrays.read(gradient)
    return rules.Matrix(weight, mask, masked_weight, optimizer, gradient, generator, arrays)


def choose_change(matrix, rate, drop, grow, reset_regrown=False, rounding=math.ceil):
    """Chooses the connections to drop and to grow; their number stays exactly the same.

    Args:
        matrix: A `rules.Matrix` with its generator.
        rate: Fraction of the connections to rewire, in [0, 1].
        drop: Drop rule (see `rules`).
        grow: Grow rule.
        reset_regrown: Whether a connection that is dropped and regrown counts as new.
        rounding: As in `rewired_count`.

    Returns:
        A `Change`, or None if no connection is to be rewired.

    Raises:
        ValueError: if a connection has no score, for its weight is NaN.
    """
    active = active_blocks(matrix)
    count = rewired_count(rate, matrix.arrays.count(active), math.prod(active.shape), rounding=rounding)
    if count == 0:
        return None
    kept = choose_kept(matrix, count, drop)
    return make_change(matrix, kept, choose_grown(matrix, kept, count, grow), reset_regrown)


def active_blocks(matrix):
    """The blocks of a matrix that exist, a boolean array."""
    return matrix.arrays.block_mask(matrix.mask, matrix.masked_weight.block_shape)


def drop_scores(matrix, drop):
    """The scores of a drop rule for the blocks of a matrix, a list of arrays."""
    scores = drop(matrix)
    return [_per_block(matrix, each) for each in (scores if isinstance(scores, list) else [scores])]


def choose_dropped(matrix, count, drop):
    """Chooses `count` blocks to drop.

    Args:
        matrix: A `rules.Matrix`.
        count: Number of blocks.
        drop: Drop rule.

    Returns:
        A boolean array of blocks.

    Raises:
        ValueError: if a connection has no score, for its weight is NaN.
    """
    arrays, active = matrix.arrays, active_blocks(matrix)
    scores = drop_scores(matrix, drop)
    try:
        if len(scores) == 1:
            return arrays.smallest(scores[0], active, count)
        # An infinite score is that of no candidate.
        candidates = [active & (abs(each) != np.inf) for each in scores]
        counts = share_out(
            count, np.ones(len(scores)), np.zeros(len(scores)), list(map(arrays.count, candidates))
        )
        chosen = list(map(arrays.smallest, scores, candidates, counts))
        return functools.reduce(operator.or_, chosen)
    except ValueError as error:
        raise not_a_number(matrix.masked_weight) from error


def choose_kept(matrix, count, drop):
    """The blocks that exist and are not among the `count` to drop, see `choose_dropped`."""
    return matrix.arrays.without(active_blocks(matrix), choose_dropped(matrix, count, drop))


def not_a_number(masked_weight):
    """The `ValueError` of a connection without a score."""
    return ValueError(
        "`model` must have weights that are numbers to be rewired. Received: NaN in "
        f"{masked_weight.name!r}; lower the learning rate or clip the gradient"
    )


def choose_grown(matrix, kept, count, grow):
    """Chooses `count` blocks to grow.

    In an n-of-m pattern every group of m input weights regains as many as it has lost.

    Args:
        matrix: A `rules.Matrix`.
        kept: Boolean array of the blocks that were not dropped.
        count: Number of blocks.
        grow: Grow rule.

    Returns:
        A boolean array of blocks, none of which is in `kept`.
    """
    arrays = matrix.arrays
    if count == 0:
        return arrays.nothing(kept)
    scores = grow(matrix)
    pattern = matrix.masked_weight.n_of_m
    if pattern is not None:
        scores = arrays.random_scores(kept, matrix.generator) if scores is None else scores
        return arrays.largest_of_groups(scores, ~kept, pattern, kept)
    if scores is None:
        return arrays.uniform(~kept, count, matrix.generator)
    return arrays.largest(_per_block(matrix, scores), ~kept, count)


def make_change(matrix, kept, chosen, reset_regrown=False):
    """The `Change` of a matrix that keeps the blocks `kept` and grows the blocks `chosen`."""
    arrays, block_shape = matrix.arrays, matrix.masked_weight.block_shape
    active = active_blocks(matrix)
    after = kept | chosen
    grown = chosen if reset_regrown else arrays.without(after, active)
    changed = (after, arrays.without(active, after), grown)
    return Change(*(arrays.expand_blocks(blocks, block_shape) for blocks in changed))


def apply_change(masked_weight, change, optimizers=()):
    """Writes a change to the mask, the weight and the state of the optimizers.

    New connections start from zero, and weights without a connection are exactly zero.
    """
    for optimizer in optimizers:
        for leaf in holders(optimizer, masked_weight.weight):
            masked_weight.watch(leaf, reset_state)
    try:
        fill(masked_weight.weight, change.empty, 0.0)
        masked_weight.change_mask(change.mask)
        masked_weight.tell(change.dropped, change.grown)
    except BaseException:  # a pressed key, too: what it leaves must not move weights that do not exist
        masked_weight.unsettle()
        raise


def _per_block(matrix, scores):
    """Scores of blocks; those of weights are joined in their L2 norm."""
    block_shape = matrix.masked_weight.block_shape
    if tuple(scores.shape) != tuple(matrix.mask.shape) or block_shape == (1, 1):
        return scores
    return matrix.arrays.block_norms(scores, block_shape)
