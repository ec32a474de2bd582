"""Token ids and the vocabulary of a text that is read once and piece by piece, in bounded memory.

Tokens get numbers in the order of first appearance while they are read; how many of each there are is known
at the end, and so which get an id. Of tokens that appear first when a million others have, most of them rare,
each occurrence waits on disk, in one of many files by its hash, so that a single file is all that has to be
counted at a time.
"""

import itertools
import zlib

import numpy as np

from keras_selfish.data.tokenization import EOS, UNK
from keras_selfish.data.vocabulary import Vocabulary

MOST_TOKENS, MOST_CHARACTERS = 1 << 20, 1 << 26  # that are numbered in memory
_PARTS = 256
_BLOCK = 1 << 20  # ids that are handled at a time


class TokenNumbers:
    """Numbers by token, in the order of first appearance.

    Args:
        folder: an empty folder for occurrences of tokens that appear when there are numbers enough; None
            (default) numbers all.
        most: numbers that are enough. Default 1,048,576.
    """

    def __init__(self, folder=None, most=MOST_TOKENS):
        self._numbers = _Numbers() if folder is None else _Numbers(most, MOST_CHARACTERS)
        self._overflow = None if folder is None else _Overflow(folder)
        self._length = 0

    def number(self, tokens):
        """The numbers of the text's next tokens, a list: int32 array, -1 for one that waits on disk."""
        numbers = _mapped(self._numbers, tokens)
        if self._overflow is not None:
            places = np.flatnonzero(numbers < 0)
            self._overflow.add([tokens[place] for place in places.tolist()], places + self._length)
        self._length += len(tokens)
        return numbers

    def vocabulary(self, file, max_size, min_count):
        """The `Vocabulary` of the text, whose numbers a binary file holds, as `Vocabulary.build` makes it."""
        counts = np.zeros(len(self._numbers), np.int64)
        for numbers in _blocks(file):
            counts += np.bincount(numbers[numbers >= 0], minlength=len(counts))
        is_kept = counts >= min_count
        if max_size is not None:  # the commonest, of equally common ones the earlier
            is_kept[np.argsort(-counts, kind="stable")[max_size:]] = False
        is_kept[[self._numbers[token] for token in (EOS, UNK) if token in self._numbers]] = True
        kept = dict(zip(itertools.compress(self._numbers, is_kept), counts[is_kept].tolist(), strict=True))
        if self._overflow is not None:  # what waits there appeared later than all that has a number
            kept |= self._overflow.counts(max_size, min_count)
        return Vocabulary.of_counts(kept, max_size, min_count)

    def write_ids(self, file, target, vocabulary, dtype):
        """Writes the ids of the text, whose numbers a binary file holds, into another one.

        Args:
            file: the numbers, open for reading.
            target: open for writing and reading; a file on disk where a folder was given.
            vocabulary: the text's.
            dtype: of the ids.
        """
        ids = vocabulary.encode_part(list(self._numbers)).astype(dtype)
        for numbers in _blocks(file):
            target.write(ids[numbers].tobytes())
        if self._overflow is not None:
            target.flush()
            for tokens, places in self._overflow.parts():
                _scatter(target, places, vocabulary.encode_part(tokens).astype(dtype))


class _Numbers(dict):
    """A dict that gives an unknown token the next number, or -1 once there are enough."""

    def __init__(self, most=float("inf"), most_characters=float("inf")):
        super().__init__()
        self._most, self._characters = most, most_characters

    def __missing__(self, token):
        if len(self) >= self._most or self._characters <= 0:
            return -1
        self._characters -= len(token)
        number = self[token] = len(self)
        return number


def _mapped(numbers, tokens):
    return np.fromiter(map(numbers.__getitem__, tokens), np.int32, count=len(tokens))


def _blocks(file):
    """Yields the int32 numbers in a binary file, some at a time."""
    file.seek(0)
    while data := file.read(4 * _BLOCK):
        yield np.frombuffer(data, np.int32)


def _scatter(file, places, ids):
    """Puts ids in their places, in ascending order, in a file on disk; no more than a block is mapped."""
    for begin in range(0, int(places[-1]) + 1, _BLOCK):
        inside = slice(*np.searchsorted(places, [begin, begin + _BLOCK]))
        if inside.stop > inside.start:
            shape = int(places[inside.stop - 1]) + 1 - begin
            block = np.memmap(file, ids.dtype, "r+", offset=begin * ids.itemsize, shape=shape)
            block[places[inside] - begin] = ids[inside]


class _Overflow:
    """Occurrences of tokens in files; all occurrences of a token are in the same."""

    def __init__(self, folder):
        self._folder = folder

    def add(self, tokens, places):
        parts = np.fromiter((zlib.crc32(token.encode()) % _PARTS for token in tokens), np.int64, len(tokens))
        order = np.argsort(parts, kind="stable")
        ends = np.searchsorted(parts[order], np.arange(_PARTS), side="right")
        for part, chosen in enumerate(np.split(order, ends[:-1])):
            if chosen.size:
                with open(self._folder / f"{part}.tokens", "ab") as file:
                    file.write("".join(f"{tokens[index]}\n" for index in chosen).encode())
                with open(self._folder / f"{part}.places", "ab") as file:
                    file.write(places[chosen].astype(np.int64).tobytes())

    def parts(self):
        """Yields tokens, a list, and their places in the text in ascending order, file by file."""
        for part in range(_PARTS):
            file = self._folder / f"{part}.tokens"
            if file.exists():
                places = np.fromfile(file.with_suffix(".places"), np.int64)
                yield file.read_bytes().decode().split("\n")[:-1], places

    def counts(self, max_size, min_count):
        """Dict from token to count, in the order of first appearance, of those that a vocabulary may hold."""
        found, special = [], []
        for tokens, places in self.parts():
            numbers = _Numbers()
            _, first, counts = np.unique(_mapped(numbers, tokens), return_index=True, return_counts=True)
            first = dict(zip(numbers, places[first].tolist(), strict=True))
            for token, count in zip(numbers, counts.tolist(), strict=True):
                if token in (EOS, UNK):
                    special.append((-count, first[token], token))
                elif count >= min_count:
                    found.append((-count, first[token], token))
            if max_size is not None and len(found) > 2 * max_size + _BLOCK // 16:
                found = sorted(found)[:max_size]  # the commonest, of equally common ones the earlier
        return {token: -count for count, _, token in sorted(found + special, key=lambda entry: entry[1])}
