"""Layouts that divide a model's weights among devices, for `keras.distribution`."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable

import keras

from keras_selfish.backend import of_backend
from keras_selfish.models.architecture import Architecture
from keras_selfish.models.language_models import LanguageModel


def layout_map(
    model: Architecture | keras.Model | Callable[[], keras.Model],
    device_mesh: keras.distribution.DeviceMesh,
    axis: str = "model",
) -> keras.distribution.LayoutMap:
    """Divides a model's matrices among devices, each with its mask, for `keras.distribution.ModelParallel`.

    A matrix is divided along its longest axis, of those that are multiples of the devices, and its mask with
    it; so is what an optimizer keeps of it (averages, births, momentum). Vectors, and matrices without such
    an axis, are whole on every device. The model is made anew under the distribution.

    Args:
        model: The settings of a language model, an `Architecture`; or a function that makes a built model,
            which is called for the shapes of its weights and on JAX takes no memory for them; or such a
            model. Its layers are named, so that they have the same names when it is made anew.
        device_mesh: A `keras.distribution.DeviceMesh`.
        axis: Name of the mesh's axis whose devices share each matrix. Default `"model"`.

    Returns:
        A `keras.distribution.LayoutMap` from paths of variables, to which others may be added.

    Raises:
        ValueError: if the mesh has no such axis; for an `Architecture` also if its devices do not divide the
            units of a recurrent layer, or the features of a token.

    Example:

    >>> from keras_selfish.models import Architecture
    >>> mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices=["cpu:0", "cpu:1"])
    >>> layouts = layout_map(Architecture(1000, units=64), mesh)
    >>> layouts["decoder/kernel"].axes, layouts["decoder/kernel_mask"].axes
    ((None, 'model'), (None, 'model'))
    >>> layouts["embedding/embeddings"].axes
    ('model', None)
    """
    if axis not in device_mesh.axis_names:
        raise ValueError(
            f"`axis` must be an axis of `device_mesh`, one of {', '.join(device_mesh.axis_names)}. "
            f"Received: axis={axis!r}"
        )
    devices = device_mesh.shape[list(device_mesh.axis_names).index(axis)]
    if isinstance(model, Architecture):
        check_units(model, devices)
        settings = {**model.get_config(), "sparsity": 0.0, "n_of_m": None, "distribution": "uniform"}
        model = functools.partial(LanguageModel, **settings)
    with _seeds_unspent():
        shapes = _shapes(model) if isinstance(model, keras.Model) else shapes_of(model)
    layouts = keras.distribution.LayoutMap(device_mesh)
    for path, shape in shapes.items():
        axes = _divided(shape, devices, axis)
        if axes is not None:
            layouts[path] = layouts[f"{path}_mask"] = axes
    return layouts


@contextlib.contextmanager
def _seeds_unspent():
    """Lets the layers made after it draw the seeds that they would draw without it."""
    state = random.getstate()  # where Keras draws the seeds that layers are not given
    try:
        yield
    finally:
        random.setstate(state)


@of_backend
def shapes_of(make):
    """The shapes of the weights that a function's model has, a dict by path."""
    return _shapes(make())


def _shapes(model):
    return {variable.path: tuple(variable.shape) for variable in model.trainable_variables}


def check_units(architecture, devices):
    """Raises `ValueError` if devices do not divide the units and features of an `Architecture`."""
    sizes = [("units", units) for units in architecture.layer_units]
    for name, size in [*sizes, ("embedding_units", architecture.token_units)]:
        if size % devices:
            raise ValueError(
                f"`{name}` must be a multiple of the {devices} devices that share each matrix. "
                f"Received: {name}={size}; take {size // devices * devices or devices}, or other devices"
            )


def _divided(shape, devices, axis):
    """The axes of a layout; None for a variable that stays whole."""
    sizes = [size if size % devices == 0 else 0 for size in shape]
    if devices == 1 or len(shape) < 2 or not any(sizes):
        return None
    longest = max(range(len(sizes)), key=lambda index: (sizes[index], index))
    return tuple(axis if index == longest else None for index in range(len(shape)))
