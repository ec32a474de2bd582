"""Which layer takes the place of which: the sparse form of a plain one, and what a stripped model holds.

The layers of this package and those of a user's own are registered alike, where they are defined.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import keras

from keras_selfish import cloning
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.mask_spec import MASK_ARGUMENTS
from keras_selfish.typing import Config

_Class = TypeVar("_Class", bound=type)


@dataclasses.dataclass(frozen=True)
class PlainForm:
    """What takes a layer's place in a stripped model.

    Args:
        plain_class: Layer class that infers the same from the same weights.
        without: Arguments of the layer that `plain_class` does not take.
        arguments: Arguments of `plain_class` that the layer's config does not hold.
    """

    plain_class: type[keras.Layer]
    without: tuple[str, ...]
    arguments: Mapping[str, Any]


# By the class that `sparsify` and `strip` find in a model.
SPARSE_FORMS: dict[type[keras.Layer], type[SparseLayer]] = {}
PLAIN_FORMS: dict[type[keras.Layer], PlainForm] = {}


def sparse_form_of(plain_class: type[keras.Layer], without: Sequence[str] = ()) -> Callable[[_Class], _Class]:
    """Class decorator that registers a sparse layer for `sparsify` (plain to sparse) and `strip` (back).

    Both layers must have the same weights in the same order, but for the masks, and the sparse one must take
    all arguments in the plain one's config. Subclasses are not registered with it: they may compute something
    else. A later registration of the same plain class takes the place of an earlier one.

    Args:
        plain_class: The plain layer class, Keras's or one of your own.
        without: Names of arguments of the sparse layer that the plain one does not take; the mask arguments
            are known.

    Returns:
        A function of a class that derives from `SparseLayer` and returns it.

    Raises:
        ValueError: if `plain_class` is no layer class, or the sparse one does not derive from `SparseLayer`.

    Example:

    >>> from keras import ops
    >>> from keras_selfish import sparsify, strip
    >>> class Scale(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.scale = self.add_weight(shape=(2, input_shape[-1]), name="scale")
    ...
    ...     def call(self, inputs):
    ...         return inputs * self.scale[0] + self.scale[1]
    >>> @sparse_form_of(Scale)
    ... class SparseScale(SparseLayer, Scale):
    ...     masked_names = ("scale",)
    >>> sparse = sparsify(keras.Sequential([keras.Input((4,)), Scale()]), 0.5)
    >>> type(sparse.layers[0]).__name__, type(strip(sparse).layers[0]).__name__
    ('SparseScale', 'Scale')
    """
    if not (inspect.isclass(plain_class) and issubclass(plain_class, keras.Layer)):
        raise ValueError(
            "`plain_class` must be the class of a Keras layer. Received: "
            f"plain_class={plain_class!r}; write `@sparse_form_of(keras.layers.Dense)`"
        )

    def register(sparse_class: _Class) -> _Class:
        if not issubclass(sparse_class, SparseLayer):
            raise ValueError(
                "A sparse form must derive from `keras_selfish.layers.SparseLayer`, which masks its weights. "
                f"Received: {sparse_class.__name__}"
            )
        sparse_class.plain_class = plain_class
        SPARSE_FORMS[plain_class] = sparse_class
        return strips_to(plain_class, (*MASK_ARGUMENTS, *without))(sparse_class)

    return register


def strips_to(
    plain_class: type[keras.Layer], without: Sequence[str] = (), **arguments: Any
) -> Callable[[_Class], _Class]:
    """Class decorator of layers that do something in training only: `strip` puts another in their place.

    Args:
        plain_class: Layer class that infers the same from the same weights.
        without: Names of the layer's arguments that `plain_class` does not take.
        **arguments: Arguments of `plain_class` that the layer's config does not hold.

    Returns:
        A function of a layer class, which returns it.
    """

    def register(layer_class: _Class) -> _Class:
        PLAIN_FORMS[layer_class] = PlainForm(plain_class, tuple(without), arguments)
        return layer_class

    return register


def plain_form(layer_class: type[keras.Layer], config: Config) -> tuple[type[keras.Layer], Config] | None:
    """What takes a layer's place when a model is stripped.

    Args:
        layer_class: Its class.
        config: What its `get_config` returned.

    Returns:
        A layer class and its config; None for a class that is not registered.
    """
    form = PLAIN_FORMS.get(layer_class)
    if form is None and getattr(layer_class, "strips_to_itself", False):
        form = PlainForm(layer_class, MASK_ARGUMENTS, {"sparsity": 0.0})
    if form is None:
        return None
    config = {name: value for name, value in config.items() if name not in form.without}
    return form.plain_class, {**config, **form.arguments}


def is_plain(layer_class: type[keras.Layer]) -> bool:
    """Whether a stripped model may hold a layer of this class: one that nothing registered derives into."""
    return not any(base is SparseLayer or base in PLAIN_FORMS for base in layer_class.__mro__)


def known_to_keras() -> contextlib.AbstractContextManager[Any]:
    """Within the block Keras finds all classes that are registered here, as those registered with it."""
    known = (each for each in (*SPARSE_FORMS, *PLAIN_FORMS) if not cloning.is_keras_s(each))
    return cloning.known_to_keras({keras.saving.get_registered_name(each): each for each in known})


def class_in(config: Any) -> type[keras.Layer] | None:
    """The layer class of a layer that is serialized within a config; None for whatever else stands there."""
    if not isinstance(config, dict) or "config" not in config:
        return None
    found = keras.saving.get_registered_object(config.get("registered_name"))
    if found is None and config.get("module") == "keras.layers":
        found = getattr(keras.layers, str(config.get("class_name")), None)
    return found if inspect.isclass(found) and issubclass(found, keras.Layer) else None
