"""Arrays in few bytes, bit for bit, whatever their entries mean.

The values of trained weights are noise but for sign and exponent. So the first bytes of all entries are put
together, the second ones and so on, and zlib codes each such *plane* by how often its bytes occur: exponents
take three bits in place of eight, the others remain. Of an array with few different values, such as the steps
at which connections were grown, each entry is a byte that counts them.
"""

import dataclasses
import zlib

import numpy as np

PALETTE = 256  # different values, of which a byte tells one
SAMPLED = 4096


@dataclasses.dataclass
class Coded:
    """An array as blocks of bytes.

    Args:
        itemsize: Bytes of an entry.
        entries: How many there are.
        palette: Number of different values where entries are coded by these, else 0.
        blocks: A list of bytes: the values and what tells them, or each plane.
    """

    itemsize: int
    entries: int
    palette: int
    blocks: list

    def sizes(self):
        """How many bytes each block holds once it is expanded."""
        return block_sizes(self.itemsize, self.entries, self.palette)


def block_sizes(itemsize, entries, palette):
    """How many bytes each block of a `Coded` holds once it is expanded, a list."""
    return [palette * itemsize, entries] if palette else [entries] * itemsize


def encode(array):
    """Codes an array.

    Args:
        array: One-dimensional array of unsigned integers, little-endian.

    Returns:
        A `Coded`.

    Example:

    >>> weights = np.random.default_rng(0).normal(size=10_000).astype("<f4")
    >>> coded = encode(weights.view("<u4"))
    >>> sum(map(len, coded.blocks))
    33328
    >>> bool((decode(coded).view("<f4") == weights).all())
    True
    """
    values = _few_values(array)
    if values is None:
        planes = _planes(array)
        return Coded(array.itemsize, array.size, 0, [_shorter(plane.tobytes()) for plane in planes])
    places = np.searchsorted(values, array).astype(np.uint8)
    blocks = [_shorter(values.tobytes()), _shorter(places.tobytes())]
    return Coded(array.itemsize, array.size, values.size, blocks)


def decode(coded):
    """The array that `encode` was given.

    Raises:
        ValueError: if the blocks are not of such an array.
    """
    dtype = np.dtype(f"<u{coded.itemsize}")
    sizes = coded.sizes()
    if len(sizes) != len(coded.blocks):
        raise ValueError(f"{len(coded.blocks)} blocks for {len(sizes)}")
    blocks = [_expanded(block, size) for block, size in zip(coded.blocks, sizes, strict=True)]
    if not coded.palette:
        planes = np.frombuffer(b"".join(blocks), np.uint8).reshape(coded.itemsize, coded.entries)
        return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)
    values, places = np.frombuffer(blocks[0], dtype), np.frombuffer(blocks[1], np.uint8)
    if places.max(initial=0) >= values.size:
        raise ValueError("an entry without a value")
    return values[places]


def _few_values(array):
    """The different values of an array, if they are few and larger than a byte, else None."""
    if array.itemsize == 1 or not array.size:
        return None
    if np.unique(array[:: max(1, array.size // SAMPLED)]).size > PALETTE:  # most are told by a few
        return None
    values = np.unique(array)
    return values if values.size <= PALETTE else None


def _planes(array):
    return np.ascontiguousarray(array.view(np.uint8).reshape(array.size, array.itemsize).T)


def _shorter(plane):
    """The bytes as they are or by zlib, with or without looking for repetitions, whichever is shortest."""
    return min(plane, _compressed(plane, zlib.Z_HUFFMAN_ONLY), _compressed(plane), key=len)


def _compressed(plane, strategy=zlib.Z_DEFAULT_STRATEGY):
    compressor = zlib.compressobj(strategy=strategy)
    return compressor.compress(plane) + compressor.flush()


def _expanded(block, size):
    if len(block) == size:
        return block
    decompressor = zlib.decompressobj()
    try:
        # One more, so that what is too long is known without being expanded, and the end is read.
        plane = decompressor.decompress(block, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(plane) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"a block that is not of {size} bytes")
    return plane
