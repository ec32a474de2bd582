"""A LiteRT file, written operation by operation, without a converter.

The schema of the format comes from the package `ai-edge-litert`.
"""

import dataclasses
import hashlib

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

ALIGNMENT = 16  # of the data of constants: runtimes read them where the file is mapped into memory
MAX_BYTES = 2**31 - 1  # offsets within a file are of 32 bits
DTYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "bool": schema.TensorType.BOOL,
}
# Operations whose options are of a class that is not named as they are.
_OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "SUM": "ReducerOptions",
    "MEAN": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "REDUCE_PROD": "ReducerOptions",
    "REDUCE_ANY": "ReducerOptions",
    "REDUCE_ALL": "ReducerOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a graph.

    Args:
        index: Its number in the graph.
        shape: Tuple of sizes; None first for a batch of any size, which is 1 until a program resizes it.
        dtype: Name of its type.
    """

    index: int
    shape: tuple
    dtype: str = "float32"


class File:
    """A LiteRT file in the making.

    Args:
        description: What the file says of itself.
    """

    def __init__(self, description):
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = description
        self._model.subgraphs, self._model.operatorCodes = [], []
        self._model.signatureDefs, self._model.metadata = [], []
        self._model.buffers = [_Buffer()]  # the first one is that of tensors without data
        self._codes, self._data = {}, {}

    def graph(self, name):
        """A new, empty `Graph`; the first one is what the file computes."""
        graph = Graph(self, name, len(self._model.subgraphs))
        self._model.subgraphs.append(graph.subgraph)
        return graph

    def buffer(self, data):
        """The number of the buffer that holds these bytes, each sort of bytes once."""
        data = np.frombuffer(data, np.uint8)
        key = hashlib.sha256(data).digest()
        if key not in self._data:
            self._data[key] = len(self._model.buffers)
            self._model.buffers.append(_Buffer(data))
        return self._data[key]

    def code(self, operation, version):
        """The number of an operation in a version."""
        key = (operation, version)
        if key not in self._codes:
            self._codes[key] = len(self._model.operatorCodes)
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, operation)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = version
            self._model.operatorCodes.append(code)
        return self._codes[key]

    def sign(self, key, graph, inputs, outputs):
        """Gives the inputs and outputs of a graph names under which programs find them.

        Args:
            key: Name of the signature.
            graph: The first `Graph`.
            inputs: Dict from name to `Tensor`.
            outputs: The same.
        """
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, graph.number
        signature.inputs, signature.outputs = _named(inputs), _named(outputs)
        graph.subgraph.inputs = [tensor.index for tensor in inputs.values()]
        graph.subgraph.outputs = [tensor.index for tensor in outputs.values()]
        self._model.signatureDefs.append(signature)

    def to_bytes(self):
        """The file.

        Raises:
            ValueError: if it is larger than the format allows.
        """
        size = sum(len(buffer.data) for buffer in self._model.buffers if buffer.data is not None)
        if size > 0.95 * MAX_BYTES:
            raise ValueError(
                "`model` must fit into a LiteRT file, which holds less than 2 GiB. "
                f"Received: a model of {size:,} bytes; quantize it or make it sparser"
            )
        builder = flatbuffers.Builder(size + 2**20)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class Graph:
    """Operations on tensors, made by a `File`."""

    def __init__(self, file, name, number):
        self.file = file
        self.number = number
        self.subgraph = schema.SubGraphT()
        self.subgraph.name = name
        self.subgraph.tensors, self.subgraph.operators = [], []
        self.subgraph.inputs, self.subgraph.outputs = [], []
        self._constants = {}

    def tensor(self, shape, dtype="float32", name="", buffer=0, quantization=None, sparsity=None):
        """A tensor that no operation computes yet."""
        tensor = schema.TensorT()
        tensor.shape = np.array([1 if size is None else size for size in shape], np.int32)
        if None in shape:
            tensor.shapeSignature = np.array([-1 if size is None else size for size in shape], np.int32)
        tensor.type, tensor.buffer, tensor.hasRank = DTYPES[dtype], buffer, True
        tensor.name = name or f"{self.subgraph.name}/{len(self.subgraph.tensors)}"
        tensor.quantization, tensor.sparsity = quantization, sparsity
        self.subgraph.tensors.append(tensor)
        return Tensor(len(self.subgraph.tensors) - 1, tuple(shape), dtype)

    def constant(self, array, name="", **more):
        """A tensor of known values, which may be stored in another form (see `tensor`).

        Args:
            array: NumPy array.
            name: Name of the tensor.
            **more: `shape`, `quantization` and `sparsity` where they are not those of a plain array.
        """
        array = np.asarray(array)
        buffer = self.file.buffer(array.tobytes())
        if more:
            return self.tensor(more.pop("shape", array.shape), array.dtype.name, name, buffer, **more)
        key = (buffer, array.shape, array.dtype.name)
        if key not in self._constants:
            self._constants[key] = self.tensor(array.shape, array.dtype.name, name, buffer)
        return self._constants[key]

    def apply(self, operation, inputs, *shapes, dtype="float32", version=1, **options):
        """Adds an operation.

        Args:
            operation: Its name in the schema, such as "ADD".
            inputs: List of `Tensor`, and None for an optional one that is left out.
            *shapes: The shape of each of its outputs.
            dtype: The type of its outputs, or a tuple with that of each.
            version: Its version.
            **options: Its options by their names in the schema.

        Returns:
            Its output, or the list of several.
        """
        dtypes = dtype if isinstance(dtype, tuple) else (dtype,) * len(shapes)
        outputs = [self.tensor(*pair) for pair in zip(shapes, dtypes, strict=True)]
        operator = schema.OperatorT()
        operator.opcodeIndex = self.file.code(operation, version)
        operator.inputs = [-1 if tensor is None else tensor.index for tensor in inputs]
        operator.outputs = [tensor.index for tensor in outputs]
        name = _OPTIONS.get(operation) or "".join(part.title() for part in operation.split("_")) + "Options"
        if hasattr(schema, f"{name}T"):
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = getattr(schema, f"{name}T")()
            for option, value in options.items():
                setattr(operator.builtinOptions, option, value)
        self.subgraph.operators.append(operator)
        return outputs[0] if len(outputs) == 1 else outputs

    def reshape(self, tensor, shape, quantization=None):
        """A tensor in another shape, of which one size may be None."""
        sizes = np.array([-1 if size is None else size for size in shape], np.int32)
        inputs = [tensor, self.constant(sizes)]
        reshaped = self.apply("RESHAPE", inputs, tuple(shape), dtype=tensor.dtype, newShape=sizes)
        self.subgraph.tensors[reshaped.index].quantization = quantization
        return reshaped


class _Buffer(schema.BufferT):
    """A buffer whose data is aligned: the generated class aligns it to a byte."""

    def Pack(self, builder):
        data = None
        if self.data is not None:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def _named(tensors):
    maps = []
    for name, tensor in tensors.items():
        mapping = schema.TensorMapT()
        mapping.name, mapping.tensorIndex = name, tensor.index
        maps.append(mapping)
    return maps
