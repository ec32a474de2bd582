"""Gradients of a model's loss on TensorFlow, on one device or on all replicas of a strategy."""

import tensorflow as tf

from keras_selfish.keras_internals import raw_value


def make_gradients(model, training):
    """A function from a batch and a list of variables to the gradients of the loss, left on the device."""
    strategy = model.distribute_strategy

    @tf.function(reduce_retracing=True)
    def gradients(x, y, sample_weight, variables):
        with tf.GradientTape() as tape:
            predictions = model(x, training=training)
            loss = model.compute_loss(
                x=x, y=y, y_pred=predictions, sample_weight=sample_weight, training=training
            )
        found = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in found]

    @tf.function(reduce_retracing=True)
    def summed(x, y, sample_weight, variables):
        found = strategy.run(gradients.python_function, args=(x, y, sample_weight, variables))
        # Keras divides the loss of a replica by the number of replicas.
        return [strategy.reduce(tf.distribute.ReduceOp.SUM, gradient, axis=None) for gradient in found]

    def compute(batch, variables):
        values = [variable.value for variable in variables]
        batch = [
            None if part is None else tf.nest.map_structure(tf.convert_to_tensor, part) for part in batch
        ]
        replicas = strategy.num_replicas_in_sync
        if replicas == 1:
            found = gradients(*batch, values)
        else:
            found = summed(*(_divided(part, strategy, replicas) for part in batch), values)
        return found

    return compute


def replicas_of(variable):
    """The variables that hold a `keras.Variable` on the replicas of this process, as a list."""
    inner = raw_value(variable)
    return list(inner.values) if isinstance(inner, tf.distribute.DistributedValues) else [variable]


def _divided(part, strategy, replicas):
    """A batch divided into equal numbers of rows for the replicas."""

    def divide(tensor):
        rows = tensor.shape[0] // replicas

        def slice_of(context):
            start = context.replica_id_in_sync_group * rows
            return tensor[start : start + rows]

        return strategy.experimental_distribute_values_from_function(slice_of)

    return None if part is None else tf.nest.map_structure(divide, part)
