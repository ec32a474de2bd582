"""Operations of LiteRT with the shapes of their outputs, of which the rules are made."""

import keras
import numpy as np

from keras_selfish.litert.graph import Tensor

KINDS = ("bool", "int32", "float32")  # of numbers, each of which the next one can hold


def rules_in(table):
    """A decorator that enters a function into a table as the rule of what it names."""

    def rule(*keys):
        def enter(function):
            table.update(dict.fromkeys(keys, function))
            return function

        return enter

    return rule


class Exact(np.ndarray):
    """A matrix that belongs to an operation, such as a transform, and is no weight: stored as it is."""

    def __new__(cls, matrix):
        return np.asarray(matrix, np.float32).view(cls)


def strided_slice(lowering, x, parts):
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


def zeros_like_batch(lowering, x, width):
    """Zeros (batch, width) for the batch of a tensor, whatever it holds: no number is less than itself."""
    graph, rank = lowering.graph, len(x.shape)
    corner = strided_slice(lowering, x, [slice(None), *[0] * (rank - 1)])
    corner = reshape(lowering, corner, (x.shape[0], 1))
    zero = graph.apply("LESS", [corner, corner], corner.shape, dtype="bool")
    return tile(lowering, in_dtype(lowering, zero, "float32"), [1, width])


def in_dtype(lowering, x, dtype):
    """A tensor, or a known value, in a dtype."""
    x = lowering.constant(x)
    return x if x.dtype == dtype else lowering.graph.apply("CAST", [x], x.shape, dtype=dtype)


def of_one_dtype(lowering, left, right):
    """Both as tensors; what is known has the dtype of what is computed, if that can hold it."""
    if not isinstance(left, Tensor):
        left = _known_beside(left, right.dtype)
    if not isinstance(right, Tensor):
        right = _known_beside(right, left.dtype)
    left, right = lowering.constant(left), lowering.constant(right)
    if left.dtype != right.dtype:
        wide = keras.backend.result_type(left.dtype, right.dtype)
        left, right = in_dtype(lowering, left, wide), in_dtype(lowering, right, wide)
    return left, right


def _known_beside(value, dtype):
    value = np.asarray(value)
    kind = kind_of(value.dtype.name)
    return value.astype(max(kind, dtype, key=KINDS.index) if dtype in KINDS else dtype)


def kind_of(dtype):
    """The one of `KINDS` in which numbers of a type are computed; those of half precision in float32."""
    if dtype == "bool":
        return "bool"
    return "float32" if keras.backend.is_float_dtype(dtype) else "int32"


def reshape(lowering, x, shape):
    """A tensor in a shape of the same size, of which one size may be None."""
    shape = tuple(shape)
    if shape == x.shape:
        return x
    if sum(size is None for size in shape) > 1:
        raise lowering.refusal(f"a tensor of the shape {shape}, with several sizes that are not known")
    return lowering.graph.reshape(x, shape)


def transpose(lowering, x, axes):
    """A tensor with its axes in another order."""
    axes = [axis % len(x.shape) for axis in axes]
    shape = tuple(x.shape[axis] for axis in axes)
    return lowering.graph.apply(
        "TRANSPOSE", [x, lowering.constant(np.array(axes, np.int32))], shape, dtype=x.dtype
    )


def tile(lowering, x, repeats):
    """A tensor, repeated as often as said along each axis."""
    shape = [
        size if by == 1 else None if size is None else size * by
        for size, by in zip(x.shape, repeats, strict=True)
    ]
    return lowering.graph.apply(
        "TILE", [x, lowering.constant(np.array(repeats, np.int32))], shape, dtype=x.dtype
    )


def join(lowering, tensors, axis):
    """Tensors one after another along an axis."""
    tensors = [lowering.constant(tensor) for tensor in tensors]
    shape = list(tensors[0].shape)
    sizes = [tensor.shape[axis] for tensor in tensors]
    shape[axis] = None if None in sizes else sum(sizes)
    axis %= len(shape)
    return lowering.graph.apply("CONCATENATION", tensors, shape, dtype=tensors[0].dtype, axis=axis)


def reduce(lowering, code, x, axis, keepdims):
    """What an operation such as SUM makes of the entries along one axis, several, or all (None)."""
    axes = axes_of(axis, len(x.shape))
    shape = [1 if at in axes else size for at, size in enumerate(x.shape) if keepdims or at not in axes]
    axes = lowering.constant(np.array(axes, np.int32))
    return lowering.graph.apply(code, [x, axes], shape, dtype=x.dtype, keepDims=bool(keepdims))


def along_last(lowering, x, axis, function):
    """A function along the last axis, applied along any."""
    axis %= len(x.shape)
    axes = [at for at in range(len(x.shape)) if at != axis] + [axis]
    if axis == len(x.shape) - 1:
        return function(x)
    return transpose(lowering, function(transpose(lowering, x, axes)), np.argsort(axes))


def axes_of(axis, rank):
    """The axes that an argument of Keras names, none of them negative."""
    if axis is None:
        return list(range(rank))
    return [at % rank for at in (axis if isinstance(axis, (list, tuple)) else [axis])]


def broadcast_shape(left, right):
    """The shape of what is computed of tensors of two shapes, entry by entry."""
    rank = max(len(left), len(right))
    left, right = ((1,) * (rank - len(shape)) + tuple(shape) for shape in (left, right))
    return tuple(b if a == 1 else a for a, b in zip(left, right, strict=True))


def spec(x):
    """A tensor as Keras's `compute_output_spec` takes it."""
    return keras.KerasTensor(x.shape, getattr(x.dtype, "name", x.dtype))


def spec_of(operation, x):
    """What Keras says of the output of an operation of one tensor."""
    return operation.compute_output_spec(spec(x))


def for_each(value, rank):
    """A setting of every dimension of an image, of a sequence or of a volume."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def pair(value, rank=2):
    """A setting of both dimensions of an image, of which sequences have the second one."""
    values = for_each(value, rank)
    return (1, *values) if rank == 1 else values


def padding_code(name):
    """The number of a way to pad images."""
    return {"same": 0, "valid": 1}[name]


def choose(lowering, condition, x1, x2):
    """One tensor where a condition holds, another elsewhere."""
    x1, x2 = of_one_dtype(lowering, x1, x2)
    condition = lowering.constant(condition)
    shape = broadcast_shape(condition.shape, broadcast_shape(x1.shape, x2.shape))
    return lowering.graph.apply("SELECT_V2", [condition, x1, x2], shape, dtype=x1.dtype)
