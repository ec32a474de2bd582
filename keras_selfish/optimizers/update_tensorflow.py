"""How `SNTASGD` moves one variable and its average, on TensorFlow.

Three things differ from `update.py`: gradients are summed over replicas *before* they are clipped; the
gradient of an embedding is one of rows; and on the CPU, where TensorFlow makes one pass over the memory
for every operation, XLA makes one pass of it all.
"""

import tensorflow as tf


def check_replicas(optimizer):
    """Raises `ValueError` where Keras (3.15) cannot accumulate gradients."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if optimizer.gradient_accumulation_steps and replicas > 1:
        raise ValueError(
            "`gradient_accumulation_steps` must be None with several replicas, on which Keras cannot "
            "accumulate gradients. Received: gradient_accumulation_steps="
            f"{optimizer.gradient_accumulation_steps} with {replicas} replicas; use larger batches instead"
        )


def update_variables(optimizer, gradients, variables, learning_rate):
    """Sums the gradients over the replicas, clips the sums, then updates every variable on each replica."""
    variables = [getattr(variable, "_value", variable) for variable in variables]
    pairs = optimizer._all_reduce_sum_gradients(list(zip(gradients, variables, strict=True)))
    gradients, scales = optimizer.clip([summed_rows(gradient) for gradient, _ in pairs])

    def update(strategy, gradients, scales, learning_rate):
        def update_one(variable, gradient, learning_rate, scale):
            optimizer.update_step(gradient, variable, learning_rate, scale)

        for variable, gradient, scale in zip(variables, gradients, scales, strict=True):
            arguments = (gradient, learning_rate, scale)
            strategy.extended.update(variable, update_one, args=arguments, group=False)

    tf.__internal__.distribute.interim.maybe_merge_call(
        update, tf.distribute.get_strategy(), gradients, scales, tf.convert_to_tensor(learning_rate)
    )


def summed_rows(gradient):
    """Of `tf.IndexedSlices`, the sum of the rows of each index stands in its first row, zero in the others.

    All shapes stay static, so that XLA can compile it.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, indices = gradient.values, gradient.indices
    count = tf.size(indices)
    first = tf.math.unsorted_segment_min(tf.range(count), indices, gradient.dense_shape[0])
    sums = tf.math.unsorted_segment_sum(rows, tf.gather(first, indices), count)
    return tf.IndexedSlices(sums, indices, gradient.dense_shape)


def sum_of_squares(gradient):
    """The sum of the squares of all entries, as a float32 scalar."""
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    return 2.0 * tf.nn.l2_loss(tf.cast(values, tf.float32))


def clip_values(gradient, limit):
    """Limits every entry to [-limit, limit]."""
    return tf.clip_by_value(gradient, -limit, limit)


def existing(masked_weight, birth):
    """Where the connections exist, as a boolean tensor."""
    return tf.convert_to_tensor(masked_weight.mask)


def descend(variable, gradient, exists, step_size, kept):
    """Sets `variable` to kept * variable - step_size * gradient, with no gradient where nothing exists."""
    step_size = tf.cast(step_size, variable.dtype)
    if isinstance(gradient, tf.IndexedSlices):
        rows = step_size * tf.cast(gradient.values, variable.dtype)
        if exists is not None:
            rows = tf.where(tf.gather(exists, gradient.indices), rows, tf.zeros((), variable.dtype))
        if kept is not None:
            variable.assign(tf.cast(kept, variable.dtype) * variable)
        variable.scatter_sub(tf.IndexedSlices(rows, gradient.indices))
        return

    def assign(gradient, exists, step_size, kept):
        weight = tf.convert_to_tensor(variable)
        gradient = tf.cast(gradient, variable.dtype)
        if exists is not None:
            gradient = tf.where(exists, gradient, tf.zeros((), variable.dtype))
        if kept is not None:
            weight = tf.cast(kept, variable.dtype) * weight
        variable.assign(weight - step_size * gradient)

    _fused(assign, variable)(gradient, exists, step_size, kept)


def move_average(average, variable, birth, updates, averaging):
    """Moves `average` towards `variable`, if `averaging`."""

    def assign(weight, birth, updates):
        age = tf.cast(tf.maximum(updates - birth, 1.0), average.dtype)
        average.assign_add((weight - average) / age)

    def move():
        _fused(assign, variable)(tf.convert_to_tensor(variable), tf.convert_to_tensor(birth), updates)

    tf.cond(averaging, move, lambda: None)


def _fused(function, variable):
    """One pass over the memory on the CPU; elsewhere XLA may lack its tools, and memory is fast."""
    if tf.inside_function() and "CPU" in variable.device:
        return tf.function(function, jit_compile=True, autograph=False)
    return function
