"""Token ids of text: in memory if the text is small, on disk if it is not."""

import contextlib
import io
import os
import shutil
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from absl import logging

from keras_selfish.data.counting import TokenNumbers
from keras_selfish.data.download import cache_folder
from keras_selfish.data.token_cache import digest, open_or_make
from keras_selfish.data.tokenization import EOS, PIECE, TOKENIZATIONS

CACHED_FROM = 1 << 26  # bytes of text
_SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(frozen=True)
class Text:
    """A text in splits, the first of which is for training.

    Attributes:
        pieces: for each split a function that gives the pieces of its text, which end where a word does.
        files: lists of the files that the text is in, by any names; empty where it is in none.
    """

    pieces: dict[str, Callable]
    files: dict[str, list[Path]] = field(default_factory=dict)

    def size(self):
        """Bytes of the files."""
        return sum(path.stat().st_size for paths in self.files.values() for path in paths)

    def state(self):
        """A JSON value that changes when a file does."""
        return {kind: [_state(path) for path in paths] for kind, paths in self.files.items()}


def _state(path):
    status = path.stat()
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def read_corpus(name, text, tokenization, *, max_size, min_count, cache_dir=None):
    """The vocabulary and the token ids of a text.

    Args:
        name: the corpus's.
        text: a `Text`.
        tokenization: how, a key of `TOKENIZATIONS`.
        max_size: as in `Vocabulary.build`.
        min_count: likewise.
        cache_dir: where token ids are kept, in the folder `tokens`. Default None: in the cache of
            downloads if the text is large, else in memory.

    Returns:
        A `Vocabulary` and a dict from split to an array.

    Raises:
        ValueError: if a split has no words, or files change while they are read.
        CacheError: if token ids cannot be kept.
    """
    reader = _Reader(name, text, TOKENIZATIONS[tokenization], max_size, min_count)
    if not text.files or (cache_dir is None and text.size() < CACHED_FROM):
        return reader.to_memory()
    key = {
        "files": text.state(),
        "tokenization": tokenization,
        "max_size": None if max_size is None else int(max_size),
        "min_count": int(min_count),
        "unicode": unicodedata.unidata_version,  # of which letters and lower case depend
    }
    folder = cache_folder(cache_dir) / "tokens"
    return open_or_make(folder, f"{name}-{digest(key)}", key, list(text.pieces), reader.to_folder)


class _Reader:
    """Reads a text once.

    Args: as of `read_corpus`.
    """

    def __init__(self, name, text, tokenize, max_size, min_count):
        self._name, self._text, self._tokenize = name, text, tokenize
        self._limits = max_size, min_count

    def to_memory(self):
        """The vocabulary, and int32 arrays by split."""
        files = {split: io.BytesIO() for split in self._text.pieces}
        vocabulary, dtype = self._read(files, io.BytesIO(), TokenNumbers(), smallest=np.int32)
        return vocabulary, {split: np.frombuffer(file.getbuffer(), dtype) for split, file in files.items()}

    def to_folder(self, folder):
        """Writes the ids of each split into a file `<split>.ids`; returns the vocabulary and their dtype."""
        before, scratch = self._text.state(), folder / "scratch"
        scratch.mkdir()
        with contextlib.ExitStack() as opened:
            files = {
                split: opened.enter_context(open(folder / f"{split}.ids", "w+b"))
                for split in self._text.pieces
            }
            numbers = opened.enter_context(open(scratch / "numbers", "w+b"))
            result = self._read(files, numbers, TokenNumbers(scratch), smallest=np.uint16)
        shutil.rmtree(scratch)
        if self._text.state() != before:
            raise ValueError(
                f"The files of dataset {self._name!r} must stay as they are while they are read. "
                "Received: one that has changed; start again"
            )
        return result

    def _read(self, files, numbers_file, numbers, smallest):
        """Writes ids into open files by split; returns the vocabulary and the dtype of the ids."""
        progress = _Progress(self._name, self._text.size())
        train, *others = files
        for tokens in self._tokens(train, progress):
            numbers_file.write(numbers.number(tokens).tobytes())
        vocabulary = numbers.vocabulary(numbers_file, *self._limits)
        dtype = np.dtype(smallest if len(vocabulary) <= np.iinfo(smallest).max + 1 else np.int32)
        numbers.write_ids(numbers_file, files[train], vocabulary, dtype)
        for split in others:
            begin = 0
            for tokens in self._tokens(split, progress):
                files[split].write(vocabulary.encode_part(tokens, begin).astype(dtype).tobytes())
                begin += len(tokens)
        progress.end()
        return vocabulary, dtype

    def _tokens(self, split, progress):
        """Yields the tokens of a split, a list for each piece."""
        length, has_words = 0, False
        for piece in _joined(self._text.pieces[split]()):
            tokens = self._tokenize(piece)
            length += len(tokens)
            has_words = has_words or tokens.count(EOS) < len(tokens)
            yield tokens
            progress.step(piece, len(tokens))
        if not has_words:
            raise ValueError(
                f"The {split} split of dataset {self._name!r} must hold at least one word. "
                f"Received: {length} lines without any"
            )


def _joined(pieces):
    """Yields the same text in fewer pieces, where there are many small ones."""
    waiting, size = [], 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= PIECE // 2:
            yield "".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield "".join(waiting)


class _Progress:
    """Logs the progress and speed of reading a large text."""

    def __init__(self, name, size):
        self._name, self._size, self._read, self._tokens = name, size, 0, 0
        self._began = self._reported = time.monotonic()

    def step(self, piece, tokens):
        self._read += len(piece) if piece.isascii() else len(piece.encode())
        self._tokens += tokens
        now = time.monotonic()
        if now - self._reported >= _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            logging.info(
                "Read %.0f%% of the %s of dataset %r (%s tokens a second), about %.0f s left",
                100 * min(1.0, self._read / self._size) if self._size else 100,
                _megabytes(self._size),
                self._name,
                f"{self._tokens / (now - self._began):,.0f}",
                max(0.0, (now - self._began) * (self._size / self._read - 1)),
            )

    def end(self):
        if self._size >= CACHED_FROM:
            seconds = time.monotonic() - self._began
            logging.info(
                "Read the %s of dataset %r, %s tokens, in %.0f s (%s tokens a second)",
                _megabytes(self._size),
                self._name,
                f"{self._tokens:,}",
                seconds,
                f"{self._tokens / seconds:,.0f}",
            )


def _megabytes(size):
    return f"{size / 1e6:,.0f} MB"
