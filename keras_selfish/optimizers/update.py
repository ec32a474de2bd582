"""How `SNTASGD` moves one variable and its average, on JAX and torch.

`update_tensorflow.py` holds the same functions for TensorFlow.
"""

import keras
from keras import ops


def check_replicas(optimizer):
    """Raises `ValueError` where gradients cannot be accumulated: nowhere on these backends."""


def update_variables(optimizer, gradients, variables, learning_rate):
    """Clips the gradients, then updates every variable."""
    gradients, scales = optimizer.clip(gradients)
    for gradient, scale, variable in zip(gradients, scales, variables, strict=True):
        optimizer.update_step(gradient, variable, learning_rate, scale)


def sum_of_squares(gradient):
    """The sum of the squares of all entries, as a float32 scalar."""
    return ops.sum(ops.square(ops.cast(gradient, "float32")))


def clip_values(gradient, limit):
    """Limits every entry to [-limit, limit]."""
    return ops.clip(gradient, -limit, limit)


def existing(masked_weight, birth):
    """Where the connections exist, as a boolean tensor."""
    if keras.backend.backend() != "jax":
        return ops.convert_to_tensor(masked_weight.mask)
    # The optimizer's stateless scope knows its own variables and the trainable ones only.
    return ops.greater_equal(ops.convert_to_tensor(birth), 0.0)


def descend(variable, gradient, exists, step_size, kept):
    """Sets `variable` to kept * variable - step_size * gradient, with no gradient where nothing exists.

    Args:
        variable: The weight, updated in place.
        gradient: Tensor of the same shape.
        exists: Boolean tensor of the same shape, or None where all exists.
        step_size: Scalar.
        kept: Scalar that the weight is multiplied by; None for 1.
    """
    weight = ops.convert_to_tensor(variable)
    gradient = ops.cast(gradient, weight.dtype)
    if exists is not None:
        gradient = ops.where(exists, gradient, ops.zeros((), weight.dtype))
    if kept is not None:
        weight = weight * ops.cast(kept, weight.dtype)
    variable.assign(weight - ops.cast(step_size, weight.dtype) * gradient)


def move_average(average, variable, birth, updates, averaging):
    """Moves `average` towards `variable`, if `averaging`.

    Args:
        average: The running mean, updated in place.
        variable: The weight.
        birth: Variable with the update after which each weight began to count; a scalar will do.
        updates: Float32 scalar, the number of updates before this one.
        averaging: Boolean scalar tensor.
    """

    def moved():
        old = ops.convert_to_tensor(average)
        age = ops.cast(ops.maximum(updates - ops.convert_to_tensor(birth), 1.0), old.dtype)
        return old + (ops.convert_to_tensor(variable) - old) / age

    if keras.backend.backend() == "jax":  # an assignment within the branch would leak its tracers
        average.assign(ops.cond(averaging, moved, lambda: ops.convert_to_tensor(average)))
    elif averaging:
        average.assign(moved())
