"""Small images with classes: MNIST, CIFAR-10, CIFAR-100, and the scanned digits of scikit-learn."""

import dataclasses
import gzip
import io
import math
import os
import pathlib
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np

from keras_selfish.data.download import cache_folder, download

__all__ = ["IMAGE_DATASETS", "ImageDataset", "load_images"]

# Number of classes and address with the SHA-256 of the file; the digits come with scikit-learn.
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
IMAGE_DATASETS = {
    "mnist": (
        10,
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    ),
    "cifar10": (
        10,
        f"{_CIFAR}cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar100": (
        100,
        f"{_CIFAR}cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
    "digits": (10, None, None),
}
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Bytes that one array of a file may have: twice those of the largest data set, 50,000 of 32 × 32 × 3.
_LARGEST = 2 * 50_000 * 32 * 32 * 3
_BATCHES = {
    "cifar10": ([f"data_batch_{index}" for index in range(1, 6)], ["test_batch"], b"labels"),
    "cifar100": (["train"], ["test"], b"fine_labels"),
}


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """Images and their classes, for training and for testing.

    Args:
        name: Name of the data set.
        x_train: Pixels, uint8 (images, height, width, channels).
        y_train: Classes, int32 (images,).
        x_test: As `x_train`.
        y_test: As `y_train`.
        classes: Number of classes.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int


def load_images(name, data_dir=None):
    """Loads a data set of small images.

    Args:
        name: `"mnist"`, `"cifar10"`, `"cifar100"`, or `"digits"`: 1,797 scans of 8 × 8 pixels that
            scikit-learn carries, every fifth of which is for testing.
        data_dir: Folder with the files: an `.npz` file of the arrays x_train, y_train, x_test and y_test,
            MNIST's four IDX files (gzipped or not), or CIFAR's Python batches (in their folder or the
            `.tar.gz`). An `.npz` file itself will do. None (default) downloads what is not there to
            `datasets/keras_selfish` in Keras's home (`KERAS_HOME`, else `~/.keras`).

    Returns:
        An `ImageDataset`.

    Raises:
        ValueError: for an unknown name, or files that are missing, damaged or not of this data set.
        DownloadError: if a download fails.
        ModuleNotFoundError: for `"digits"` without scikit-learn.
    """
    if name not in IMAGE_DATASETS:
        raise ValueError(f"`name` must be one of {', '.join(IMAGE_DATASETS)}. Received: name={name!r}")
    classes, url, sha256 = IMAGE_DATASETS[name]
    if name == "digits":
        return _digits()
    if data_dir is None:
        path = download(url, cache_folder() / name / url.rpartition("/")[2], sha256)
    else:
        path = pathlib.Path(data_dir)
    arrays, source = _read(name, path)
    return _checked(name, arrays, classes, source)


def _digits():
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The digits come with scikit-learn, which is not installed: pip install 'keras_selfish[images]'"
        ) from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    test = np.arange(len(images)) % 5 == 4
    arrays = (images[~test], digits.target[~test], images[test], digits.target[test])
    return _checked("digits", arrays, 10, "scikit-learn")


def _read(name, path):
    """The four arrays, and the file or folder that they come from."""
    if path.is_file():
        return (_read_npz(path) if path.suffix == ".npz" else _read_archive(name, path)), path
    if not path.is_dir():
        raise ValueError(f"`data_dir` must be a folder or an .npz file. Received: data_dir={str(path)!r}")
    files = {file.name: file for file in path.rglob("*") if file.is_file()}
    if f"{name}.npz" in files:
        return _read_npz(files[f"{name}.npz"]), files[f"{name}.npz"]
    if name == "mnist":
        found = [files.get(part) or files.get(f"{part}.gz") for part in _IDX]
        if all(found):
            x_train, y_train, x_test, y_test = map(_read_idx, found)
            return (x_train, y_train, x_test, y_test), path
        missing = ", ".join(part for part, file in zip(_IDX, found, strict=True) if file is None)
    else:
        train, test, labels = _BATCHES[name]
        if all(part in files for part in (*train, *test)):
            contents = {part: files[part].read_bytes() for part in (*train, *test)}
            return _read_batches(contents, train, test, labels, path), path
        archive = IMAGE_DATASETS[name][1].rpartition("/")[2]
        if archive in files:
            return _read_archive(name, files[archive]), files[archive]
        missing = ", ".join(part for part in (*train, *test) if part not in files)
    raise ValueError(
        f"`data_dir` must hold {name}.npz or the published files. Received: data_dir={str(path)!r}, which "
        f"lacks {missing}"
    )


def _damaged(path, why):
    return ValueError(
        f"A file of images is damaged or no such file. Received: {path} ({why}); fetch it again"
    )


def _read_npz(path):
    try:
        with zipfile.ZipFile(path) as archive:
            for array in _ARRAYS:
                _check_size(path, archive.getinfo(f"{array}.npy").file_size)
        with np.load(path) as stored:
            return tuple(stored[array] for array in _ARRAYS)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def _check_size(path, size):
    """Refuses a part of a file that would take more memory than any data set has."""
    if size > _LARGEST:
        raise _damaged(path, f"a part of {size:,} bytes, of which at most {_LARGEST:,} are read")


def _read_idx(path):
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(16)
            axes = start[3] if len(start) >= 4 else 0
            if start[:3] != b"\0\0\x08" or not 1 <= axes <= 3 or len(start) < 4 + 4 * axes:
                raise _damaged(path, "it does not begin as an IDX file of bytes")
            shape = struct.unpack(f">{axes}I", start[4 : 4 + 4 * axes])
            size = math.prod(shape)
            _check_size(path, size)
            # A byte more than there should be tells a file that is too long.
            content = start[4 + 4 * axes :] + file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    if len(content) != size:
        raise _damaged(path, f"{len(content):,} bytes instead of {size:,}, or more")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_archive(name, path):
    if name not in _BATCHES:
        raise _damaged(path, f"no file of {name}")
    train, test, labels = _BATCHES[name]
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                part = os.path.basename(member.name)
                if member.isfile() and part in (*train, *test):
                    _check_size(f"{path}, {part}", member.size)
                    if member.issparse():
                        raise _damaged(f"{path}, {part}", "it leaves out parts of itself")
                    contents[part] = archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    missing = [part for part in (*train, *test) if part not in contents]
    if missing:
        raise _damaged(path, f"no {', '.join(missing)} in it")
    return _read_batches(contents, train, test, labels, path)


class _ArraysOnly(pickle._Unpickler):
    """Unpickles dicts and lists of numbers, and arrays of bytes or integers as `_StoredArray`.

    NumPy's own classes are not handed to the pickle: their `__setstate__` takes bytes of the file for
    pointers. The unpickler in Python keeps its memo in a dict, where the one in C reserves as much memory as
    a file says.
    """

    def __init__(self, content):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._left = len(content)

    def find_class(self, module, name):
        known = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *arguments: _StoredArray(),
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): _StoredType,
            ("_codecs", "encode"): self._latin,
        }
        place = (module.replace("_core", "core"), name)
        if place not in known:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return _Callable(known[place])

    def _latin(self, text, encoding):
        """What Python 3 writes for bytes in old protocols; in all no more than the file has."""
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it encodes text in an unknown way")
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("it is larger than its file")
        return text.encode("latin1")


class _Callable:
    """A function that a pickle may call, and do nothing else with."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        if self._function is None:
            raise pickle.UnpicklingError("it makes an array in an unknown way")
        return self._function(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes what makes arrays")


class _StoredType:
    """The type of an array in a pickle, as it is written there."""

    __slots__ = ("name", "order")

    def __init__(self, name, *arguments):
        self.name, self.order = _text(name), "|"

    def __setstate__(self, state):
        self.order = _text(state[1])


class _StoredArray:
    """An array in a pickle: shape, type and bytes."""

    __slots__ = ("by_columns", "content", "shape", "type")

    def __setstate__(self, state):
        _, self.shape, self.type, self.by_columns, self.content = state

    def numbers(self):
        """The array; raises `ValueError` unless it is one of bytes or integers that fits its shape."""
        stored = self.type
        known = isinstance(stored, _StoredType) and stored.name in ("u1", "i4", "i8")
        if not known or stored.order not in ("|", "<") or self.by_columns:
            raise ValueError("it holds an array that is not of bytes or integers, row by row")
        return np.frombuffer(self.content, f"<{stored.name}").reshape(self.shape)


def _text(value):
    return value.decode("latin1") if isinstance(value, bytes) else value


def _numbers(value):
    """An array from one in a pickle, or from a flat list: a nested one may be endless."""
    if isinstance(value, _StoredArray):
        return value.numbers()
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise ValueError("it holds no list of integers")
    return np.array(value)


def _read_batches(contents, train, test, labels, path):
    parts = []
    for name in (*train, *test):
        try:
            batch = _ArraysOnly(contents[name]).load()
            images = _numbers(batch[b"data"])
            if images.dtype != np.uint8:
                raise ValueError(f"it holds images of type {images.dtype}")
            parts.append((images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), _numbers(batch[labels])))
        except Exception as error:  # what a damaged pickle raises is not told
            raise _damaged(f"{path}, {name}", error) from error
    x, y = zip(*parts, strict=True)
    count = len(train)
    return tuple(np.concatenate(part) for part in (x[:count], y[:count], x[count:], y[count:]))


def _checked(name, arrays, classes, source):
    x_train, y_train, x_test, y_test = arrays
    result = []
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        images = images[..., None] if images.ndim == 3 else images
        labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
        channels = 3 if name.startswith("cifar") else 1
        if images.ndim != 4 or images.shape[-1] != channels or images.dtype != np.uint8:
            raise _damaged(source, f"images of shape {images.shape} and type {images.dtype}")
        if labels.shape != images.shape[:1] or not labels.size:
            raise _damaged(source, f"{labels.size} classes for {len(images)} images")
        if labels.min() < 0 or labels.max() >= classes:
            raise _damaged(source, f"classes from {labels.min()} to {labels.max()}")
        result += [images, labels.astype(np.int32)]
    if result[0].shape[1:] != result[2].shape[1:]:
        raise _damaged(source, "images of two sizes")
    return ImageDataset(name, *result, classes)
