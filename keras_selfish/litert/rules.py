"""What Keras's operations are in LiteRT.

A rule is a function of the `Lowering`, the operation, and its arguments, in which tensors stand as `Tensor`
and known values as NumPy arrays. Keras 3.15 names the settings of its operations in private; a test for each
rule compares what it writes with Keras.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from keras import ops

from keras_selfish.litert.composed import COMPOSED, einsum_by_product, named_axes, scaled_elu
from keras_selfish.litert.graph import DTYPES, Tensor
from keras_selfish.litert.matrices import Matrices
from keras_selfish.litert.orders import ORDERS
from keras_selfish.litert.parts import (
    Exact,
    along_last,
    axes_of,
    broadcast_shape,
    choose,
    in_dtype,
    join,
    of_one_dtype,
    reduce,
    reshape,
    rules_in,
    spec,
    spec_of,
    strided_slice,
    tile,
    transpose,
)
from keras_selfish.litert.signals import SIGNALS

OPERATIONS: dict[str, Any] = {}


_rule = rules_in(OPERATIONS)  # by the names of their classes


# Elementwise operations


def _unary(code, lowering, _, x):
    if x.dtype == "int32" and code in ("ROUND", "SQUARE"):  # which LiteRT has for floats only
        return x if code == "ROUND" else lowering.graph.apply("MUL", [x, x], x.shape, dtype=x.dtype)
    return lowering.graph.apply(code, [x], x.shape, dtype=x.dtype)


def _binary(code, lowering, _, left, right):
    left, right = of_one_dtype(lowering, left, right)
    shape = broadcast_shape(left.shape, right.shape)
    return lowering.graph.apply(code, [left, right], shape, dtype=left.dtype)


def _comparison(code, lowering, _, left, right):
    left, right = of_one_dtype(lowering, left, right)
    shape = broadcast_shape(left.shape, right.shape)
    return lowering.graph.apply(code, [left, right], shape, dtype="bool")


for _name, _code in {
    "Sigmoid": "LOGISTIC",
    "Tanh": "TANH",
    "Relu6": "RELU6",
    "HardSwish": "HARD_SWISH",
    "HardSilu": "HARD_SWISH",
    "HardTanh": "RELU_N1_TO_1",
    "Exp": "EXP",
    "Log": "LOG",
    "Sqrt": "SQRT",
    "Rsqrt": "RSQRT",
    "Square": "SQUARE",
    "Absolute": "ABS",
    "Abs": "ABS",
    "Negative": "NEG",
    "Sin": "SIN",
    "Cos": "COS",
    "Floor": "FLOOR",
    "Ceil": "CEIL",
    "Round": "ROUND",
    "Sign": "SIGN",
    "LogicalNot": "LOGICAL_NOT",
}.items():
    OPERATIONS[_name] = functools.partial(_unary, _code)
for _name, _code in {
    "Add": "ADD",
    "Subtract": "SUB",
    "Multiply": "MUL",
    "Divide": "DIV",
    "TrueDivide": "DIV",
    "Maximum": "MAXIMUM",
    "Minimum": "MINIMUM",
    "Power": "POW",
    "FloorDivide": "FLOOR_DIV",
    "Mod": "FLOOR_MOD",
    "LogicalAnd": "LOGICAL_AND",
    "LogicalOr": "LOGICAL_OR",
}.items():
    OPERATIONS[_name] = functools.partial(_binary, _code)
for _name in ("Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual"):
    _code = "".join(f"_{letter}" if letter.isupper() else letter for letter in _name)[1:].upper()
    OPERATIONS[_name] = functools.partial(_comparison, _code)


@_rule("Arctan2")
def _angle(lowering, operation, left, right):
    """LiteRT's takes tensors of one shape."""
    left, right = of_one_dtype(lowering, left, right)
    if left.shape == right.shape:
        return _binary("ATAN2", lowering, operation, left, right)
    return lowering.call(
        lambda left, right: ops.arctan2(left + ops.zeros_like(right), right + ops.zeros_like(left)),
        (left, right),
        {},
    )


@_rule("ReLU", "Relu")
def _relu(lowering, operation, x):
    slope, most = getattr(operation, "negative_slope", 0.0), getattr(operation, "max_value", None)
    threshold = float(getattr(operation, "threshold", 0.0))
    if threshold:
        outputs = lowering.call(
            lambda x: ops.where(x >= threshold, x, float(slope) * (x - threshold)), (x,), {}
        )
    elif slope:
        outputs = lowering.graph.apply("LEAKY_RELU", [x], x.shape, alpha=float(slope))
    elif x.dtype != "float32":
        outputs = lowering.graph.apply("MAXIMUM", [x, lowering.constant(0)], x.shape, dtype=x.dtype)
    else:
        outputs = lowering.graph.apply("RELU", [x], x.shape)
    if most is None:
        return outputs
    return lowering.graph.apply("MINIMUM", [outputs, lowering.constant(np.float32(most))], x.shape)


@_rule("LeakyRelu")
def _leaky_relu(lowering, operation, x):
    return lowering.graph.apply("LEAKY_RELU", [x], x.shape, alpha=float(operation.negative_slope))


@_rule("Elu")
def _elu(lowering, operation, x):
    if operation.alpha != 1.0:
        return lowering.call(lambda x: scaled_elu(x, operation.alpha), (x,), {})
    return lowering.graph.apply("ELU", [x], x.shape)


@_rule("Gelu")
def _gelu(lowering, operation, x):
    return lowering.graph.apply("GELU", [x], x.shape, approximate=bool(operation.approximate))


@_rule("Clip")
def _clip(lowering, operation, x):
    low, high = (lowering.constant(np.asarray(v, x.dtype)) for v in (operation.x_min, operation.x_max))
    x = lowering.graph.apply("MAXIMUM", [x, low], x.shape, dtype=x.dtype)
    return lowering.graph.apply("MINIMUM", [x, high], x.shape, dtype=x.dtype)


@_rule("Where")
def _where(lowering, _, condition, x1, x2):
    return choose(lowering, condition, x1, x2)


@_rule("Cast")
def _cast(lowering, operation, x):
    # What a model computes in half precision is computed in float32.
    dtype = {"bfloat16": "float32", "float16": "float32", "float64": "float32"}.get(
        operation.dtype, operation.dtype
    )
    return in_dtype(lowering, x, dtype)


@_rule("ConvertToTensor")
def _convert(lowering, operation, x):
    return x if operation.dtype is None else _cast(lowering, operation, x)


@_rule("StopGradient", "Identity", "Copy")
def _identity(lowering, _, x):
    return x


@_rule("ZerosLike", "OnesLike")
def _zeros_or_ones(lowering, operation, x):
    """No number is less than itself."""
    zeros = lowering.graph.apply("LESS", [x, x], x.shape, dtype="bool")
    zeros = in_dtype(lowering, zeros, x.dtype)
    if type(operation).__name__ == "ZerosLike":
        return zeros
    return lowering.graph.apply(
        "ADD", [zeros, lowering.constant(np.ones((), x.dtype))], x.shape, dtype=x.dtype
    )


# Reductions


def _reduction(code, lowering, operation, x):
    return reduce(lowering, code, x, operation.axis, operation.keepdims)


for _name, _code in {
    "Mean": "MEAN",
    "Sum": "SUM",
    "Prod": "REDUCE_PROD",
    "Max": "REDUCE_MAX",
    "Amax": "REDUCE_MAX",
    "Min": "REDUCE_MIN",
    "Amin": "REDUCE_MIN",
    "Any": "REDUCE_ANY",
    "All": "REDUCE_ALL",
}.items():
    OPERATIONS[_name] = functools.partial(_reduction, _code)


def _place_of(code, lowering, operation, x):
    wanted = spec_of(operation, x).shape
    if operation.axis is None:
        x = reshape(lowering, x, (None,) if None in x.shape else (math.prod(x.shape),))
    axis = (operation.axis or 0) % len(x.shape)
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    place = lowering.graph.apply(
        code,
        [x, lowering.constant(np.int32(axis))],
        shape,
        dtype="int32",
        outputType=DTYPES["int32"],
    )
    return reshape(lowering, place, wanted)


OPERATIONS["Argmax"] = functools.partial(_place_of, "ARG_MAX")
OPERATIONS["Argmin"] = functools.partial(_place_of, "ARG_MIN")


@_rule("TopK")
def _top_k(lowering, operation, x):
    shape = (*x.shape[:-1], operation.k)
    count = lowering.constant(np.int32(operation.k))
    graph = lowering.graph
    return graph.apply("TOPK_V2", [x, count], shape, shape, dtype=(x.dtype, "int32"))


@_rule("Softmax")
def _softmax(lowering, operation, x):
    return along_last(
        lowering, x, operation.axis, lambda y: lowering.graph.apply("SOFTMAX", [y], y.shape, beta=1.0)
    )


@_rule("LogSoftmax")
def _log_softmax(lowering, operation, x):
    return along_last(
        lowering, x, operation.axis, lambda y: lowering.graph.apply("LOG_SOFTMAX", [y], y.shape)
    )


@_rule("Cumsum")
def _cumulative_sum(lowering, operation, x):
    axis = lowering.constant(np.int32(operation.axis % len(x.shape)))
    return lowering.graph.apply("CUMSUM", [x, axis], x.shape, dtype=x.dtype)


@_rule("BatchNorm")
def _batch_normalization(lowering, operation, x, mean, variance, offset=None, scale=None):
    shape = [1] * len(x.shape)
    shape[operation.axis] = x.shape[operation.axis]
    factor = np.asarray(1.0 if scale is None else scale) / np.sqrt(np.asarray(variance) + operation.epsilon)
    offset = np.asarray(0.0 if offset is None else offset) - np.asarray(mean) * factor
    factor, offset = (lowering.constant(part.reshape(shape).astype(np.float32)) for part in (factor, offset))
    return lowering.graph.apply("ADD", [lowering.graph.apply("MUL", [x, factor], x.shape), offset], x.shape)


@_rule("LayerNorm")
def _layer_normalization(lowering, operation, x, gamma=None, beta=None):
    if operation.rms_scaling:
        return _rms_normalization(lowering, operation, x, gamma)
    mean = reduce(lowering, "MEAN", x, operation.axis, True)
    x = lowering.graph.apply("SUB", [x, mean], x.shape)
    return _rms_normalization(lowering, operation, x, gamma, beta)


@_rule("RMSNorm")
def _rms_normalization(lowering, operation, x, scale=None, offset=None):
    graph = lowering.graph
    square = reduce(lowering, "MEAN", graph.apply("SQUARE", [x], x.shape), operation.axis, True)
    square = graph.apply("ADD", [square, lowering.constant(np.float32(operation.epsilon))], square.shape)
    x = graph.apply("MUL", [x, graph.apply("RSQRT", [square], square.shape)], x.shape)
    axes = axes_of(operation.axis, len(x.shape))
    for code, value in (("MUL", scale), ("ADD", offset)):
        if value is not None:
            shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
            x = graph.apply(code, [x, lowering.constant(np.asarray(value).reshape(shape))], x.shape)
    return x


# Products


@_rule("Matmul", "Dot")
def _product(lowering, operation, left, right):
    if isinstance(right, np.ndarray) and right.ndim == 2:
        return _times(lowering, left, right, getattr(right, "path", None))
    if type(operation).__name__ == "Dot":
        raise lowering.refusal("a `dot` of two computed tensors")
    left, right = lowering.constant(left), lowering.constant(right)
    shape = (*broadcast_shape(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1])
    return lowering.graph.apply("BATCH_MATMUL", [left, right], shape)


@_rule("Einsum")
def _einsum(lowering, operation, *operands):
    """A product with a matrix if it sums over the last axes of a tensor and the first axes of a weight."""
    if len(operands) != 2 or "->" not in operation.subscripts:
        raise lowering.refusal(f"an einsum {operation.subscripts!r} of other than two tensors")
    left, right = operands
    of_left, of_right, outputs = named_axes(operation.subscripts, len(left.shape), len(right.shape))
    count = len([letter for letter in of_right if letter not in outputs])
    kept, summed, new = of_left[: len(of_left) - count], of_right[:count], of_right[count:]
    if not isinstance(right, np.ndarray) or of_left != kept + summed or outputs != kept + new:
        return lowering.call(
            lambda *tensors: einsum_by_product(of_left, of_right, outputs, *tensors), (left, right), {}
        )
    rows = math.prod(right.shape[:count])
    flat = reshape(lowering, left, (*left.shape[: len(kept)], rows))
    outputs = _times(lowering, flat, right.reshape(rows, -1), getattr(right, "path", None))
    return reshape(lowering, outputs, (*outputs.shape[:-1], *right.shape[count:]))


def _times(lowering, left, matrix, path):
    """A tensor times a matrix (inputs, outputs), which has the path of its variable, if it is one."""
    weight = np.ascontiguousarray(np.asarray(matrix, np.float32).T)
    name = path or "/".join([*lowering.path, "matrix"])
    matrices = Matrices() if isinstance(matrix, Exact) else lowering.matrices
    outputs = matrices.product(lowering.graph, left, weight, None, name)
    operator = lowering.graph.subgraph.operators[-1]
    if len(operator.inputs) == 3 and operator.inputs[2] == -1:
        lowering.products[outputs.index] = operator
    return outputs


# Shapes


@_rule("Reshape")
def _reshape_rule(lowering, operation, x):
    sizes = tuple(operation.newshape)
    if {None, -1} <= set(sizes) and None not in x.shape[1:]:  # None is the batch, which stays as it is
        rest = math.prod(x.shape[1:]) // math.prod(size for size in sizes if size not in (None, -1))
        return reshape(lowering, x, [rest if size == -1 else size for size in sizes])
    return reshape(lowering, x, spec_of(operation, x).shape)


@_rule("ExpandDims", "Squeeze")
def _expand_or_squeeze(lowering, operation, x):
    return reshape(lowering, x, spec_of(operation, x).shape)


@_rule("Transpose")
def _transpose_rule(lowering, operation, x):
    return transpose(lowering, x, operation.axes or tuple(reversed(range(len(x.shape)))))


@_rule("Moveaxis")
def _move_axes(lowering, operation, x):
    rank = len(x.shape)
    source, destination = axes_of(operation.source, rank), axes_of(operation.destination, rank)
    axes = [axis for axis in range(rank) if axis not in source]
    for place, axis in sorted(zip(destination, source, strict=True)):
        axes.insert(place, axis)
    return transpose(lowering, x, axes)


@_rule("Swapaxes")
def _swap_axes(lowering, operation, x):
    axes = list(range(len(x.shape)))
    first, second = operation.axis1, operation.axis2
    axes[first], axes[second] = axes[second], axes[first]
    return transpose(lowering, x, axes)


@_rule("Concatenate")
def _concatenate(lowering, operation, tensors):
    return join(lowering, tensors, operation.axis)


@_rule("Stack")
def _stack(lowering, operation, tensors):
    rank = len(next(t for t in tensors if isinstance(t, Tensor)).shape) + 1
    axis = operation.axis % rank

    def wide(tensor):
        tensor = lowering.constant(tensor)
        return reshape(lowering, tensor, (*tensor.shape[:axis], 1, *tensor.shape[axis:]))

    return join(lowering, [wide(tensor) for tensor in tensors], axis)


@_rule("Split")
def _split(lowering, operation, x):
    axis = operation.axis % len(x.shape)
    if x.shape[axis] is None:
        raise lowering.refusal("a `split` of the batch")
    shapes = [spec.shape for spec in spec_of(operation, x)]
    sizes = lowering.constant(np.array([shape[axis] for shape in shapes], np.int32))
    inputs = [x, sizes, lowering.constant(np.int32(axis))]
    outputs = lowering.graph.apply("SPLIT_V", inputs, *shapes, dtype=x.dtype, numSplits=len(shapes))
    return outputs if isinstance(outputs, list) else [outputs]


@_rule("Unstack")
def _unstack(lowering, operation, x):
    axis = operation.axis % len(x.shape)
    shape, count = (*x.shape[:axis], *x.shape[axis + 1 :]), x.shape[axis]
    outputs = lowering.graph.apply("UNPACK", [x], *[shape] * count, dtype=x.dtype, num=count, axis=axis)
    return outputs if isinstance(outputs, list) else [outputs]


@_rule("Repeat")
def _repeat(lowering, operation, x):
    """Each entry several times in a row: along a new axis, which is then merged with its own."""
    if not isinstance(operation.repeats, int) or operation.axis is None:
        raise lowering.refusal("a `repeat` by several numbers or of all entries")
    axis = operation.axis % len(x.shape)
    wide = reshape(lowering, x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
    repeats = [1] * len(wide.shape)
    repeats[axis + 1] = operation.repeats
    return reshape(lowering, tile(lowering, wide, repeats), spec_of(operation, x).shape)


@_rule("Tile")
def _tile_rule(lowering, operation, x):
    repeats = operation.repeats if isinstance(operation.repeats, (list, tuple)) else [operation.repeats]
    missing = len(x.shape) - len(repeats)
    if missing < 0:
        raise lowering.refusal("a `tile` along new axes")
    return tile(lowering, x, [1] * missing + list(repeats))


@_rule("Flip")
def _flip(lowering, operation, x):
    """One axis after another: LiteRT takes several only if they stand side by side."""
    for axis in axes_of(operation.axis, len(x.shape)):
        place = lowering.constant(np.array([axis], np.int32))
        x = lowering.graph.apply("REVERSE_V2", [x, place], x.shape, dtype=x.dtype)
    return x


@_rule("Pad")
def _pad(lowering, operation, x, constant_values=None):
    shape = spec_of(operation, x).shape
    amounts = np.broadcast_to(np.array(operation.pad_width, np.int32), (len(x.shape), 2))
    inputs, mirror = [x, lowering.constant(np.ascontiguousarray(amounts))], {"reflect": 0, "symmetric": 1}
    if operation.mode in mirror:
        mode = mirror[operation.mode]
        return lowering.graph.apply("MIRROR_PAD", inputs, shape, dtype=x.dtype, mode=mode)
    if operation.mode != "constant":
        raise lowering.refusal(f"a padding of the mode {operation.mode!r}")
    if constant_values is not None:
        inputs.append(lowering.constant(np.asarray(constant_values, x.dtype)))
    return lowering.graph.apply("PADV2" if len(inputs) > 2 else "PAD", inputs, shape, dtype=x.dtype)


@_rule("Take")
def _take(lowering, operation, x, indices):
    indices = in_dtype(lowering, lowering.constant(indices), "int32")
    if isinstance(x, np.ndarray) and x.ndim == 2 and operation.axis in (0, -2):
        name = getattr(x, "path", None) or "/".join([*lowering.path, "table"])
        return lowering.matrices.rows(lowering.graph, np.asarray(x, np.float32), indices, name)
    x = lowering.constant(x)
    if operation.axis is None:
        raise lowering.refusal("a `take` without an axis")
    axis = operation.axis % len(x.shape)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return lowering.graph.apply("GATHER", [x, indices], shape, dtype=x.dtype, axis=axis)


@_rule("Slice")
def _slice_rule(lowering, operation, x, start):
    sizes = [-1 if size is None else size for size in operation.shape]
    shape = operation.compute_output_spec(spec(x), start if isinstance(start, Tensor) else list(start)).shape
    places = [in_dtype(lowering, start, "int32"), lowering.constant(np.array(sizes, np.int32))]
    return lowering.graph.apply("SLICE", [x, *places], shape, dtype=x.dtype)


@_rule("SliceUpdate")
def _slice_update(lowering, _, x, start, updates):
    tensors = [*of_one_dtype(lowering, x, updates), in_dtype(lowering, start, "int32")]
    return lowering.graph.apply("DYNAMIC_UPDATE_SLICE", tensors, tensors[0].shape, dtype=tensors[0].dtype)


@_rule("GetItem")
def _get_item(lowering, operation, x, key):
    key = list(key) if isinstance(key, tuple) else [key]
    if not all(
        part is Ellipsis or part is None or isinstance(part, (int, np.integer, slice)) for part in key
    ):
        raise lowering.refusal("an index that is computed")
    shape = operation.compute_output_spec(spec(x), tuple(key)).shape
    real = [part for part in key if part is not None]
    if Ellipsis in real:
        at = real.index(Ellipsis)
        real[at : at + 1] = [slice(None)] * (len(x.shape) - len(real) + 1)
    real += [slice(None)] * (len(x.shape) - len(real))
    if all(part == slice(None) for part in real):
        return reshape(lowering, x, shape)
    return reshape(lowering, strided_slice(lowering, x, real), shape)


# Those that consist of others


def _composed(function, lowering, operation, *args, **kwargs):
    return lowering.call(lambda *args, **kwargs: function(operation, *args, **kwargs), args, kwargs)


for _name, _function in (COMPOSED | ORDERS | SIGNALS).items():
    OPERATIONS[_name] = functools.partial(_composed, _function)
