"""Layers of one's own within which layers are sparse."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from keras_selfish.cloning import clone_layers, config_of, from_config, with_inner
from keras_selfish.held_layers import build_like, exchange_held, held_layers, is_model, scope_of
from keras_selfish.layers.forms import SPARSE_FORMS, is_plain
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.mask_spec import MaskSpec
from keras_selfish.typing import Config


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseComposite(keras.layers.Layer):
    """A layer that makes other layers for itself, with some of these sparse.

    The config of a layer tells the arguments that it was made with, such as a width, and not the layers that
    it made of them, so that a file of a block of one's own would bring back plain ones. This layer keeps the
    block and the mask arguments of what is sparse in it, and makes the same again. Called, it is the block:
    it takes the same arguments, and masks of padding. `sparsify` puts it in place of such blocks, and `strip`
    the block in place of it.

    Args:
        layer: The layer, plain. It is not copied: the layers that it holds are exchanged.
        masks: Dict from the paths of the layers in it that are to be sparse to their `MaskSpec` or its
            config. A path is made of the names of attributes, keys of dicts, and places in lists and models,
            as in `"attention"` and `"blocks/0/output"`.
        **kwargs: As in `keras.layers.Layer`.

    Raises:
        ValueError: once it is built, if the layer holds no layer with a sparse form at a path.

    Example:

    >>> import numpy as np
    >>> from keras_selfish import masked_weights
    >>> class Block(keras.layers.Layer):
    ...     def __init__(self, units, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.units, self.hidden = units, keras.layers.Dense(units)
    ...
    ...     def call(self, inputs):
    ...         return inputs + self.hidden(inputs)
    ...
    ...     def get_config(self):
    ...         return {**super().get_config(), "units": self.units}
    >>> layer = SparseComposite(Block(8), {"hidden": MaskSpec(0.75)})
    >>> layer(np.ones((2, 8), "float32")).shape == (2, 8)
    True
    >>> [weight.active for weight in masked_weights(layer)]
    [16]
    """

    def __init__(self, layer: keras.Layer, masks: Mapping[str, MaskSpec | Config], **kwargs: Any) -> None:
        def call(*args, **kwargs):
            return self._call_layer(args, kwargs)

        # Keras reads how a layer is called where it is made.
        call.__signature__ = inspect.signature(layer.call)  # type: ignore[attr-defined] # as it may have
        self.call = call
        # Inputs are cast by the layer itself, which finds the masks of padding on what it is given.
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.mask_specs = {
            path: spec if isinstance(spec, MaskSpec) else MaskSpec(**spec) for path, spec in masks.items()
        }
        self.supports_masking = layer.supports_masking
        self._is_complete = False
        self._exchange()

    def build_like(self, layer: keras.Layer) -> None:
        """Builds it, and all in it, as a layer of the same class is built whose `call` need not have run."""
        with keras.name_scope(self.name):
            build_like(layer, self.layer)
            if layer.built:
                self._complete()
                build_like(layer, self.layer)  # with what took the place of layers that a `build` makes
        self.built = layer.built

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the layer builds itself by the shapes of all that it is called with."""

    def build_from_config(self, config: Config) -> None:
        """Nothing: the next call builds the layer."""

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # Of tensors that no node of a model made, so that the layer within makes none in it.
        args, kwargs = keras.tree.map_structure(_detached, (args, kwargs))
        return keras.tree.map_structure(_detached, self._call_layer(args, kwargs))

    def _call_layer(self, args, kwargs):
        if not self._is_complete:
            if not self.layer.built:
                self.layer(*args, **kwargs)
            self._complete()
        return self.layer(*args, **kwargs)

    def _exchange(self):
        """Exchanges the layers that there are: others are made when the layer is built."""
        specs = {}
        for path, held in layers_within(self.layer):
            if path in self.mask_specs and type(held) in SPARSE_FORMS:
                specs[id(held)] = self.mask_specs[path]
        if specs:
            _put_sparse(self.layer, specs)
        found = {path for path, held in layers_within(self.layer) if isinstance(held, SparseLayer)}
        missing = self.mask_specs.keys() - found
        self._is_complete = not missing
        return missing

    def _complete(self):
        if not self._is_complete and (missing := self._exchange()):
            there = [path for path, held in layers_within(self.layer) if type(held) in SPARSE_FORMS]
            raise ValueError(
                f"`masks` must name layers with a sparse form that {type(self.layer).__name__} "
                f"{self.layer.name!r} holds. Received: {sorted(missing)}; others are {there}"
            )

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> Config:
        layer = keras.saving.serialize_keras_object(self.layer)
        masks = {path: spec.get_config() for path, spec in self.mask_specs.items()}
        config = super().get_config()
        return {"name": config["name"], "trainable": config["trainable"], "layer": layer, "masks": masks}

    @classmethod
    def from_config(cls, config: Config, custom_objects: Any = None) -> SparseComposite:
        layer = keras.saving.deserialize_keras_object(config["layer"], custom_objects=custom_objects)
        return cls(**{**config, "layer": layer})


def _detached(value):
    if not isinstance(value, keras.KerasTensor):
        return value
    return keras.KerasTensor(
        value.shape, value.dtype, sparse=value.sparse, ragged=value.ragged, name=value.name
    )


def without_composite(layer: keras.Layer) -> keras.Layer:
    """What a `SparseComposite` holds; any other layer is returned as it is."""
    return layer.layer if isinstance(layer, SparseComposite) else layer


def layers_within(layer: keras.Layer) -> Iterator[tuple[str, keras.Layer]]:
    """The layers with a sparse form, and the sparse ones, that a layer holds at any depth.

    What these hold is theirs and is not among them.

    Args:
        layer: A layer or model.

    Yields:
        Pairs (path, layer), each layer once.
    """
    seen = {id(layer)}

    def walk(one, prefix):
        for name, held in held_layers(one):
            if id(held) in seen:
                continue
            seen.add(id(held))
            if type(held) in SPARSE_FORMS or isinstance(held, SparseLayer):
                yield prefix + name, held
            elif is_plain(type(held)):
                yield from walk(held, f"{prefix}{name}/")

    yield from walk(layer, "")


def _put_sparse(layer, specs):
    """Puts sparse layers where a layer holds those whose ids are in a dict, at any depth."""
    made = {id(layer): (layer, layer)}  # by the id of the layer that it takes the place of, which is kept

    def sparse_of(held):
        if id(held) not in made:
            made[id(held)] = held, held
            if id(held) in specs:
                made[id(held)] = held, _sparse_form(held, specs[id(held)])
            elif not is_model(held):
                exchange_held(held, sparse_of)
            elif any(id(one) in specs for one in with_inner(held)):
                (copy,), _ = clone_layers([held], lambda inner, copy_of: sparse_of(inner))
                made[id(held)] = held, copy
        return made[id(held)][1]

    exchange_held(layer, sparse_of)


def _sparse_form(layer, spec):
    """The sparse form of a layer, built if that is, its variables of the same paths."""
    config = {**config_of(layer), **spec.get_config()}
    return copy_in_place(layer, lambda *_: from_config(SPARSE_FORMS[type(layer)], config))


def copy_in_place(layer: keras.Layer, copy_layer: Callable[..., keras.Layer]) -> keras.Layer:
    """The copy of one layer or model, see `clone_layers`, its variables of the paths of the other's."""
    with scope_of(layer):
        (copy,), _ = clone_layers([layer], copy_layer)
    return copy
