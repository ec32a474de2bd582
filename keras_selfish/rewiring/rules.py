"""Rules: which connections are dropped, which are grown, and in which matrix.

A rule is a function of a `Matrix`. A *drop rule* returns a score for each weight: the connections with the
smallest scores are dropped. A *grow rule* returns a score as well: connections are grown where it is largest
among the free positions; None stands for uniformly at random. A *redistribution rule* returns one number, the
share of its matrix in all grown connections. A block's score is the L2 norm of its weights' scores. A
published method consists of its rules:

    @needs_gradients(batches=1)
    def gradient(matrix):  # RigL grows where the gradient is large
        return abs(matrix.gradient)

    Rewiring(drop="magnitude", grow=gradient, gradient_data=windows)

Rules read NumPy arrays. One that is marked by `reads_tensors` gets tensors of Keras's backend where
connections are chosen on the device; `matrix.arrays` has the functions that there are for both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from keras_selfish import masks
from keras_selfish.rewiring import host_arrays

if TYPE_CHECKING:
    import keras

_Rule = TypeVar("_Rule", bound=Callable[..., Any])

__all__ = [
    "DROP_RULES",
    "GROW_RULES",
    "REDISTRIBUTION_RULES",
    "Matrix",
    "batches_needed",
    "gradient",
    "guided",
    "magnitude",
    "magnitude_and_gradient",
    "magnitude_by_sign",
    "mean_magnitude",
    "mean_momentum",
    "momentum",
    "needs_gradients",
    "nonzeros",
    "random",
    "reads_tensors",
    "resolve",
    "sensitivity",
]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """What a rule can read: a weight, its mask and what goes with them.

    Args:
        weight: Array with the values of the weight, all gates together; zero where `mask` is False.
        mask: Boolean array of the same shape: the connections that exist; for a redistribution rule that is
            marked by `after_dropping`, the remaining ones.
        masked_weight: The `MaskedWeight` of both.
        optimizer: The model's optimizer.
        gradient: Array of the same shape: the gradient of the loss with respect to the weight, of
            connections that do not exist as well. None unless a rule asks for it (see `needs_gradients`).
        generator: A `numpy.random.Generator` of this matrix and step.
        arrays: What the arrays are: the module `host_arrays` (default) for NumPy arrays, `device_arrays` for
            tensors, which only rules get that are marked by `reads_tensors`. Both have the same functions.
    """

    weight: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_]
    masked_weight: masks.MaskedWeight
    optimizer: keras.optimizers.Optimizer | None = None
    gradient: Any = None  # an array where a rule has asked for it
    generator: Any = None
    arrays: ModuleType = host_arrays


def after_dropping(rule: _Rule) -> _Rule:
    """Marks a redistribution rule that reads the connections left after dropping, not those before it."""
    rule.after_dropping = True  # type: ignore[attr-defined]
    return rule


def overflow_in_equal_parts(rule: _Rule) -> _Rule:
    """Marks a redistribution rule by which the others divide what a matrix has no room for in equal parts.

    Without it they divide it in proportion to their shares.
    """
    rule.overflow = "equal"  # type: ignore[attr-defined]
    return rule


def reads_tensors(rule: _Rule) -> _Rule:
    """Marks a rule that reads tensors as it reads NumPy arrays: by operators and by `matrix.arrays` alone.

    Where all rules do, connections are chosen on a GPU, or where a weight's parts are.
    """
    rule.reads_tensors = True  # type: ignore[attr-defined]
    return rule


def needs_gradients(batches: int) -> Callable[[_Rule], _Rule]:
    """Marks a rule that reads `matrix.gradient`, the mean gradient over this number of batches."""

    def mark(rule):
        rule.gradient_batches = batches
        return rule

    return mark


def batches_needed(*rules):
    """The largest number of batches that any of some rules (None for no rule) needs gradients of."""
    return max(getattr(rule, "gradient_batches", 0) for rule in rules)


def read_tensors(*rules):
    """Whether all of some rules (None for no rule) read tensors."""
    return all(rule is None or getattr(rule, "reads_tensors", False) for rule in rules)


def resolve(name, value, known):
    """The rule or other function that an argument names in `known`, or is itself.

    Raises:
        ValueError: if it is neither.
    """
    if callable(value):
        return value
    if value not in known:
        raise ValueError(
            f"`{name}` must be one of {', '.join(known)}, or a function. Received: {name}={value!r}"
        )
    return known[value]


# Each a name, or a function of a `Matrix`. Scores may be several arrays, which share the count.
DropRule: TypeAlias = (
    Literal["magnitude", "magnitude_by_sign", "magnitude_and_gradient", "sensitivity"]
    | Callable[[Matrix], npt.NDArray[Any] | list[npt.NDArray[Any]]]
)
GrowRule: TypeAlias = (
    Literal["random", "gradient", "momentum", "guided"] | Callable[[Matrix], npt.NDArray[Any] | None]
)
RedistributionRule: TypeAlias = (
    Literal["none", "magnitude", "nonzeros", "momentum"] | Callable[[Matrix], float]
)


# Which are dropped.


@reads_tensors
def magnitude(matrix: Matrix) -> npt.NDArray[Any]:
    """Drops the weights nearest to zero. Gates of a kernel are ranked together, and so compete."""
    return abs(matrix.weight)


@reads_tensors
def magnitude_by_sign(matrix: Matrix) -> list[npt.NDArray[Any]]:
    """Drops the positive and the negative weights nearest to zero, half of the count on each side.

    A block is positive if its sum is. Several arrays of scores, infinite where a weight is no candidate,
    share the count in equal parts.

    Reference: Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
    connectivity", arXiv 1707.04780, algorithm 1.
    """
    arrays, block_shape = matrix.arrays, matrix.masked_weight.block_shape
    positive = arrays.block_sums(matrix.weight, block_shape) > 0.0
    scores = arrays.block_norms(matrix.weight, block_shape)
    return [arrays.where(positive, scores, np.inf), arrays.where(positive, np.inf, scores)]


@reads_tensors
@needs_gradients(batches=1)
def magnitude_and_gradient(matrix: Matrix) -> npt.NDArray[Any]:
    """Drops weights that are small and that the loss does not ask to change.

    The score is the sum of a weight's magnitude and of its gradient's, each as a multiple of its mean over
    the connections of the matrix, since the scale of gradients says nothing beside that of weights.
    """
    parts = [abs(matrix.weight), abs(matrix.gradient)]
    means = [matrix.arrays.mean(part, matrix.mask) for part in parts]
    return sum(part / mean if mean else part for part, mean in zip(parts, means, strict=True))


@reads_tensors
@needs_gradients(batches=1)
def sensitivity(matrix: Matrix) -> npt.NDArray[Any]:
    """Drops weights whose removal changes the loss least, to first order: |weight * gradient|.

    Reference: Lee et al. 2019, "SNIP", arXiv 1810.02340, equation 4.
    """
    return abs(matrix.weight * matrix.gradient)


# Which are grown.


@reads_tensors
def random(matrix: Matrix) -> None:
    """Grows uniformly at random."""
    return None


@reads_tensors
@needs_gradients(batches=1)
def gradient(matrix: Matrix) -> npt.NDArray[Any]:
    """Grows where the gradient of one batch is largest.

    Reference: Evci et al. 2020, "Rigging the Lottery", arXiv 1911.11134, algorithm 1.
    """
    return abs(matrix.gradient)


# A momentum of 0.9 averages over about ten gradients.
@reads_tensors
@needs_gradients(batches=10)
def momentum(matrix: Matrix) -> npt.NDArray[Any]:
    """Grows where the gradient, averaged over ten batches, is largest.

    The published momentum is an average over the preceding steps, each of which would have to compute the
    gradients of all connections that do not exist. This one is computed from the present weights, when it is
    needed.

    Reference: Dettmers and Zettlemoyer 2019, "Sparse Networks from Scratch", arXiv 1907.04840, section 3.
    """
    return abs(matrix.gradient)


@reads_tensors
@needs_gradients(batches=1)
def guided(matrix: Matrix) -> npt.NDArray[Any]:
    """Grows where the gradient is largest in a random subset of as many positions as there are connections.

    Reference: Heddes et al. 2024, "Always-Sparse Training by Growing Connections with Guided Stochastic
    Exploration", arXiv 2401.06898, algorithm 1 with a subset factor of 1.
    """
    arrays, block_shape = matrix.arrays, matrix.masked_weight.block_shape
    free = ~arrays.block_mask(matrix.mask, block_shape)
    places = arrays.count(free)
    size = min(math.prod(free.shape) - places, places)
    subset = arrays.uniform(free, size, matrix.generator)
    return arrays.where(subset, arrays.block_norms(matrix.gradient, block_shape), -1.0)


# In which matrix.


@reads_tensors
@after_dropping
def nonzeros(matrix: Matrix) -> float:
    """Divides growth by the number of connections left after dropping.

    Reference: Mostafa and Wang 2019, "Parameter efficient training of deep convolutional neural networks by
    dynamic sparse reparameterization", arXiv 1902.05967, algorithm 1.
    """
    return float(matrix.arrays.count(matrix.mask))


@reads_tensors
@overflow_in_equal_parts
def mean_magnitude(matrix: Matrix) -> float:
    """Divides growth by the mean magnitude of the connections before dropping."""
    return matrix.arrays.mean(abs(matrix.weight), matrix.mask)


@reads_tensors
@overflow_in_equal_parts
@needs_gradients(batches=10)
def mean_momentum(matrix: Matrix) -> float:
    """Divides growth by the mean magnitude of the connections' momentum before dropping.

    As published, it is the optimizer's: that of SGD, and of Adam divided by the root of its mean square. With
    an optimizer that has none, or several optimizers, whose momenta do not compare, it is `momentum`.

    A mean does not grow with the matrix: of matrices that learn alike, the small ones fill up.

    Reference: Dettmers and Zettlemoyer 2019, arXiv 1907.04840, section 3.
    """
    from keras_selfish.optimizers.slot_reset import momentum_of  # which loads Keras

    values = momentum_of(matrix.optimizer, matrix.masked_weight.weight) if matrix.optimizer else None
    values = matrix.gradient if values is None else matrix.arrays.read(values)
    return matrix.arrays.mean(abs(values), matrix.mask)


DROP_RULES = {
    "magnitude": magnitude,
    "magnitude_by_sign": magnitude_by_sign,
    "magnitude_and_gradient": magnitude_and_gradient,
    "sensitivity": sensitivity,
}
GROW_RULES = {"random": random, "gradient": gradient, "momentum": momentum, "guided": guided}
REDISTRIBUTION_RULES = {
    "none": None,
    "magnitude": mean_magnitude,
    "nonzeros": nonzeros,
    "momentum": mean_momentum,
}
