"""How weight matrices are stored in a LiteRT file, and which of the runtime's kernels multiplies by them.

A kernel skips zeros in blocks of consecutive inputs of one output: single weights or 4 of them in float32,
16 in int8. The sparse kernels are those of version 8 of FULLY_CONNECTED; in a lower version the default
delegate takes the operation for a dense one, and crashes. Tensors that no sparse kernel reads, tables and
matrices whose zeros are too scattered, are stored sparse and expanded when the file is loaded.
"""

import dataclasses
import hashlib
import itertools
import math

import numpy as np

from keras_selfish.litert.graph import schema

SPARSE_VERSION = 8
INT8_VERSION = 12  # weights of a scale for each output; the delegate wants them dense in the file
INT8_BLOCK = 16
# The most columns of a matrix for a kernel, wider ones being split. The int8 kernel counts the blocks of a
# row, and numbers them, in a byte; of the other the files are smaller so.
WIDTHS = {"int8_sparse16": 255 * INT8_BLOCK, "sparse4": 256 * 4}
# Time for each weight that a kernel reads, as a multiple of the dense float32 kernel's, between what
# processors with AVX2 and those with AVX-512 and int8 products take (one token, one thread; docs/serving.md).
COSTS = {"dense": 1.0, "sparse1": 5.5, "sparse4": 1.9, "int8": 0.25, "int8_sparse16": 0.4}
# Of forms nearly as fast as the fastest one the smallest is taken.
NEARLY = 1.1


@dataclasses.dataclass(frozen=True)
class Form:
    """How a matrix is stored and multiplied by.

    Args:
        kernel: Key of `COSTS`.
        bytes: Size in the file.
        cost: Time of a product, of the dense float32 kernel's for the matrix.
        block: Consecutive inputs that are stored together; 0 for all weights.
    """

    kernel: str
    bytes: int
    cost: float
    block: int = 0


class Matrices:
    """Writes the weight matrices of a model.

    Args:
        quantize: None, "int8" or "float16".
        multiplied: Names of tables that are multiplied by as well, and so stored in one piece for both.

    Attributes:
        report: A list of dicts, one for each matrix: its name, shape, sparsity, form, and bytes.
    """

    def __init__(self, quantize=None, multiplied=()):
        self.quantize = quantize
        self.multiplied = multiplied
        self.report = []
        self._reported = set()
        self._made = {}

    def product(self, graph, inputs, weight, bias=None, name="weight"):
        """Inputs times a matrix, plus a bias.

        Args:
            graph: The `Graph` to compute in.
            inputs: `Tensor` (..., inputs).
            weight: Float32 array (outputs, inputs).
            bias: Float32 array (outputs,), or None.
            name: Name of the matrix.

        Returns:
            `Tensor` (..., outputs).
        """
        form = self.form(weight)
        self._note(name, weight, form)
        if form.kernel == "int8_sparse16":
            inputs, weight = _padded(graph, inputs, weight)
        parts = math.ceil(weight.shape[1] / WIDTHS.get(form.kernel, math.inf)) or 1
        block = form.block or 1
        ends = block * np.round(np.linspace(0, weight.shape[1] // block, parts + 1)).astype(int)
        total = None
        for part, piece in zip(_split(graph, inputs, np.diff(ends)), itertools.pairwise(ends), strict=True):
            columns = weight[:, slice(*piece)]
            stored, version = self._stored(graph, columns, form, f"{name}/{piece[0]}" if parts > 1 else name)
            output = _fully_connected(graph, part, stored, bias if total is None else None, version)
            total = output if total is None else graph.apply("ADD", [total, output], output.shape)
        return total

    def rows(self, graph, table, indices, name="table"):
        """Rows of a table.

        Args:
            graph: The `Graph` to compute in.
            table: Float32 array (rows, features).
            indices: int32 `Tensor` of any shape.
            name: Name of the table.

        Returns:
            Float32 `Tensor` (*indices' shape, features).
        """
        itemsize = {"int8": 1, "float16": 2}.get(self.quantize, 4)
        scales = None
        if self.quantize == "int8":
            table, scales = quantized(table)
        form, parts = _smallest(table, itemsize), 1
        if name not in self.multiplied:
            form, parts = min(
                (
                    (_smallest(table.reshape(-1, width), itemsize), table.shape[1] // width)
                    for width in _widths(table)
                ),
                key=lambda option: option[0].bytes,
            )
        self._note(name, table, form)
        values = self._looked_up(graph, table, indices, form, parts, name)
        if scales is None:
            return values
        scales = graph.constant(scales[:, None], f"{name}/scales")
        scales = graph.apply("GATHER", [scales, indices], (*indices.shape, 1), axis=0)
        return graph.apply("MUL", [values, scales], values.shape)

    def _looked_up(self, graph, table, indices, form, parts, name):
        """Float32 rows of a table, each stored in several parts, that is as several rows."""
        width = table.shape[1] // parts
        shape = indices.shape
        if parts > 1:
            shape = (*shape, parts)
            indices = graph.reshape(indices, (*indices.shape, 1))
            indices = graph.apply(
                "MUL", [indices, graph.constant(np.int32(parts))], indices.shape, dtype="int32"
            )
            each = graph.constant(np.arange(parts, dtype=np.int32))
            indices = graph.apply("ADD", [indices, each], shape, dtype="int32")
        unit = _quantization(np.ones(1, np.float32)) if self.quantize == "int8" else None
        table = self._as_stored(table)
        stored = self._expanded(graph, table.reshape(-1, width), form, name, unit)
        values = graph.apply("GATHER", [stored, indices], (*shape, width), dtype=stored.dtype, axis=0)
        graph.subgraph.tensors[values.index].quantization = unit
        if parts > 1:
            values = graph.reshape(values, (*shape[:-1], table.shape[1]), unit)
        return _in_float32(graph, values)

    def convolution(self, graph, kernel, convolve, name="kernel"):
        """A convolution, whose kernel is stored as small as it may be and expanded when the file is loaded.

        Args:
            graph: The `Graph` to compute in.
            kernel: Float32 array (outputs, ..., inputs).
            convolve: Function of the `Tensor` of a kernel that returns that of the outputs.
            name: Name of the kernel.

        Returns:
            `Tensor` (..., outputs).
        """
        matrix, scales = kernel.reshape(-1, kernel.shape[-1]), None
        if self.quantize == "int8":
            by_output, scales = quantized(kernel.reshape(len(kernel), -1))
            matrix = by_output.reshape(matrix.shape)
        stored = self._as_stored(matrix)
        form = _smallest(stored, stored.itemsize)
        self._note(name, kernel, dataclasses.replace(form, kernel="convolution"))
        unit = _quantization(np.ones(1, np.float32)) if scales is not None else None
        values = self._expanded(graph, stored.reshape(kernel.shape), form, name, unit)
        outputs = convolve(_in_float32(graph, values))
        if scales is None:
            return outputs
        return graph.apply("MUL", [outputs, graph.constant(scales)], outputs.shape)

    def form(self, weight):
        """The `Form` in which a matrix (outputs, inputs) is multiplied by soonest."""
        count = weight.size
        densities = {block: _density(weight, block) for block in (1, 4, INT8_BLOCK)}
        if self.quantize == "float16":
            return dataclasses.replace(_smallest(weight, 2), kernel="dense", cost=1.0)
        sparse = []
        for block in (1, 4):
            if weight.shape[1] % block == 0:
                kernel, density = f"sparse{block}", densities[block]
                size = _sparse_bytes(weight, block, 4)
                sparse.append(Form(kernel, size, COSTS[kernel] * density, block))
        if self.quantize == "int8":
            density = densities[INT8_BLOCK]
            cost = COSTS["int8_sparse16"] * density
            size = _sparse_bytes(weight, INT8_BLOCK, 1)
            forms = [Form("int8", count, COSTS["int8"]), *sparse]
            forms.append(Form("int8_sparse16", size, cost, INT8_BLOCK))
        else:
            forms = [dataclasses.replace(_smallest(weight, 4), kernel="dense", cost=1.0), *sparse]
        fastest = min(form.cost for form in forms)
        return min((form for form in forms if form.cost <= NEARLY * fastest), key=lambda form: form.bytes)

    def _as_stored(self, array):
        """An array in the type in which it is stored; in int8 it is quantized already."""
        return array.astype(self.quantize or "float32")

    def _stored(self, graph, weight, form, name):
        """The tensor of a matrix for a product, and the version of FULLY_CONNECTED that reads it."""
        if form.kernel in ("int8", "int8_sparse16"):
            values, scales = quantized(weight)
            quantization = _quantization(scales)
            if form.kernel == "int8":
                return graph.constant(values, name, quantization=quantization), INT8_VERSION
            return self._sparse(graph, values, form.block, name, quantization), SPARSE_VERSION
        if form.kernel != "dense":
            return self._sparse(graph, weight, form.block, name), SPARSE_VERSION
        if self.quantize != "float16":
            return self._expanded(graph, weight, form, name), 1
        half = self._expanded(graph, weight.astype(np.float16), form, name)
        return _in_float32(graph, half), 1

    def _expanded(self, graph, array, form, name, quantization=None):
        """A tensor that is dense where it is read, however it is stored."""
        if not form.block:
            more = {} if quantization is None else {"quantization": quantization}
            return graph.constant(array, name, **more)
        stored = self._sparse(graph, array, form.block, name, quantization)
        dense = graph.apply("DENSIFY", [stored], array.shape, dtype=array.dtype.name)
        graph.subgraph.tensors[dense.index].quantization = quantization
        return dense

    def _sparse(self, graph, array, block, name, quantization=None):
        """The tensor of a matrix that is stored sparse, one for all that reads it."""
        scales = b"" if quantization is None else quantization.scale.tobytes()
        key = graph.number, block, array.shape, hashlib.sha256(array.tobytes() + scales).digest()
        if key not in self._made:
            self._made[key] = _sparse(graph, array, block, name, quantization)
        return self._made[key]

    def _note(self, name, weight, form):
        if name not in self._reported:
            self._reported.add(name)
            self.report.append(
                {
                    "name": name,
                    "shape": list(weight.shape),
                    "sparsity": round(1 - np.count_nonzero(weight) / max(weight.size, 1), 4),
                    "kernel": form.kernel,
                    "block": form.block,
                    "bytes": form.bytes,
                }
            )


def quantized(weight):
    """A matrix in int8, with a scale for each row that takes its largest weight to 127.

    Args:
        weight: Float32 array (rows, columns).

    Returns:
        int8 array (rows, columns) and float32 scales (rows,).
    """
    largest = np.abs(weight).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.round(weight / scales[:, None]).astype(np.int8), scales


def _in_float32(graph, values):
    """Values in float32, those in int8 by a scale of 1."""
    if values.dtype == "float32":
        return values
    return graph.apply("DEQUANTIZE", [values], values.shape, version=2 if values.dtype == "int8" else 1)


def _fully_connected(graph, inputs, weights, bias, version):
    shape = (*inputs.shape[:-1], weights.shape[0])
    tensors = [inputs, weights, None if bias is None else graph.constant(bias)]
    return graph.apply("FULLY_CONNECTED", tensors, shape, version=version, keepNumDims=len(shape) != 2)


def _padded(graph, inputs, weight):
    """Inputs and a matrix whose columns are no multiple of the int8 block, padded with zeros."""
    missing = -weight.shape[1] % INT8_BLOCK
    if not missing:
        return inputs, weight
    rank = len(inputs.shape)
    amounts = np.array([[0, 0]] * (rank - 1) + [[0, missing]], np.int32)
    shape = (*inputs.shape[:-1], inputs.shape[-1] + missing)
    inputs = graph.apply("PAD", [inputs, graph.constant(amounts)], shape)
    return inputs, np.pad(weight, [[0, 0], [0, missing]])


def _widths(table):
    """Its number of columns, and the largest part of it whose columns a byte can number."""
    columns = table.shape[1]
    parts = next((parts for parts in range(1, 33) if columns % parts == 0 and columns // parts <= 256), 1)
    return sorted({columns, columns // parts})


def _split(graph, inputs, widths):
    """A tensor in parts along its last axis."""
    if len(widths) == 1:
        return [inputs]
    sizes = graph.constant(np.array(widths, np.int32))
    axis = graph.constant(np.array(len(inputs.shape) - 1, np.int32))
    shapes = [(*inputs.shape[:-1], int(width)) for width in widths]
    return graph.apply("SPLIT_V", [inputs, sizes, axis], *shapes, numSplits=len(widths))


def _quantization(scales):
    parameters = schema.QuantizationParametersT()
    parameters.scale = scales
    parameters.zeroPoint = np.zeros(len(scales), np.int64)
    parameters.quantizedDimension = 0
    return parameters


def _nonzero_blocks(array, block):
    """Which blocks of consecutive columns have a weight: booleans (rows, blocks), the last one filled up."""
    missing = -array.shape[1] % block
    if missing:
        array = np.pad(array, [[0, 0], [0, missing]])
    return (array.reshape(len(array), -1, block) != 0).any(axis=2)


def _density(array, block):
    return float(_nonzero_blocks(array, block).mean()) if array.size else 0.0


def _sparse_bytes(array, block, itemsize):
    nonzero = _nonzero_blocks(array, block)
    count = int(nonzero.sum())
    segments = (len(array) + 1) * _index_bytes(count)
    return count * (block * itemsize + _index_bytes(nonzero.shape[1] - 1)) + segments


def _index_bytes(largest):
    return 1 if largest < 2**8 else 2 if largest < 2**16 else 4


def _smallest(array, itemsize):
    """The smallest `Form` of a matrix that is expanded when it is loaded."""
    forms = [Form("expanded", array.size * itemsize, 0.0)]
    for block in (1, 4, INT8_BLOCK):
        if array.shape[1] % block == 0:
            forms.append(Form("expanded", _sparse_bytes(array, block, itemsize), 0.0, block))
    return min(forms, key=lambda form: form.bytes)


def _sparse(graph, array, block, name, quantization=None):
    """An array (..., columns) that is stored as those of its blocks that have a weight."""
    shape, array = array.shape, array.reshape(-1, array.shape[-1])
    nonzero = _nonzero_blocks(array, block)
    values = array.reshape(len(array), -1, block)[nonzero]
    sparsity = schema.SparsityParametersT()
    rows, blocks = [_dense_dimension(size) for size in shape[:-1]], schema.DimensionMetadataT()
    blocks.format = schema.DimensionType.SPARSE_CSR
    segments = np.concatenate([[0], nonzero.sum(axis=1).cumsum()])
    blocks.arraySegmentsType, blocks.arraySegments = _indices(segments)
    blocks.arrayIndicesType, blocks.arrayIndices = _indices(np.nonzero(nonzero)[1])
    sparsity.dimMetadata, sparsity.blockMap = [*rows, blocks], []
    if block > 1:
        sparsity.dimMetadata.append(_dense_dimension(block))
        sparsity.blockMap = [len(rows)]
    sparsity.traversalOrder = list(range(len(sparsity.dimMetadata)))
    more = {"shape": shape, "sparsity": sparsity, "quantization": quantization}
    return graph.constant(values, name, **more)


def _dense_dimension(size):
    dimension = schema.DimensionMetadataT()
    dimension.format, dimension.denseSize = schema.DimensionType.DENSE, size
    return dimension


def _indices(array):
    width = 8 * _index_bytes(int(array.max(initial=0)))
    kind = {8: "Uint8Vector", 16: "Uint16Vector", 32: "Int32Vector"}[width]
    vector = getattr(schema, f"{kind}T")()
    vector.values = array.astype(f"{'int' if width == 32 else 'uint'}{width}")
    return getattr(schema.SparseIndexVector, kind), vector
