"""One rewiring of one matrix: how a change of connections is chosen and applied."""

import dataclasses

import numpy as np
from keras import ops

from keras_selfish import masks
from keras_selfish.optimizers.state import reset_state
from keras_selfish.rewiring import selection

__all__ = ["Change", "apply_change", "choose_change"]


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of connections.

    Args:
        mask: Boolean array: the connections after the change.
        dropped: Boolean array: the connections that ceased to exist.
        grown: Boolean array: the connections that are new and start from zero. With `reset_regrown` these
            include the ones that were dropped and regrown, which otherwise are in neither array.
    """

    mask: np.ndarray
    dropped: np.ndarray
    grown: np.ndarray


def rewired_count(rate, active, total):
    """How many of `active` blocks are rewired: round(rate * active), halves up.

    In a matrix that is over 80% dense the rate is capped by the sparsity.
    """
    if active > 0.8 * total:
        rate = min(rate, 1.0 - active / total)
    return int(rate * active + 0.5)


def choose_change(matrix, rate, drop, grow, generator, reset_regrown=False):
    """Chooses the connections that go and come; the number of connections stays exactly the same.

    Args:
        matrix: A `rules.Matrix`.
        rate: Fraction of the connections to rewire.
        drop: Drop rule (see `rules`).
        grow: Grow rule.
        generator: The `numpy.random.Generator` of random growth.
        reset_regrown: Whether a connection that is dropped and regrown counts as new.

    Returns:
        A `Change`, or None if no connection is to be rewired.
    """
    block_shape = matrix.masked_weight.block_shape
    active = _block_mask(matrix.mask, block_shape)
    count = rewired_count(rate, np.count_nonzero(active), active.size)
    if count == 0:
        return None
    kept = active & ~selection.smallest(_block_scores(drop(matrix), block_shape), active, count)
    scores = grow(matrix)
    if scores is None:
        chosen = selection.uniform(~kept, count, generator)
    else:
        chosen = selection.largest(_block_scores(scores, block_shape), ~kept, count)
    after = kept | chosen
    grown = chosen if reset_regrown else after & ~active
    return Change(*(masks.expand_blocks(blocks, block_shape) for blocks in (after, active & ~after, grown)))


def apply_change(masked_weight, change, optimizer=None):
    """Writes a change to the mask, the weight and the optimizer's state.

    New connections start from zero, and weights without a connection are exactly zero.
    """
    keep = ops.convert_to_tensor(change.mask & ~change.grown)
    weight = ops.convert_to_tensor(masked_weight.weight)
    masked_weight.weight.assign(ops.where(keep, weight, ops.zeros_like(weight)))
    masked_weight.mask.assign(change.mask)
    if optimizer is not None:
        reset_state(optimizer, masked_weight, change.dropped, change.grown)


def _block_mask(mask, block_shape):
    return mask if block_shape == (1, 1) else masks.block_view(mask, block_shape)[..., 0, :, 0]


def _block_scores(scores, block_shape):
    if block_shape == (1, 1):
        return scores
    return np.sqrt(np.square(masks.block_view(scores, block_shape)).sum(axis=(-3, -1)))
