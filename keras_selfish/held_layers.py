"""The layers that a layer holds, by the places where it holds them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import keras

from keras_selfish.keras_internals import exchange_inner_layer


def held_layers(layer: keras.Layer) -> Iterator[tuple[str, keras.Layer]]:
    """The layers that a layer holds as attributes, or within lists, tuples and dicts; those of a model.

    Yields:
        Pairs (path, layer); a layer that stands in several places comes once for each.
    """
    if is_model(layer):
        yield from ((str(index), held) for index, held in enumerate(layer.layers))
        return

    def walk(value, path):
        if isinstance(value, keras.Layer):
            yield path, value
        elif isinstance(value, dict):
            for key in list(value):
                yield from walk(value[key], f"{path}/{key}")
        elif isinstance(value, (list, tuple)):
            for index, one in enumerate(value):
                yield from walk(one, f"{path}/{index}")

    for name, value in _attributes(layer).items():
        yield from walk(value, name)


def exchange_held(layer: keras.Layer, exchange: Callable[[keras.Layer], keras.Layer]) -> None:
    """Puts other layers where a layer holds some as attributes, or within lists, tuples and dicts.

    Args:
        layer: A layer that is no Functional or Sequential model.
        exchange: Function of a layer that returns the one that takes its place; itself where it stays.
    """
    done: dict[int, keras.Layer] = {}

    def exchanged(value):
        if isinstance(value, dict):
            return _same_or(value, {key: exchanged(one) for key, one in value.items()})
        if isinstance(value, (list, tuple)):
            new = list(map(exchanged, value))
            if hasattr(value, "_make"):  # a named tuple
                return _same_or(value, value._make(new))
            return _same_or(value, tuple(new) if isinstance(value, tuple) else new)
        if not isinstance(value, keras.Layer):
            return value
        if id(value) not in done:
            new = exchange(value)
            if new is not value:
                exchange_inner_layer(layer, value, new)
            done[id(value)] = new
        return done[id(value)]

    for name, value in _attributes(layer).items():
        if (new := exchanged(value)) is not value:
            setattr(layer, name, new)


def _same_or(value, new):
    """A container as it was if all that it holds is."""
    old, others = (one.values() if isinstance(one, dict) else one for one in (value, new))
    return value if all(one is other for one, other in zip(old, others, strict=True)) else new


def _attributes(layer):
    """What a layer has as attributes that not every layer has."""
    attributes = dict(vars(layer))
    if hasattr(layer, "named_children"):  # PyTorch keeps modules, which its layers are, elsewhere
        attributes |= dict(layer.named_children())
    return {name: value for name, value in attributes.items() if name not in _of_every_layer()}


@functools.cache
def _of_every_layer():
    """The names of what each layer has as attributes, once it holds a layer."""
    layer = keras.layers.Layer()
    layer.held = keras.layers.Layer()
    return vars(layer).keys() - {"held"}


def build_like(layer: keras.Layer, copy: keras.Layer) -> None:
    """Builds a copy of a layer, and what it holds, as the layer is built, whose `call` need not have run.

    What is frozen in the layer is frozen in the copy.

    Args:
        layer: A layer.
        copy: A layer that was made with the same arguments, and holds the same ones at the same places.
    """
    seen = set()

    def build(one, target):
        if id(one) in seen:
            return
        seen.add(id(one))
        if one.built and not target.built and type(one).build is not keras.Layer.build:
            with scope_of(one):
                target.build_from_config(one.get_build_config())
        if target.trainable != one.trainable:
            target.trainable = one.trainable  # of all in it
        targets = dict(held_layers(target)) if type(target) is type(one) else {}
        for path, held in held_layers(one):
            if path in targets:
                build(held, targets[path])
        target.built = target.built or one.built

    build(layer, copy)


@contextlib.contextmanager
def scope_of(layer: keras.Layer) -> Iterator[None]:
    """A block in which a layer of the same name is built with variables of the same paths."""
    *around, parent = (layer.path or layer.name).split("/")[:-1] or [None]
    if parent is None:
        yield
    else:
        with keras.name_scope(parent, override_parent="/".join(around)):
            yield


def is_model(layer):
    """Whether a layer is a model whose layers are known."""
    return isinstance(layer, (keras.Function, keras.Sequential))
