"""Small images with classes: MNIST, CIFAR-10, CIFAR-100, and the scanned digits of scikit-learn."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import numpy.typing as npt

from keras_selfish import checks
from keras_selfish.data.download import cache_folder, download
from keras_selfish.data.image_files import (
    damaged,
    read_archive,
    read_batch_file,
    read_idx,
    read_npz,
)
from keras_selfish.typing import PathLike

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
# Numbers of images for training and testing, and bytes of each: no file with more of them is read.
_PUBLISHED = {
    "mnist": (60_000, 10_000, 28 * 28),
    "cifar10": (50_000, 10_000, 32 * 32 * 3),
    "cifar100": (50_000, 10_000, 32 * 32 * 3),
}
# Bytes of the published files.
_DOWNLOADS = {"mnist": 11_490_434, "cifar10": 170_498_071, "cifar100": 169_001_437}
# The key of the classes, and the number of images in each batch; the last is for testing.
_BATCHES = {
    "cifar10": (
        b"labels",
        {**{f"data_batch_{index}": 10_000 for index in range(1, 6)}, "test_batch": 10_000},
    ),
    "cifar100": (b"fine_labels", {"train": 50_000, "test": 10_000}),
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
    x_train: npt.NDArray[np.uint8]
    y_train: npt.NDArray[np.int32]
    x_test: npt.NDArray[np.uint8]
    y_test: npt.NDArray[np.int32]
    classes: int


def load_images(name: str, data_dir: PathLike | None = None) -> ImageDataset:
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
        ValueError: for an unknown name, or files that are missing, damaged, not of this data set or
            with more images than it has; the message names the file. What a file says of itself is not
            believed: reading takes about twice the memory of the published data set at most.
        DownloadError: if a download fails.
        ModuleNotFoundError: for `"digits"` without scikit-learn.
    """
    checks.one_of("name", name, IMAGE_DATASETS)
    classes, url, sha256 = IMAGE_DATASETS[name]
    if url is None or sha256 is None:
        return _digits()
    if data_dir is None:
        path = cache_folder() / name / _file_name(name)
        download(url, path, sha256, max_bytes=_DOWNLOADS[name])
    else:
        path = pathlib.Path(data_dir)
    try:
        arrays, source = _read(name, path)
    except OSError as error:
        raise damaged(path, error) from error
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
    """The four arrays, and the file or folder that was read."""
    if path.is_file():
        return (_read_npz(name, path) if path.suffix == ".npz" else _read_archive(name, path)), path
    if not path.is_dir():
        raise ValueError(f"`data_dir` must be a folder or an .npz file. Received: data_dir={str(path)!r}")
    files = _published_files(name, path)
    if f"{name}.npz" in files:
        return _read_npz(name, files[f"{name}.npz"]), files[f"{name}.npz"]
    if name == "mnist":
        found = [files.get(part) or files.get(f"{part}.gz") for part in _IDX]
        if all(found):
            return _read_idx(found), path
        missing = ", ".join(part for part, file in zip(_IDX, found, strict=True) if file is None)
    else:
        key, parts = _BATCHES[name]
        if all(part in files for part in parts):
            batches = {part: read_batch_file(files[part], key, most) for part, most in parts.items()}
            return _joined(name, batches), path
        archive = _file_name(name)
        if archive in files:
            return _read_archive(name, files[archive]), files[archive]
        missing = ", ".join(part for part in parts if part not in files)
    raise ValueError(
        f"`data_dir` must hold {name}.npz or the published files. Received: data_dir={str(path)!r}, which "
        f"lacks {missing}"
    )


def _published_files(name, folder):
    """Paths by name of the files in a folder, and below it, that a data set may be read from."""
    names = {f"{name}.npz", _file_name(name), *(_BATCHES[name][1] if name in _BATCHES else _IDX)}
    names |= {f"{part}.gz" for part in _IDX}
    return {file.name: file for file in folder.rglob("*") if file.name in names and file.is_file()}


def _file_name(name):
    return IMAGE_DATASETS[name][1].rpartition("/")[2]


def _read_npz(name, path):
    train, test, pixels = _PUBLISHED[name]
    # Classes may be integers of 8 bytes.
    return read_npz(
        path, dict(zip(_ARRAYS, (train * pixels, 8 * train, test * pixels, 8 * test), strict=True))
    )


def _read_idx(files):
    train, test, pixels = _PUBLISHED["mnist"]
    most = (train * pixels, train, test * pixels, test)
    return [read_idx(*part) for part in zip(files, (3, 1, 3, 1), most, strict=True)]


def _read_archive(name, path):
    if name not in _BATCHES:
        raise damaged(path, f"no file of {name}")
    return _joined(name, read_archive(path, *_BATCHES[name]))


def _joined(name, batches):
    """The arrays of all batches for training, and of the one for testing, which is what does not train."""
    arrays = []
    *train, test = _BATCHES[name][1]
    for parts in (train, [test]):
        # Taken out, so that no more than one data set and its training images are in memory at once.
        images, labels = zip(*(batches.pop(part) for part in parts), strict=True)
        arrays += [np.concatenate(images).transpose(0, 2, 3, 1), np.concatenate(labels)]
    return arrays


def _checked(name, arrays, classes, source):
    x_train, y_train, x_test, y_test = arrays
    result = []
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        images = images[..., None] if images.ndim == 3 else images
        labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
        channels = 3 if name.startswith("cifar") else 1
        if images.ndim != 4 or images.shape[-1] != channels or images.dtype != np.uint8:
            raise damaged(source, f"images of shape {images.shape} and type {images.dtype}")
        if labels.shape != images.shape[:1] or not labels.size:
            raise damaged(source, f"{labels.size} classes for {len(images)} images")
        if labels.min() < 0 or labels.max() >= classes:
            raise damaged(source, f"classes from {labels.min()} to {labels.max()}")
        result += [images, labels.astype(np.int32)]
    if result[0].shape[1:] != result[2].shape[1:]:
        raise damaged(source, "images of two sizes")
    return ImageDataset(name, *result, classes)
