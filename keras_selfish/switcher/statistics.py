"""Features that a switcher reads: standardised weights, and the composition of rows and columns.

All is relative to the root mean square of the matrix, so that a switcher means the same in layers of any
scale and size.
"""

import dataclasses

from keras import ops

# Below this fraction of the matrix's scale a weight is as good as zero; it bounds the logarithms.
FLOOR = 1e-3

SUMMARY_FEATURES = 3


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of a matrix (inputs, units).

    Args:
        scale: Root mean square of all weights, a scalar; never zero.
        rows: Summary (inputs, 3) of each input's weights: logarithms of their mean magnitude, root mean
            square and largest magnitude, relative to `scale`.
        columns: The same of each unit's weights, (units, 3).
        row_scales: Root mean square of each input's weights relative to `scale`, (inputs,).
        column_scales: The same of each unit's weights, (units,).
    """

    scale: object
    rows: object
    columns: object
    row_scales: object
    column_scales: object


def statistics(weights):
    """Computes the `Statistics` of a matrix.

    Args:
        weights: Float tensor (inputs, units).
    """
    magnitudes = ops.abs(weights)
    squares = ops.square(weights)
    scale = ops.sqrt(ops.mean(squares)) + 1e-12
    summaries, scales = [], []
    for axis in (1, 0):
        relative = ops.sqrt(ops.mean(squares, axis)) / scale
        figures = (ops.mean(magnitudes, axis) / scale, relative, ops.max(magnitudes, axis) / scale)
        summaries.append(ops.stack([ops.log(figure + FLOOR) for figure in figures], -1))
        scales.append(relative + FLOOR)
    return Statistics(scale, *summaries, *scales)


def own_features(weights, scale):
    """A weight by itself: value, magnitude and logarithm of the magnitude, relative to the matrix's scale.

    Args:
        weights: Float tensor (rows, columns), a part of the matrix.
        scale: Scalar.

    Returns:
        A list of tensors (rows, columns).
    """
    values = weights / scale
    magnitudes = ops.abs(values)
    return [values, magnitudes, ops.log(magnitudes + FLOOR)]


def standing_features(weights, scale, row_scales, column_scales):
    """The size of a weight relative to its row and its column.

    Args:
        weights: Float tensor (rows, columns), a part of the matrix.
        scale: Scalar.
        row_scales: Tensor (rows,), as in `Statistics`.
        column_scales: Tensor (columns,).

    Returns:
        A list of tensors (rows, columns): multiples of the row's and the column's root mean square.
    """
    magnitudes = ops.abs(weights) / scale
    return [magnitudes / row_scales[:, None], magnitudes / column_scales[None, :]]
