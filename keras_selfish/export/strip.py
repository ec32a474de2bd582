"""Sparse models in plain Keras layers."""

from __future__ import annotations

import functools
import inspect

import keras
from keras import ops

from keras_selfish.cloning import (
    check_model,
    clone,
    config_of,
    copy_state,
    from_config,
    serialized,
    shared_layers,
    with_inner,
)
from keras_selfish.export.shrink import cuts
from keras_selfish.held_layers import build_like, exchange_held, held_layers, is_model
from keras_selfish.layers.composite import SparseComposite, copy_in_place, without_composite
from keras_selfish.layers.forms import class_in, is_plain, known_to_keras, plain_form
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.masks import masked_weights


def strip(model: keras.Model) -> keras.Model:
    """Returns the same model in plain Keras layers, with the zeros in its weights and no masks.

    A sparse model needs this package wherever it is loaded; the stripped one needs Keras only. It is a
    copy: names, dtype policies, weights and outputs are those of the model, which is left as it is. Nested
    models and wrappers (`Bidirectional`, `TimeDistributed`, `RNN` with sparse cells) are entered, and a
    layer that is shared in the model is shared in the copy. In place of a `layers.SparseComposite` stands the
    layer that it calls, with plain ones in it. All other layers are copied as they are, those
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
    stripped = _stripped(model, within=True)
    for layer in with_inner(stripped):
        if type(layer) is keras.layers.TimeDistributed:
            layer.call = functools.partial(_call_at_all_steps, layer)
    return stripped


def _call_at_all_steps(layer, inputs, training=None, mask=None):
    """What `TimeDistributed` computes: Keras counts examples where a graph does not know the time steps."""
    if inputs.shape[1] is not None:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    inner = layer.layer
    parameters = inspect.signature(inner.call).parameters
    given = {"training": training, "mask": None if mask is None else _examples_of_steps(mask)}
    given = {name: value for name, value in given.items() if name in parameters and value is not None}
    outputs = inner.call(_examples_of_steps(inputs), **given)
    return ops.reshape(outputs, (*ops.shape(inputs)[:2], *outputs.shape[1:]))


def _examples_of_steps(tensor):
    return ops.reshape(tensor, (-1, *tensor.shape[2:]))


def _stripped(model, within):
    check_model(model)
    cuts_of = _cuts_within(model)

    def strip_layer(layer, copy_of):
        return _strip_layer(layer, copy_of, cuts_of.get(id(layer)))

    with known_to_keras():
        stripped, pairs = clone(model, strip_layer)
        if within:
            for layer, copy in pairs:
                _strip_within(without_composite(layer), copy)
    for layer, copy in pairs:
        build_like(without_composite(layer), copy)
        _copy_weights(without_composite(layer), copy, cuts_of.get(id(layer)))
    return stripped


def _strip_within(layer, copy):
    """Puts plain layers where a layer's copy holds sparse ones, as attributes or within lists and dicts."""
    if not is_plain(type(copy)) or not _holds_sparse(copy):
        return
    held = dict(held_layers(layer))
    sources = {id(twin): held[path] for path, twin in held_layers(copy) if path in held}

    def plain_of(twin):
        source = sources.get(id(twin))
        if source is None or not _holds_sparse(twin):
            return twin
        if is_plain(type(source)) and not is_model(source):
            _strip_within(source, twin)
            return twin
        return copy_in_place(source, lambda inner, copy_of: _strip_layer(inner, copy_of, None))

    exchange_held(copy, plain_of)


def _holds_sparse(layer):
    """Whether a layer is a sparse one or holds one."""
    return any(isinstance(one, SparseLayer) for one in with_inner(layer))


def _cuts_within(model):
    """What is left of the dense layers of a model and of the models within it."""
    found = cuts(model)
    for layer in filter(is_model, model.layers):
        found |= _cuts_within(layer)
    return found


def _strip_layer(layer, copy_of, cut):
    layer = without_composite(layer)
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
    if layer_class is SparseComposite:
        return {**config, **config["config"]["layer"]}
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
