"""Token ids of large texts on disk, which are mapped into memory and verified whenever they are opened."""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import shutil
import time
import uuid

import numpy as np
from absl import logging

from keras_selfish.data.download import file_sha256
from keras_selfish.data.vocabulary import Vocabulary

# Another one where the ids of the same text become others.
FORMAT = "keras_selfish token ids, version 1"
_DESCRIPTION, _VOCABULARY = "tokens.json", "vocabulary.txt"
_PARTIAL = ".partial-"
_DAY = 86_400  # seconds


class CacheError(OSError):
    """Token ids cannot be kept; the message says why in one sentence, and nothing was left half written."""


class _Damaged(Exception):
    """A cache whose content is not what was written."""


def open_or_make(folder, name, key, splits, make):
    """The token ids that a folder keeps under a name, made first where they are missing or damaged.

    They are written into a folder beside their place, which is then renamed. Of two processes that make the
    same at once, the second finds the first one's and takes them.

    Args:
        folder: where caches are kept, a `pathlib.Path`.
        name: name of the cache in it.
        key: JSON value that tells what the ids are of; a cache with another one counts as damaged.
        splits: names of the arrays.
        make: function of an empty folder, which writes a file `<split>.ids` for each split there, and returns
            the `Vocabulary` and the dtype of the ids.

    Returns:
        The `Vocabulary` and a dict from split to a read-only `np.memmap`.

    Raises:
        CacheError: if the folder cannot be written, is full, or has something else at the cache's place.
    """
    path, key = folder / name, json.loads(json.dumps(key))
    with contextlib.suppress(FileNotFoundError):
        try:
            return _open(path, key, splits)
        except _Damaged as problem:
            logging.warning("The token ids in %s are made again: %s", path, problem)
            _remove(path, splits)
    part = _partial_folder(folder)
    try:
        _make(part, key, splits, make)
        with contextlib.suppress(FileExistsError):
            _rename(part, path)
        logging.info("The token ids are kept in %s", path)
        return _open(path, key, splits)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CacheError(
            f"`cache_dir` must have room for token ids. Received: {folder} ({error.strerror}); "
            "make room or choose another folder"
        ) from None
    except _Damaged as problem:
        raise CacheError(
            f"`cache_dir` must be a folder that keeps what is written. Received: {path}: {problem}"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _make(part, key, splits, make):
    vocabulary, dtype = make(part)
    vocabulary.save(part / _VOCABULARY)
    files = [_VOCABULARY, *(f"{split}.ids" for split in splits)]
    description = {
        "format": FORMAT,
        "key": key,
        "dtype": np.dtype(dtype).str,
        "sizes": {file: (part / file).stat().st_size for file in files},
        "sha256": {file: file_sha256(part / file) for file in files},
    }
    (part / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    for file in (*files, _DESCRIPTION):
        with open(part / file, "rb") as written:
            os.fsync(written.fileno())


def _rename(part, path):
    """Gives the folder its place; FileExistsError if another process was faster."""
    try:
        os.rename(part, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) or path.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        raise


def _open(path, key, splits):
    if not path.is_dir():
        if path.exists():
            raise _Damaged("it is not a folder")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        description = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
        if description["format"] != FORMAT or description["key"] != key:
            raise _Damaged("they are of another text or format")
        dtype, sizes, checksums = (description[name] for name in ("dtype", "sizes", "sha256"))
        files = [_VOCABULARY, *(f"{split}.ids" for split in splits)]
        for file in files:
            if (path / file).stat().st_size != sizes[file]:
                raise _Damaged(f"{file} has another size")
            if file_sha256(path / file) != checksums[file]:
                raise _Damaged(f"{file} has another checksum")
        ids = {split: np.memmap(path / f"{split}.ids", dtype, "r") for split in splits}
        return Vocabulary.load(path / _VOCABULARY), ids
    except FileNotFoundError as error:
        raise _Damaged(f"{os.path.basename(error.filename or _VOCABULARY)} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{_DESCRIPTION} is unreadable ({error})") from None


def _remove(path, splits):
    """Removes a damaged cache, but nothing that is not of one."""
    ours = {_DESCRIPTION, _VOCABULARY, *(f"{split}.ids" for split in splits)}
    if not path.is_dir() or not ours.issuperset(os.listdir(path)):
        raise CacheError(
            f"`cache_dir` must have nothing but token ids in {path}; move what is there, or choose another "
            "folder"
        )
    shutil.rmtree(path, ignore_errors=True)


def _partial_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        part = folder / f"{_PARTIAL}{uuid.uuid4().hex}"
        part.mkdir()
        return part
    except OSError as error:
        raise CacheError(
            f"`cache_dir` must be a folder that can be written. Received: {folder} ({error.strerror}); "
            "choose another folder"
        ) from None


def _clear(folder):
    """Removes partial folders of killed processes: those that nothing was written to for a day."""
    for part in folder.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(OSError):
            newest = max(file.stat().st_mtime for file in (part, *part.rglob("*")))
            if time.time() - newest > _DAY:
                shutil.rmtree(part, ignore_errors=True)


def release(array):
    """Takes the pages of a memory map out of this process's memory; the system's cache may still have them.

    Args:
        array: an `np.memmap` that is not written, or a view of one; of any other array nothing is done.
    """
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


def digest(key):
    """A short name that follows from a JSON value."""
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
