"""Copies of models in which each layer may become another one."""

import inspect
import tempfile
import types
import weakref
from collections.abc import Callable

import keras

from keras_selfish.held_layers import build_like, is_model
from keras_selfish.keras_internals import (
    graph_nodes,
    inner_layers,
    padding_mask_of,
    scoped_objects,
    set_padding_mask,
)

TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)


def check_model(model):
    """Raises `ValueError` unless a model is a built Functional or Sequential one."""
    if not is_model(model):
        raise ValueError(
            "`model` must be a Functional or Sequential keras.Model: what a subclassed one takes is known "
            f"to its `call` only. Received: model={model!r}; call it on a `keras.Input` and pass "
            "`keras.Model(x, model(x))`"
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

    copied = list(map(copy_of, layers))
    # Functional models also hold operations such as `x + 1`, which are no layers.
    pairs = [pair for pair in copies.values() if isinstance(pair[0], keras.Layer) and not is_model(pair[0])]
    for layer, copy in pairs:
        _built_like(layer, copy)
    return copied, pairs


def _built_like(layer, copy):
    build = getattr(copy, "build_like", None)  # of a layer that is made otherwise
    if build is not None:
        build(layer)
    else:
        build_like(layer, copy)
    return copy


def _clone(model, copy_layer, copy_of):
    if not model.built:  # a Sequential, whose layers may be built
        return keras.Sequential(
            [_built_like(layer, copy_of(layer)) for layer in model.layers], name=model.name
        )
    if isinstance(model, keras.Sequential):
        layers = [new_input(model.inputs[0]), *map(copy_of, model.layers)]
        copy = keras.Sequential(layers, name=model.name)
    else:
        optional = {layer.name for layer in model.layers if getattr(layer, "optional", False)}
        inputs = keras.tree.map_structure(lambda tensor: new_input(tensor, optional), model.input)
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


def input_structure(model):
    """The inputs of a built Functional or Sequential model in the structure in which it takes them."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


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


def inlined(function):
    """A `keras.Function` that calls no models but their layers, each with the masks of padded time steps.

    Keras hands on masks while a model runs. The nodes of a model within another are those of its own inputs,
    which have none, and a node that was called with an argument by name does not list the mask that it got.

    Args:
        function: A `keras.Function` or a Functional model.

    Returns:
        A `keras.Function` of the same inputs and outputs; the same one if there is nothing to change.
    """
    order, _ = nodes(function)
    outputs = [tensor for node in order for tensor in node.output_tensors]
    has_models = any(is_model(node.operation) for node in order)
    if not has_models and all(padding_mask_of(tensor) is None for tensor in outputs):
        return function
    symbols = [new_input(tensor) for tensor in function.inputs]
    new = dict(zip(map(id, function.inputs), symbols, strict=True))
    for tensor, symbol in zip(function.inputs, symbols, strict=True):
        set_padding_mask(symbol, new.get(id(padding_mask_of(tensor))))
    return keras.Function(symbols, _called(function, symbols), name=function.name)


def _called(model, inputs):
    """The list of what a model computes of symbolic tensors."""
    function = as_function(model)
    values = {id(tensor): value for tensor, value in zip(function.inputs, inputs, strict=True)}
    for node in nodes(function)[0]:
        args, kwargs = keras.tree.map_structure(
            lambda value: values.get(id(value), value), (node.arguments.args, node.arguments.kwargs)
        )
        if is_model(node.operation):
            outputs = _called(node.operation, keras.tree.flatten(args[0]))
        else:
            if isinstance(node.operation, keras.Layer):
                kwargs = _with_masks(node.operation, args, kwargs)
            outputs = node.operation(*args, **kwargs)
        for tensor, value in zip(node.output_tensors, keras.tree.flatten(outputs), strict=True):
            values[id(tensor)] = value
    return [values[id(tensor)] for tensor in keras.tree.flatten(function.outputs)]


def carry_masks(function, args, kwargs):
    """Has symbolic tensors carry the masks that a function gets with them: some layers look there."""
    given = _bound(function, args, kwargs)
    for tensors, name in _mask_names(given):
        masks = given.get(name)
        if masks is not None:
            flat = zip(keras.tree.flatten(tensors), keras.tree.flatten(masks), strict=True)
            for tensor, mask in flat:
                set_padding_mask(tensor, mask)


def _with_masks(layer, args, kwargs):
    """Names the masks that Keras would give a layer with its arguments."""
    for tensors, name in _mask_names(_bound(layer.call, args, kwargs)):
        if name in inspect.signature(layer.call).parameters and kwargs.get(name) is None:
            masks = keras.tree.map_structure(padding_mask_of, tensors)
            if any(mask is not None for mask in keras.tree.flatten(masks)):
                kwargs = {**kwargs, name: masks}
    return kwargs


def _bound(function, args, kwargs):
    """The arguments of a call by their names, without those that the function does not take."""
    signature = inspect.signature(function)
    known = {name: value for name, value in kwargs.items() if name in signature.parameters}
    return signature.bind_partial(*args, **known).arguments


def _mask_names(given):
    """Pairs of the arguments that are symbolic tensors, and the name of the argument for their mask."""
    tensors = {
        name: value
        for name, value in given.items()
        if not name.endswith("mask")
        and (flat := keras.tree.flatten(value))
        and all(isinstance(one, keras.KerasTensor) for one in flat)
    }
    return [(value, "mask" if len(tensors) == 1 else f"{name}_mask") for name, value in tensors.items()]


def _call(layer, *args, **kwargs):
    args, kwargs = keras.tree.map_structure(_as_array, (args, kwargs))
    # A layer that does something in training only has a Keras form that is not told of it.
    if "training" not in inspect.signature(layer.call).parameters:
        kwargs.pop("training", None)
    return layer(*args, **kwargs)


def _as_array(value):
    """A tensor of known values as an array, which is a constant wherever the copy is traced."""
    is_known = keras.ops.is_tensor(value) and not isinstance(value, (keras.KerasTensor, keras.Variable))
    return keras.ops.convert_to_numpy(value) if is_known else value


def new_input(tensor, optional=()):
    """A symbolic tensor like another one; optional if its name is among those."""
    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=tensor.name,
        optional=tensor.name in optional,
    )


# Functions and classes of living layers by the names that stand for them in configs.
_LIVING: weakref.WeakValueDictionary[str, Callable] = weakref.WeakValueDictionary()


def config_of(layer):
    """The config of a layer for `from_config` in this process, which gets functions and classes as they are.

    Those that are not registered a config has by name only, or as code without the names that it uses: an
    activation, a cell or a regularizer of one's own, or the function of a Lambda.
    """
    try:
        config = layer.get_config()
    except Exception as error:  # of code of its own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`model` must consist of layers that their config describes. Received: layer {layer.name!r} of "
            f"class {type(layer).__name__}, whose `get_config` says {type(error).__name__}: {reason}"
        ) from error
    config = _with_living(layer, config)
    if getattr(layer, "output_padding", None) is not None and isinstance(layer, TRANSPOSED):
        config.setdefault("output_padding", layer.output_padding)  # which Keras before 3.15 leaves out
    return config


def serialized(layer):
    """The same with the layer's class, as it stands within the config of another layer."""
    return _living_value(layer, keras.saving.serialize_keras_object(layer))


def from_config(keras_class, config):
    """A layer of a class from the config of a layer that runs in this process already, see `config_of`."""
    with known_to_keras(_LIVING):
        if "safe_mode" in inspect.signature(keras_class.from_config).parameters:
            return keras_class.from_config(config, safe_mode=False)  # a Lambda
        return keras_class.from_config(config)


def known_to_keras(objects):
    """A block within which Keras finds classes and functions, those of a scope around it included.

    Args:
        objects: Mapping from the name of each to it.
    """
    return keras.saving.custom_object_scope({**scoped_objects(), **objects})


def _with_living(owner, config):
    owners = [owner, getattr(owner, "cell", None)]
    # What a Bidirectional layer is made of, and what a Lambda calls its shape, have other names in a config.
    others = {"layer": "forward_layer", "output_shape": "_output_shape"}

    def living(key):
        names = [key, others.get(key, key)]
        found = [getattr(one, name, None) for one in owners for name in names if one is not None]
        return next((value for value in found if value is not None), None)

    if is_model(owner) and "layers" in config:  # a class of one's own may describe itself otherwise
        layers = {layer.name: layer for layer in owner.layers}
        values = [_living_value(layers.get(one["config"].get("name")), one) for one in config["layers"]]
        return {**config, "layers": values}
    return {key: _living_value(living(key), value) for key, value in config.items()}


def _living_value(living, value):
    """A value of a config, given what it describes."""
    if isinstance(value, (list, tuple)) and isinstance(living, (list, tuple)) and len(value) == len(living):
        return type(value)(map(_living_value, living, value))
    if isinstance(living, (types.FunctionType, types.BuiltinFunctionType)):
        is_known = isinstance(value, str) and is_keras_s(living)
        if is_known or not isinstance(value, (str, dict)):
            return value
        name = _name_of(living)
        return {"module": "builtins", "class_name": "function", "config": name, "registered_name": name}
    if not isinstance(value, dict) or not isinstance(value.get("config"), dict):
        return value
    if isinstance(living, keras.Layer):
        value = {**value, "config": _with_living(living, value["config"])}
    kind = type(living)
    is_found = is_keras_s(kind) or keras.saving.get_registered_object(value.get("registered_name")) is kind
    if is_found or value.get("class_name") != kind.__name__:
        return value
    return {**value, "registered_name": _name_of(kind)}


def is_keras_s(living):
    """Whether a class or function is one of Keras's own."""
    return str(living.__module__).split(".")[0] == "keras"


def _name_of(living):
    name = f"{living.__qualname__}@{id(living)}"
    _LIVING[name] = living
    return name


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
