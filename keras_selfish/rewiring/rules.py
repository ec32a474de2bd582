"""Rules: which connections go and which come.

A rule is a function of a `Matrix` that returns a score for each of its weights. Of the connections that
exist those with the smallest drop scores go; of the positions without one those with the largest grow
scores come. A grow rule that returns None has no preference: growth is uniformly at random. A block's
score is the L2 norm of its weights' scores. A published method is its two rules:

    def gradient(matrix): ...                  # RigL grows where the gradient is large

    Rewiring(drop="magnitude", grow=gradient)
"""

import dataclasses

import numpy as np

__all__ = ["DROP_RULES", "GROW_RULES", "Matrix", "magnitude", "random"]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """What a rule may look at.

    Args:
        weight: NumPy array with the values of the weight, all gates together; zero where `mask` is False.
        mask: Boolean NumPy array of the same shape: the connections that exist.
        masked_weight: The `MaskedWeight` that both come from.
        optimizer: The model's optimizer.
    """

    weight: np.ndarray
    mask: np.ndarray
    masked_weight: object
    optimizer: object = None


def magnitude(matrix):
    """Drops weights close to zero. The gates of a recurrent kernel compete, as they are ranked together."""
    return np.abs(matrix.weight)


def random(matrix):
    """Grows uniformly at random."""
    return None


DROP_RULES = {"magnitude": magnitude}
GROW_RULES = {"random": random}
