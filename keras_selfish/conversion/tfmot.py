"""Models that TensorFlow Model Optimization has pruned, which are Keras 2 ones (`tf_keras`), in Keras 3."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_selfish import cloning
from keras_selfish.conversion.sparsify import sparsify, twin_with_masks
from keras_selfish.mask_spec import MaskSpec
from keras_selfish.masks import is_n_of_m

if TYPE_CHECKING:
    import tf_keras

SEPARABLE = ("groups", "kernel_initializer", "kernel_constraint", "kernel_regularizer")
# Layers that compute the same from the same weights in both; with the arguments that Keras 3 has dropped.
DROPPED = {
    "Activation": (),
    "Add": (),
    "Average": (),
    "AveragePooling1D": (),
    "AveragePooling2D": (),
    "BatchNormalization": (),
    "Bidirectional": (),
    "Concatenate": (),
    "Conv1D": (),
    "Conv1DTranspose": ("groups",),
    "Conv2D": (),
    "Conv2DTranspose": ("groups",),
    "Conv3D": (),
    "Conv3DTranspose": ("groups",),
    "Dense": (),
    "DepthwiseConv1D": ("groups",),
    "DepthwiseConv2D": ("groups",),
    "Dropout": (),
    "ELU": (),
    "Embedding": ("input_length",),
    "Flatten": (),
    "GRU": ("time_major",),
    "GRUCell": (),
    "GaussianNoise": (),
    "GlobalAveragePooling1D": (),
    "GlobalAveragePooling2D": (),
    "GlobalMaxPooling1D": (),
    "GlobalMaxPooling2D": (),
    "InputLayer": (),
    "LSTM": ("time_major",),
    "LSTMCell": (),
    "LayerNormalization": (),
    "LeakyReLU": (),
    "Masking": (),
    "MaxPooling1D": (),
    "MaxPooling2D": (),
    "Maximum": (),
    "Minimum": (),
    "MultiHeadAttention": ("query_shape", "key_shape", "value_shape", "softmax_robust_masking"),
    "Multiply": (),
    "Permute": (),
    "RNN": ("time_major",),
    "ReLU": (),
    "RepeatVector": (),
    "Reshape": (),
    "SeparableConv1D": SEPARABLE,
    "SeparableConv2D": SEPARABLE,
    "SimpleRNN": ("time_major",),
    "SimpleRNNCell": (),
    "Softmax": (),
    "SpatialDropout1D": (),
    "SpatialDropout2D": (),
    "StackedRNNCells": (),
    "Subtract": (),
    "TimeDistributed": (),
    "UpSampling1D": (),
    "UpSampling2D": (),
    "ZeroPadding1D": (),
    "ZeroPadding2D": (),
}
RENAMED = {"InputLayer": {"batch_input_shape": "batch_shape"}, "LeakyReLU": {"alpha": "negative_slope"}}
# Arguments without a counterpart, which a layer may not use.
REFUSED = ("time_major", "ragged")
# To the classes of `keras` that make such a model of its config.
MODELS = {"Functional": "Model", "Sequential": "Sequential"}
RECURRENT = ("Bidirectional", "GRU", "LSTM", "RNN", "SimpleRNN")
WRAPPER = "PruneLowMagnitude"


def from_tfmot(
    model: tf_keras.Model, custom_layers: Mapping[str, type[keras.Layer]] | None = None
) -> keras.Model:
    """Returns the sparse Keras 3 twin of a `tf_keras` model that TensorFlow Model Optimization has pruned.

    Layers that `tfmot.sparsity.keras.prune_low_magnitude` wraps become sparse ones with the wrappers' masks
    and block size, under their own names. Weights outside a mask are zero. Training goes on from there, with
    `SelfishRewiring` if connections are to move. The twin computes what `strip_pruning(model)` does, as
    the wrapped model does too, except that its wrappers do not pass on which steps are padding (`mask_zero`).
    A model without wrappers, such as a stripped one, is sparse where it has zeros. The twin is not compiled.

    A wrapper with `sparsity_m_by_n`, m zeros in n weights, gives `n_of_m=(n - m, n)` where its mask has that
    pattern throughout, else its mask alone. The function needs `tf_keras`: `pip install
    'keras_selfish[tfmot]'`.

    Args:
        model: A built Functional or Sequential `tf_keras.Model`.
        custom_layers: Dict from the class names of your own `tf_keras` layers to Keras 3 classes that take
            the same arguments and compute the same from the same weights; to be sparse they need a form that
            is (see `layers.sparse_form_of`). Default None.

    Returns:
        A `keras.Sequential` if the model is one, else a Functional `keras.Model`.

    Raises:
        ValueError: if the model is subclassed or not built, or has a layer that Keras 3 would not compute the
            same, or a pruned layer without a sparse form.
    """
    # Imported here: it loads TensorFlow.
    import tf_keras

    if not isinstance(model, tf_keras.Sequential | tf_keras.models.Model) or not _is_graph(model):
        raise ValueError(
            "`model` must be a Functional or Sequential tf_keras.Model that is built. Received: "
            f"model={model!r}; call it on data first"
        )
    own_classes = _checked_classes(custom_layers or {})
    by_name = {keras.saving.get_registered_name(each): each for each in own_classes.values()}
    with cloning.known_to_keras(by_name):
        config = _model_config(type(model).__name__, model.get_config(), own_classes)
        plain = keras.layers.deserialize(config)
    wrappers = _wrappers(model)
    masks = {id(weight): mask for wrapper in wrappers for weight, mask, _ in wrapper.pruning_vars}
    own = {id(one) for wrapper in wrappers for _, *both in wrapper.pruning_vars for one in both}
    own |= {id(wrapper.pruning_step) for wrapper in wrappers}

    given, structures = {}, {}
    for layer, twin in _pairs(model, plain):
        weights = [weight for weight in layer.weights if id(weight) not in own]
        _copy_weights(layer, weights, twin)
        for weight, target in zip(weights, twin.weights, strict=True):
            if id(weight) in masks:
                given[id(target)] = np.asarray(masks[id(weight)]) != 0
        own_masks = [given[id(target)] for target in twin.weights if id(target) in given]
        structures[id(twin)] = _structure(_wrappers(layer), own_masks)
    if not wrappers:
        return sparsify(plain, initial="nonzero")
    return twin_with_masks(plain, given, lambda layer: structures[id(layer)])


def _checked_classes(custom_layers):
    for name, own_class in custom_layers.items():
        if not (inspect.isclass(own_class) and issubclass(own_class, keras.Layer)):
            raise ValueError(
                "`custom_layers` must give the class of a Keras 3 layer for each name. Received: "
                f"{own_class!r} for {name!r}"
            )
    return dict(custom_layers)


def _structure(wrappers, masks):
    """The `MaskSpec` that says which patterns the masks of a layer keep."""
    if not wrappers:
        return MaskSpec()
    pattern = wrappers[0].sparsity_m_by_n
    if pattern is not None:
        zeros, size = pattern
        if all(is_n_of_m(mask, (size - zeros, size)) for mask in masks):
            return MaskSpec(n_of_m=(size - zeros, size))
    return MaskSpec(block_shape=wrappers[0].block_size)


def _is_graph(model):
    return bool(model.built and getattr(model, "inputs", None))


def _is_wrapper(layer):
    return hasattr(layer, "pruning_vars")


def _wrappers(layer):
    """The pruning wrappers that a layer is or contains: in models and in wrappers of Keras's."""
    if _is_wrapper(layer):
        return [layer]
    inside = [*getattr(layer, "layers", ()), getattr(layer, "layer", None)]
    return [wrapper for one in inside if one is not None for wrapper in _wrappers(one)]


def _unwrapped(layer):
    return layer.layer if _is_wrapper(layer) else layer


def _pairs(model, plain):
    """Pairs (layer of a model, its copy), each once; wrappers stand for the layers in them."""
    pairs = {}
    for layer in model.layers:
        twin = plain.get_layer(_unwrapped(layer).name)
        inner = _pairs(layer, twin) if isinstance(twin, (keras.Model, keras.Sequential)) else [(layer, twin)]
        pairs.update((id(one), (one, other)) for one, other in inner)
    return pairs.values()


def _copy_weights(layer, weights, twin):
    shapes = [[tuple(weight.shape) for weight in one] for one in (weights, twin.weights)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`model` must hold layers that have the same weights in Keras 3. Received: layer {layer.name!r} "
            f"with weights of shapes {shapes[0]}, which has {shapes[1]} there"
        )
    for weight, target in zip(weights, twin.weights, strict=True):
        target.assign(weight.numpy())


def _model_config(class_name, config, own_classes):
    """Keras 3's serialized form of a Functional or Sequential model of `tf_keras`."""
    references = {layer["config"]["name"]: _first_call(layer) for layer in config["layers"]}
    layers = []
    for layer in config["layers"]:
        converted = _layer_config(layer, own_classes)
        if "inbound_nodes" in layer:
            converted["name"] = converted["config"]["name"]
            converted["inbound_nodes"] = [
                _node(_resolved(node, references), converted["class_name"]) for node in layer["inbound_nodes"]
            ]
        layers.append(converted)
    model = {"name": config["name"], "trainable": config.get("trainable", True), "layers": layers}
    for key in ("input_layers", "output_layers"):
        if key in config:
            nodes = _resolved(config[key], references)
            # Keras 3 distinguishes one tensor from a list of one.
            model[key] = nodes[0] if isinstance(nodes, list) and len(nodes) == 1 else nodes
    if class_name not in MODELS:
        raise ValueError(
            "`model` must consist of Functional and Sequential models. Received: model "
            f"{config['name']!r} of class {class_name}; convert the models that it is made of"
        )
    return {
        "module": "keras",
        "class_name": MODELS[class_name],
        "config": model,
        "registered_name": MODELS[class_name],
    }


def _layer_config(layer, own_classes):
    """Keras 3's serialized form of a layer of `tf_keras`."""
    class_name, config = _class_name(layer), layer["config"]
    if class_name == WRAPPER:
        return _layer_config(config["layer"], own_classes)
    if class_name in MODELS:
        return _model_config(class_name, config, own_classes)
    name, own_class = config.get("name", class_name), own_classes.get(class_name)
    is_known = class_name in DROPPED and layer.get("module", "keras.layers") == "keras.layers"
    if own_class is None and not is_known:
        raise ValueError(
            f"`model` must hold layers that Keras 3 has as well. Received: layer {name!r} of class "
            f"{class_name}; those that are converted are {', '.join(DROPPED)}, and your own in "
            "`custom_layers`"
        )
    if refused := [key for key in REFUSED if config.get(key)]:
        raise ValueError(
            f"`model` must not use arguments that Keras 3 lacks. Received: layer {name!r} of class "
            f"{class_name} with {refused[0]}={config[refused[0]]!r}"
        )
    converted = {
        "module": "keras.layers",
        "class_name": class_name,
        "config": _arguments(class_name, config, own_classes),
        "registered_name": None,
    }
    if own_class is not None:
        converted |= {
            "module": own_class.__module__,
            "class_name": own_class.__name__,
            "registered_name": keras.saving.get_registered_name(own_class),
        }
    try:
        keras.layers.deserialize(copy.deepcopy(converted))  # wrappers take their layers out of the config
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`model` must hold layers that Keras 3 can make. Received: layer {name!r} of class "
            f"{class_name}, with arguments that it refuses: {error}"
        ) from error
    return converted


def _class_name(layer):
    return layer["class_name"].rpartition(">")[2]  # without the package that a class is registered for


def _arguments(class_name, config, own_classes):
    renamed = RENAMED.get(class_name, {})
    dropped = {*DROPPED.get(class_name, ()), *REFUSED, "batch_input_shape"} - renamed.keys()
    arguments = {
        renamed.get(key, key): _value(value, own_classes)
        for key, value in config.items()
        if key not in dropped
    }
    if isinstance(arguments.get("dtype"), dict):
        arguments["dtype"] = arguments["dtype"]["config"]["name"]
    if class_name == "BatchNormalization" and isinstance(arguments["axis"], (list, tuple)):
        (arguments["axis"],) = arguments["axis"]
    return arguments


def _value(value, own_classes):
    """An argument; layers among them, such as a wrapper's or cells, are converted."""
    if isinstance(value, (list, tuple)):
        return [_value(one, own_classes) for one in value]
    is_object = isinstance(value, dict) and isinstance(value.get("class_name"), str)
    if is_object and _class_name(value) in {*DROPPED, *MODELS, WRAPPER, *own_classes}:
        return _layer_config(value, own_classes)
    return value


def _node(references, class_name):
    """Keras 3's form of a call of a layer, from a list of [layer, call, output, keywords]."""
    tensors = [_tensors(reference[:3]) for reference in references]
    keywords = _tensors(references[0][3]) if len(references[0]) > 3 else {}
    if class_name in RECURRENT and len(tensors) > 1:  # Keras 2 makes inputs of initial states
        tensors, keywords["initial_state"] = tensors[:1], tensors[1:]
    return {"args": tensors if len(tensors) == 1 else [tensors], "kwargs": keywords}


def _tensors(nodes):
    """Replaces references to outputs of layers, [layer, call, output], within lists and dicts."""
    if isinstance(nodes, dict):
        return {key: _tensors(value) for key, value in nodes.items()}
    if not isinstance(nodes, list):
        return nodes
    if [type(part) for part in nodes] == [str, int, int]:
        # Keras looks the tensor up by its history alone.
        config = {"shape": [], "dtype": "float32", "keras_history": nodes}
        return {"class_name": "__keras_tensor__", "config": config}
    return [_tensors(value) for value in nodes]


def _first_call(layer):
    """The name of a layer in Keras 3, and the number of its first call in a config of Keras 2."""
    if layer["class_name"] == WRAPPER:
        return layer["config"]["layer"]["config"]["name"], 0
    # There a model that was made from its inputs counts that as its call number 0.
    inside = layer["config"].get("layers") if layer["class_name"] in MODELS else None
    return layer["config"]["name"], int(bool(inside) and inside[0]["class_name"] == "InputLayer")


def _resolved(nodes, references):
    """References [layer, call, output, ...], within lists and dicts, by names and calls in Keras 3."""
    if isinstance(nodes, dict):
        return {key: _resolved(value, references) for key, value in nodes.items()}
    if not isinstance(nodes, (list, tuple)):
        return nodes
    if [type(part) for part in nodes[:3]] == [str, int, int] and nodes[0] in references:
        name, first = references[nodes[0]]
        return [name, nodes[1] - first, nodes[2], *_resolved(nodes[3:], references)]
    return [_resolved(value, references) for value in nodes]
