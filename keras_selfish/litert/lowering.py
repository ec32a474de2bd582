"""Keras models as LiteRT operations.

A layer is run on symbolic tensors, which shows what operations of `keras.ops` it consists of; each of these
has a rule here. Layers that look at their inputs' values, such as recurrent ones, have rules of their own.
"""

import collections
import contextlib
import inspect
import re

import keras
import numpy as np

from keras_selfish.cloning import as_function, carry_masks, inlined, nodes, with_inner
from keras_selfish.held_layers import is_model
from keras_selfish.keras_internals import (
    padding_mask_of,
    set_padding_mask,
    symbolic_operations,
    symbols_within,
)
from keras_selfish.litert import image_rules, layer_rules, rules, signals
from keras_selfish.litert.graph import Tensor
from keras_selfish.litert.open_batch import open_batch
from keras_selfish.litert.types import operands_of, output_of

OPERATIONS = {**rules.OPERATIONS, **image_rules.OPERATIONS}
LAYERS = {**layer_rules.LAYERS, **image_rules.LAYERS, **signals.LAYERS}


class Lowering:
    """Writes a model into a graph of a LiteRT file.

    Args:
        graph: The `Graph`.
        matrices: The `Matrices` that write its weights.
    """

    def __init__(self, graph, matrices):
        self.graph = graph
        self.matrices = matrices
        self.products = {}  # operators of products without a bias, by the index of their output
        self.masks = {}  # of padded time steps, by the index of the tensor that layers within a layer read
        self.path = []  # names of the layers that are being written, for error messages

    def within(self, graph):
        """The same for another graph, such as a loop's body."""
        inner = Lowering(graph, self.matrices)
        inner.path = self.path
        return inner

    def constant(self, value):
        """The tensor of a value: one that is known is written into the file."""
        if isinstance(value, Tensor):
            return value
        array = np.asarray(value)
        return self.graph.constant(
            array.astype({"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype))
        )

    def function(self, function, inputs):
        """Writes a function of symbolic tensors.

        Args:
            function: A `keras.Function` or a Functional or Sequential model.
            inputs: The values of its inputs, `Tensor`s in their order.

        Returns:
            The list of the values of its outputs.
        """
        with symbolic_operations():
            function = inlined(as_function(function))
        values = {id(tensor): value for tensor, value in zip(function.inputs, inputs, strict=True)}
        order, _ = nodes(function)
        uses = collections.Counter(id(tensor) for node in order for tensor in node.input_tensors)
        uses.update(id(tensor) for tensor in keras.tree.flatten(function.outputs))

        def value_of(argument):
            return values[id(argument)] if isinstance(argument, keras.KerasTensor) else argument

        for node in order:
            self._note_masks(node, function, values)
            args, kwargs = keras.tree.map_structure(value_of, (node.arguments.args, node.arguments.kwargs))
            once = [uses[id(tensor)] == 1 for tensor in node.input_tensors]
            dtype = node.output_tensors[0].dtype
            outputs = self.operation(node.operation, args, kwargs, all(once), dtype)
            for tensor, value in zip(node.output_tensors, keras.tree.flatten(outputs), strict=True):
                values[id(tensor)] = value
        return [values[id(tensor)] for tensor in keras.tree.flatten(function.outputs)]

    def operation(self, operation, args, kwargs, inputs_are_used_once=False, dtype="float32"):
        """Writes an operation, a layer, or a model, and returns its outputs in Keras's structure.

        Args:
            operation: The operation of Keras.
            args: List of its arguments, `Tensor`s for tensors that are computed.
            kwargs: Dict of those by name.
            inputs_are_used_once: Whether nothing else reads these.
            dtype: What Keras says of the type of an operation's output.
        """
        tensors = [value for value in keras.tree.flatten((args, kwargs)) if isinstance(value, Tensor)]
        if not tensors:  # of known values only
            return operation(*args, **kwargs)
        if is_model(operation):  # within a layer that calls it
            return self._model(operation, args)
        rule = _rule_of(operation)
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        if rule is not None:
            return self.within_path(operation.name, lambda: rule(self, operation, *args, **kwargs))
        if isinstance(operation, keras.Layer):
            if "training" in inspect.signature(operation.call).parameters:
                kwargs["training"] = False  # where the default is True, too, as in layers that augment images
            return self.within_path(operation.name, lambda: self.call(operation.call, args, kwargs))
        name = type(operation).__name__
        if name not in OPERATIONS:
            raise self.refusal(f"the operation {name}")
        args, kwargs = keras.tree.map_structure(_known, (args, kwargs))
        args, kwargs = operands_of(self, name, (args, kwargs), dtype)
        if name == "Add":
            fused = self._with_bias(*args, inputs_are_used_once)
            if fused is not None:
                return fused
        return output_of(self, name, OPERATIONS[name](self, operation, *args, **kwargs), dtype)

    def call(self, function, args, kwargs):
        """Writes a Python function of Keras operations, which is shown symbolic tensors for values."""
        symbols, values = [], []

        def symbol_of(value):
            if not isinstance(value, Tensor):
                return value
            values.append(value)
            symbols.append(keras.Input(batch_shape=value.shape, dtype=value.dtype))
            return symbols[-1]

        args, kwargs = keras.tree.map_structure(symbol_of, (args, kwargs))
        for symbol, value in list(zip(symbols, values, strict=True)):
            if value.index in self.masks:
                set_padding_mask(symbol, symbol_of(self.masks[value.index]))
        carry_masks(function, args, kwargs)
        try:
            with _variables_leave_to_symbols(), symbolic_operations(), open_batch(symbols):
                outputs = function(*args, **kwargs)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            what = "Python code that does more than `keras.ops` with its inputs"
            raise self.refusal(f"{what} ({_first_sentence(error)})") from error
        # What is handed on as it is: Keras before 3.14 makes no function of it.
        flat = keras.tree.flatten(outputs)
        handed_on = {id(one): one for one in flat if not isinstance(one, keras.KerasTensor)}
        handed_on |= {id(symbol): value for symbol, value in zip(symbols, values, strict=True)}
        computed = [one for one in flat if id(one) not in handed_on]
        reached = symbols_within(computed)
        used = [pair for pair in zip(symbols, values, strict=True) if id(pair[0]) in reached]
        written = iter(())
        if computed:
            shown = keras.Function([symbol for symbol, _ in used], computed)
            written = iter(self.function(shown, [value for _, value in used]))
        found = [handed_on[id(one)] if id(one) in handed_on else next(written) for one in flat]
        return keras.tree.pack_sequence_as(outputs, found)

    def output(self, value, shape, taken=()):
        """The tensor of an output, in a shape of the same size, and other than those `taken` already."""
        tensor = self.constant(value)
        if tensor.shape == tuple(shape) and not any(tensor.index == other.index for other in taken):
            return tensor
        return self.graph.reshape(tensor, shape)

    def refusal(self, what):
        """The error about something that has no rule."""
        where = f" in the layer {'/'.join(self.path)!r}" if self.path else ""
        return ValueError(
            "`model` must consist of what can be written for LiteRT: dense and recurrent layers, embeddings, "
            "convolutions, poolings, normalizations, activations, reshapes, sums and products. "
            f"Received: {what}{where}"
        )

    def within_path(self, name, write):
        """Calls a function that writes a part of this name."""
        self.path.append(name)
        try:
            return write()
        finally:
            self.path.pop()

    def _note_masks(self, node, function, values):
        """Keeps the masks on what a layer is given for the layers within it: its own `call` may take none."""
        layer = node.operation
        is_followed = isinstance(layer, keras.Layer) and not is_model(layer) and _rule_of(layer) is None
        if not is_followed or not _looks_at_masks(layer):
            return
        for tensor in node.input_tensors:
            mask = padding_mask_of(tensor)
            if not isinstance(values[id(tensor)], Tensor):
                continue
            if mask is None:  # though a tensor of the same numbers may have had one
                self.masks.pop(values[id(tensor)].index, None)
                continue
            if id(mask) not in values:
                reached = symbols_within([mask])
                symbols = [one for one in function.inputs if id(one) in reached]
                inputs = [values[id(one)] for one in symbols]
                (values[id(mask)],) = self.function(keras.Function(symbols, mask), inputs)
            self.masks[values[id(tensor)].index] = values[id(mask)]

    def _model(self, model, args):
        inputs = keras.tree.flatten(args[0])
        outputs = self.within_path(model.name, lambda: self.function(model, inputs))
        structure = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
        return keras.tree.pack_sequence_as(structure, outputs)

    def _with_bias(self, left, right, inputs_are_used_once):
        """The sum of a product and a constant for each of its outputs, which the product adds itself."""
        operator = self.products.get(getattr(left, "index", None))
        is_bias = isinstance(right, np.ndarray) and right.ndim == 1
        if operator is None or not inputs_are_used_once or not is_bias or right.shape[0] != left.shape[-1]:
            return None
        operator.inputs[2] = self.constant(right).index
        del self.products[left.index]
        return left


def _rule_of(operation):
    return next((LAYERS[kind] for kind in type(operation).__mro__ if kind in LAYERS), None)


def _looks_at_masks(layer):
    """Whether a layer within a layer takes the mask of what it reads."""
    names = (name for inner in with_inner(layer)[1:] for name in inspect.signature(inner.call).parameters)
    return any(name.endswith("mask") for name in names)


@contextlib.contextmanager
def _variables_leave_to_symbols():
    """Within the block `variable * symbol` is what `symbol * variable` is: Keras refuses the first one.

    For all other operands arithmetic stays as it is.
    """
    names = [f"__{name}__" for name in ("add", "sub", "mul", "truediv", "matmul", "pow", "floordiv", "mod")]
    originals = {name: getattr(keras.Variable, name) for name in names}

    def leaving(original):
        def operate(variable, other):
            return NotImplemented if isinstance(other, keras.KerasTensor) else original(variable, other)

        return operate

    for name, original in originals.items():
        setattr(keras.Variable, name, leaving(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(keras.Variable, name, original)


def _first_sentence(error):
    """What an error says first, after the layers that Keras says it came through."""
    lines = (re.sub("\x1b\\[[0-9;]*m", "", line).strip() for line in str(error).splitlines())
    said = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return (said or [type(error).__name__])[0].split(". ")[0].rstrip(".")


def _known(value):
    """Variables and a backend's tensors as NumPy arrays, half precision as float32; all else as it is."""
    if isinstance(value, keras.Variable):
        array = _Named(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")))
        array.path = value.path
        return array
    if keras.ops.is_tensor(value):
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype)):
            value = keras.ops.cast(value, "float32")
        return keras.ops.convert_to_numpy(value)
    return value


class _Named(np.ndarray):
    """A NumPy array that knows the path of its variable."""

    path = None

    def __new__(cls, array):
        return np.asarray(array).view(cls)
