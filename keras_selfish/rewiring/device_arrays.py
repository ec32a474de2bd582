"""What rules and choices of connections need of tensors; `host_arrays.py` has the same of NumPy arrays.

Weights that travel to the host, 264 MB of them in a model of 66 million, take longer than the training steps
of a whole rewiring interval, and those that are divided among devices may be more than one of them holds. So
on a GPU, and where weights are divided, connections are chosen where the weights are: the same ones as on the
host where scores decide, of equal scores the first ones. Connections grown at random are the same on CPUs; a
GPU draws other numbers, as random, for the same seed. Means are rounded otherwise, so that a weight's share
in what all weights grow may differ by one connection.
"""

import functools

import keras
import numpy as np
from keras import ops

from keras_selfish import masks
from keras_selfish.backend import of_backend
from keras_selfish.recurrence import on_gpu
from keras_selfish.rewiring import host_arrays, top_k
from keras_selfish.rewiring.budget import with_first_ties
from keras_selfish.variables import is_divided, placed_like, to_numpy

__all__ = [*host_arrays.__all__, "serve"]

where = ops.where


def serve(model):
    """Whether the connections of a model are to be chosen here, if the rules read tensors."""
    strategy = getattr(model, "distribute_strategy", None)
    weights = [weight.weight for weight in masks.masked_weights(model)]
    return (
        (on_gpu() or any(map(is_divided, weights)))
        and getattr(strategy, "num_replicas_in_sync", 1) == 1
        and not any(weight.dtype == "float64" for weight in weights)  # scores are of 32 bits here
    )


def read(variable):
    """A tensor of a variable, boolean or in float32."""
    tensor = ops.convert_to_tensor(variable)
    return tensor if keras.backend.standardize_dtype(tensor.dtype) == "bool" else ops.cast(tensor, "float32")


def count(mask):
    """As in `host_arrays.py`."""
    return int(ops.sum(ops.cast(mask, "int32")))


def without(mask, others):
    """As in `host_arrays.py`."""
    return ops.logical_and(mask, ops.logical_not(others))


def nothing(mask):
    """As in `host_arrays.py`."""
    return ops.zeros_like(mask)


def mean(values, among):
    """As in `host_arrays.py`."""
    # Rows of tens of millions of numbers are summed here, and their sums in double precision.
    rows = to_numpy(ops.sum(ops.where(among, values, 0.0), axis=-1))
    return float(rows.sum(dtype=np.float64) / max(count(among), 1))


def each_smallest(scores):
    """As in `host_arrays.py`."""
    return functools.reduce(ops.minimum, scores)


# Blocks.


def block_mask(mask, block_shape):
    """As in `masks.py`."""
    return mask if block_shape == (1, 1) else _block_view(mask, block_shape)[..., 0, :, 0]


def block_sums(array, block_shape):
    """As in `masks.py`."""
    return array if block_shape == (1, 1) else ops.sum(_block_view(array, block_shape), axis=(-3, -1))


def block_norms(array, block_shape):
    """As in `masks.py`."""
    if block_shape == (1, 1):
        return ops.abs(array)
    return ops.sqrt(ops.sum(ops.square(_block_view(array, block_shape)), axis=(-3, -1)))


def expand_blocks(blocks, block_shape):
    """As in `masks.py`."""
    for axis, size in zip((-2, -1), block_shape, strict=True):
        blocks = ops.repeat(blocks, size, axis) if size > 1 else blocks
    return blocks


def _block_view(array, block_shape):
    grid = masks.block_grid(array.shape, block_shape)
    return ops.reshape(array, (*grid[:-1], block_shape[0], grid[-1], block_shape[1]))


# Selections.


def smallest(scores, among, count):
    """As in `top_k.py`."""
    if count == 0:
        return nothing(among)
    if has_nan(candidates(scores, among)):
        raise ValueError("`scores` must be numbers. Received: NaN")
    return lowest_of(scores, among, count)


def largest(scores, among, count):
    """As in `top_k.py`."""
    return smallest(-scores, among, count)


def largest_of_groups(scores, among, pattern, kept):
    """As in `top_k.py`."""
    n, m = pattern
    *leading, inputs, units = scores.shape
    groups = (*leading, inputs // m, m, units)
    order = ops.argsort(ops.reshape(ops.where(among, -scores, float("inf")), groups), axis=-2)
    ranks = ops.argsort(order, axis=-2)
    kept = ops.sum(ops.cast(ops.reshape(kept, groups), "int32"), axis=-2, keepdims=True)
    return ops.reshape(ops.cast(ranks, "int32") < n - kept, scores.shape)


def uniform(among, count, generator):
    """As in `top_k.py`."""
    if on_gpu():
        return smallest(random_scores(among, generator), among, count)
    # One byte a position travels, and the host draws as it does for a weight on one device.
    return placed_like(top_k.uniform(to_numpy(among), count, generator), among)


def random_scores(like, generator):
    """As in `host_arrays.py`."""
    if on_gpu():
        return uniform_numbers(like, int(generator.integers(2**31)))
    return placed_like(generator.random(tuple(like.shape), np.float32), like)


def candidates(scores, among):
    """As in `host_arrays.py`."""
    return scores, among


def has_nan(chosen):
    """As in `host_arrays.py`."""
    scores, among = chosen
    return bool(ops.any(ops.logical_and(among, ops.isnan(scores))))


def common_threshold(chosen, number):
    """As in `budget.py`, for a list of `candidates`."""
    scores = [each for each, _ in chosen]
    among = [without(each, lowest_of(-values, each, 1)) for values, each in chosen]
    number = min(number, sum(map(count, among)))
    if number == 0:
        return [0] * len(chosen)
    below, ties = zip(*around_limit(scores, among, number), strict=True)
    return with_first_ties(number, list(map(int, below)), list(map(int, ties)))


@of_backend
def uniform_numbers(like, seed):
    """Uniform numbers in [0, 1) of a tensor's shape."""
    return keras.random.uniform(like.shape, seed=seed)


@of_backend
def lowest_of(scores, among, number):
    """The positions with the smallest scores, at least one; of equal scores the first ones. None is NaN."""
    values = ops.where(among, scores, float("inf"))
    limit = ops.sort(ops.reshape(values, (-1,)))[number - 1]
    below = values < limit
    ties = ops.reshape(ops.logical_and(among, values == limit), (-1,))
    first = ops.cumsum(ops.cast(ties, "int32")) <= number - count(below)
    return ops.logical_or(below, ops.reshape(ops.logical_and(ties, first), among.shape))


@of_backend
def around_limit(scores, among, number):
    """How many scores of each tensor are below the `number`-th smallest of all, and how many are equal."""
    values = [ops.where(*each, float("inf")) for each in zip(among, scores, strict=True)]
    limit = ops.sort(ops.concatenate([ops.reshape(each, (-1,)) for each in values]))[number - 1]
    equal = [ops.logical_and(each, value == limit) for each, value in zip(among, values, strict=True)]
    return [(count(value < limit), count(ties)) for value, ties in zip(values, equal, strict=True)]
