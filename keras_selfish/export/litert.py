"""Sparse models as LiteRT files, which phones and small computers run."""

from __future__ import annotations

import importlib.util
import io
import json
import pathlib
import zipfile
from typing import Literal

import keras
import numpy as np

from keras_selfish import checks
from keras_selfish.cloning import as_function, inlined, input_structure, nodes, with_inner
from keras_selfish.export import file
from keras_selfish.export.checks import check_forward, checked_vocabulary, output_names
from keras_selfish.export.metadata import metadata
from keras_selfish.export.strip import strip_for_graph
from keras_selfish.typing import PathLike, Tokens
from keras_selfish.version import __version__

QUANTIZATIONS = (None, "int8", "float16")
# Largest difference from Keras, relative to the output's norm.
TOLERANCES = {None: 1e-4, "float16": 2e-2, "int8": 0.25}
# What a file is compared with Keras on.
STEPS = 8
BATCH = 2


def litert(
    model: keras.Model,
    path: PathLike,
    quantize: Literal["int8", "float16"] | None = None,
    vocabulary: Tokens | None = None,
    time_steps: int | None = None,
) -> pathlib.Path:
    """Writes a model as a LiteRT file that is small and fast where the model is sparse.

    The file needs the stock runtime only and is written without a converter, on any backend of Keras. For
    each weight matrix that of the runtime's kernels is taken that is fastest on one token:

    - float32: one that skips blocks of 4 input weights of a unit (`block_shape=(4, 1)` or a multiple), if at
      least half of them are zero; one that skips single weights, from 5 of 6 zeros on; else the dense one;
    - `quantize="int8"`: one that skips blocks of 16 (`block_shape=(16, 1)`), or the dense one. The inputs of
      a product are quantized as it is computed, with a scale that takes the largest one to 127.

    Matrices that are multiplied densely, embeddings, and kernels of convolutions in one and two dimensions
    are stored sparse if that is smaller, and expanded when the file is loaded.

    A *language model*, which is a model with a method `stepwise()` such as `LanguageModel`, becomes one step:
    the signature `step` takes `tokens` (batch, 1), int32, and the states `h_0`, `c_0`, `h_1`, ... (batch,
    units), zero at the begin of a text, and returns `logits` (batch, vocabulary) of the next token and the
    states under the same names. Any *other* Functional or Sequential model has the signature `serve`, with
    the names of the model's inputs and of the layers that are its outputs. All floats are float32, also those
    of a model in mixed precision. The batch is 1 until a program resizes the inputs.

    The file is also a ZIP archive of `model.json`, which says what it holds, and, with `vocabulary`, of
    `vocabulary.txt`, a token a line: `unzip model.tflite model.json`. Before it takes its place it is run in
    a process of its own and compared with the model.

    Args:
        model: A built Functional or Sequential model, or one with a method `stepwise()`.
        path: The file to write, in a folder that exists; its name ends in `.tflite`. A LiteRT file there is
            replaced, anything else is refused.
        quantize: None (default) for float32; `"int8"` for weights in 8 bits with a scale for each unit, the
            kernels of convolutions computing in float32 all the same;
            `"float16"` for weights in 16 bits, which are multiplied densely in float32.
        vocabulary: The tokens of a language model, a `Vocabulary` or a sequence of strings in the order of
            their ids.
        time_steps: Length of the sequences of a model whose inputs leave it open. Default None.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        ImportError: without `ai-edge-litert`, the extra `litert`.
        FileExistsError: if there is something at `path` that is no LiteRT file.
        FileNotFoundError: if the folder of `path` does not exist.
        ValueError: for an argument out of range, a model that cannot be stripped (see `strip`), or one with
            layers that cannot be written, which the message names.
        RuntimeError: if the runtime refuses the file, or computes something else than Keras.

    Example:

    >>> from keras_selfish import LanguageModel
    >>> model = LanguageModel(vocabulary_size=100, units=16, sparsity=0.9, block_shape=(4, 1))
    >>> path = litert(model, "model.tflite")
    >>> path.stat().st_size < 4 * model.count_params()
    True
    """
    path = pathlib.Path(path)
    _check(quantize, path, time_steps)
    is_language_model = hasattr(model, "stepwise")
    if not is_language_model:
        check_forward(model, vocabulary)
    stepwise = model.stepwise() if is_language_model else None
    described = metadata(model, stepwise) if is_language_model else {"keras_selfish": __version__}
    plain = strip_for_graph(stepwise or model)
    if is_language_model:
        time_steps = 1
        if vocabulary is not None:
            vocabulary = checked_vocabulary(vocabulary, plain.outputs[0].shape[-1])
    content, about = _written(plain, quantize, time_steps, is_language_model, described, vocabulary)
    with file.replacing(path) as part:
        part.write_bytes(content)
        _compare(part, plain, about, quantize, is_language_model)
    return path


def _check(quantize, path, time_steps):
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise ImportError(
            "`litert` needs the package ai-edge-litert, which is not installed; install it, or this package "
            "with the extra `litert`"
        )
    if quantize not in QUANTIZATIONS:
        raise ValueError(f"`quantize` must be None, 'int8' or 'float16'. Received: quantize={quantize!r}")
    if path.suffix != ".tflite":
        raise ValueError(f"`path` must end in .tflite. Received: path={str(path)!r}")
    checks.integer("time_steps", time_steps, at_least=1, others=(None,))
    file.check_free(path, "LiteRT", _is_litert)


def _is_litert(path):
    with path.open("rb") as stream:
        return stream.read(8)[4:] == b"TFL3"


def _written(plain, quantize, time_steps, is_language_model, described, vocabulary):
    """The file's bytes, and what `model.json` in it says, a dict."""
    from keras_selfish.litert.graph import File
    from keras_selfish.litert.lowering import Lowering
    from keras_selfish.litert.matrices import Matrices

    written = File(f"{plain.name}, by keras_selfish {__version__}")
    matrices = Matrices(quantize, _multiplied_tables(plain))
    graph = written.graph("main")
    inputs = {
        tensor.name: graph.tensor(_shape(tensor, time_steps), _dtype(tensor), tensor.name)
        for tensor in plain.inputs
    }
    lowering = Lowering(graph, matrices)
    tensors = lowering.function(plain, list(inputs.values()))
    if is_language_model:
        names = ["logits", *list(inputs)[1:]]
    else:
        names = output_names(plain)
    outputs = {}
    for output_name, tensor in zip(names, tensors, strict=True):
        shape = tensor.shape
        if output_name == "logits" and is_language_model:
            shape = (shape[0], shape[-1])
        outputs[output_name] = lowering.output(tensor, shape, taken=[*inputs.values(), *outputs.values()])
    key = "step" if is_language_model else "serve"
    written.sign(key, graph, inputs, outputs)
    about = {
        "format": "keras_selfish LiteRT model, version 1",
        **described,
        "quantize": quantize,
        "signature": key,
        "inputs": _described(inputs),
        "outputs": _described(outputs),
        "matrices": matrices.report,
    }
    return _with_files(written.to_bytes(), about, vocabulary), about


def _multiplied_tables(plain):
    """The paths of embeddings that are decoders, too."""
    embeddings = [getattr(layer, "embedding", None) for layer in plain.layers]
    embeddings += [layer for layer in plain.layers if isinstance(layer, keras.layers.ReversibleEmbedding)]
    return {layer.embeddings.path for layer in embeddings if isinstance(layer, keras.layers.Embedding)}


def _shape(tensor, time_steps):
    sizes = list(tensor.shape[1:])
    if sizes and sizes[0] is None:
        sizes[0] = time_steps
    if None in sizes:
        advice = "call the model on a `keras.Input` of one size and export that"
        if len(sizes) < 3:
            advice = "give the length of sequences as `time_steps`"
        raise ValueError(
            "`model` must have inputs of known sizes, but for the batch. Received: input "
            f"{tensor.name!r} of shape {tuple(tensor.shape)}; {advice}"
        )
    return (None, *sizes)


def _dtype(tensor):
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if keras.backend.is_float_dtype(dtype):
        return "float32"
    if keras.backend.is_int_dtype(dtype):
        return "int32"
    if dtype != "bool":
        raise ValueError(f"`model` must have inputs of numbers. Received: input {tensor.name!r} of {dtype}")
    return dtype


def _described(tensors):
    return {
        name: {"shape": ["batch" if size is None else size for size in tensor.shape], "dtype": tensor.dtype}
        for name, tensor in tensors.items()
    }


def _with_files(content, about, vocabulary):
    """A LiteRT file that is a ZIP archive, too: runtimes read it from its begin, archivers from its end."""
    whole = io.BytesIO(content)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, "model.json", json.dumps(about, indent=1))
        if vocabulary is not None:
            _add(archive, "vocabulary.txt", "".join(f"{token}\n" for token in vocabulary))
    return whole.getvalue()


def _add(archive, name, text):
    # A fixed time, so that the same model gives the same bytes.
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)


def _compare(path, plain, about, quantize, is_language_model):
    """Runs the file and raises `RuntimeError` if it computes something else than the model."""
    from keras_selfish.litert.runner import run

    generator = np.random.default_rng(0)
    given = _examples(generator, about, plain)
    if is_language_model:
        tokens = generator.integers(0, about["outputs"]["logits"]["shape"][-1], (BATCH, STEPS), "int32")
        states = {name: value for name, value in given.items() if name != "tokens"}
        calls = [{"tokens": tokens[:, step : step + 1]} for step in range(STEPS)]
        calls[0] |= states
        given["tokens"] = tokens
    else:
        calls = [given]
    outputs = run(path, calls)
    structure = input_structure(plain)
    values = [given[tensor.name] for tensor in plain.inputs]
    expected = plain(keras.tree.pack_sequence_as(structure, values), training=False)
    expected = [
        keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")) for value in keras.tree.flatten(expected)
    ]
    received = [outputs[-1][name] for name in about["outputs"]]
    if is_language_model:
        received[0] = np.stack([output["logits"] for output in outputs], axis=1)
    is_half = any(layer.compute_dtype != "float32" for layer in plain.layers)
    tolerance = max(TOLERANCES[quantize], TOLERANCES["float16"] if is_half else 0)
    for name, ours, keras_s in zip(about["outputs"], received, expected, strict=True):
        difference = _difference(ours, keras_s)
        if not difference <= tolerance:
            raise RuntimeError(
                f"The file must compute what Keras does, within {tolerance:g} of an output's norm. Received: "
                f"a difference of {difference:.3g} in {name!r}; nothing was written"
            )


def _examples(generator, about, plain):
    """A dict of the inputs of a batch; padded at their begin or end where layers may mask it."""
    function = inlined(as_function(plain))
    embeddings = [node for node in nodes(function)[0] if isinstance(node.operation, keras.layers.Embedding)]
    # Keras takes ids as floats, too, and does so where a Sequential model begins with an embedding.
    embedded = {id(tensor) for node in embeddings for tensor in node.input_tensors}
    padding = [layer.mask_value for layer in with_inner(plain) if isinstance(layer, keras.layers.Masking)]
    tables = [matrix["shape"][0] for matrix in about["matrices"] if matrix["kernel"] == "expanded"]
    examples = {}
    for (name, described), tensor in zip(about["inputs"].items(), function.inputs, strict=True):
        shape = [BATCH if size == "batch" else size for size in described["shape"]]
        is_ids = described["dtype"] != "float32" or id(tensor) in embedded
        values = (
            generator.integers(0, min(tables, default=2), shape) if is_ids else generator.normal(size=shape)
        )
        if len(shape) > 1 and shape[1] > 1 and (is_ids or padding):
            values[0, 0] = values[-1, -1] = 0 if is_ids else padding[0]
        examples[name] = values.astype(described["dtype"])
    return examples


def _difference(ours, keras_s):
    """Norm of the difference, relative to that of what Keras computes; what is no number in both is equal."""
    is_number = ~(np.isnan(ours) & np.isnan(keras_s))
    ours, keras_s = ours[is_number], keras_s[is_number]
    norm = float(np.linalg.norm(keras_s.astype(np.float64)))
    return float(np.linalg.norm(ours.astype(np.float64) - keras_s)) / (norm or 1.0)
