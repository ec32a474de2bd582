"""Functions applied to a matrix part by part, so that intermediate results stay small."""

import math

import keras
from keras import ops

from keras_selfish.backend import of_backend


@of_backend
def map_parts(function, starts, parameters):
    """Calls function(start, parameters) for each start and stacks the results.

    The gradient computes each part again instead of keeping what it took.

    Args:
        function: Maps (start, parameters) to a tuple of tensors.
        starts: Integer tensor (parts,).
        parameters: List of float tensors that gradients flow to.

    Returns:
        A tuple of tensors (parts, ...).
    """
    recomputed = keras.remat(function)
    return ops.map(lambda start: recomputed(start, parameters), starts)


def map_tiles(function, shape, parameters, tile_size):
    """Computes a matrix and sums part by part; the gradient computes each part again instead of keeping it.

    The matrix is cut across its longer axis into parts of at most `tile_size` entries (one row or column at
    least).

    Args:
        function: Maps (rows, columns, parameters) to a tuple of tensors; `rows` and `columns` are pairs
            (start, length) of which a start may be a tensor. The tensors are of the part's shape, or scalars,
            which are summed over all parts.
        shape: (rows, columns) of the whole.
        parameters: List of float tensors that gradients flow to.
        tile_size: Largest number of entries computed at a time.

    Returns:
        A tuple: the matrices, whole, and the sums.
    """
    axis = 0 if shape[0] >= shape[1] else 1
    length, across = shape[axis], shape[1 - axis]
    step = math.ceil(length / math.ceil(length / max(1, tile_size // across)))

    def parts(size, starts):
        def part(start, parameters):
            along, whole = (start, size), (0, across)
            return function(*((along, whole) if axis == 0 else (whole, along)), parameters)

        results = map_parts(part, ops.convert_to_tensor(starts, "int32"), parameters)
        return [_joined(result, axis) for result in results]

    full, rest = divmod(length, step)
    results = parts(step, [index * step for index in range(full)])
    if rest:
        last = parts(rest, [full * step])
        results = [
            ops.concatenate([one, other], axis) if len(one.shape) else one + other
            for one, other in zip(results, last, strict=True)
        ]
    return tuple(results)


def _joined(results, axis):
    """Joins the results of all parts, which are stacked along a first axis."""
    if len(results.shape) == 1:
        return ops.sum(results)
    if results.shape[0] == 1:
        return results[0]
    if axis == 1:
        results = ops.transpose(results, (1, 0, 2))
        return ops.reshape(results, (results.shape[0], -1))
    return ops.reshape(results, (-1, results.shape[2]))


def part_of(array, *spans):
    """The part of an array within spans (start, length) of its axes; the starts may be tensors."""
    starts = ops.stack([ops.cast(start, "int32") for start, _ in spans])
    return ops.slice(array, starts, [length for _, length in spans])
