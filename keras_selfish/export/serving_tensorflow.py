"""What a SavedModel of ours computes. Imported only where Keras runs on TensorFlow."""

import contextlib
import itertools

import keras
import tensorflow as tf

from keras_selfish.cloning import input_structure
from keras_selfish.export.reading_tensorflow import (
    Reader,
    checked_ids,
    checked_lengths,
    negative_sum,
    require,
)
from keras_selfish.ordering import after

INTEGERS = (tf.int64, tf.int32)


def write_language_model(stepwise, path, assets, packed=None):
    """Writes a SavedModel with the signatures `score`, `score_lengths`, `step` and `initial_state`.

    Args:
        stepwise: A Functional model from `[tokens, state, ...]` to `[logits, state, ...]`, without masks.
        path: A folder that does not exist yet.
        assets: Dict from attributes of the loaded object to the files that are carried along.
        packed: The `PackedVariables` of the model. None if all variables are saved as they are.
    """
    reader = Reader(stepwise, packed)
    module = tf.Module()
    module.packed = None if packed is None else packed.resource
    module.score = module.serve = _score(reader)
    module.step = _step(reader)
    module.initial_state = tf.function(reader.initial_state, autograph=False)
    # A signature takes one dtype, int32; the functions of the loaded module take both.
    tokens, lengths = (
        tf.TensorSpec((None, None), tf.int32, "tokens"),
        tf.TensorSpec((None,), tf.int32, "lengths"),
    )
    states = {name: tf.TensorSpec((None, width), tf.float32, name) for name, width in reader.widths.items()}
    for dtype in INTEGERS:
        module.step.get_concrete_function(tf.TensorSpec((None, None), dtype, "tokens"), **states)
    without_lengths = tf.function(lambda tokens: module.score(tokens), autograph=False)
    with_lengths = tf.function(lambda tokens, lengths: module.score(tokens, lengths), autograph=False)
    signatures = {
        "score": without_lengths.get_concrete_function(tokens),
        "score_lengths": with_lengths.get_concrete_function(tokens, lengths),
        "step": module.step.get_concrete_function(tokens, **states),
        "initial_state": module.initial_state.get_concrete_function(
            tf.TensorSpec((), tf.int32, "batch_size")
        ),
    }
    signatures["serving_default"] = signatures["score"]
    save(module, path, signatures, assets)


def write_forward(model, path, packed=None):
    """Writes a SavedModel with the signature `serve`, the forward pass of a model without masks.

    Args:
        model: A Functional or Sequential model.
        path: A folder that does not exist yet.
        packed: The `PackedVariables` of the model. None if all variables are saved as they are.
    """

    def serve(inputs):
        with contextlib.nullcontext() if packed is None else packed.in_use():
            outputs = model(inputs, training=False)
        return keras.tree.map_structure(_at_least_float32, outputs)

    inputs = input_structure(model)
    specs = keras.tree.map_structure(
        lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name), inputs
    )
    archive = keras.export.ExportArchive()
    for layer in layers_within(model):
        if not layer.variables:
            archive.track(layer)  # for its lookup tables, if any; variables are found by their use
    if packed is not None:
        archive.track(packed.resource)
    archive.add_endpoint("serve", serve, [specs])
    archive.write_out(str(path), verbose=False)


def save(module, path, signatures, assets):
    """Writes a module of functions with the variables that they use, and files beside them.

    Args:
        module: The `tf.Module`, which becomes the loaded object.
        path: A folder that does not exist yet.
        signatures: Dict from names to concrete functions.
        assets: Dict from attributes of the loaded object to files.
    """
    # The variables only, not the Keras model: that would bring along what it does not need to serve.
    used = {id(v): v for function in signatures.values() for v in function.variables}
    module.weights = list(used.values())
    for name, file in assets.items():
        setattr(module, name, tf.saved_model.Asset(str(file)))
    tf.saved_model.save(module, str(path), signatures=signatures)


def layers_within(layer):
    """A layer and those that it shows: the layers of a model, what a wrapper wraps, and so on."""
    yield layer
    wrapped = [getattr(layer, name, None) for name in ("layer", "forward_layer", "backward_layer")]
    for inner in [*getattr(layer, "layers", ()), *wrapped]:
        if isinstance(inner, keras.Layer):
            yield from layers_within(inner)


def _score(reader):
    """The function `score`, traced for tokens and lengths of both integer dtypes."""

    def score_int64(tokens, lengths):
        lengths = checked_lengths(lengths, tokens)
        tokens = checked_ids(tokens, reader.vocabulary_size, lengths)
        log_probabilities = reader.log_probabilities(tokens, tf.cast(lengths, tf.int32))
        return {"log_probabilities": log_probabilities, "loss": negative_sum(log_probabilities)}

    once = reader.once(score_int64, tf.TensorSpec((None, None), tf.int64), tf.TensorSpec((None,), tf.int64))

    @tf.function(autograph=False)
    def score(tokens, lengths=None):
        rows, time_steps = tf.unstack(tf.shape(tokens, out_type=tf.int64))
        lengths = tf.fill([rows], time_steps) if lengths is None else lengths
        return once(tf.cast(tokens, tf.int64), tf.cast(lengths, tf.int64))

    for of_tokens, of_lengths in itertools.product(INTEGERS, (None, *INTEGERS)):
        lengths = of_lengths and tf.TensorSpec((None,), of_lengths, "lengths")
        score.get_concrete_function(tf.TensorSpec((None, None), of_tokens, "tokens"), lengths)
    return score


def _step(reader):
    """The function `step`, which is traced in full once and takes tokens of any integer dtype."""

    def step_int64(tokens, states):
        columns = tf.shape(tokens)[1]
        some = require(columns > 0, "`tokens` must have at least one column. Received: {}", columns)
        fitting = [_same_rows(tokens, name, state) for name, state in states.items()]
        tokens = checked_ids(after(tokens, some, *fitting), reader.vocabulary_size)
        states = {name: _of_open_shape(state) for name, state in states.items()}
        logits, states = reader.run(_of_open_shape(tokens), states)
        return {"logits": logits[:, -1], **states}

    widths = {name: tf.TensorSpec((None, width)) for name, width in reader.widths.items()}
    once = reader.once(step_int64, tf.TensorSpec((None, None), tf.int64), widths)

    @tf.function(autograph=False)
    def step(tokens, **states):
        return once(tf.cast(tokens, tf.int64), states)

    return step


def _of_open_shape(tensor):
    """The same matrix, of whose shape TensorFlow knows the width of a state only.

    Where it knows shapes that do not fit, it refuses the graph before that could run into a sentence of ours.
    """
    width = tensor.shape[1] if tensor.dtype.is_floating else None
    return tf.compat.v1.placeholder_with_default(tensor, (None, width))


def _same_rows(tokens, name, state):
    rows, others = tf.shape(tokens)[0], tf.shape(state)[0]
    return require(
        rows == others,
        f"`{name}` must have a row for each row of `tokens`. Received: {{}} for {{}}; begin a batch of "
        "texts with `initial_state(batch_size)`",
        others,
        rows,
    )


def _at_least_float32(tensor):
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.bfloat16, tf.float16) else tensor
