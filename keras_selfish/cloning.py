"""Copies of models in which each layer may become another one."""

import inspect
import tempfile

import keras

from keras_selfish.keras_internals import graph_nodes, inner_layers


def check_model(model, advice):
    """Raises `ValueError` unless the layers of a model and their connections are known.

    Args:
        model: What should be a built Functional or Sequential `keras.Model`.
        advice: What to do with a subclassed model, for the error.
    """
    if not is_model(model):
        raise ValueError(
            "`model` must be a Functional or Sequential keras.Model: what a subclassed one computes is known "
            f"to its `call` only. Received: model={model!r}; {advice}"
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ValueError(f"`model` must be built. Received: model={model.name!r}; call it on data first")


def clone(model, copy_layer):
    """Copies a model layer by layer, and the models within it.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        copy_layer: Function of a layer (no model) that returns the layer that takes its place. Its second
            argument is a function that gives the copy of any other layer of the model.

    Returns:
        The copy, a `keras.Sequential` if the model is one, else a Functional `keras.Model`, not compiled; and
        a list of pairs (layer, its copy), each layer once, however often the model calls it.
    """
    (copy,), pairs = clone_layers([model], copy_layer)
    return copy, pairs


def clone_layers(layers, copy_layer):
    """Copies layers and models one by one, those that are not built as well.

    Args:
        layers: List of layers and of Functional and Sequential models.
        copy_layer: As in `clone`.

    Returns:
        The list of copies, each built if its layer is, and the pairs as in `clone`.
    """
    copies = {}  # by the id of the layer, so that shared layers stay shared

    def copy_of(layer):
        if id(layer) not in copies:
            copied = _clone(layer, copy_layer, copy_of) if is_model(layer) else copy_layer(layer, copy_of)
            copies[id(layer)] = (layer, copied)
        return copies[id(layer)][1]

    copied = [_built_like(layer, copy_of(layer)) for layer in layers]
    # Functional models also hold operations such as `x + 1`, which are no layers.
    pairs = [pair for pair in copies.values() if isinstance(pair[0], keras.Layer) and not is_model(pair[0])]
    return copied, pairs


def _built_like(layer, copy):
    if layer.built and not copy.built:
        copy.build_from_config(layer.get_build_config())
    return copy


def _clone(model, copy_layer, copy_of):
    if not model.built:  # a Sequential, whose layers may be built
        return keras.Sequential(
            [_built_like(layer, copy_of(layer)) for layer in model.layers], name=model.name
        )
    if isinstance(model, keras.Sequential):
        layers = [_new_input(model.inputs[0]), *map(copy_of, model.layers)]
        copy = keras.Sequential(layers, name=model.name)
    else:
        optional = {layer.name for layer in model.layers if getattr(layer, "optional", False)}
        inputs = keras.tree.map_structure(lambda tensor: _new_input(tensor, optional), model.input)
        # `clone_model` would compile its result as the model is compiled, and keep the class of a subclass
        # of Functional; this one is not compiled and of Keras's own class.
        plain = keras.Model(model.input, model.output, name=model.name)
        copy = keras.models.clone_model(
            plain, input_tensors=inputs, clone_function=copy_of, call_function=_call
        )
    if not model.trainable:
        copy.trainable = False
    return copy


def shared_layers(layer, copy_of):
    """The arguments of a layer that are layers of the model, in the copy: a dict by name."""
    shared = {name: getattr(layer, name) for name in getattr(layer, "shared_layers", ())}
    return {name: copy_of(other) for name, other in shared.items() if other is not None}


def is_model(layer):
    """Whether a layer is a model whose layers are known."""
    return isinstance(layer, (keras.Function, keras.Sequential))


def nodes(model):
    """Which operation makes which tensors of which.

    Args:
        model: A `keras.Function`, or a built Functional or Sequential model.

    Returns:
        A list of nodes, each after those that it depends on, with `operation`, `arguments`, `input_tensors`
        and `output_tensors`; and the set of the ids of the model's outputs.
    """
    function = as_function(model)
    return graph_nodes(function), {id(tensor) for tensor in keras.tree.flatten(function.outputs)}


def as_function(model):
    """A built Sequential model as a `keras.Function` of the same tensors; any other is one itself."""
    if isinstance(model, keras.Sequential):
        return keras.Function(model.inputs, model.outputs, name=model.name)
    return model


def _call(layer, *args, **kwargs):
    # A layer that does something in training only has a Keras form that is not told of it.
    if "training" not in inspect.signature(layer.call).parameters:
        kwargs.pop("training", None)
    return layer(*args, **kwargs)


def _new_input(tensor, optional=()):
    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=tensor.name,
        optional=tensor.name in optional,
    )


def from_config(keras_class, config):
    """A layer of a class from the config of a layer that runs in this process already."""
    if "safe_mode" in inspect.signature(keras_class.from_config).parameters:
        return keras_class.from_config(config, safe_mode=False)  # a Lambda
    return keras_class.from_config(config)


def copy_state(layer, copy):
    """Copies what layers keep beside their variables: tables, and what they have made of their variables.

    Args:
        layer: A layer.
        copy: A layer of the same class, whose variables have the values of the other's.
    """
    for inner, target in zip(with_inner(layer), with_inner(copy), strict=False):
        is_adapted = type(inner) is type(target) and hasattr(inner, "finalize_state")
        if not is_adapted:
            continue
        store = {}
        inner.save_own_variables(store)
        target.load_own_variables(store)
        if _overrides(inner, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                inner.save_assets(folder)
                target.load_assets(folder)


def with_inner(layer):
    """A layer and all layers within it, as a list: cells, wrapped layers and nested models too."""
    return [layer, *inner_layers(layer)]


def _overrides(layer, name):
    return getattr(type(layer), name, None) is not getattr(keras.Layer, name, None)
