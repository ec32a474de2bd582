"""One rewiring of one matrix: how a change of connections is chosen and applied."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_selfish import masks
from keras_selfish.optimizers.state import reset_state
from keras_selfish.rewiring import rules, selection

__all__ = ["Change", "apply_change", "choose_change", "read_matrix", "rewired_count"]


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


def read_matrix(masked_weight, optimizer=None):
    """The present values of a masked weight and its mask, for rules to look at."""
    return rules.Matrix(_host(masked_weight.weight), _host(masked_weight.mask), masked_weight, optimizer)


def choose_change(matrix, rate, drop, grow, generator, reset_regrown=False):
    """Chooses the connections that go and come; the number of connections stays exactly the same.

    Args:
        matrix: A `rules.Matrix`.
        rate: Fraction of the connections to rewire, in [0, 1].
        drop: Drop rule (see `rules`).
        grow: Grow rule.
        generator: The `numpy.random.Generator` of random growth.
        reset_regrown: Whether a connection that is dropped and regrown counts as new.

    Returns:
        A `Change`, or None if no connection is to be rewired.

    Raises:
        ValueError: if a connection has no score, for its weight is NaN.
    """
    block_shape = matrix.masked_weight.block_shape
    active = _block_mask(matrix.mask, block_shape)
    count = rewired_count(rate, np.count_nonzero(active), active.size)
    if count == 0:
        return None
    drop_scores = _block_scores(drop(matrix), block_shape)
    try:
        dropped = selection.smallest(drop_scores, active, count)
    except ValueError as error:
        raise ValueError(
            f"`model` must have weights that are numbers to be rewired. Received: NaN in "
            f"{matrix.masked_weight.name!r}; lower the learning rate or clip the gradient"
        ) from error
    kept = active > dropped  # for booleans: active and not dropped, in one pass
    scores = grow(matrix)
    if scores is None:
        chosen = selection.uniform(~kept, count, generator)
    else:
        chosen = selection.largest(_block_scores(scores, block_shape), ~kept, count)
    after = kept | chosen
    grown = chosen if reset_regrown else after > active
    return Change(*(masks.expand_blocks(blocks, block_shape) for blocks in (after, active > after, grown)))


def rewired_count(rate, active, total):
    """How many of `active` blocks are rewired: `rate * active` rounded to the nearest, halves up.

    In a matrix that is over 80% dense the rate is capped by the sparsity, as published.
    """
    if active > 0.8 * total:
        rate = min(rate, 1.0 - active / total)
    return int(rate * active + 0.5)


def apply_change(masked_weight, change, optimizer=None):
    """Writes a change to the mask, the weight and the optimizer's state.

    New connections start from zero, and weights without a connection are exactly zero.
    """
    keep = ops.convert_to_tensor(change.mask > change.grown)
    weight = ops.convert_to_tensor(masked_weight.weight)
    masked_weight.weight.assign(ops.where(keep, weight, ops.zeros((), weight.dtype)))
    masked_weight.mask.assign(change.mask)
    if optimizer is not None:
        reset_state(optimizer, masked_weight, change.dropped, change.grown)


def _host(variable):
    """A NumPy array to read from; numbers in at least 32 bits, which NumPy sorts."""
    tensor = ops.convert_to_tensor(variable)
    # `convert_to_numpy` copies once more, except for PyTorch, whose tensors NumPy cannot read by itself.
    array = ops.convert_to_numpy(tensor) if keras.backend.backend() == "torch" else np.asarray(tensor)
    return array if array.dtype in (bool, np.float32, np.float64) else array.astype(np.float32)


def _block_mask(mask, block_shape):
    return mask if block_shape == (1, 1) else masks.block_view(mask, block_shape)[..., 0, :, 0]


def _block_scores(scores, block_shape):
    if block_shape == (1, 1):
        return scores
    return np.sqrt(np.square(masks.block_view(scores, block_shape)).sum(axis=(-3, -1)))
