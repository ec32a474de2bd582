"""Where the arrays of a file lie, in archives of NumPy and models of Keras, which store them uncompressed."""

import io
import math
import struct
import typing
import zipfile
import zlib

import numpy as np

SMALLEST = 1024  # bytes; to list a smaller array takes more than it spares
LONGEST = 1 << 25  # entries; a longer array is taken as several
ITEM_SIZES = (1, 2, 4, 8)
# What zipfile, NumPy and h5py raise, by where the damage is.
DAMAGES = (
    *(OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)

_LOCAL_HEADER = struct.Struct("<26xHH")
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Span(typing.NamedTuple):
    """An array of a file.

    Args:
        start: Its first byte.
        itemsize: Bytes of an entry: 1, 2, 4 or 8.
        entries: How many there are.
    """

    start: int
    itemsize: int
    entries: int

    @property
    def end(self):
        return self.start + self.itemsize * self.entries


def spans(path):
    """The arrays of a file, in its order.

    Args:
        path: `pathlib.Path` of a file of any kind.

    Returns:
        A list of `Span` that do not overlap; an empty one for a file without arrays, or whose arrays cannot
        be found.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            found = [span for member in archive.infolist() for span in _of_member(file, archive, member)]
    # A file that is none of ours, or is damaged, is carried as the bytes that it is.
    except DAMAGES:
        return []
    return [short for span in _apart(sorted(found), path.stat().st_size) for short in _short(span)]


def _of_member(file, archive, member):
    if member.compress_type != zipfile.ZIP_STORED:
        return []
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    start = member.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))
    if member.filename.endswith(".npy"):
        return _of_npy(archive, member, start)
    if member.filename.endswith(".h5"):
        return _of_hdf5(archive.read(member), start)
    return []


def _of_npy(archive, member, start):
    with archive.open(member) as stored:
        version = np.lib.format.read_magic(stored)
        if version not in _NPY_HEADERS:
            return []
        shape, _, dtype = _NPY_HEADERS[version](stored)
        start += stored.tell()
    return [_span(start, dtype, shape)]


def _of_hdf5(content, start):
    import h5py  # of Keras

    found = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
            found.append(_span(start + item.id.get_offset(), item.dtype, item.shape))

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(visit)
    return found


def _span(start, dtype, shape):
    return Span(start, dtype.itemsize, math.prod(shape))


def _short(span):
    """The same span, in pieces if it is too long."""
    for first in range(0, span.entries, LONGEST):
        yield Span(span.start + first * span.itemsize, span.itemsize, min(LONGEST, span.entries - first))


def _apart(found, size):
    """The spans that are worth to be listed, within the file and behind each other."""
    kept, end = [], 0
    for span in found:
        is_worth = span.itemsize in ITEM_SIZES and span.end - span.start >= SMALLEST
        if is_worth and end <= span.start and span.end <= size:
            kept.append(span)
            end = span.end
    return kept
