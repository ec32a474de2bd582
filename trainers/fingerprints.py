"""Fingerprints of data: whether a run goes on with what it began with."""

import hashlib
import math

import numpy as np

# Entries that are read at a time, of an array that may be a file larger than memory.
CHUNK = 1 << 20


def of_array(array, chunk=CHUNK):
    """The SHA-256 of an array's shape and values.

    Integers of more than one byte count as 32 bits, so that a corpus has one fingerprint in whatever type, in
    memory or in a file (`np.memmap`), it is held.

    Args:
        array: Array of integers, of any shape.
        chunk: Entries that are read at a time.

    Example:

    >>> of_array(np.array([1, 2], np.int32)) == of_array(np.array([1, 2], np.uint16))
    True
    """
    digest = hashlib.sha256(repr(tuple(array.shape)).encode())
    dtype = np.uint8 if array.dtype.itemsize == 1 else np.dtype("<i4")
    rows = max(1, chunk // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start : start + rows], dtype))
    return digest.hexdigest()


def of_tokens(tokens):
    """The SHA-256 of the file that `Vocabulary.save` writes of these tokens."""
    digest = hashlib.sha256()
    for token in tokens:
        digest.update(f"{token}\n".encode())
    return digest.hexdigest()


def of_corpus(corpus):
    """The fingerprints of a `Corpus`, by what they are of."""
    splits = {f"{name} split": getattr(corpus, name) for name in ("train", "validation", "test")}
    return {
        **{name: of_array(tokens) for name, tokens in splits.items()},
        "vocabulary": of_tokens(corpus.vocabulary.tokens),
    }


def of_images(images):
    """The fingerprints of an `ImageDataset`, by what they are of."""
    arrays = {
        "training images": images.x_train,
        "training labels": images.y_train,
        "test images": images.x_test,
        "test labels": images.y_test,
    }
    return {name: of_array(array) for name, array in arrays.items()}
