"""Sparse matrices as a bit mask and what is not zero."""

import dataclasses

import numpy as np

# The forms of the values, smaller ones being rounded.
FORMS = ("float32", "bfloat16", "int8")
# What packing must spare: bytes, to make up for the operations that unpack, and a share, for their time.
LEAST_GAIN = 24576
LEAST_SHARE = 0.1


@dataclasses.dataclass
class PackedMatrix:
    """A sparse matrix of float32 as a bit mask and values.

    Args:
        shape: (rows, columns).
        block_shape: (rows, columns) of the blocks that are kept or zero as a whole; it divides `shape`.
        form: What `values` are: `"float32"`, exactly; `"bfloat16"`, rounded to nearest; or `"int8"`, to be
            multiplied by `scales`.
        mask: A bit for each block, True if it is kept, row by row; uint8, the first bit being the highest.
        values: What the kept blocks hold, in the order of the matrix: row by row, whatever the blocks.
            float32, uint16 (the upper half of a float32) or int8.
        scales: float32 that broadcast against the matrix, (rows, 1) or (1, columns); None if not `"int8"`.
    """

    shape: tuple
    block_shape: tuple
    form: str
    mask: np.ndarray
    values: np.ndarray
    scales: np.ndarray | None = None

    def to_bytes(self):
        """The values, scales and mask one after another, numbers in little-endian order."""
        parts = [self.values, *([] if self.scales is None else [self.scales]), self.mask]
        return b"".join(part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts)


def pack(matrix, form="float32"):
    """Packs a sparse matrix.

    Zeros that come in blocks, whose sides are powers of two, take a bit for each block. `"float32"` gives
    back exactly what there was, but for the sign of zeros.

    Args:
        matrix: Array (rows, columns), float32.
        form: One of `FORMS`. `"int8"` has a scale for each row or one for each column, whichever errs less:
            the units of a kernel are its columns, the tokens of an embedding its rows.

    Returns:
        A `PackedMatrix`.

    Raises:
        ValueError: if a value is not finite and `form` is `"int8"`.

    Example:

    >>> packed = pack(np.array([[0, 0, 1, 2], [0, 0, 3, 4]], "float32"))
    >>> packed.block_shape, packed.mask, packed.values
    ((2, 2), array([64], dtype=uint8), array([1., 2., 3., 4.], dtype=float32))
    """
    is_kept = matrix != 0
    block_shape, blocks = _blocks(is_kept)
    is_kept = np.repeat(np.repeat(blocks, block_shape[0], 0), block_shape[1], 1)
    values, scales = matrix[is_kept], None
    if form == "bfloat16":
        values = _bfloat16(values)
    elif form == "int8":
        values, scales = _int8(matrix, is_kept)
    return PackedMatrix(matrix.shape, block_shape, form, np.packbits(blocks), values, scales)


def is_worth_packing(matrix):
    """Whether a float32 matrix is so sparse that even its exact packed form is notably smaller."""
    packed = 4 * np.count_nonzero(matrix) + matrix.size / 8
    return matrix.nbytes - packed >= max(LEAST_GAIN, LEAST_SHARE * matrix.nbytes)


def _blocks(is_kept):
    """The block shape that makes mask and values smallest, and which blocks are kept."""
    block_shape = [1, 1]
    while True:
        size = _size(is_kept, block_shape)
        merged = [
            (_size(twice, block_shape, axis), axis, twice)
            for axis in (0, 1)
            if (twice := _merged(is_kept, axis)) is not None
        ]
        smallest = min(merged, key=lambda one: one[:2], default=None)
        if smallest is None or smallest[0] >= size:
            return tuple(block_shape), is_kept
        _, axis, is_kept = smallest
        block_shape[axis] *= 2


def _merged(blocks, axis):
    """Blocks of twice the size along an axis, kept if one of the two is; None if they do not pair up."""
    if blocks.shape[axis] % 2:
        return None
    first, second = (blocks[::2], blocks[1::2]) if axis == 0 else (blocks[:, ::2], blocks[:, 1::2])
    return first | second


def _size(blocks, block_shape, doubled_axis=None):
    """Bits of the mask and of values of float32."""
    weights = block_shape[0] * block_shape[1] * (1 if doubled_axis is None else 2)
    return blocks.size + 32 * weights * np.count_nonzero(blocks)


def _bfloat16(values):
    """The upper halves of float32 values, rounded to nearest, ties to even."""
    bits = values.view("uint32")
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype("uint16")  # a NaN stays one


def _int8(matrix, is_kept):
    if not np.isfinite(matrix).all():
        raise ValueError(
            '`packed` must be "float32" or "bfloat16" for weights that are not finite. '
            'Received: packed="int8" and a weight with infinities or NaNs'
        )
    candidates = []
    for axis in (0, 1):
        largest = np.abs(matrix).max(axis, keepdims=True)
        scales = np.where(largest > 0, largest / 127, 1).astype("float32")
        rounded = np.clip(np.rint(matrix / scales), -127, 127)
        candidates.append((np.square(rounded * scales - matrix).sum(dtype="float64"), axis, rounded, scales))
    _, _, rounded, scales = min(candidates, key=lambda one: one[:2])
    return rounded[is_kept].astype("int8"), scales
