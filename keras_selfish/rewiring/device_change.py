"""Changes of connections that are chosen where the weights are: on a GPU, or on several devices.

Weights that travel to the host, 264 MB of them in a model of 66 million, take longer than the training steps
of a whole rewiring interval, and those that are divided among devices may be more than one of them holds.
The choice is that of `model_change.py` on the host for the same rule: the same connections where scores
decide, of equal scores the first ones. Connections grown at random are the same on CPUs; a GPU draws other
numbers, as random, for the same seed.
"""

import keras
import numpy as np
from keras import ops

from keras_selfish import masks
from keras_selfish.backend import of_backend
from keras_selfish.recurrence import on_gpu
from keras_selfish.rewiring import rules, top_k
from keras_selfish.rewiring.budget import rewired_count
from keras_selfish.rewiring.matrix_change import Change, not_a_number
from keras_selfish.variables import is_divided, placed_like, to_numpy


def serves(model, drop, grow, drop_scope, redistribution):
    """Whether the connections of a model can be chosen here by these rules."""
    strategy = getattr(model, "distribute_strategy", None)
    weights = masks.masked_weights(model)
    return (
        (on_gpu() or any(is_divided(weight.weight) for weight in weights))
        and getattr(strategy, "num_replicas_in_sync", 1) == 1
        and drop is rules.magnitude
        and grow in (rules.random, rules.gradient)
        and drop_scope == "matrix"
        and redistribution is None
        and not any(weight.n_of_m for weight in weights)
    )


def choose_change(masked_weight, gradient, generator, rate, reset_regrown, rounding):
    """Chooses the connections to drop and to grow, as `matrix_change.choose_change` does.

    Args:
        masked_weight: A `MaskedWeight`.
        gradient: Tensor of the weight's shape whose magnitude decides on growth; None for random growth.
        generator: The `numpy.random.Generator` of this matrix and step.
        rate: Fraction of the connections to rewire, in [0, 1].
        reset_regrown: Whether a connection that is dropped and regrown counts as new.
        rounding: As in `rewired_count`.

    Returns:
        A `Change` of tensors on the device, or None if no connection is to be rewired.

    Raises:
        ValueError: if a weight is NaN.
    """
    block_shape = masked_weight.block_shape
    weight = ops.cast(ops.convert_to_tensor(masked_weight.weight), "float32")
    mask = ops.convert_to_tensor(masked_weight.mask)
    active = mask if block_shape == (1, 1) else _blocks(mask, block_shape)[..., 0, :, 0]
    count = rewired_count(rate, _count(active), int(np.prod(active.shape)), rounding=rounding)
    if count == 0:
        return None
    scores = _norms(weight, block_shape)
    if bool(ops.any(ops.logical_and(active, ops.isnan(scores)))):
        raise not_a_number(masked_weight)
    kept = ops.logical_and(active, ops.logical_not(smallest(scores, active, count)))
    free = ops.logical_not(kept)
    if gradient is None:
        chosen = uniform(free, count, generator)
    else:
        chosen = smallest(-_norms(ops.cast(gradient, "float32"), block_shape), free, count)
    after = ops.logical_or(kept, chosen)
    dropped = ops.logical_and(active, ops.logical_not(after))
    grown = chosen if reset_regrown else ops.logical_and(after, ops.logical_not(active))
    return Change(*(_expanded(blocks, block_shape) for blocks in (after, dropped, grown)))


def uniform(among, count, generator):
    """`count` positions uniformly at random."""
    if on_gpu():
        scores = random_scores(among, int(generator.integers(2**31)))
        return smallest(scores, among, count)
    # One byte a position travels, and the host draws as it does for a weight on one device.
    return placed_like(top_k.uniform(to_numpy(among), count, generator), among)


@of_backend
def random_scores(like, seed):
    """Uniform numbers in [0, 1) of a tensor's shape."""
    return keras.random.uniform(like.shape, seed=seed)


@of_backend
def smallest(scores, among, count):
    """The `count` positions with the smallest scores; of equal scores the first ones. No score is NaN."""
    candidates = ops.where(among, scores, ops.full((), float("inf"), scores.dtype))
    limit = ops.sort(ops.reshape(candidates, (-1,)))[count - 1]
    below = candidates < limit
    ties = ops.reshape(ops.logical_and(among, candidates == limit), (-1,))
    first = ops.cumsum(ops.cast(ties, "int32")) <= count - _count(below)
    return ops.logical_or(below, ops.reshape(ops.logical_and(ties, first), among.shape))


def _count(mask):
    return int(ops.sum(ops.cast(mask, "int32")))


def _blocks(array, block_shape):
    *leading, inputs, units = array.shape
    (rows, columns), sizes = block_shape, (inputs // block_shape[0], units // block_shape[1])
    return ops.reshape(array, (*leading, sizes[0], rows, sizes[1], columns))


def _norms(array, block_shape):
    if block_shape == (1, 1):
        return ops.abs(array)
    return ops.sqrt(ops.sum(ops.square(_blocks(array, block_shape)), axis=(-3, -1)))


def _expanded(blocks, block_shape):
    for axis, size in zip((-2, -1), block_shape, strict=True):
        blocks = ops.repeat(blocks, size, axis) if size > 1 else blocks
    return blocks
