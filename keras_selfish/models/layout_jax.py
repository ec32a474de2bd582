"""Shapes of a model's weights without the weights, on JAX."""

import jax

from keras_selfish.models.memory import traced_only


def shapes_of(make):
    """As in `layout.py`: the function is traced, so that nothing is computed."""
    shapes = {}

    def traced():
        shapes.update((variable.path, tuple(variable.shape)) for variable in make().trainable_variables)

    with traced_only():
        jax.eval_shape(traced)
    return shapes
