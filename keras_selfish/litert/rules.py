"""What Keras's operations, and the layers that need more than these, are in LiteRT.

A rule is a function of the `Lowering`, the operation, and its arguments, in which tensors stand as `Tensor`
and known values as NumPy arrays. Keras 3.15 names the settings of its operations in private; a test for each
rule compares what it writes with Keras.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import numpy as np

from keras_selfish.litert.graph import Tensor

OPERATIONS: dict[str, Any] = {}
LAYERS: dict[Any, Any] = {}


def _rule(*names):
    """Enters a function as the rule of operations of these class names."""

    def enter(function):
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return enter


def _layer_rule(*kinds):
    """Enters a function as the rule of layers of these classes."""

    def enter(function):
        LAYERS.update(dict.fromkeys(kinds, function))
        return function

    return enter


# Elementwise operations


def _unary(code, lowering, _, x):
    return lowering.graph.apply(code, [x], x.shape, dtype=x.dtype)


def _binary(code, lowering, _, left, right):
    left, right = _of_one_dtype(lowering, left, right)
    shape = _broadcast(left.shape, right.shape)
    return lowering.graph.apply(code, [left, right], shape, dtype=left.dtype)


def _comparison(code, lowering, _, left, right):
    left, right = _of_one_dtype(lowering, left, right)
    shape = _broadcast(left.shape, right.shape)
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


@_rule("ReLU", "Relu")
def _relu(lowering, operation, x):
    slope, most = getattr(operation, "negative_slope", 0.0), getattr(operation, "max_value", None)
    if getattr(operation, "threshold", 0.0):
        raise lowering.refusal("a ReLU with a threshold")
    if slope:
        outputs = lowering.graph.apply("LEAKY_RELU", [x], x.shape, alpha=float(slope))
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
        raise lowering.refusal(f"an ELU with alpha={operation.alpha}")
    return lowering.graph.apply("ELU", [x], x.shape)


@_rule("Gelu")
def _gelu(lowering, operation, x):
    return lowering.graph.apply("GELU", [x], x.shape, approximate=bool(operation.approximate))


@_rule("Silu")
def _silu(lowering, _, x):
    return lowering.graph.apply("MUL", [x, lowering.graph.apply("LOGISTIC", [x], x.shape)], x.shape)


@_rule("HardSigmoid")
def _hard_sigmoid(lowering, _, x):
    moved = lowering.graph.apply("ADD", [x, lowering.constant(np.float32(3))], x.shape)
    clipped = lowering.graph.apply("RELU6", [moved], x.shape)
    return lowering.graph.apply("MUL", [clipped, lowering.constant(np.float32(1 / 6))], x.shape)


@_rule("Softplus")
def _softplus(lowering, _, x):
    """max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    graph = lowering.graph
    small = graph.apply("EXP", [graph.apply("NEG", [graph.apply("ABS", [x], x.shape)], x.shape)], x.shape)
    small = graph.apply(
        "LOG", [graph.apply("ADD", [small, lowering.constant(np.float32(1))], x.shape)], x.shape
    )
    return graph.apply("ADD", [graph.apply("RELU", [x], x.shape), small], x.shape)


@_rule("Softsign")
def _softsign(lowering, _, x):
    graph = lowering.graph
    size = graph.apply("ADD", [graph.apply("ABS", [x], x.shape), lowering.constant(np.float32(1))], x.shape)
    return graph.apply("DIV", [x, size], x.shape)


@_rule("Clip")
def _clip(lowering, operation, x):
    low, high = (lowering.constant(np.asarray(v, x.dtype)) for v in (operation.x_min, operation.x_max))
    x = lowering.graph.apply("MAXIMUM", [x, low], x.shape, dtype=x.dtype)
    return lowering.graph.apply("MINIMUM", [x, high], x.shape, dtype=x.dtype)


@_rule("Where")
def _where(lowering, _, condition, x1, x2):
    x1, x2 = _of_one_dtype(lowering, x1, x2)
    condition = lowering.constant(condition)
    shape = _broadcast(condition.shape, _broadcast(x1.shape, x2.shape))
    return lowering.graph.apply("SELECT_V2", [condition, x1, x2], shape, dtype=x1.dtype)


@_rule("Cast")
def _cast(lowering, operation, x):
    # What a model computes in half precision is computed in float32.
    dtype = {"bfloat16": "float32", "float16": "float32", "float64": "float32"}.get(
        operation.dtype, operation.dtype
    )
    return _to(lowering, x, dtype)


@_rule("StopGradient", "Identity", "Copy")
def _identity(lowering, _, x):
    return x


@_rule("ZerosLike", "OnesLike")
def _zeros_or_ones(lowering, operation, x):
    """No number is less than itself."""
    zeros = lowering.graph.apply("LESS", [x, x], x.shape, dtype="bool")
    zeros = _to(lowering, zeros, x.dtype)
    if type(operation).__name__ == "ZerosLike":
        return zeros
    return lowering.graph.apply(
        "ADD", [zeros, lowering.constant(np.ones((), x.dtype))], x.shape, dtype=x.dtype
    )


# Reductions


def _reduction(code, lowering, operation, x):
    return _reduce(lowering, code, x, operation.axis, operation.keepdims)


for _name, _code in {"Mean": "MEAN", "Sum": "SUM", "Max": "REDUCE_MAX", "Min": "REDUCE_MIN"}.items():
    OPERATIONS[_name] = functools.partial(_reduction, _code)


@_rule("Softmax")
def _softmax(lowering, operation, x):
    return _along_last(
        lowering, x, operation.axis, lambda y: lowering.graph.apply("SOFTMAX", [y], y.shape, beta=1.0)
    )


@_rule("LogSoftmax")
def _log_softmax(lowering, operation, x):
    return _along_last(
        lowering, x, operation.axis, lambda y: lowering.graph.apply("LOG_SOFTMAX", [y], y.shape)
    )


@_rule("Logsumexp")
def _log_sum_exp(lowering, operation, x):
    graph = lowering.graph
    largest = _reduce(lowering, "REDUCE_MAX", x, operation.axis, True)
    terms = graph.apply("EXP", [graph.apply("SUB", [x, largest], x.shape)], x.shape)
    total = _reduce(lowering, "SUM", terms, operation.axis, True)
    total = graph.apply("ADD", [graph.apply("LOG", [total], total.shape), largest], total.shape)
    return total if operation.keepdims else _reduce(lowering, "REDUCE_MAX", total, operation.axis, False)


@_rule("Cumsum")
def _cumulative_sum(lowering, operation, x):
    axis = lowering.constant(np.int32(operation.axis % len(x.shape)))
    return lowering.graph.apply("CUMSUM", [x, axis], x.shape)


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
    mean = _reduce(lowering, "MEAN", x, operation.axis, True)
    x = lowering.graph.apply("SUB", [x, mean], x.shape)
    return _rms_normalization(lowering, operation, x, gamma, beta)


@_rule("RMSNorm")
def _rms_normalization(lowering, operation, x, scale=None, offset=None):
    graph = lowering.graph
    square = _reduce(lowering, "MEAN", graph.apply("SQUARE", [x], x.shape), operation.axis, True)
    square = graph.apply("ADD", [square, lowering.constant(np.float32(operation.epsilon))], square.shape)
    x = graph.apply("MUL", [x, graph.apply("RSQRT", [square], square.shape)], x.shape)
    axes = _axes(operation.axis, len(x.shape))
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
    shape = (*_broadcast(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1])
    return lowering.graph.apply("BATCH_MATMUL", [left, right], shape)


@_rule("Einsum")
def _einsum(lowering, operation, left, right):
    """Only a sum over the last axes of a tensor and the first axes of a weight."""
    terms, outputs = operation.subscripts.replace(" ", "").split("->")
    of_left, of_right = terms.split(",")
    count = len([letter for letter in of_right if letter not in outputs])
    kept, summed, new = of_left[: len(of_left) - count], of_right[:count], of_right[count:]
    if not isinstance(right, np.ndarray) or of_left != kept + summed or outputs != kept + new:
        raise lowering.refusal(f"an einsum {operation.subscripts!r} that is no product with a matrix")
    rows = math.prod(right.shape[:count])
    flat = _reshape(lowering, left, (*left.shape[: len(kept)], rows))
    outputs = _times(lowering, flat, right.reshape(rows, -1), getattr(right, "path", None))
    return _reshape(lowering, outputs, (*outputs.shape[:-1], *right.shape[count:]))


def _times(lowering, left, matrix, path):
    """A tensor times a matrix (inputs, outputs), which has the path of its variable, if it is one."""
    weight = np.ascontiguousarray(np.asarray(matrix, np.float32).T)
    name = path or "/".join([*lowering.path, "matrix"])
    outputs = lowering.matrices.product(lowering.graph, left, weight, None, name)
    operator = lowering.graph.subgraph.operators[-1]
    if len(operator.inputs) == 3 and operator.inputs[2] == -1:
        lowering.products[outputs.index] = operator
    return outputs


@_rule("Conv")
def _convolution(lowering, operation, x, kernel):
    if operation.data_format != "channels_last" or kernel.ndim != 4 or kernel.shape[2] != x.shape[-1]:
        raise lowering.refusal("a convolution other than in two dimensions, channels last, without groups")
    (height, width), (down, right) = _pair(operation.strides), _pair(operation.dilation_rate)
    weight = lowering.graph.constant(np.ascontiguousarray(np.transpose(kernel, (3, 0, 1, 2)), np.float32))
    bias = lowering.constant(np.zeros(kernel.shape[3], np.float32))
    outputs = lowering.graph.apply(
        "CONV_2D",
        [x, weight, bias],
        operation.compute_output_spec(_spec(x), _spec(kernel)).shape,
        padding=_padding(operation.padding),
        strideH=height,
        strideW=width,
        dilationHFactor=down,
        dilationWFactor=right,
    )
    return outputs


def _pooling(code, lowering, operation, x):
    if operation.data_format != "channels_last" or len(x.shape) != 4:
        raise lowering.refusal("a pooling other than in two dimensions, channels last")
    height, width = _pair(operation.pool_size)
    down, right = _pair(operation.strides or operation.pool_size)
    return lowering.graph.apply(
        code,
        [x],
        operation.compute_output_spec(_spec(x)).shape,
        padding=_padding(operation.padding),
        filterHeight=height,
        filterWidth=width,
        strideH=down,
        strideW=right,
    )


OPERATIONS["MaxPool"] = functools.partial(_pooling, "MAX_POOL_2D")
OPERATIONS["AveragePool"] = functools.partial(_pooling, "AVERAGE_POOL_2D")


# Shapes


@_rule("Reshape")
def _reshape_rule(lowering, operation, x):
    return _reshape(lowering, x, _spec_of(operation, x).shape)


@_rule("ExpandDims", "Squeeze")
def _expand_or_squeeze(lowering, operation, x):
    return _reshape(lowering, x, _spec_of(operation, x).shape)


@_rule("Transpose")
def _transpose_rule(lowering, operation, x):
    return _transpose(lowering, x, operation.axes or tuple(reversed(range(len(x.shape)))))


@_rule("Swapaxes")
def _swap_axes(lowering, operation, x):
    axes = list(range(len(x.shape)))
    first, second = operation.axis1, operation.axis2
    axes[first], axes[second] = axes[second], axes[first]
    return _transpose(lowering, x, axes)


@_rule("Concatenate")
def _concatenate(lowering, operation, tensors):
    return _joined(lowering, tensors, operation.axis)


@_rule("Stack")
def _stack(lowering, operation, tensors):
    rank = len(next(t for t in tensors if isinstance(t, Tensor)).shape) + 1
    axis = operation.axis % rank

    def wide(tensor):
        tensor = lowering.constant(tensor)
        return _reshape(lowering, tensor, (*tensor.shape[:axis], 1, *tensor.shape[axis:]))

    return _joined(lowering, [wide(tensor) for tensor in tensors], axis)


@_rule("Split")
def _split(lowering, operation, x):
    axis = operation.axis % len(x.shape)
    shapes = [spec.shape for spec in _spec_of(operation, x)]
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
    wide = _reshape(lowering, x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
    repeats = [1] * len(wide.shape)
    repeats[axis + 1] = operation.repeats
    return _reshape(lowering, _tile(lowering, wide, repeats), _spec_of(operation, x).shape)


@_rule("Tile")
def _tile_rule(lowering, operation, x):
    repeats = operation.repeats if isinstance(operation.repeats, (list, tuple)) else [operation.repeats]
    missing = len(x.shape) - len(repeats)
    if missing < 0:
        raise lowering.refusal("a `tile` along new axes")
    return _tile(lowering, x, [1] * missing + list(repeats))


@_rule("Flip")
def _flip(lowering, operation, x):
    axes = np.array(_axes(operation.axis, len(x.shape)), np.int32)
    return lowering.graph.apply("REVERSE_V2", [x, lowering.constant(axes)], x.shape, dtype=x.dtype)


@_rule("Pad")
def _pad(lowering, operation, x, constant_values=None):
    if operation.mode != "constant" or constant_values:
        raise lowering.refusal("a padding with anything but zeros")
    shape = _spec_of(operation, x).shape
    amounts = np.broadcast_to(np.array(operation.pad_width, np.int32), (len(x.shape), 2))
    return lowering.graph.apply(
        "PAD", [x, lowering.constant(np.ascontiguousarray(amounts))], shape, dtype=x.dtype
    )


@_rule("Take")
def _take(lowering, operation, x, indices):
    indices = _to(lowering, lowering.constant(indices), "int32")
    if isinstance(x, np.ndarray) and x.ndim == 2 and operation.axis in (0, -2):
        name = getattr(x, "path", None) or "/".join([*lowering.path, "table"])
        return lowering.matrices.rows(lowering.graph, np.asarray(x, np.float32), indices, name)
    x = lowering.constant(x)
    if operation.axis is None:
        raise lowering.refusal("a `take` without an axis")
    axis = operation.axis % len(x.shape)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return lowering.graph.apply("GATHER", [x, indices], shape, dtype=x.dtype, axis=axis)


@_rule("GetItem")
def _get_item(lowering, operation, x, key):
    key = list(key) if isinstance(key, tuple) else [key]
    if not all(
        part is Ellipsis or part is None or isinstance(part, (int, np.integer, slice)) for part in key
    ):
        raise lowering.refusal("an index that is computed")
    shape = operation.compute_output_spec(_spec(x), tuple(key)).shape
    real = [part for part in key if part is not None]
    if Ellipsis in real:
        at = real.index(Ellipsis)
        real[at : at + 1] = [slice(None)] * (len(x.shape) - len(real) + 1)
    real += [slice(None)] * (len(x.shape) - len(real))
    if all(part == slice(None) for part in real):
        return _reshape(lowering, x, shape)
    return _reshape(lowering, _strided_slice(lowering, x, real), shape)


def _strided_slice(lowering, x, parts):
    """The part of a tensor that a slice or a number for each axis names; axes of numbers stay, of size 1."""
    begins, ends, strides, shape, begin_mask, end_mask = [], [], [], [], 0, 0
    for axis, (part, size) in enumerate(zip(parts, x.shape, strict=True)):
        if part == slice(None):
            begin_mask, end_mask = begin_mask | 1 << axis, end_mask | 1 << axis
            begin, end, stride, length = 0, 0, 1, size
        elif size is None:
            raise lowering.refusal("a part of the batch")
        else:
            chosen = range(size)[part] if isinstance(part, slice) else [range(size)[part]]
            stride = chosen.step if isinstance(chosen, range) else 1
            begin, length = chosen[0], len(chosen)
            end = begin + length * stride
            if end < 0:
                end, end_mask = 0, end_mask | 1 << axis
        begins, ends, strides = [*begins, begin], [*ends, end], [*strides, stride]
        shape.append(length)
    arrays = [lowering.constant(np.array(array, np.int32)) for array in (begins, ends, strides)]
    return lowering.graph.apply(
        "STRIDED_SLICE", [x, *arrays], shape, dtype=x.dtype, beginMask=begin_mask, endMask=end_mask
    )


# Layers


@_layer_rule(keras.layers.Masking)
def _masking(lowering, layer, *args, **kwargs):
    raise lowering.refusal("time steps that are masked; give sequences of full length")


@_layer_rule(keras.layers.Embedding)
def _embedding(lowering, layer, *args, **kwargs):
    if layer.mask_zero:
        raise lowering.refusal("time steps that are masked (`mask_zero`); give sequences of full length")
    return lowering.call(layer.call, args, kwargs)


@_layer_rule(keras.layers.Rescaling)
def _rescaling(lowering, layer, x):
    scale, offset = (np.asarray(value, np.float32) for value in (layer.scale, layer.offset))
    x = _to(lowering, x, "float32")
    x = OPERATIONS["Multiply"](lowering, layer, x, scale)
    return OPERATIONS["Add"](lowering, layer, x, offset)


@_layer_rule(keras.layers.Normalization)
def _normalization(lowering, layer, x):
    mean = keras.ops.convert_to_numpy(layer.mean)
    deviation = np.maximum(np.sqrt(keras.ops.convert_to_numpy(layer.variance)), keras.config.epsilon())
    factor, offset = (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    x = _to(lowering, x, "float32")
    if np.any(factor != 1):
        x = OPERATIONS["Multiply"](lowering, layer, x, factor)
    return OPERATIONS["Add"](lowering, layer, x, offset)


@_layer_rule(keras.layers.TimeDistributed)
def _time_distributed(lowering, layer, x, training=None, mask=None):
    flat = _reshape(lowering, x, (None, *x.shape[2:]))
    outputs = lowering.operation(layer.layer, (flat,), {})
    return keras.tree.map_structure(
        lambda y: _reshape(lowering, y, (x.shape[0], x.shape[1], *y.shape[1:])), outputs
    )


@_layer_rule(keras.layers.Bidirectional)
def _bidirectional(lowering, layer, x, initial_state=None, mask=None, training=None):
    half = None if initial_state is None else len(initial_state) // 2
    states = (None, None) if half is None else (initial_state[:half], initial_state[half:])
    outputs, finals = [], []
    for inner, state in zip((layer.forward_layer, layer.backward_layer), states, strict=True):
        output = lowering.operation(inner, (x,), {"initial_state": state})
        output, *final = output if isinstance(output, (list, tuple)) else [output]
        outputs.append(output)
        finals += final
    if layer.return_sequences:
        reverse = lowering.constant(np.array([1], np.int32))
        outputs[1] = lowering.graph.apply("REVERSE_V2", [outputs[1], reverse], outputs[1].shape)
    if layer.merge_mode == "concat":
        merged = [_joined(lowering, outputs, -1)]
    elif layer.merge_mode is None:
        merged = outputs
    else:
        code = "MUL" if layer.merge_mode == "mul" else "ADD"
        merged = [lowering.graph.apply(code, outputs, outputs[0].shape)]
        if layer.merge_mode == "ave":
            merged = [
                lowering.graph.apply("MUL", [merged[0], lowering.constant(np.float32(0.5))], merged[0].shape)
            ]
    if layer.return_state:
        return [*merged, *finals]
    return merged[0] if len(merged) == 1 else tuple(merged)


@_layer_rule(keras.layers.RNN)
def _recurrent(lowering, layer, x, initial_state=None, mask=None, training=None):
    if layer.stateful:
        raise lowering.refusal(
            "a recurrent layer that keeps its state (`stateful`); return the state instead"
        )
    sizes = keras.tree.flatten(layer.cell.state_size)
    states = keras.tree.flatten(initial_state) if initial_state is not None else []
    states = [lowering.constant(state) for state in states] or [_zeros(lowering, x, size) for size in sizes]
    steps, shape = x.shape[1], (x.shape[0], *x.shape[2:])
    if steps == 1:
        output, states = _step(lowering, layer.cell, _reshape(lowering, x, shape), states)
        outputs = _reshape(lowering, output, (output.shape[0], 1, *output.shape[1:]))
    else:
        output, outputs, states = _loop(lowering, layer, x, states)
    output = outputs if layer.return_sequences else output
    return [output, *states] if layer.return_state else output


def _step(lowering, cell, x, states):
    """A time step of a cell: its output, and the list of states after it."""
    structured = keras.tree.pack_sequence_as(cell.state_size, states)
    if not isinstance(structured, (list, tuple)):
        structured = [structured]
    output, after = lowering.within_path(cell.name, lambda: lowering.call(cell.call, (x, structured), {}))
    return output, keras.tree.flatten(after)


def _loop(lowering, layer, x, states):
    """All time steps: the last output, all outputs if they are asked for, and the last states."""
    graph, steps = lowering.graph, x.shape[1]
    batch, features = x.shape[0], x.shape[2:]
    width = layer.cell.output_size if hasattr(layer.cell, "output_size") else states[0].shape[-1]
    inputs = _transpose(lowering, x, (1, 0, *range(2, len(x.shape))))
    if layer.go_backwards:
        inputs = graph.apply("REVERSE_V2", [inputs, lowering.constant(np.array([0], np.int32))], inputs.shape)
    last = _zeros(lowering, x, width)
    carried = [lowering.constant(np.zeros((1,), np.int32)), inputs, last, *states]
    if layer.return_sequences:
        wide = _reshape(lowering, last, (1, batch, width))
        carried.append(_tile(lowering, wide, [steps, 1, 1]))

    condition, body = graph.file.graph(f"{layer.name}_condition"), graph.file.graph(f"{layer.name}_step")
    within = [[side.tensor(t.shape, t.dtype) for t in carried] for side in (condition, body)]
    condition.subgraph.inputs = [tensor.index for tensor in within[0]]
    limit = condition.constant(np.array([steps], np.int32))
    condition.subgraph.outputs = [condition.apply("LESS", [within[0][0], limit], (1,), dtype="bool").index]

    inner = lowering.within(body)
    time, sequence, _, *before = within[1]
    collected = before[len(states) :]
    row = body.apply("GATHER", [sequence, time], (1, batch, *features), axis=0)
    output, after = _step(inner, layer.cell, _reshape(inner, row, (batch, *features)), before[: len(states)])
    if collected:
        begin = [time, body.constant(np.zeros(2, np.int32))]
        begin = body.apply("CONCATENATION", begin, (3,), dtype="int32", axis=0)
        update = _reshape(inner, output, (1, batch, width))
        collected = [body.apply("DYNAMIC_UPDATE_SLICE", [collected[0], update, begin], (steps, batch, width))]
    time = body.apply("ADD", [time, body.constant(np.ones(1, np.int32))], (1,), dtype="int32")
    body.subgraph.inputs = [tensor.index for tensor in within[1]]
    body.subgraph.outputs = [t.index for t in (time, sequence, output, *after, *collected)]

    shapes = [tensor.shape for tensor in carried]
    results = graph.apply(
        "WHILE", carried, *shapes, condSubgraphIndex=condition.number, bodySubgraphIndex=body.number
    )
    for result, tensor in zip(results, carried, strict=True):
        graph.subgraph.tensors[result.index].type = graph.subgraph.tensors[tensor.index].type
    _, _, output, *states = results
    outputs = None
    if layer.return_sequences:
        outputs = _transpose(lowering, states.pop(), (1, 0, 2))
    return output, outputs, states


# What the rules share


def _zeros(lowering, x, width):
    """Zeros (batch, width) for the batch of a tensor, whatever it holds: no number is less than itself."""
    graph, rank = lowering.graph, len(x.shape)
    corner = _strided_slice(lowering, x, [slice(None), *[0] * (rank - 1)])
    corner = _reshape(lowering, corner, (x.shape[0], 1))
    zero = graph.apply("LESS", [corner, corner], corner.shape, dtype="bool")
    return _tile(lowering, _to(lowering, zero, "float32"), [1, width])


def _to(lowering, x, dtype):
    x = lowering.constant(x)
    return x if x.dtype == dtype else lowering.graph.apply("CAST", [x], x.shape, dtype=dtype)


def _of_one_dtype(lowering, left, right):
    """Both as tensors; what is known has the dtype of what is computed."""
    if not isinstance(left, Tensor):
        left = np.asarray(left, right.dtype)
    if not isinstance(right, Tensor):
        right = np.asarray(right, left.dtype)
    left, right = lowering.constant(left), lowering.constant(right)
    if left.dtype != right.dtype:
        wide = keras.backend.result_type(left.dtype, right.dtype)
        left, right = _to(lowering, left, wide), _to(lowering, right, wide)
    return left, right


def _reshape(lowering, x, shape):
    shape = tuple(shape)
    if shape == x.shape:
        return x
    if sum(size is None for size in shape) > 1:
        raise lowering.refusal(f"a tensor of the shape {shape}, with several sizes that are not known")
    return lowering.graph.reshape(x, shape)


def _transpose(lowering, x, axes):
    axes = [axis % len(x.shape) for axis in axes]
    shape = tuple(x.shape[axis] for axis in axes)
    return lowering.graph.apply(
        "TRANSPOSE", [x, lowering.constant(np.array(axes, np.int32))], shape, dtype=x.dtype
    )


def _tile(lowering, x, repeats):
    shape = [
        size if by == 1 else None if size is None else size * by
        for size, by in zip(x.shape, repeats, strict=True)
    ]
    return lowering.graph.apply(
        "TILE", [x, lowering.constant(np.array(repeats, np.int32))], shape, dtype=x.dtype
    )


def _joined(lowering, tensors, axis):
    tensors = [lowering.constant(tensor) for tensor in tensors]
    shape = list(tensors[0].shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    axis %= len(shape)
    return lowering.graph.apply("CONCATENATION", tensors, shape, dtype=tensors[0].dtype, axis=axis)


def _reduce(lowering, code, x, axis, keepdims):
    axes = _axes(axis, len(x.shape))
    shape = [1 if at in axes else size for at, size in enumerate(x.shape) if keepdims or at not in axes]
    axes = lowering.constant(np.array(axes, np.int32))
    return lowering.graph.apply(code, [x, axes], shape, dtype=x.dtype, keepDims=bool(keepdims))


def _along_last(lowering, x, axis, function):
    """A function along the last axis, applied along any."""
    axis %= len(x.shape)
    axes = [at for at in range(len(x.shape)) if at != axis] + [axis]
    if axis == len(x.shape) - 1:
        return function(x)
    return _transpose(lowering, function(_transpose(lowering, x, axes)), np.argsort(axes))


def _axes(axis, rank):
    if axis is None:
        return list(range(rank))
    return [at % rank for at in (axis if isinstance(axis, (list, tuple)) else [axis])]


def _broadcast(left, right):
    rank = max(len(left), len(right))
    left, right = ((1,) * (rank - len(shape)) + tuple(shape) for shape in (left, right))
    return tuple(b if a == 1 else a for a, b in zip(left, right, strict=True))


def _spec(x):
    return keras.KerasTensor(x.shape, getattr(x.dtype, "name", x.dtype))


def _spec_of(operation, x):
    return operation.compute_output_spec(_spec(x))


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _padding(name):
    return {"same": 0, "valid": 1}[name]
