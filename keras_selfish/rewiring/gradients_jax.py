"""Gradients of a model's loss on JAX."""

import jax
import keras
from keras import tree


def make_gradients(model, training):
    """A function from a batch and a list of variables to the gradients of the loss, left on the device."""

    def loss(values, variables, others, x, y, sample_weight):
        mapping = [*zip(variables, values, strict=True), *others]
        with keras.StatelessScope(state_mapping=mapping):
            predictions = model(x, training=training)
            return model.compute_loss(
                x=x, y=y, y_pred=predictions, sample_weight=sample_weight, training=training
            )

    compiled = {}

    def compute(batch, variables):
        names = tuple(id(variable) for variable in variables)
        rest = [*model.variables, *model.metrics_variables]
        rest = [variable for variable in rest if id(variable) not in names]
        if names not in compiled:

            def gradients(values, rest_values, x, y, sample_weight):
                others = list(zip(rest, rest_values, strict=True))
                return jax.grad(loss)(values, variables, others, x, y, sample_weight)

            # A gradient is divided among devices as its weight is.
            shardings = [variable.value.sharding for variable in variables]
            compiled[names] = jax.jit(gradients, out_shardings=shardings)
        found = compiled[names]([v.value for v in variables], [v.value for v in rest], *_distributed(batch))
        return [gradient.astype("float32") for gradient in found]

    return compute


def _distributed(batch):
    """The arrays of a batch on the devices that have these rows in training; on all if they do not divide."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch
    replicas = distribution.num_model_replicas

    def place(array):
        layout = distribution.get_data_layout(array.shape)
        return array if len(array) % replicas else jax.device_put(array, layout.backend_layout)

    return tree.map_structure(lambda array: None if array is None else place(array), batch)
