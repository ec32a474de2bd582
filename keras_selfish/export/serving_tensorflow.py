"""What a SavedModel of ours computes. Imported only where Keras runs on TensorFlow."""

import contextlib

import keras
import tensorflow as tf

# Time steps whose logits `score` holds at a time, so that a text may be of any length.
WINDOW = 64


def write_language_model(stepwise, path, vocabulary_file=None, text=None, packed=None):
    """Writes a SavedModel with the signatures `score`, `step`, `initial_state`, and `score_text`.

    Args:
        stepwise: A Functional model from `[tokens, state, ...]` to `[logits, state, ...]`, without masks.
        path: A folder that does not exist yet.
        vocabulary_file: A file to carry along as an asset.
        text: For `score_text`: the function that cuts strings into tokens, the id of the token that a text
            follows, and that of the token that stands for unknown ones. None for no such signature.
        packed: The `PackedVariables` of the model. None if all variables are saved as they are.
    """
    module = tf.Module()
    module.packed = None if packed is None else packed.resource
    module.score, module.step, module.initial_state = _language_model_functions(stepwise, packed)
    states = {
        state.name: tf.TensorSpec((None, state.shape[-1]), tf.float32, state.name)
        for state in _states(stepwise)
    }
    batch_size = tf.TensorSpec((), tf.int32, "batch_size")
    signatures = {"initial_state": module.initial_state.get_concrete_function(batch_size)}
    # A signature takes one dtype, int32, traced last; the functions of the loaded module take both.
    for dtype in (tf.int64, tf.int32):
        tokens = tf.TensorSpec((None, None), dtype, "tokens")
        signatures["score"] = module.score.get_concrete_function(tokens)
        signatures["step"] = module.step.get_concrete_function(tokens, **states)
    # The variables only, not the Keras model: that would bring along what it does not need to serve.
    used = {id(v): v for function in signatures.values() for v in function.variables}
    module.weights = list(used.values())
    if vocabulary_file is not None:
        module.vocabulary = tf.saved_model.Asset(str(vocabulary_file))
    if text is not None:
        module.score_text, module.ids = _score_text(module.score, vocabulary_file, *text)
        signatures["score_text"] = module.score_text
    signatures["serving_default"] = signatures["score"]
    tf.saved_model.save(module, str(path), signatures=signatures)


def write_forward(model, path, packed=None):
    """Writes a SavedModel with the signature `serve`, the forward pass of a model without masks.

    Args:
        model: A Functional or Sequential model.
        path: A folder that does not exist yet.
        packed: The `PackedVariables` of the model. None if all variables are saved as they are.
    """

    def serve(inputs):
        with _in_use(packed):
            outputs = model(inputs, training=False)
        return keras.tree.map_structure(_at_least_float32, outputs)

    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
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


def layers_within(layer):
    """A layer and those that it shows: the layers of a model, what a wrapper wraps, and so on."""
    yield layer
    wrapped = [getattr(layer, name, None) for name in ("layer", "forward_layer", "backward_layer")]
    for inner in [*getattr(layer, "layers", ()), *wrapped]:
        if isinstance(inner, keras.Layer):
            yield from layers_within(inner)


def _language_model_functions(stepwise, packed=None):
    """The functions `score`, `step` and `initial_state` of a stepwise language model."""
    widths = {state.name: state.shape[-1] for state in _states(stepwise)}

    def run(tokens, states):
        """Logits (batch, time, vocabulary) and the states after the last token, in float32."""
        inputs = [tf.cast(states[state.name], state.dtype) for state in _states(stepwise)]
        with _in_use(packed):
            logits, *finals = stepwise([tokens, *inputs], training=False)
        finals = {name: tf.cast(final, tf.float32) for name, final in zip(widths, finals, strict=True)}
        return tf.cast(logits, tf.float32), finals

    @tf.function(autograph=False)
    def initial_state(batch_size):
        return {name: tf.zeros((batch_size, width)) for name, width in widths.items()}

    @_of_integers
    def step(tokens, **states):
        logits, states = run(tokens, states)
        return {"logits": logits[:, -1], **states}

    @_of_integers
    def score(tokens):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        batch_size, time_steps = tf.unstack(tf.shape(inputs))

        def score_window(start, log_probabilities, states):
            window = slice(start, start + WINDOW)
            logits, states = run(inputs[:, window], states)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets[:, window], logits)
            return start + WINDOW, tf.concat([log_probabilities, -losses], 1), states

        _, log_probabilities, _ = tf.while_loop(
            lambda start, *_: start < time_steps,
            score_window,
            [0, tf.zeros((batch_size, 0)), initial_state(batch_size)],
            shape_invariants=[
                tf.TensorShape(()),
                tf.TensorShape((None, None)),
                {name: tf.TensorShape((None, width)) for name, width in widths.items()},
            ],
            parallel_iterations=1,  # several windows' logits at a time would take as much more memory
        )
        # In float64: the sum over a corpus is large against the last bits of a token's loss.
        loss = tf.reduce_sum(tf.cast(-log_probabilities, tf.float64))
        return {"log_probabilities": log_probabilities, "loss": tf.cast(loss, tf.float32)}

    return score, step, initial_state


def _score_text(score, vocabulary_file, tokenize, start_id, unknown_id):
    """The function `score_text`, and the table in which it looks up ids."""
    initializer = tf.lookup.TextFileInitializer(
        str(vocabulary_file),
        key_dtype=tf.string,
        key_index=tf.lookup.TextFileIndex.WHOLE_LINE,
        value_dtype=tf.int64,
        value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    table = tf.lookup.StaticHashTable(initializer, default_value=unknown_id)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None,), tf.string, "texts")])
    def score_text(texts):
        tokens = tokenize(texts)
        lengths = tf.cast(tokens.row_lengths(), tf.int32)
        ids = tokens.with_flat_values(table.lookup(tokens.flat_values)).to_tensor(unknown_id)
        ids = tf.pad(tf.cast(ids, tf.int32), [[0, 0], [1, 0]], constant_values=start_id)
        log_probabilities = score(ids)["log_probabilities"]
        is_token = tf.sequence_mask(lengths, tf.shape(log_probabilities)[1])
        log_probabilities = tf.where(is_token, log_probabilities, 0.0)
        mean = tf.reduce_sum(log_probabilities, 1) / tf.cast(lengths, tf.float32)
        return {
            "tokens": tokens.to_tensor(""),
            "log_probabilities": log_probabilities,
            "perplexity": tf.exp(-mean),
        }

    return score_text, table


def _of_integers(function):
    """Makes a TensorFlow function that takes tokens of any integer dtype but is traced in full once."""
    of_int32 = tf.function(function, autograph=False)

    @tf.function(autograph=False)
    def of_integers(tokens, **states):
        return of_int32(tf.cast(tokens, tf.int32), **states)

    return of_integers


def _in_use(packed):
    return contextlib.nullcontext() if packed is None else packed.in_use()


def _states(stepwise):
    return stepwise.inputs[1:]


def _at_least_float32(tensor):
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.bfloat16, tf.float16) else tensor
