"""Sparse models as TensorFlow SavedModels."""

import os
import pathlib
import shutil
import tempfile

from keras_selfish.backend import BACKEND
from keras_selfish.export.packing import FORMS
from keras_selfish.export.strip import strip
from keras_selfish.layers import CarriedState

# What TensorFlow writes into the folder of a SavedModel.
SAVED_MODEL_ENTRIES = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra", "debug"}


def saved_model(
    model,
    path,
    vocabulary=None,
    tokenize=None,
    start_token="<eos>",
    unknown_token="<unk>",
    packed=None,
):
    """Writes a model as a SavedModel that needs TensorFlow only: no masks, no optimizer, no keras_selfish.

    The weights are those that stand in the model, zeros included. The outputs are float32, also those of a
    model in mixed precision, which goes on computing in it. Recurrent layers are written without cuDNN,
    also on a GPU, so that the SavedModel runs anywhere.

    A *language model*, which is a model with a method `stepwise()` such as `LanguageModel`, has these
    signatures; they are functions of the loaded object, too, where tokens may be int32 or int64:

    - `score(tokens)`: tokens (batch, time), int32, each row a text that is read from a zero state. Returns
      `log_probabilities` (batch, time - 1), of `tokens[:, 1:]` given the tokens before, in nats, and `loss`,
      minus their sum: exp(loss / number of log-probabilities) is the perplexity. The text may be of any
      length, since memory for logits is taken for 64 time steps at a time.
    - `step(tokens, h_0, c_0, h_1, c_1, ...)`: tokens (batch, time) and the states of the layers, float32
      (batch, units). Returns `logits` (batch, vocabulary) of the token that follows the last one, and the new
      states under the same names.
    - `initial_state(batch_size)`: the zero states that a text begins with, under the same names.

    and with `tokenize` also

    - `score_text(texts)`: strings (batch,), each read as what follows `start_token`. Returns `tokens`
      (batch, time), strings, `log_probabilities` (batch, time) of each given those before, in nats, and
      `perplexity` (batch,) of each text; texts shorter than the longest are padded with `""` and 0. Where
      `tokenize` computes with TensorFlow Text, a program that loads the SavedModel imports `tensorflow_text`
      first.

    `serving_default` is `score`. Any *other* Functional or Sequential model has one signature, its
    forward pass, which is the function `serve` of the loaded object and `serving_default`.

    The SavedModel is written beside `path` and then renamed: at no time is there half a SavedModel at `path`.

    Args:
        model: A built Functional or Sequential model, or one with a method `stepwise()` that returns one from
            `[tokens, state, ...]` to `[logits, state, ...]`.
        path: The folder to write. A SavedModel or empty folder there is replaced, anything else is refused.
        vocabulary: The tokens of a language model, a sequence of strings in the order of their ids. If given,
            they become the asset `vocabulary.txt`, a token a line, whose place is `vocabulary.asset_path` of
            the loaded object.
        tokenize: Function of TensorFlow operations that cuts strings (batch,) into a `tf.RaggedTensor` of
            tokens (batch, tokens), such as `tokenizer(corpus.tokenization)` from
            `keras_selfish.data.tokenization_tensorflow`. Default None: only ids can be scored.
        start_token: The token that a text follows in `score_text`. Default `"<eos>"`.
        unknown_token: The token that stands for all others in `score_text`. Default `"<unk>"`.
        packed: How the SavedModel holds the sparse weights. Default None: as they are, zeros included.
            Otherwise as a bit for each weight (or block of them) and the values that are not zero, expanded
            once when the SavedModel is loaded: loading takes longer, and what runs then is the same.
            `"float32"` keeps the values, and so the outputs, exactly; `"bfloat16"` rounds values to 8
            significant bits; `"int8"` to 8 bits with a scale for each row or each column of the matrix.
            Weights that are not sparse, or would gain less than 10% or 16 KiB, stay as they are. Keep the
            loaded object as long as you call its functions, `signatures` included.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        RuntimeError: if Keras does not run on TensorFlow.
        FileExistsError: if there is something at `path` that is no SavedModel.
        ValueError: if the model cannot be stripped (see `strip`) or carries its state in variables without
            having a method `stepwise()`, or the vocabulary does not fit the model or lacks a token that
            `tokenize` needs, or `packed` is unknown or there is no weight to pack.

    Example:

    >>> import tensorflow as tf
    >>> from keras_selfish import LanguageModel
    >>> model = LanguageModel(vocabulary_size=100, units=8)
    >>> path = saved_model(model, "served")
    >>> served = tf.saved_model.load(path)
    >>> served.score([[3, 1, 4, 1, 5]])["log_probabilities"].shape
    TensorShape([1, 4])
    >>> states = served.initial_state(1)
    >>> logits = served.step([[3, 1, 4]], **states).pop("logits")
    """
    if BACKEND != "tensorflow":
        raise RuntimeError(
            "`saved_model` needs Keras to run on TensorFlow: save the model as a .keras file, load it under "
            f"KERAS_BACKEND=tensorflow and export it there. Received: backend {BACKEND!r}"
        )
    path = pathlib.Path(path)
    _check_path(path)
    if packed is not None and packed not in FORMS:
        raise ValueError(f"`packed` must be None or one of {', '.join(FORMS)}. Received: packed={packed!r}")
    is_language_model = hasattr(model, "stepwise")
    if not is_language_model:
        _check_forward(model, vocabulary)
    text = None
    if tokenize is not None:
        _check_has(vocabulary, start_token, unknown_token)
        text = (tokenize, vocabulary.index(start_token), vocabulary.index(unknown_token))
    plain = strip(model.stepwise() if is_language_model else model)
    if vocabulary is not None:
        _check_vocabulary(vocabulary, plain.outputs[0].shape[-1])
    _write(plain, path.resolve(), is_language_model, vocabulary, text, packed)
    return path


def _check_path(path):
    if not os.path.lexists(path):
        return
    entries = {entry.name for entry in path.iterdir()} if path.is_dir() else None
    is_saved_model = entries is not None and "saved_model.pb" in entries and entries <= SAVED_MODEL_ENTRIES
    if not is_saved_model and entries != set():
        raise FileExistsError(
            f"`path` must be free or a SavedModel, which is replaced. Received: path={str(path)!r}, where "
            "there is something else; move it away or choose another path"
        )


def _check_forward(model, vocabulary):
    if vocabulary is not None:
        raise ValueError(
            "`vocabulary` goes with a language model, which has a method `stepwise()`. Received: "
            f"model={model!r}; leave `vocabulary` out"
        )
    if any(isinstance(layer, CarriedState) for layer in getattr(model, "layers", ())):
        raise ValueError(
            "`model` must not carry hidden state in its variables, which all users of a server would share. "
            f"Received: model={model.name!r}, which has a `CarriedState`; give it a method `stepwise()`"
        )


def _check_vocabulary(vocabulary, size):
    if len(vocabulary) != size:
        raise ValueError(
            f"`vocabulary` must hold a token for each of the model's {size} ids. "
            f"Received: {len(vocabulary)} tokens"
        )
    for index, token in enumerate(vocabulary):
        if not isinstance(token, str) or len(token.splitlines()) != 1:
            raise ValueError(
                f"`vocabulary` must hold strings of one line each. Received: {token!r} as token {index}"
            )


def _check_has(vocabulary, *tokens):
    absent = [token for token in tokens if token not in (vocabulary or ())]
    if absent:
        raise ValueError(
            f"`vocabulary` must hold {' and '.join(tokens)} for `tokenize`, so that any text can be scored. "
            f"Received: a vocabulary without {' and '.join(absent)}"
        )


def _write(plain, path, is_language_model, vocabulary, text, packed):
    from keras_selfish.export import serving_tensorflow
    from keras_selfish.export.packed_variables_tensorflow import PackedVariables

    for layer in serving_tensorflow.layers_within(plain):
        if hasattr(layer, "use_cudnn"):
            layer.use_cudnn = False  # traced on a GPU, cuDNN's operation would need one wherever it runs
    # Names of their own: what a killed export has left is found and removed by the next one.
    part = path.with_name(f".{path.name}.part")
    previous = path.with_name(f".{path.name}.previous")
    _remove(part)
    try:
        with tempfile.TemporaryDirectory() as folder:
            packed = None if packed is None else PackedVariables(plain, packed, folder)
            if is_language_model:
                file = _vocabulary_file(folder, vocabulary)
                serving_tensorflow.write_language_model(plain, part, file, text, packed)
            else:
                serving_tensorflow.write_forward(plain, part, packed)
        if path.exists():
            _remove(previous)
            os.replace(path, previous)
        os.replace(part, path)
    finally:
        _remove(part)
    _remove(previous)


def _vocabulary_file(folder, vocabulary):
    if vocabulary is None:
        return None
    file = pathlib.Path(folder, "vocabulary.txt")
    file.write_bytes("".join(f"{token}\n" for token in vocabulary).encode("utf-8"))
    return file


def _remove(folder):
    if folder.exists():
        shutil.rmtree(folder)
