"""What `SNTASGD` does differently on TensorFlow: replicas, and gradients of rows."""

import tensorflow as tf


def check_replicas(optimizer):
    """Raises `ValueError` where Keras cannot accumulate gradients."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if optimizer.gradient_accumulation_steps and replicas > 1:
        raise ValueError(
            "`gradient_accumulation_steps` must be None under a strategy with several replicas, where Keras "
            f"cannot accumulate gradients. Received: gradient_accumulation_steps="
            f"{optimizer.gradient_accumulation_steps} on {replicas} replicas; use larger batches instead"
        )


def update_variables(optimizer, gradients, variables, learning_rate):
    """Sums the gradients over the replicas, then clips them, then updates every variable once.

    Keras (3.15) clips before it sums, so that the same data on two replicas and on one give different
    steps.
    """
    variables = [getattr(variable, "value", variable) for variable in variables]
    variables = [v.value if hasattr(v, "value") and not callable(v.value) else v for v in variables]
    pairs = optimizer._all_reduce_sum_gradients(list(zip(gradients, variables, strict=True)))
    gradients = [summed_rows(gradient) for gradient, _ in pairs]
    gradients, scales = optimizer.clip(gradients)

    def update(strategy, gradients, scales, learning_rate):
        for gradient, scale, variable in zip(gradients, scales, variables, strict=True):
            strategy.extended.update(
                variable,
                lambda variable, gradient, learning_rate, scale: optimizer.update_step(
                    gradient, variable, learning_rate, scale
                ),
                args=(gradient, learning_rate, scale),
                group=False,
            )

    tf.__internal__.distribute.interim.maybe_merge_call(
        update, tf.distribute.get_strategy(), gradients, scales, tf.convert_to_tensor(learning_rate)
    )


def summed_rows(gradient):
    """A tensor; of `tf.IndexedSlices`, the sum of all rows with the same index."""
    return tf.convert_to_tensor(gradient)
