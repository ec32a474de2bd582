"""Sparse models as TensorFlow SavedModels."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from keras_selfish import checks
from keras_selfish.backend import BACKEND
from keras_selfish.export import folder
from keras_selfish.export.checks import check_forward, checked_vocabulary
from keras_selfish.export.metadata import metadata
from keras_selfish.export.packed_matrix import FORMS
from keras_selfish.export.strip import strip_for_graph
from keras_selfish.typing import PathLike, Tensor, Tokens

if TYPE_CHECKING:
    import keras


def saved_model(
    model: keras.Model,
    path: PathLike,
    vocabulary: Tokens | None = None,
    packed: Literal["float32", "bfloat16", "int8"] | bool | None = None,
) -> pathlib.Path:
    """Writes a model as a SavedModel that needs TensorFlow only: no masks, no optimizer, no keras_selfish.

    The weights are those that stand in the model, zeros included. The outputs are float32, also those of a
    model in mixed precision, which goes on computing in it. Recurrent layers are written without cuDNN,
    also on a GPU, so that the SavedModel runs anywhere.

    A *language model*, which is a model with a method `stepwise()` such as `LanguageModel`, has these
    functions of the loaded object, where integers may be int32 or int64, and signatures of the same names,
    which take int32:

    - `score(tokens, lengths=None)`: tokens (batch, time), each row a text that is read from a zero state, and
      the number of tokens of each row (batch,), by default all; what follows them may be any ids and counts
      for nothing. Returns `log_probabilities` (batch, time - 1), of `tokens[:, 1:]` given the tokens before,
      in nats, 0 after a row's length, and `loss` (batch,), minus their sum: exp(loss / (length - 1)) is a
      text's perplexity. The text may be of any length, since memory for logits is taken for 64 time steps at
      a time. The signature `score` takes tokens only; `score_lengths` takes both.
    - `step(tokens, h_0, c_0, h_1, c_1, ...)`: tokens (batch, time) and the states of the layers, float32
      (batch, units). Returns `logits` (batch, vocabulary) of the token that follows the last one, and the new
      states under the same names.
    - `initial_state(batch_size)`: the zero states that a text begins with, under the same names.

    `serving_default` is `score`, and so is the function `serve`, which `keras.layers.TFSMLayer(path)` calls.
    All inputs and outputs but `batch_size` have the batch first, so that a server may batch requests.
    The asset `model.json` describes the model: its place is `metadata.asset_path` of the loaded object. To
    score, continue and generate *strings*, see `text_model`.

    Any *other* Functional or Sequential model has one signature, its forward pass, which is the function
    `serve` of the loaded object and `serving_default`.

    The SavedModel is written beside `path` and then renamed: at no time is there half a SavedModel at `path`.

    Args:
        model: A built Functional or Sequential model, or one with a method `stepwise()` that returns one from
            `[tokens, state, ...]` to `[logits, state, ...]`.
        path: The folder to write. A SavedModel or empty folder there is replaced, anything else is refused.
        vocabulary: The tokens of a language model, a `Vocabulary` or a sequence of strings in the order of
            their ids. If given, they become the asset `vocabulary.txt`, a token a line, whose place is
            `vocabulary.asset_path` of the loaded object.
        packed: How the SavedModel holds the sparse weights. Default None (or False): as they are.
            Otherwise as a bit for each weight (or block of them) and the values that are not zero, expanded
            once when the SavedModel is loaded: loading takes longer, and what runs then is the same.
            `"float32"` (or True) keeps values, and so outputs, exactly; `"bfloat16"` rounds values to 8
            significant bits; `"int8"` to 8 bits with a scale for each row or each column of the matrix.
            Weights that are not sparse, or would gain less than 10% or 24 KiB, stay as they are. Keep the
            loaded object as long as you call its functions, `signatures` included.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        RuntimeError: if Keras does not run on TensorFlow.
        FileExistsError: if there is something at `path` that is no SavedModel.
        ValueError: if the model cannot be stripped (see `strip`) or carries its state in variables without
            having a method `stepwise()`, the vocabulary does not fit the model, or `packed` is unknown or
            there is no weight to pack.

    Example:

    >>> import tensorflow as tf
    >>> from keras_selfish import LanguageModel
    >>> model = LanguageModel(vocabulary_size=100, units=8)
    >>> path = saved_model(model, "served")
    >>> served = tf.saved_model.load(path)
    >>> served.score([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]], [5, 3])["loss"].shape
    TensorShape([2])
    >>> states = served.initial_state(1)
    >>> logits = served.step([[3, 1, 4]], **states).pop("logits")
    """
    path = _checked_path(path, "saved_model")
    checks.one_of("packed", packed, FORMS, others=(None, False, True))
    packed = "float32" if packed is True else packed or None
    is_language_model = hasattr(model, "stepwise")
    if not is_language_model:
        check_forward(model, vocabulary)
    stepwise = model.stepwise() if is_language_model else None
    plain = strip_for_graph(stepwise or model)
    tokens = None if vocabulary is None else checked_vocabulary(vocabulary, plain.outputs[0].shape[-1])

    def write(part):
        with tempfile.TemporaryDirectory() as files:
            serving, variables = _serving(plain), _packed_variables(plain, packed, files)
            if is_language_model:
                assets = _assets(pathlib.Path(files), metadata(model, stepwise), tokens)
                serving.write_language_model(plain, part, assets, variables)
            else:
                serving.write_forward(plain, part, variables)

    folder.replace(path, write)
    return path


def text_model(
    model: keras.Model,
    path: PathLike,
    vocabulary: Tokens,
    tokenize: Callable[[Tensor], Tensor],
    start_token: str = "<eos>",
    unknown_token: str = "<unk>",
    generate_unknown: bool = False,
) -> pathlib.Path:
    """Writes a language model as a SavedModel that takes strings.

    It is a SavedModel of its own, beside that of `saved_model`: a server that loads a signature must know the
    operations of all, and a `tokenize` may compute with operations of another library. Where it computes with
    TensorFlow Text, as `tokenizer("words_and_marks")` does, a program that loads the SavedModel imports
    `tensorflow_text` first; `tokenizer("whitespace")` needs TensorFlow only.

    It has these functions, and signatures of the same names that take all inputs as tensors (batch,); in the
    functions what has a default may be one number for the whole batch:

    - `score_text(texts)`: strings (batch,), each read as what follows `start_token`. Returns `tokens`
      (batch, time), strings, `log_probabilities` (batch, time) of each given those before, in nats, `loss`
      (batch,), minus their sum, and `perplexity` (batch,) of each text. Texts shorter than the longest are
      padded with `""` and 0.
    - `next_words(texts, k=10)`: the k tokens that the model expects next, likeliest first. Returns `words`
      (batch, k), strings, and `probabilities` (batch, k). Those of `start_token` and `unknown_token` are
      among them: it is the model's own distribution. Where k differs, rows are padded with `""` and 0.
    - `generate(prompts, length=20, temperature=1.0, top_k=0, top_p=1.0, seed=0)`: draws `length` tokens that
      follow each prompt. Logits are divided by the temperature; 0 is greedy, always the likeliest token. Of
      the likeliest tokens the first `top_k` are drawn (0: all), and of those as many as have the probability
      `top_p` together (1: all). Returns `tokens` (batch, length), strings, and `texts` (batch,), the same
      joined by spaces, with a line end for `start_token`. The same seed gives the same text; for several
      texts of one prompt give several seeds. TensorFlow looks at each new Python number anew, so give what
      changes from call to call as a tensor or an array.

    A text alone and among others gives the same. A prompt is continued after its last word; one that ends in
    a line break is continued in the next line, and an empty one is the beginning of a text. `serving_default`
    is `score_text`, and so is the function `serve`, which `keras.layers.TFSMLayer(path)` calls. The assets
    are those of `saved_model`.

    Args:
        model: A language model: one with a method `stepwise()`, see `saved_model`.
        path: The folder to write. A SavedModel or empty folder there is replaced, anything else is refused.
        vocabulary: The model's tokens, a `Vocabulary` or a sequence of strings in the order of their ids.
        tokenize: Function of TensorFlow operations that cuts strings (batch,) into a `tf.RaggedTensor` of
            tokens (batch, tokens), such as `tokenizer(corpus.tokenization)` from
            `keras_selfish.data.tokenization_tensorflow`. It may end the last line of a text with
            `start_token`.
        start_token: The token that a text follows, and that ends a line. Default `"<eos>"`.
        unknown_token: The token that stands for all others. Default `"<unk>"`.
        generate_unknown: Whether `generate` may draw `unknown_token`, which says nothing to a reader.
            Default False: what it would have got is shared by the others.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        RuntimeError: if Keras does not run on TensorFlow.
        FileExistsError: if there is something at `path` that is no SavedModel.
        ValueError: if the model is no language model or cannot be stripped, the vocabulary does not fit the
            model or lacks one of the two tokens, or `tokenize` does not return what it should.

    Example:

    >>> import tensorflow as tf
    >>> from keras_selfish import LanguageModel
    >>> from keras_selfish.data.tokenization_tensorflow import tokenizer
    >>> words = ["<eos>", "<unk>", "the", "cat", "sat"]
    >>> path = text_model(LanguageModel(5, units=8), "text", words, tokenizer("whitespace"))
    >>> served = tf.saved_model.load(path)
    >>> served.score_text(["the cat sat", "the dog"])["perplexity"].shape
    TensorShape([2])
    >>> served.next_words(["the"], k=2)["words"].shape
    TensorShape([1, 2])
    >>> served.generate(["the cat"], length=3, seed=1)["tokens"].shape
    TensorShape([1, 3])
    """
    path = _checked_path(path, "text_model")
    if not hasattr(model, "stepwise"):
        raise ValueError(
            "`model` must be a language model, which has a method `stepwise()`. Received: "
            f"model={model!r}; use `saved_model` for any other"
        )
    stepwise = model.stepwise()
    plain = strip_for_graph(stepwise)
    tokens = checked_vocabulary(vocabulary, plain.outputs[0].shape[-1])
    _check_has(tokens, start_token, unknown_token)
    _check_tokenize(tokenize)
    described = metadata(model, stepwise) | {
        "start_token": start_token,
        "unknown_token": unknown_token,
        "generate_unknown": generate_unknown,
    }

    def write(part):
        from keras_selfish.export import text_tensorflow

        _serving(plain)
        with tempfile.TemporaryDirectory() as files:
            assets = _assets(pathlib.Path(files), described, tokens)
            words = text_tensorflow.Words(tokens, assets["vocabulary"], tokenize, start_token, unknown_token)
            text_tensorflow.write_text_model(plain, part, assets, words, generate_unknown)

    folder.replace(path, write)
    return path


def _checked_path(path: PathLike, function: str) -> pathlib.Path:
    if BACKEND != "tensorflow":
        raise RuntimeError(
            f"`{function}` needs Keras to run on TensorFlow: save the model as a .keras file, load it under "
            f"KERAS_BACKEND=tensorflow and export it there. Received: backend {BACKEND!r}"
        )
    path = pathlib.Path(path)
    folder.check_free(path)
    return path


def _check_has(vocabulary, *tokens):
    absent = [token for token in tokens if token not in vocabulary]
    if absent:
        raise ValueError(
            f"`vocabulary` must hold {' and '.join(tokens)} for `tokenize`, so that any text can be scored. "
            f"Received: a vocabulary without {' and '.join(absent)}"
        )


def _check_tokenize(tokenize):
    import tensorflow as tf

    received = tokenize
    if callable(tokenize):
        received = tokenize(tf.constant(["a text", ""]))
        if isinstance(received, tf.RaggedTensor) and received.dtype == tf.string and received.shape.rank == 2:
            return
    raise ValueError(
        "`tokenize` must be a function from strings (batch,) to a tf.RaggedTensor of strings (batch, "
        "tokens), as `tokenizer` of keras_selfish.data.tokenization_tensorflow makes them. "
        f"Received: {received!r}"
    )


def _serving(plain):
    """The module that writes SavedModels, with a model made ready for it."""
    from keras_selfish.export import serving_tensorflow

    for layer in serving_tensorflow.layers_within(plain):
        if hasattr(layer, "use_cudnn"):
            layer.use_cudnn = False  # traced on a GPU, cuDNN's operation would need one wherever it runs
    return serving_tensorflow


def _packed_variables(plain, form, folder):
    if form is None:
        return None
    from keras_selfish.export.packed_variables_tensorflow import PackedVariables

    return PackedVariables(plain, form, folder)


def _assets(files, described, tokens):
    """Writes what a SavedModel carries along, and returns the files by the attributes they become."""
    assets = {"metadata": files / "model.json"}
    assets["metadata"].write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    if tokens is not None:
        assets["vocabulary"] = files / "vocabulary.txt"
        assets["vocabulary"].write_bytes("".join(f"{token}\n" for token in tokens).encode("utf-8"))
    return assets
