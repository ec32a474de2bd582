"""Files of small images in their published forms, read within bounds: `.npz`, IDX, CIFAR's batches."""

import contextlib
import io
import math
import os
import pathlib
import struct
import tarfile
import zipfile

import numpy as np

from keras_selfish.data.bounded import CHUNK, Bounded, Inflated, fill, open_member
from keras_selfish.data.pickled import PickledArray, read_pickle

__all__ = ["DamagedFile", "damaged", "read_archive", "read_batch_file", "read_idx", "read_npz", "reading"]

CIFAR_IMAGE = (3, 32, 32)
_CIFAR_PIXELS = math.prod(CIFAR_IMAGE)
_STEPS_OF_IMAGE = 15  # of a pickle at most: its class is two, its name eight in protocol 2
_MOST_MEMBERS = 1000  # of an archive, where the published ones have 8 and 5
_BLOCK = 512  # bytes of an archive
_DIRECTORY = 1 << 18  # bytes at most of what a zip file says of its members


class DamagedFile(ValueError):
    """A file of images cannot be read; the message names it."""


def damaged(path, why):
    """The error for a file, with a reason that may hold what stands in the file."""
    why = " ".join((str(why) or type(why).__name__).split())
    why = "".join(character if character.isprintable() else "?" for character in why[:200])
    return DamagedFile(
        f"A file of images is damaged or no such file. Received: {path} ({why}); fetch it again"
    )


@contextlib.contextmanager
def reading(path):
    """Raises any error inside as damage of a file.

    Modules for zip files, headers of arrays and archives raise exceptions of a dozen kinds, not all of them
    documented, for what is damaged.
    """
    try:
        yield
    except DamagedFile:
        raise
    except Exception as error:
        raise damaged(path, error) from error


def read_npz(path, most):
    """The arrays of a file of `numpy.savez`.

    Args:
        path: The file.
        most: For each name the greatest size of an array in bytes, of unsigned bytes where the name begins
            with `x` and of integers elsewhere.

    Returns:
        List of arrays in the order of `most`.

    Raises:
        DamagedFile: If it is no such file, lacks an array, or has one that is larger or of another type.
    """
    arrays = []
    with reading(path), open(path, "rb") as file:
        bounded = Bounded(file, _DIRECTORY)
        with zipfile.ZipFile(bounded) as archive:
            for name, size in most.items():
                member = archive.getinfo(f"{name}.npy")
                bounded.left = member.compress_size + _DIRECTORY
                with reading(f"{path}, {name}"), open_member(archive, member.filename) as content:
                    arrays.append(_read_npy(content, "u" if name.startswith("x") else "iu", size))
    return arrays


def _read_npy(file, kinds, most):
    # Later versions are for headers beyond 64 kB, which NumPy reads whole before it looks at their size.
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array with a header of an unknown version")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in kinds or (kinds == "u" and dtype.itemsize != 1):
        raise ValueError(f"numbers of type {dtype}")
    array = _read_array(file, shape[::-1] if by_columns else shape, dtype, most)
    return array.T if by_columns else array


def _read_array(file, shape, dtype, most):
    """The array that the rest of a file holds, which must be neither shorter nor longer."""
    size = math.prod(shape) * dtype.itemsize
    if len(shape) > 4 or min(shape, default=0) < 1 or size > most:
        raise ValueError(
            f"an array of shape {shape} and type {dtype}, of which at most {most:,} bytes are read"
        )
    array = np.empty(shape, dtype)
    fill(file, array.reshape(-1).view(np.uint8))
    if file.read(1):
        raise ValueError(f"it goes on after an array of {size:,} bytes")
    return array


def read_idx(path, axes, most):
    """The array of bytes of an IDX file, the form in which MNIST is published.

    Args:
        path: The file; it is compressed if the name ends in `.gz`.
        axes: Number of axes of the array.
        most: Greatest size of the array in bytes.

    Raises:
        DamagedFile: If it is no such file, or one of a larger array.
    """
    with reading(path), open(path, "rb") as file:
        content = io.BufferedReader(Inflated(file)) if path.suffix == ".gz" else file
        start = content.read(4 + 4 * axes)
        if start[:4] != bytes([0, 0, 8, axes]) or len(start) < 4 + 4 * axes:
            raise ValueError(f"it does not begin as an IDX file of bytes with {axes} axes")
        return _read_array(content, struct.unpack(f">{axes}I", start[4:]), np.dtype(np.uint8), most)


def _most_of_batch(images):
    """Bytes of a pickle with so many images: in protocol 2, Python 3 writes bytes from 128 on as two.

    CIFAR's images are so dark that this makes them larger by half.
    """
    return images * _CIFAR_PIXELS * 8 // 5 + 2**16


def read_batch_file(path, key, most):
    """Images and classes of a batch of CIFAR in a file of its own.

    Args:
        path: The file.
        key: Key of the classes in the batch.
        most: Greatest number of images.

    Returns:
        Images, uint8 (images, 3, 32, 32), and their classes, integers (images,).

    Raises:
        DamagedFile: If it is no such file, or has more images.
    """
    with reading(path), open(path, "rb") as file:
        return _read_batch(file, os.fstat(file.fileno()).st_size, key, most)


def read_archive(path, key, most):
    """Images and classes of the batches in one of CIFAR's `.tar.gz` files.

    Extended headers are passed over: none of the names is long, and a file with holes would be a bomb.

    Args:
        path: The file.
        key: Key of the classes in a batch.
        most: The greatest number of images for the name of each batch.

    Returns:
        A dict from the name to images and classes as `read_batch_file` gives them.

    Raises:
        DamagedFile: If it is no such file, lacks a batch, or has a larger one.
    """
    batches = {}
    left = sum(map(_most_of_batch, most.values()))
    with reading(path), open(path, "rb") as file:
        content = io.BufferedReader(Inflated(file), CHUNK)
        for member in _members(content):
            part = pathlib.PurePosixPath(member.name).name
            left -= member.size
            if left < 0 or member.size < 0:
                raise ValueError(f"{part}: a part that is larger than all of such an archive")
            padding = -member.size % _BLOCK
            if part in most and member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                with reading(f"{path}, {part}"):
                    batches[part] = _read_batch(content, member.size, key, most[part])
            else:
                padding += member.size
            _skip(content, padding)
        while content.read(CHUNK):  # zeros, after which the checksum is compared
            pass
    missing = [part for part in most if part not in batches]
    if missing:
        raise damaged(path, f"no {', '.join(missing)} in it")
    return batches


def _members(file):
    """Yields the headers of an archive; before each, the file must be at the position of the next one."""
    for _ in range(_MOST_MEMBERS):
        header = file.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        yield tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    raise ValueError(f"an archive of more than {_MOST_MEMBERS:,} files")


def _skip(file, count):
    while count:
        skipped = len(file.read(min(count, CHUNK)))
        if not skipped:
            raise EOFError("the archive ends early")
        count -= skipped


def _read_batch(file, size, key, most):
    if size > _most_of_batch(most):
        raise ValueError(f"{size:,} bytes, of which at most {_most_of_batch(most):,} are read")
    batch = read_pickle(file, size, most_steps=_STEPS_OF_IMAGE * most + 1000)
    images = _numbers(batch[b"data"])
    if images.dtype != np.uint8:
        raise ValueError(f"it holds images of type {images.dtype}")
    images = images.reshape(-1, *CIFAR_IMAGE)
    labels = _numbers(batch[key])
    if not 0 < len(images) <= most or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{len(images)} images, of which at most {most:,} are read, and {labels.size} classes"
        )
    return images, labels


def _numbers(value):
    """An array from one in a pickle, or from a flat list: a nested one may be endless."""
    if isinstance(value, PickledArray):
        return value.numbers()
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise ValueError("it holds no list of integers")
    return np.array(value, np.int64)
