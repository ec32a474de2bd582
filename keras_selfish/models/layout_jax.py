"""Shapes of a model's weights without the weights, on JAX."""

import jax


def shapes_of(make):
    """As in `layout.py`: the function is traced, so that nothing is computed."""
    shapes = {}

    def traced():
        shapes.update((variable.path, tuple(variable.shape)) for variable in make().trainable_variables)

    jax.eval_shape(traced)
    return shapes
