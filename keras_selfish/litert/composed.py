"""Operations of Keras that are written for LiteRT as several others of Keras.

Each is a function of the operation, which has its settings, and of its arguments.
"""

import math
import string
from collections.abc import Callable

import keras
import numpy as np
from keras import ops


def named_axes(subscripts, *ranks):
    """The letters of the axes of each tensor of an einsum, then of its outputs, with none left to `...`."""
    *of_tensors, outputs = subscripts.replace(" ", "").replace("->", ",").split(",")
    free = [letter for letter in string.ascii_letters if letter not in subscripts]
    counts = [
        rank - len(letters) + 3 if "..." in letters else 0
        for letters, rank in zip(of_tensors, ranks, strict=True)
    ]
    names = "".join(free[: max(counts)])
    named = [
        letters.replace("...", names[len(names) - count :])
        for letters, count in zip(of_tensors, counts, strict=True)
    ]
    return *named, outputs.replace("...", names)


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


def _moments(x, axis, keepdims):
    mean = ops.mean(x, axis=axis, keepdims=True)
    variance = ops.mean(ops.square(x - mean), axis=axis, keepdims=keepdims)
    return (mean if keepdims else ops.squeeze(mean, axis)), variance


def _variance(operation, x):
    return _moments(x, operation.axis, operation.keepdims)[1]


def softmax_over(x, axes):
    """A softmax over several axes together."""
    exponentials = ops.exp(x - ops.max(x, axis=axes, keepdims=True))
    return exponentials / ops.sum(exponentials, axis=axes, keepdims=True)


def _adaptive_pooling(operation, x):
    """Pools each axis into so many ranges, which overlap where its size is no multiple of their number."""
    reduce = ops.mean if "Average" in type(operation).__name__ else ops.max
    if operation.data_format == "channels_first" or None in x.shape[1:-1]:
        raise ValueError("an adaptive pooling of open sizes or with the channels first")
    sizes = np.broadcast_to(operation.output_size, len(x.shape) - 2).tolist()
    for axis, (length, size) in enumerate(zip(x.shape[1:-1], sizes, strict=True), 1):
        ranges = [(index * length // size, -(-(index + 1) * length // size)) for index in range(size)]
        before = (slice(None),) * axis
        parts = [reduce(x[(*before, slice(*limits))], axis=axis, keepdims=True) for limits in ranges]
        x = parts[0] if size == 1 else ops.concatenate(parts, axis=axis)
    return x


def _log_sum_exp(operation, x):
    largest = ops.max(x, axis=operation.axis, keepdims=True)
    total = ops.log(ops.sum(ops.exp(x - largest), axis=operation.axis, keepdims=True)) + largest
    return total if operation.keepdims else ops.max(total, axis=operation.axis)


def _normalized(operation, x):
    least = keras.config.epsilon() if operation.epsilon is None else operation.epsilon
    if operation.order != 2:
        return x / ops.maximum(_length(x, operation.order, operation.axis, True), least)
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


def _norm(operation, x):
    axes = operation.axis if isinstance(operation.axis, (list, tuple)) else [operation.axis]
    if operation.ord is not None and (axes == [None] or len(axes) > 1):
        raise ValueError(f"a norm of order {operation.ord}, other than that of vectors")
    return _length(x, 2 if operation.ord is None else operation.ord, operation.axis, operation.keepdims)


def _length(x, order, axis, keepdims):
    """The norms of vectors."""
    if order == 2:
        return ops.sqrt(ops.sum(ops.square(x), axis=axis, keepdims=keepdims))
    reduce = {1: ops.sum, np.inf: ops.max, -np.inf: ops.min}.get(order)
    if reduce is None:
        raise ValueError(f"a norm of order {order}")
    return reduce(ops.abs(x), axis=axis, keepdims=keepdims)


def _average(operation, x, weights=None):
    if weights is None:
        return ops.mean(x, axis=operation.axis)
    if operation.axis is None:
        raise ValueError("an average with weights over all entries")
    if len(weights.shape) < len(x.shape):
        shape = [1] * len(x.shape)
        shape[operation.axis] = -1
        weights = ops.reshape(weights, shape)
    total = ops.sum(ops.ones_like(x) * weights, axis=operation.axis)
    return ops.sum(x * weights, axis=operation.axis) / total


def _tensor_product(operation, left, right):
    """A product over the last axes of a tensor and the first axes of a matrix or another tensor."""
    axes = operation.axes
    if isinstance(axes, int):
        axes = range(len(left.shape) - axes, len(left.shape)), range(axes)
    axes = [[axis] if isinstance(axis, int) else list(axis) for axis in axes]
    of_left, of_right = axes
    letters = [chr(ord("a") + at) for at in range(len(left.shape) + len(right.shape))]
    left_letters, right_letters = letters[: len(left.shape)], letters[len(left.shape) :]
    for at_left, at_right in zip(of_left, of_right, strict=True):
        right_letters[at_right] = left_letters[at_left]
    summed = {left_letters[at] for at in of_left}
    outputs = [letter for letter in [*left_letters, *right_letters] if letter not in summed]
    return ops.einsum(f"{''.join(left_letters)},{''.join(right_letters)}->{''.join(outputs)}", left, right)


def _numbers_for_nan(operation, x):
    if operation.posinf is not None or operation.neginf is not None:
        raise ValueError("`nan_to_num` with numbers of one's own for infinite ones")
    return ops.clip(ops.where(ops.equal(x, x), x, float(operation.nan)), -_LARGEST, _LARGEST)


def _erf(_, x):
    """Formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions: within 1.5e-7."""
    t = 1 / (1 + 0.3275911 * ops.abs(x))
    sum_of_powers = 0.0
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        sum_of_powers = (sum_of_powers + factor) * t
    return ops.sign(x) * (1 - sum_of_powers * ops.exp(-ops.square(x)))


def _sign_of(function):
    """A function of magnitudes, as an odd one of all numbers."""
    return lambda _, x: ops.sign(x) * function(ops.abs(x))


def _log_of_sum(base):
    """The logarithm of the sum of two powers of a base, which does not overflow."""

    def log_of_sum(_, left, right):
        difference = ops.abs(left - right) * math.log(base)
        return ops.maximum(left, right) + ops.log(1 + ops.exp(-difference)) / math.log(base)

    return log_of_sum


def _quotient_or_zero(_, left, right):
    is_zero = ops.equal(right, 0)
    return ops.where(is_zero, 0.0, left / ops.where(is_zero, 1.0, right))


_LARGEST = float(np.finfo("float32").max)


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
    "DotProductAttention": _attention,
    "AdaptiveAveragePool": _adaptive_pooling,
    "AdaptiveMaxPool": _adaptive_pooling,
    "Mish": lambda _, x: x * ops.tanh(_softplus(x)),
    "Tan": lambda _, x: ops.sin(x) / ops.cos(x),
    "Erf": _erf,
    "Norm": _norm,
    "Average": _average,
    "Tensordot": _tensor_product,
    "Isnan": lambda _, x: ops.not_equal(x, x),
    "Isfinite": lambda _, x: ops.less_equal(ops.abs(x), _LARGEST),
    "Isinf": lambda _, x: ops.greater(ops.abs(x), _LARGEST),
    "Erfc": lambda _, x: 1 - _erf(_, x),
    "Log2": lambda _, x: ops.log(x) * (1 / math.log(2)),
    "Log10": lambda _, x: ops.log(x) * (1 / math.log(10)),
    "Exp2": lambda _, x: ops.exp(x * math.log(2)),
    "Logaddexp": _log_of_sum(math.e),
    "Logaddexp2": _log_of_sum(2),
    "Hypot": lambda _, left, right: ops.sqrt(ops.square(left) + ops.square(right)),
    "Sinh": lambda _, x: 0.5 * (ops.exp(x) - ops.exp(-x)),
    "Cosh": lambda _, x: 0.5 * (ops.exp(x) + ops.exp(-x)),
    "Arctan": lambda _, x: ops.arctan2(x, ops.ones_like(x)),
    "Arcsin": lambda _, x: ops.arctan2(x, ops.sqrt(1 - ops.square(x))),
    "Arccos": lambda _, x: ops.arctan2(ops.sqrt(1 - ops.square(x)), x),
    "Arcsinh": _sign_of(lambda x: ops.log(x + ops.sqrt(ops.square(x) + 1))),
    "Arccosh": lambda _, x: ops.log(x + ops.sqrt(ops.square(x) - 1)),
    "Arctanh": lambda _, x: 0.5 * ops.log((1 + x) / (1 - x)),
    "Cbrt": _sign_of(lambda x: ops.exp(ops.log(x) * (1 / 3))),
    "Trunc": _sign_of(ops.floor),
    "Fabs": lambda _, x: ops.abs(x),
    "Deg2rad": lambda _, x: x * (math.pi / 180),
    "Rad2deg": lambda _, x: x * (180 / math.pi),
    "DivideNoNan": _quotient_or_zero,
    "Ptp": lambda operation, x: (
        ops.max(x, operation.axis, operation.keepdims) - ops.min(x, operation.axis, operation.keepdims)
    ),
    "NanToNum": _numbers_for_nan,
    "FullLike": lambda operation, x, value: ops.cast(ops.zeros_like(x), operation.dtype or x.dtype) + value,
}
