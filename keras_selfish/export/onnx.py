"""Sparse models as ONNX files."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import logging
import pathlib
import warnings

import keras
import numpy as np
from keras import ops

from keras_selfish.backend import BACKEND
from keras_selfish.cloning import input_structure, new_input, with_inner
from keras_selfish.convolutions import call_in_groups, is_in_groups
from keras_selfish.export import file
from keras_selfish.export.checks import check_forward, output_names
from keras_selfish.export.strip import strip_for_graph
from keras_selfish.typing import PathLike

# How far the outputs of the file and of Keras may lie apart, absolutely and relatively.
TOLERANCE = 1e-5

# A file of ONNX is one message of protobuf, which has no more bytes.
MOST_BYTES = 2**31 - 1

# Entries of a matrix that is worth a node to be stored once.
LARGE = 1024

# Sizes of the examples that the file is checked with where the model leaves them open.
BATCH, STEPS, PIXELS = 2, 16, 64


def onnx(model: keras.Model, path: PathLike) -> pathlib.Path:
    """Writes a model as an ONNX file: no masks, no optimizer, no Keras.

    The weights are those that stand in the model, zeros included: ONNX has no sparse products, so that the
    file has the size, and runs at the speed, of a dense model. Serve it where a runtime of ONNX is what there
    is; what makes use of the zeros is said in docs/serving.md.

    A *language model*, which is a model with a method `stepwise()` such as `LanguageModel`, is written as
    that: its inputs are `tokens` (batch, time), int32, and the states of the layers `h_0`, `c_0`, `h_1`, ...,
    float32 (batch, units), which are zero where a text begins. Its outputs are `logits` (batch, time,
    vocabulary) and the new states `next_h_0`, `next_c_0`, .... Any *other* Functional or Sequential model has
    its own inputs and outputs, by the keys of their dict or the names of the layers.

    Keras's own exporter writes it, by tf2onnx (`pip install 'keras_selfish[onnx]'`), which makes LSTMs
    those of ONNX and loops of other recurrent layers, which takes longer. Where ONNX Runtime is installed,
    the file is run and its outputs are compared with Keras's (1e-5). It is written beside `path` and, when
    it has passed, renamed: at no time is there half a file at `path`.

    Args:
        model: A built Functional or Sequential model, or one with a method `stepwise()` that returns one from
            `[tokens, state, ...]` to `[logits, state, ...]`. It computes in float32.
        path: The file to write, in a folder that exists. An ONNX file there is replaced, anything else is
            refused.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        RuntimeError: if Keras does not run on TensorFlow, or the file computes something else than Keras.
        ImportError: if tf2onnx or onnx is not installed.
        FileExistsError: if there is something at `path` that is no ONNX file.
        FileNotFoundError: if the folder of `path` does not exist.
        ValueError: if the model cannot be stripped (see `strip`), carries its state in variables without
            having a method `stepwise()`, takes strings, does not compute in float32, is larger than 2 GB, or
            holds a layer that ONNX has no operations for.

    Example:

    >>> from keras_selfish import LanguageModel
    >>> from keras_selfish.export import onnx
    >>> model = LanguageModel(vocabulary_size=100, units=8)
    >>> path = onnx(model, "model.onnx")  # doctest: +SKIP
    >>> session = onnxruntime.InferenceSession(path)  # doctest: +SKIP
    >>> [output.name for output in session.get_outputs()]  # doctest: +SKIP
    ['logits', 'next_h_0', 'next_c_0', 'next_h_1', 'next_c_1']
    """
    _check_environment()
    path = pathlib.Path(path)
    file.check_free(path, "ONNX", _is_onnx)
    is_language_model = hasattr(model, "stepwise")
    if not is_language_model:
        check_forward(model, None)
    plain = strip_for_graph(model.stepwise() if is_language_model else model)
    _check_states(plain)
    _check_numbers(plain)
    plain = _with_named_outputs(plain, is_language_model)
    with file.replacing(path) as part:
        _convert(plain, part)
        _rewrite(part)
        _check_operations(plain, part)
        _tidy(part, list(plain.output), ("batch", "time") if is_language_model else ())
        if importlib.util.find_spec("onnxruntime"):
            _check_outputs(plain, part)
    return path


def _check_environment():
    if BACKEND != "tensorflow":
        raise RuntimeError(
            "`onnx` needs Keras to run on TensorFlow: save the model as a .keras file, load it under "
            f"KERAS_BACKEND=tensorflow and export it there. Received: backend {BACKEND!r}"
        )
    absent = [name for name in ("tf2onnx", "onnx") if importlib.util.find_spec(name) is None]
    if absent:
        raise ImportError(
            "`onnx` needs the packages tf2onnx and onnx. Received: an environment without "
            f"{' and '.join(absent)}; run pip install 'keras_selfish[onnx]'"
        )


def _is_onnx(path):
    from google.protobuf.message import DecodeError
    from onnx import load

    try:
        return load(path, load_external_data=False).HasField("graph")
    except DecodeError:
        return False


def _check_states(plain):
    keeps = [layer.name for layer in with_inner(plain) if getattr(layer, "stateful", False)]
    if keeps:
        raise ValueError(
            "`model` must not keep states from call to call: a file of ONNX has none of its own. Received: "
            f"layer {keeps[0]!r} with stateful=True; have the model return the states and take them as inputs"
        )


def _check_numbers(plain):
    texts = [tensor.name for tensor in plain.inputs if tensor.dtype == "string"]
    if texts:
        raise ValueError(
            "`model` must take numbers: runtimes of ONNX do not cut texts into tokens. Received: an input "
            f"{texts[0]!r} of strings; export the model that takes their ids"
        )
    for layer in with_inner(plain):
        if layer.compute_dtype in ("bfloat16", "float16", "float64"):
            raise ValueError(
                "`model` must compute in float32, which is what runtimes of ONNX have all operations for. "
                f"Received: layer {layer.name!r} with dtype={layer.dtype_policy.name!r}; make the model anew "
                "with dtype='float32' and give it the weights of this one"
            )
    size = sum(4 * int(np.prod(variable.shape)) for variable in plain.variables)
    if size > MOST_BYTES:
        raise ValueError(
            f"`model` must have less than 2 GB of weights to be one ONNX file. Received: {size:,} bytes; "
            "export it as a SavedModel"
        )


def _trains_by_default(layer):
    argument = inspect.signature(layer.call).parameters.get("training")
    return argument is not None and argument.default is True


def _with_named_outputs(plain, is_language_model):
    """The same model in inference, whose outputs are a dict: tf2onnx calls them by its keys."""
    names = output_names(plain)
    if is_language_model:
        names = ["logits", *(f"next_{state.name}" for state in plain.inputs[1:])]
    inputs = input_structure(plain)
    outputs = plain.outputs
    if any(_trains_by_default(layer) for layer in with_inner(plain)):  # Keras exports them as they are called
        inputs = keras.tree.map_structure(new_input, inputs)
        outputs = keras.tree.flatten(plain(inputs, training=False))
    return keras.Model(inputs, dict(zip(names, outputs, strict=True)), name=plain.name)


def _convert(plain, part):
    for layer in with_inner(plain):
        if hasattr(layer, "use_cudnn"):
            layer.use_cudnn = False  # there is no cuDNN in ONNX
        if is_in_groups(layer):
            layer.call = functools.partial(call_in_groups, layer)  # Keras has XLA compile its own
        if isinstance(layer, keras.layers.Normalization):
            # A tensor that is no variable would become an input of the file; an array becomes a constant.
            layer.mean, layer.variance = map(ops.convert_to_numpy, (layer.mean, layer.variance))
    _examples(plain)  # calls it: Keras 3.15 exports what was called only
    try:
        with _quietly():
            plain.export(part, format="onnx", verbose=False)
    except OSError:
        raise  # says what is wrong with the disk
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"`model` must consist of layers that tf2onnx can convert. Received: model={plain.name!r}, "
            f"of which it says {type(error).__name__}: {reason}; export it as a SavedModel"
        ) from error


@contextlib.contextmanager
def _quietly():
    """Within the block tf2onnx says nothing: what it cannot convert, it tells and goes on."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Keras looks for a name that NumPy once had
            yield
    finally:
        logger.setLevel(level)


# Operations of TensorFlow that tf2onnx leaves: those of ONNX in their place, by the names of the input, of
# the number 1, of what is between and of the output.
REWRITTEN = {
    "Erfc": lambda x, one, between, output: [("Erf", [x], between), ("Sub", [one, between], output)],
    "Expm1": lambda x, one, between, output: [("Exp", [x], between), ("Sub", [between, one], output)],
    "Log1p": lambda x, one, between, output: [("Add", [x, one], between), ("Log", [between], output)],
}


def _rewrite(part):
    """Writes the operations of TensorFlow that tf2onnx leaves by those of ONNX."""
    from onnx import load, save

    model = load(part)
    found = [change(graph) for graph in _graphs(model.graph) for change in (_rewritten, _widened)]
    if any(found):
        save(model, part)


def _rewritten(graph):
    """Replaces the operations that `REWRITTEN` names in a graph; returns whether there were some."""
    from onnx import helper, numpy_helper

    nodes, found = [], False
    for node in graph.node:
        if node.op_type not in REWRITTEN:
            nodes.append(node)
            continue
        (x,), (output,) = node.input, node.output
        one = f"{output}/one"
        number = numpy_helper.from_array(np.float32(1))
        nodes.append(helper.make_node("Constant", [], [one], value=number))
        for code, inputs, made in REWRITTEN[node.op_type](x, one, f"{output}/between", output):
            nodes.append(helper.make_node(code, inputs, [made], name=f"{node.name}/{code}"))
        found = True
    if found:
        del graph.node[:]
        graph.node.extend(nodes)
    return found


def _widened(graph):
    """Puts zeros around kernels of transposed convolutions, for the negative padding that tf2onnx gives them.

    It does so where strides are wider than the kernel or outputs are longer. Returns whether there were some.
    """
    from onnx import helper, numpy_helper

    kernels = {tensor.name: tensor for tensor in graph.initializer}
    replaced = {}
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        pads = list(attributes["pads"].ints) if "pads" in attributes else []
        if node.op_type != "ConvTranspose" or min(pads, default=0) >= 0 or node.input[1] not in kernels:
            continue
        added = np.maximum(-np.reshape(pads, (2, -1)), 0).T
        replaced[node.input[1]] = kernels[node.input[1]]
        old = numpy_helper.to_array(kernels[node.input[1]])
        kernel = np.pad(old, [(0, 0), (0, 0), *added.tolist()])
        name = f"{node.name}/widened"
        graph.initializer.append(numpy_helper.from_array(kernel, name))
        node.input[1] = name
        for changed, values in (("pads", np.maximum(pads, 0)), ("kernel_shape", kernel.shape[2:])):
            attributes[changed].CopyFrom(helper.make_attribute(changed, [int(value) for value in values]))
    read = {name for inner in _graphs(graph) for node in inner.node for name in node.input}
    for name, kernel in replaced.items():
        if name not in read:
            graph.initializer.remove(kernel)
    return bool(replaced)


def _graphs(graph):
    """A graph and those within its nodes, the innermost first."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _graphs(inner)
    yield graph


def _check_operations(plain, part):
    """Checks what tf2onnx writes without a word: operations of TensorFlow, and constants as inputs."""
    from onnx import defs, load

    graph = load(part).graph
    every = [node for inner in _graphs(graph) for node in inner.node]
    unknown = [node for node in every if not defs.has(node.op_type, node.domain)]
    if unknown:
        raise ValueError(
            "`model` must consist of layers that ONNX has operations for. Received: operation "
            f"{unknown[0].op_type} of {unknown[0].name!r}; export the model as a SavedModel"
        )
    names = {tensor.name for tensor in plain.inputs}
    others = [value.name for value in graph.input if value.name not in names]
    if others:
        raise ValueError(
            "`model` must compute with its inputs, variables and constants only. Received: the tensor "
            f"{others[0]!r}, which is none of them; have its layer keep it as a NumPy array or a weight"
        )


def _tidy(part, names, axes):
    """Puts the outputs in the order of their names, and names axes of open size."""
    from onnx import load, save

    model = load(part)
    outputs = sorted(model.graph.output, key=lambda value: names.index(value.name))
    for value in [*model.graph.input, *outputs]:
        for name, dimension in zip(axes, value.type.tensor_type.shape.dim, strict=False):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = name
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    _share_transposed(model.graph)
    save(model, part)


def _share_transposed(graph):
    """Leaves one of two matrices that are each other's transposes, such as a tied embedding.

    tf2onnx transposes constants when it writes them. Runtimes do so when they load a file.
    """
    from onnx import helper, numpy_helper

    large = [one for one in graph.initializer if len(one.dims) == 2 and np.prod(one.dims) >= LARGE]
    kept = []
    for one in large:
        matrix = numpy_helper.to_array(one)
        twin = next((name for name, other in kept if np.array_equal(other.T, matrix)), None)
        if twin is None:
            kept.append((one.name, matrix))
            continue
        graph.node.insert(0, helper.make_node("Transpose", [twin], [one.name], perm=[1, 0]))
        graph.initializer.remove(one)


def _check_outputs(plain, part):
    """Compares what ONNX Runtime makes of the file with what Keras makes of the model."""
    import onnxruntime

    examples = _examples(plain)
    expected = plain(examples, training=False)
    inputs = dict(zip([tensor.name for tensor in plain.inputs], keras.tree.flatten(examples), strict=True))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(part, options, providers=["CPUExecutionProvider"])
        outputs = session.run(list(expected), {one.name: inputs[one.name] for one in session.get_inputs()})
    except Exception as error:  # its own classes have nothing else in common
        reason = " ".join(str(error).split())[:300]
        raise RuntimeError(
            f"The file must run in ONNX Runtime. Received: model={plain.name!r}, of which it says: {reason}; "
            "export the model as a SavedModel"
        ) from error
    for output, value in zip(outputs, map(ops.convert_to_numpy, expected.values()), strict=True):
        if not np.allclose(output, value, TOLERANCE, TOLERANCE, equal_nan=True):
            raise RuntimeError(
                f"The file must compute what the model does, to {TOLERANCE}. Received: model={plain.name!r}, "
                f"whose outputs differ by up to {np.abs(output - value).max():.2g}; export it as a SavedModel"
            )


def _examples(plain):
    """Inputs that a model runs on: as many time steps as it has positions for, or pixels."""
    is_open = any(None in tensor.shape[1:] for tensor in plain.inputs)
    failure = None
    for fewer in (1, 2, 4, 8, 16) if is_open else (1,):
        examples = _random_inputs(plain, STEPS // fewer, PIXELS // fewer)
        try:
            plain(examples)
        except Exception as error:  # each backend's own, of whatever layer comes first
            failure = failure or error
        else:
            return examples
    raise failure


def _random_inputs(plain, steps, pixels):
    """Inputs of a model, random numbers in its own structure."""
    generator = np.random.default_rng(0)
    sizes = [layer.input_dim for layer in with_inner(plain) if isinstance(layer, keras.layers.Embedding)]

    def example(tensor):
        open_size = pixels if len(tensor.shape) > 3 else steps
        shape = [size or (open_size if axis else BATCH) for axis, size in enumerate(tensor.shape)]
        if keras.backend.is_float_dtype(tensor.dtype):
            return generator.uniform(-1.0, 1.0, shape).astype(tensor.dtype)
        return generator.integers(0, min(sizes, default=2), shape).astype(tensor.dtype)

    return keras.tree.map_structure(example, plain.input)
