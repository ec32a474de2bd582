"""Widths that the matrix units of a GPU take at full speed.

Their products go by granules: a width that is a multiple of none costs two to three times as much. On one
NVIDIA H200 a training step of a language model of 2x1500 units takes 5.45 ms in bfloat16 and 7.26 ms in
float32; with 1504 units 3.09 ms; with 1536 units, a multiple of 64, 2.79 ms and 4.09 ms. So units and
features are padded with zeros, once per call and outside of the time loop. What is added stays zero and is
cut off again: the numbers are the same. `layers/products.py` does it for large matrices elsewhere.
"""

import math

from keras import ops

from keras_selfish.recurrence.cells import split_last

WIDE = 64
NARROW = 8  # where 64 would add more than it gains


def padded_width(width, step=1):
    """The next width that goes by granules, and is a multiple of a step."""
    granule = math.lcm(WIDE, step)
    if width + (-width) % granule > 1.1 * width:
        granule = math.lcm(NARROW, step)
    return width + (-width) % granule


def pad_rows(matrix, rows):
    """Pads a matrix with zeros to a number of rows."""
    added = rows - matrix.shape[0]
    return ops.pad(matrix, [[0, added], [0, 0]]) if added else matrix


def pad_last(tensor, width, value=0.0):
    """Pads the last axis to a width; None stays None."""
    if tensor is None or tensor.shape[-1] == width:
        return tensor
    return ops.pad(
        tensor, [[0, 0]] * (len(tensor.shape) - 1) + [[0, width - tensor.shape[-1]]], "constant", value
    )


def pad_gates(tensor, widths, padded, values=None):
    """Pads each gate, of those that the last axis concatenates, to a width; None stays None."""
    if tensor is None or widths == padded:
        return tensor
    gates = zip(split_last(tensor, widths), padded, values or [0.0] * len(widths), strict=True)
    return ops.concatenate([pad_last(*gate) for gate in gates], axis=-1)


def pad_units(cell, states, kernel, kernels, bias, biases, dropout):
    """Pads the units of all that `driver.run` takes but the sequences; returns it in the same order."""
    units = kernels[0].shape[0]
    width = padded_width(units, cell.unit_step)
    old, new = cell.input_widths(units), cell.input_widths(width)
    products = list(zip(cell.widths(units), cell.widths(width), strict=True))
    if bias is None and any(cell.padding_values()):
        bias = ops.zeros((sum(old),), kernel.dtype)
    kernels = [pad_gates(each, *widths) for each, widths in zip(kernels, products, strict=True)]
    return (
        [pad_last(state, width) for state in states],
        pad_gates(kernel, old, new),
        [pad_rows(each, width) for each in kernels],
        pad_gates(bias, old, new, cell.padding_values()),
        [list(map(pad_last, of_gates, new)) for of_gates, (_, new) in zip(biases, products, strict=True)],
        [pad_last(each, width) for each in dropout]
        if isinstance(dropout, list)
        else pad_last(dropout, width),
    )
