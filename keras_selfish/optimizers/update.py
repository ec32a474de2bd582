"""Updates of variables and averages by `SNTASGD`, on JAX and torch.

`update_tensorflow.py` holds the same functions for TensorFlow.
"""

from keras import ops

from keras_selfish.backend import BACKEND, of_backend


@of_backend
def check_replicas(optimizer):
    """Raises `ValueError` where Keras cannot accumulate gradients: never on these backends."""


@of_backend
def update_variables(optimizer, gradients, variables, learning_rate):
    """Clips the gradients, updates every variable, and then its average if the optimizer averages."""
    # One of rows only becomes a whole one: decay and averages move every row.
    gradients = [ops.convert_to_tensor(gradient, sparse=False) for gradient in gradients]
    gradients, factors = optimizer.clip(gradients, variables)
    for gradient, factor, variable in zip(gradients, factors, variables, strict=True):
        optimizer.update_step(gradient, variable, learning_rate, factor)
    averages = [optimizer.mean_of(variable)[0] for variable in variables]

    def moved():
        return [_moved_average(variable, *optimizer.mean_of(variable)) for variable in variables]

    def unmoved():
        return [ops.convert_to_tensor(average) for average in averages]

    averaging = optimizer.is_averaging()
    if BACKEND == "jax":  # an assignment inside the branch would leak its tracers
        values = ops.cond(averaging, moved, unmoved)
    else:
        values = moved() if averaging else []
    for average, value in zip(averages, values, strict=False):
        average.assign(value)


def _moved_average(variable, average, births, updates):
    old = ops.convert_to_tensor(average)
    age = ops.maximum(updates - ops.convert_to_tensor(births), 1.0)
    return old + (ops.convert_to_tensor(variable) - old) / ops.cast(age, old.dtype)


@of_backend
def sum_of_squares(gradient):
    """The sum of the squares of all entries, a float32 scalar."""
    return ops.sum(ops.square(ops.cast(gradient, "float32")))


@of_backend
def clip_values(gradient, limit):
    """Limits every entry to [-limit, limit]."""
    return ops.clip(gradient, -limit, limit)


@of_backend
def existing(masked_weight, births):
    """Boolean tensor, True where a connection exists."""
    if BACKEND != "jax":
        return ops.convert_to_tensor(masked_weight.mask)
    # In a compiled step the optimizer sees the values of its own and the trainable variables only.
    return ops.greater_equal(ops.convert_to_tensor(births), 0.0)


@of_backend
def descend(variable, gradient, step_size, decay=None, exists=None):
    """Subtracts step_size * gradient + decay * variable from `variable`.

    Args:
        variable: The weight, updated in place.
        gradient: Tensor of the same shape.
        step_size: Scalar.
        decay: Scalar, or None for no decay.
        exists: Boolean tensor of the same shape: the weight is zero elsewhere. None if all of it exists.
    """
    weight = ops.convert_to_tensor(variable)
    step = ops.cast(step_size, weight.dtype) * ops.cast(gradient, weight.dtype)
    if decay is not None:
        step = step + ops.cast(decay, weight.dtype) * weight
    moved = weight - step
    variable.assign(moved if exists is None else ops.where(exists, moved, ops.zeros((), moved.dtype)))
