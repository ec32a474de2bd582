"""Operations of Keras that are written for LiteRT as several others of Keras.

Each is a function of the operation, which has its settings, and of its arguments.
"""

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops


def einsum_by_product(of_left, of_right, outputs, left, right):
    """An einsum as a product of two matrices for each entry of the axes that all three have."""
    in_all = [letter for letter in outputs if letter in of_left and letter in of_right]
    rows = [letter for letter in of_left if letter not in of_right]
    columns = [letter for letter in of_right if letter not in of_left]
    summed = [letter for letter in of_left if letter in of_right and letter not in outputs]
    sizes = dict(zip(of_left, left.shape, strict=True)) | dict(zip(of_right, right.shape, strict=True))

    def matrices(tensor, letters, first, second):
        tensor = ops.transpose(tensor, [letters.index(letter) for letter in [*in_all, *first, *second]])
        shape = [sizes[letter] for letter in in_all] + [_merged(first, sizes), _merged(second, sizes)]
        return ops.reshape(tensor, [-1 if size is None else size for size in shape])

    product = ops.matmul(matrices(left, of_left, rows, summed), matrices(right, of_right, summed, columns))
    apart = [*in_all, *rows, *columns]
    product = ops.reshape(product, [-1 if sizes[letter] is None else sizes[letter] for letter in apart])
    return ops.transpose(product, [apart.index(letter) for letter in outputs])


def _merged(letters, sizes):
    """The size of several axes as one; None if that of one of them is not known."""
    sizes = [sizes[letter] for letter in letters]
    return None if None in sizes else math.prod(sizes)


def _softplus(x):
    """max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    return ops.relu(x) + ops.log(1 + ops.exp(-ops.abs(x)))


def scaled_elu(x, below, width=1.0):
    """The input over 0, and `below * (exp(input / width) - 1)` under it."""
    negative = -ops.relu(-x)
    return ops.relu(x) + below * ops.elu(negative if width == 1.0 else negative / width)


def _one_hot(operation, x):
    axis = operation.axis % (len(x.shape) + 1)
    shape = [1] * len(x.shape)
    shape.insert(axis, operation.num_classes)
    is_class = ops.equal(
        ops.expand_dims(x, axis), np.arange(operation.num_classes, dtype="int32").reshape(shape)
    )
    return ops.cast(is_class, operation.dtype or "float32")


def _moments(x, axis, keepdims):
    mean = ops.mean(x, axis=axis, keepdims=True)
    variance = ops.mean(ops.square(x - mean), axis=axis, keepdims=keepdims)
    return (mean if keepdims else ops.squeeze(mean, axis)), variance


def _variance(operation, x):
    return _moments(x, operation.axis, operation.keepdims)[1]


def _log_sum_exp(operation, x):
    largest = ops.max(x, axis=operation.axis, keepdims=True)
    total = ops.log(ops.sum(ops.exp(x - largest), axis=operation.axis, keepdims=True)) + largest
    return total if operation.keepdims else ops.max(total, axis=operation.axis)


def _normalized(operation, x):
    if operation.order != 2:
        raise ValueError(f"a normalization of order {operation.order}")
    least = keras.config.epsilon() if operation.epsilon is None else operation.epsilon
    factor = ops.rsqrt(ops.sum(ops.square(x), axis=operation.axis, keepdims=True))
    return x * ops.minimum(factor, 1.0 / least)


def _gated(operation, x):
    value, gate = ops.split(x, 2, axis=operation.axis)
    return value * ops.sigmoid(gate)


def _attention(operation, query, key, value, bias=None, mask=None, scale=None):
    """Attention of heads (batch, time, heads, width), of which several may share a key and a value."""
    if operation.attn_logits_soft_cap is not None:
        raise ValueError("attention with a soft cap")
    group = query.shape[2] // key.shape[2]
    if group > 1:
        key, value = (ops.repeat(tensor, group, axis=2) for tensor in (key, value))
    query, value = (ops.transpose(tensor, (0, 2, 1, 3)) for tensor in (query, value))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 3, 1)))
    scores *= query.shape[-1] ** -0.5 if scale is None else scale
    if bias is not None:
        scores += bias
    masks = [] if mask is None else [mask]
    if operation.is_causal:
        masks.append(np.tri(*scores.shape[-2:], dtype=bool)[np.newaxis, np.newaxis])
    for one in masks:
        scores = ops.where(one, scores, -1e30)
    return ops.transpose(ops.matmul(ops.softmax(scores), value), (0, 2, 1, 3))


COMPOSED: dict[str, Callable] = {
    "Silu": lambda _, x: x * ops.sigmoid(x),
    "Softplus": lambda _, x: _softplus(x),
    "LogSigmoid": lambda _, x: -_softplus(-x),
    "Logsumexp": _log_sum_exp,
    "Softsign": lambda _, x: x / (ops.abs(x) + 1),
    "HardSigmoid": lambda _, x: ops.relu6(x + 3) * (1 / 6),
    "Celu": lambda operation, x: scaled_elu(x, operation.alpha, operation.alpha),
    "Selu": lambda _, x: 1.0507009873554805 * scaled_elu(x, 1.6732632423543772),
    "Glu": _gated,
    "HardShrink": lambda operation, x: ops.where(ops.abs(x) > operation.threshold, x, 0.0),
    "SoftShrink": lambda operation, x: ops.relu(x - operation.threshold) - ops.relu(-x - operation.threshold),
    "TanhShrink": lambda _, x: x - ops.tanh(x),
    "Squareplus": lambda operation, x: 0.5 * (x + ops.sqrt(ops.square(x) + float(operation.b))),
    "SparsePlus": lambda _, x: ops.where(x < 1, 0.25 * ops.square(ops.relu(x + 1)), x),
    "SparseSigmoid": lambda _, x: ops.clip(0.5 * (x + 1), 0.0, 1.0),
    "Threshold": lambda operation, x: ops.where(x > operation.threshold, x, float(operation.default_value)),
    "Reciprocal": lambda _, x: 1 / x,
    "Expm1": lambda _, x: ops.exp(x) - 1,
    "Log1p": lambda _, x: ops.log(1 + x),
    "LogicalXor": lambda _, left, right: ops.not_equal(left, right),
    "Var": _variance,
    "Std": lambda operation, x: ops.sqrt(_variance(operation, x)),
    "Moments": lambda operation, x: _moments(x, operation.axes, operation.keepdims),
    "Normalize": _normalized,
    "OneHot": _one_hot,
    "DotProductAttention": _attention,
}
