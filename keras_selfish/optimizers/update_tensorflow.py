"""Updates of variables and averages by `SNTASGD`, on TensorFlow.

Three things differ from `update.py`: gradients are summed over replicas before they are clipped; the
gradient of an embedding is one of rows; and XLA compiles the update on the CPU, where TensorFlow would
pass over the memory once for each operation.
"""

import tensorflow as tf

from keras_selfish.keras_internals import raw_value
from keras_selfish.keras_internals_tensorflow import call_once_for_all_replicas
from keras_selfish.variables_tensorflow import SMALLEST_COMPILED


def check_replicas(optimizer):
    """Raises `ValueError` where Keras (3.15) cannot accumulate gradients."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if optimizer.gradient_accumulation_steps and replicas > 1:
        raise ValueError(
            "`gradient_accumulation_steps` must be None with several replicas, on which Keras cannot "
            f"accumulate gradients. Received: gradient_accumulation_steps="
            f"{optimizer.gradient_accumulation_steps} with {replicas} replicas; use larger batches instead"
        )


def update_variables(optimizer, gradients, variables, learning_rate):
    """Sums the gradients over the replicas, clips the sums, and updates each replica's variables with them.

    If the optimizer averages, the average of a variable is moved in the same pass over memory.
    """
    variables = [raw_value(variable) for variable in variables]
    gradients, factors = optimizer.clip([sum_rows(gradient) for gradient in _summed(gradients)], variables)

    def update_variable(variable, gradient, factor, learning_rate, averaging):
        mean = optimizer.mean_of(variable) if averaging else None
        optimizer.update_step(gradient, variable, learning_rate, factor, mean)

    def update_all(strategy, gradients, factors, learning_rate):
        def update(averaging):
            for variable, gradient, factor in zip(variables, gradients, factors, strict=True):
                arguments = (gradient, factor, learning_rate, averaging)
                strategy.extended.update(variable, update_variable, args=arguments, group=False)

        tf.cond(optimizer.is_averaging(), lambda: update(True), lambda: update(False))

    call_once_for_all_replicas(update_all, gradients, factors, tf.convert_to_tensor(learning_rate))


def _summed(gradients):
    context = tf.distribute.get_replica_context()
    # In a cross-replica context they are sums already.
    return gradients if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def sum_rows(gradient):
    """Sums the rows of `tf.IndexedSlices` that share an index, as a word twice in a batch does.

    The sum takes the place of the first of them and zeros that of the others: so all shapes are known
    beforehand, as XLA needs.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, indices = gradient.values, gradient.indices
    count = tf.size(indices)
    first = tf.math.unsorted_segment_min(tf.range(count), indices, gradient.dense_shape[0])
    sums = tf.math.unsorted_segment_sum(rows, tf.gather(first, indices), count)
    return tf.IndexedSlices(sums, indices, gradient.dense_shape)


def sum_of_squares(gradient):
    """The sum of the squares of all entries, a float32 scalar."""
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    return 2.0 * tf.nn.l2_loss(tf.cast(values, tf.float32))


def clip_values(gradient, limit):
    """Limits every entry to [-limit, limit]."""
    return tf.clip_by_value(gradient, -limit, limit)


def existing(masked_weight, births):
    """Boolean tensor, True where a connection exists."""
    return tf.convert_to_tensor(masked_weight.mask)


def descend(variable, gradient, step_size, decay=None, exists=None, mean=None):
    """Takes step_size * gradient + decay * variable from `variable`; see `update.py`.

    Args:
        variable: As there, like all arguments but the last.
        gradient: May be `tf.IndexedSlices`.
        step_size: Scalar.
        decay: Scalar or None.
        exists: Boolean tensor or None.
        mean: What `SNTASGD.mean_of` gives for the variable, if its average is to be moved, too.
    """
    step_size = tf.cast(step_size, variable.dtype)
    decay = None if decay is None else tf.cast(decay, variable.dtype)
    average, births, updates = (None, None, None) if mean is None else mean
    births = None if births is None else tf.convert_to_tensor(births)

    def move_average(weight, births, updates):
        age = tf.maximum(updates - births, 1.0)
        average.assign_add((weight - average) / tf.cast(age, weight.dtype))

    if isinstance(gradient, tf.IndexedSlices):
        _descend_rows(variable, gradient, step_size, decay, exists)
        if average is not None:
            _one_pass(move_average, variable)(tf.convert_to_tensor(variable), births, updates)
        return

    def move(gradient, step_size, decay, exists, births, updates):
        weight = tf.convert_to_tensor(variable)
        step = step_size * tf.cast(gradient, weight.dtype)
        if decay is not None:
            step += decay * weight
        moved = weight - step
        moved = moved if exists is None else tf.where(exists, moved, tf.zeros((), moved.dtype))
        variable.assign(moved)
        if average is not None:
            move_average(moved, births, updates)

    _one_pass(move, variable)(gradient, step_size, decay, exists, births, updates)


def _descend_rows(variable, gradient, step_size, decay, exists):
    steps = step_size * tf.cast(gradient.values, variable.dtype)
    if exists is not None:
        steps = tf.where(tf.gather(exists, gradient.indices), steps, tf.zeros((), steps.dtype))

    def shrink(decay):
        variable.assign(variable - decay * variable)

    if decay is not None:
        _one_pass(shrink, variable)(decay)
    variable.scatter_sub(tf.IndexedSlices(steps, gradient.indices))


def _one_pass(function, variable):
    # Elsewhere than on the CPU, memory is fast and XLA may lack its tools; eagerly it would compile anew
    # at each step.
    worthwhile = tf.inside_function() and variable.shape.num_elements() >= SMALLEST_COMPILED
    if worthwhile and "CPU" in variable.device:
        return tf.function(function, jit_compile=True, autograph=False)
    return function
