"""Sparse models in plain Keras layers."""

from __future__ import annotations

import contextlib

import keras
from keras import ops

from keras_selfish.cloning import (
    check_model,
    clone,
    clone_layers,
    config_of,
    copy_state,
    from_config,
    is_model,
    serialized,
    shared_layers,
    with_inner,
)
from keras_selfish.export.shrink import cuts
from keras_selfish.keras_internals import exchange_inner_layer
from keras_selfish.layers.forms import class_in, is_plain, known_to_keras, plain_form
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.masks import masked_weights


def strip(model: keras.Model) -> keras.Model:
    """Returns the same model in plain Keras layers, with the zeros in its weights and no masks.

    A sparse model needs this package wherever it is loaded; the stripped one needs Keras only. It is a
    copy: names, dtype policies, weights and outputs are those of the model, which is left as it is. Nested
    models and wrappers (`Bidirectional`, `TimeDistributed`, `RNN` with sparse cells) are entered, and a
    layer that is shared in the model is shared in the copy. All other layers are copied as they are, those
    of this package included. The copy is not compiled, its random generators start anew, and so
    do the states of layers with `stateful=True`.

    Keras has no recurrent highway network and no ordered neurons: in place of `SparseRHN` and `SparseONLSTM`
    the copy has the same layers at sparsity 0, without masks. It still needs this package to be loaded; a
    SavedModel (see `saved_model`) does not.

    Args:
        model: A built Functional or Sequential `keras.Model`.

    Returns:
        A `keras.Sequential` if the model is one, else a Functional `keras.Model`.

    Raises:
        ValueError: if the model is subclassed or not built, or if it holds a sparse layer that cannot be
            replaced: one that a custom layer does not show in its config (`saved_model`, `onnx` and `litert`
            write it all the same), or a class of your own that is not registered (see
            `layers.sparse_form_of`).

    Example:

    >>> import keras
    >>> from keras_selfish import SparseDense, SparseLSTM, strip
    >>> model = keras.Sequential([keras.Input((None, 8)), SparseLSTM(16), SparseDense(4)])
    >>> [type(layer).__name__ for layer in strip(model).layers]
    ['LSTM', 'Dense']
    """
    return _stripped(model, within=False)


def strip_for_graph(model: keras.Model) -> keras.Model:
    """The same for what is written from the model's graph: also layers within layers of one's own are plain.

    A layer that makes sparse ones for itself, which its config does not show, would make them again where it
    is loaded from a `.keras` file; as a graph its copy can hold plain ones.
    """
    return _stripped(model, within=True)


def _stripped(model, within):
    check_model(model, "strip the functional models that it is made of")
    cuts_of = _cuts_within(model)

    def strip_layer(layer, copy_of):
        return _strip_layer(layer, copy_of, cuts_of.get(id(layer)))

    with known_to_keras():
        stripped, pairs = clone(model, strip_layer)
        if within:
            for layer, copy in pairs:
                _strip_within(layer, copy)
    for layer, copy in pairs:
        _copy_weights(layer, copy, cuts_of.get(id(layer)))
    return stripped


def _strip_within(layer, copy):
    """Puts plain layers where a layer's copy holds sparse ones, as attributes or within lists and dicts."""
    if not is_plain(type(copy)) or not _holds_sparse(copy):
        return
    made = {}  # by the id of the layer that it takes the place of, which may stand in several

    def plain_of(value, twin):
        if isinstance(value, dict):
            return {key: plain_of(value[key], twin[key]) for key in value}
        if isinstance(value, (list, tuple)):
            plain = list(map(plain_of, value, twin))
            if hasattr(value, "_make"):  # a named tuple
                return value._make(plain)
            return tuple(plain) if isinstance(value, tuple) else plain
        if not isinstance(value, keras.Layer) or not _holds_sparse(twin):
            return twin
        if is_plain(type(value)) and not is_model(value):
            _strip_within(value, twin)
            return twin
        if id(twin) not in made:
            made[id(twin)] = _plain_copy(value)
            exchange_inner_layer(copy, twin, made[id(twin)])
        return made[id(twin)]

    every_layer_has = vars(keras.layers.Layer())
    for name, value in list(vars(layer).items()):
        if name not in every_layer_has and _holds_sparse(value):
            setattr(copy, name, plain_of(value, getattr(copy, name)))


def _holds_sparse(value):
    """Whether a layer, or what is within a list, a tuple or a dict, is a sparse layer or holds one."""
    if isinstance(value, keras.Layer):
        return any(isinstance(one, SparseLayer) for one in with_inner(value))
    inside = value.values() if isinstance(value, dict) else value
    return isinstance(value, (dict, list, tuple)) and any(map(_holds_sparse, inside))


def _plain_copy(layer):
    """A plain layer, or a model of such, built as a sparse one is, its variables of the same paths."""

    def plain(inner, copy_of):
        return _strip_layer(inner, copy_of, None)

    with contextlib.ExitStack() as scopes:
        for name in (layer.path or layer.name).split("/")[:-1]:
            scopes.enter_context(keras.name_scope(name))
        (copy,), _ = clone_layers([layer], plain)
    return copy


def _cuts_within(model):
    """What is left of the dense layers of a model and of the models within it."""
    found = cuts(model)
    for layer in filter(is_model, model.layers):
        found |= _cuts_within(layer)
    return found


def _strip_layer(layer, copy_of, cut):
    config = _strip_config(config_of(layer))
    if cut is not None and cut.units is not None:
        config["units"] = len(cut.units)
    plain_class = type(layer)
    if not is_plain(plain_class):
        plain_class, config = plain_form(plain_class, config) or _refuse(layer)
        config |= shared_layers(layer, copy_of)
    return from_config(plain_class, config)


def _strip_config(config):
    """Replaces the sparse layers that are serialized within a config, as wrappers and cells are."""
    if isinstance(config, (list, tuple)):
        return type(config)(map(_strip_config, config))
    if not isinstance(config, dict):
        return config
    config = {key: _strip_config(value) for key, value in config.items()}
    layer_class = class_in(config)
    plain = plain_form(layer_class, config["config"]) if layer_class else None
    if plain is None:
        return config
    plain_class, plain_config = plain
    layer = from_config(plain_class, plain_config)
    return {**config, **serialized(layer)}  # in a Functional model beside its name and its calls


def _copy_weights(layer, copy, cut=None):
    if masked_weights(copy):
        _refuse(layer)
    values = layer.plain_weights() if hasattr(layer, "plain_weights") else _plain_weights(layer)
    if cut is not None:
        values = cut.apply([ops.convert_to_numpy(value) for value in values])
    if [tuple(value.shape) for value in values] != [tuple(weight.shape) for weight in copy.weights]:
        raise ValueError(
            "`model` must consist of layers that their config describes in full. Received: layer "
            f"{layer.name!r} of class {type(layer).__name__}, whose copy has other weights"
        )
    for value, target in zip(values, copy.weights, strict=True):
        # On JAX a variable takes an array as it is, and a step of training deletes the arrays it was given.
        target.assign(ops.copy(value))
    copy_state(layer, copy)
    if type(copy) is not type(layer) and hasattr(copy, "finalize_state"):
        copy.finalize_state()


def _plain_weights(layer):
    """The weights of a layer but its masks, zero where their mask is False."""
    masks = {id(masked_weight.mask) for masked_weight in masked_weights(layer)}
    values = []
    for weight in layer.weights:
        if id(weight) in masks:
            continue
        value = ops.convert_to_tensor(weight)
        if (masked_weight := getattr(weight, "masked_weight", None)) is not None:
            mask = ops.convert_to_tensor(masked_weight.mask)
            value = ops.where(mask, value, ops.zeros((), value.dtype))
        values.append(value)
    return values


def _refuse(layer):
    raise ValueError(
        "`model` must hold sparse layers directly or where a config shows them, of classes that are "
        f"registered by `sparse_form_of`. Received: layer {layer.name!r} of class {type(layer).__name__}; "
        "strip the models it is made of, or serialize its sparse layers in `get_config`"
    )
