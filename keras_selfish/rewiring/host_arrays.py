"""What rules and choices of connections need of NumPy arrays; `device_arrays.py` has the same of tensors."""

import numpy as np

from keras_selfish.masks import block_mask, block_norms, block_sums, expand_blocks
from keras_selfish.rewiring.budget import common_threshold
from keras_selfish.rewiring.top_k import largest, largest_of_groups, smallest, uniform

__all__ = [
    "block_mask",
    "block_norms",
    "block_sums",
    "candidates",
    "common_threshold",
    "count",
    "each_smallest",
    "expand_blocks",
    "has_nan",
    "largest",
    "largest_of_groups",
    "mean",
    "nothing",
    "random_scores",
    "read",
    "smallest",
    "uniform",
    "where",
    "without",
]

where = np.where


def read(variable):
    """An array to read from; numbers in at least 32 bits, which NumPy sorts."""
    from keras_selfish.variables import view  # which loads Keras

    array = view(variable)
    return array if array.dtype in (bool, np.float32, np.float64) else array.astype(np.float32)


def count(mask):
    """Number of positions that are True, an integer."""
    return int(np.count_nonzero(mask))


def without(mask, others):
    """The positions of a mask that are not in another one."""
    return mask > others  # in one pass


def nothing(mask):
    """A mask of the same shape without a position."""
    return np.zeros(mask.shape, bool)


def mean(values, among):
    """The mean of the values at some positions, a float; 0 where there are none."""
    return float(values.sum(where=among) / max(count(among), 1))


def each_smallest(scores):
    """The smallest of several arrays at each position."""
    return np.minimum.reduce(scores)


def random_scores(like, generator):
    """Uniform numbers in [0, 1) of an array's shape."""
    return generator.random(like.shape, np.float32)


def candidates(scores, among):
    """The scores of some positions, as `has_nan` and `common_threshold` take them."""
    return scores.reshape(-1).take(np.flatnonzero(among))


def has_nan(chosen):
    """Whether one of the `candidates` is NaN."""
    return bool(np.isnan(chosen).any())
