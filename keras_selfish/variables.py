"""Large variables read and written where they stand.

Touching the memory of a new array for the first time takes several times as long as reading or writing it
again.
"""

import numpy as np
from keras import ops

from keras_selfish.backend import BACKEND, of_backend

__all__ = ["fill", "is_divided", "placed_like", "to_numpy", "view"]


@of_backend
def fill_in_place(variable, positions, value):
    """Does what `fill` says where the variable stands; returns whether it did: never on this backend."""
    return False


@of_backend
def to_numpy(variable):
    """A NumPy array of a variable or tensor, gathered where its parts are on several devices."""
    return ops.convert_to_numpy(variable)


@of_backend
def is_divided(variable):
    """Whether a variable's parts are on several devices, as only JAX has them."""
    return False


@of_backend
def placed_like(array, tensor):
    """A tensor of a NumPy array, of which each device holds the part that it holds of another tensor."""
    return ops.convert_to_tensor(array)


@of_backend
def view(variable):
    """A NumPy array to read from, which may show the variable's own memory."""
    tensor = ops.convert_to_tensor(variable)
    # `convert_to_numpy` copies once more, except for PyTorch, whose tensors NumPy cannot read by itself.
    return ops.convert_to_numpy(tensor) if BACKEND == "torch" else np.asarray(tensor)


def fill(variable, positions, value):
    """Sets a variable to a value at some positions.

    Args:
        variable: A `keras.Variable`. On TensorFlow it is written where it stands, if it is large, on a CPU,
            and no `view` of it is left.
        positions: Boolean array or tensor of its shape.
        value: A number or scalar tensor.
    """
    if not fill_in_place(variable, positions, value):
        old = ops.convert_to_tensor(variable)
        variable.assign(ops.where(ops.convert_to_tensor(positions), ops.cast(value, old.dtype), old))
