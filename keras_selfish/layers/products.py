"""Products with large matrices, whose widths are padded to those that a GPU takes at full speed.

See `recurrence/padding.py`. The features, over which a product sums, go by 64: the decoder of 1500 units has
1536. The units, of which there is a pass over all outputs to cut off what was added, go by 8.
"""

from keras import ops

from keras_selfish import recurrence
from keras_selfish.recurrence.padding import NARROW, pad_last, pad_rows, padded_width

LARGE = 1 << 20  # entries, from which on a copy of the matrix is little beside the product


def is_padded(matrix, axis=0):
    """Whether the factors of a product with a matrix, with the features along `axis`, are to be padded."""
    features, units = matrix.shape[axis], matrix.shape[1 - axis]
    by_granules = padded_width(features) == features and units % NARROW == 0
    return recurrence.on_gpu() and features * units >= LARGE and not by_granules


def product(inputs, kernel):
    """`ops.matmul(inputs, kernel)`; the factors are padded where that is faster."""
    if not is_padded(kernel):
        return ops.matmul(inputs, kernel)
    return cut(ops.matmul(*pad_factors(inputs, kernel)), kernel.shape[1])


def pad_factors(inputs, matrix, axis=0):
    """Pads the factors of a product with zeros.

    Args:
        inputs: `(..., features)`.
        matrix: A matrix with the features along `axis`, and the units along the other axis.
        axis: 0 (default) or 1.

    Returns:
        The two, padded; `cut` takes from the outputs what the units have more.
    """
    width = padded_width(matrix.shape[axis])
    added = [[0, width - matrix.shape[axis]], [0, -matrix.shape[1 - axis] % NARROW]]
    return pad_last(inputs, width), ops.pad(matrix, added if axis == 0 else added[::-1])


def pad_features(inputs, kernel):
    """As `pad_factors`, but leaves the units as they are; both as they are where nothing is padded."""
    if not is_padded(kernel):
        return inputs, kernel
    width = padded_width(kernel.shape[0])
    return pad_last(inputs, width), pad_rows(kernel, width)


def cut(outputs, units):
    """The first units of the last axis."""
    return outputs if outputs.shape[-1] == units else outputs[..., :units]
