"""A stream of bytes in numbered files of a limited size, each of which tells where it belongs."""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
import struct

from trainers.files import RunError, beside, sha256, take_place, writing

MOST_PARTS = 9999
SMALLEST_PART = 1024  # bytes
_NAME = re.compile(r"part-\d{4}")
_MAGIC = b"keras_selfish part, v. 1"
_HEADER = struct.Struct("<24s32sI")  # what it is, of which package, its number
HEADER_SIZE = _HEADER.size


@dataclasses.dataclass
class Part:
    """A file of a package.

    Args:
        size: Its bytes, header included.
        sha256: Its SHA-256 in hexadecimal digits.
    """

    size: int
    sha256: str


def name_of(number):
    """The file name of a part; the first one is 1."""
    return f"part-{number:04d}"


class PartWriter:
    """Writes a stream to parts beside their places, which they take when all is written.

    Args:
        folder: `pathlib.Path` of the folder.
        identity: SHA-256 of what the package holds, 32 bytes.
        largest: Most bytes of a part.
        is_wanted: Function of a part's number: whether it is kept. All are made.
    """

    def __init__(self, folder, identity, largest, is_wanted):
        self._folder, self._identity, self._largest = folder, identity, largest
        self._is_wanted = is_wanted
        self._parts = []
        self._open = None

    def write(self, block):
        """Writes bytes behind those before."""
        rest = memoryview(block)
        while rest:
            if self._open is None or self._open.size == self._largest:
                self._begin()
            room = self._largest - self._open.size
            self._open.write(rest[:room])
            rest = rest[room:]

    def finish(self):
        """Ends the last part; returns a list of `Part`."""
        self._end()
        return self._parts

    def wanted(self):
        """The numbers of the parts that are kept."""
        return [number for number in range(1, len(self._parts) + 1) if self._is_wanted(number)]

    def take_places(self):
        """Moves the parts to their places."""
        for number in self.wanted():
            take_place(self._folder / name_of(number))

    def discard(self):
        """Removes what has not taken its place."""
        for number in range(1, len(self._parts) + 2):
            beside(self._folder / name_of(number)).unlink(missing_ok=True)

    def _begin(self):
        self._end()
        number = len(self._parts) + 1
        if number > MOST_PARTS:
            raise RunError(
                f"--part_size must give at most {MOST_PARTS} parts. "
                f"Received: --part_size={self._largest / 2**20:g}; choose a larger one"
            )
        self._open = _OpenPart(self._folder / name_of(number), self._is_wanted(number))
        self._open.write(_HEADER.pack(_MAGIC, self._identity, number))

    def _end(self):
        if self._open is not None:
            self._parts.append(self._open.close())
            self._open = None


class _OpenPart:
    """A part that is being written, or only measured."""

    def __init__(self, path, is_kept):
        self.size = 0
        self._path, self._digest, self._file = path, hashlib.sha256(), None
        if is_kept:
            with writing(path):
                self._file = open(beside(path), "wb")  # noqa: SIM115  it stays open until `close`

    def write(self, block):
        self.size += len(block)
        self._digest.update(block)
        if self._file is not None:
            with self._writing():
                self._file.write(block)

    def close(self):
        if self._file is not None:
            with self._writing():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
        return Part(self.size, self._digest.hexdigest())

    @contextlib.contextmanager
    def _writing(self):
        try:
            with writing(self._path):
                yield
        except BaseException:
            with contextlib.suppress(OSError):  # what it still holds finds no room either
                self._file.close()
            raise


class PartReader:
    """Reads the stream that a `PartWriter` has written.

    Args:
        folder: `pathlib.Path` of the folder.
        identity: As for `PartWriter`.
        parts: List of `Part`.
    """

    def __init__(self, folder, identity, parts):
        self._folder, self._identity, self._parts = folder, identity, parts
        lengths = (part.size - _HEADER.size for part in parts)
        self._starts = list(itertools.accumulate(lengths, initial=0))

    def __len__(self):
        return self._starts[-1]

    def check(self):
        """Looks whether each part is there once and whole.

        Raises:
            RunError: for the first one that is not, or for all that are missing.
        """
        names = [name_of(number) for number in range(1, len(self._parts) + 1)]
        missing = [number for number, name in enumerate(names, 1) if not (self._folder / name).is_file()]
        if missing:
            lacking = ", ".join(name_of(number) for number in missing)
            raise RunError(
                f"--input must hold all {len(names)} parts of the package. Received: {self._folder}, which "
                f"lacks {_shortened(lacking)}; fetch them, or pack them again with "
                f"--parts={_shortened(','.join(map(str, missing)))}"
            )
        for path in sorted(self._folder.glob("part-*")):
            if path.name not in names:
                raise RunError(
                    f"--input must hold each part of the package once, and no other. Received: {path}, "
                    f"beside the {len(names)} of the package; move it away"
                )
        for number, part in enumerate(self._parts, 1):
            self._check_part(number, part)

    def _check_part(self, number, part):
        path = self._folder / name_of(number)
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
        expected = _HEADER.pack(_MAGIC, self._identity, number)
        if size == part.size and header == expected and sha256(path) == part.sha256:
            return
        why = f"is damaged: it has {size} bytes of {part.size}" if size != part.size else "is damaged"
        if len(header) == _HEADER.size:
            magic, identity, found = _HEADER.unpack(header)
            if magic != _MAGIC:
                why = "is no part of a package, or damaged"
            elif identity != self._identity:
                why = "is of another package, or damaged"
            elif found != number:
                why = f"is part {found} of the package, or damaged"
        raise RunError(
            f"--input must hold the parts as they were written. Received: {path}, which {why}; fetch it "
            f"again, or pack it again with --parts={number}"
        )

    def read(self, start, size):
        """Bytes of the stream."""
        pieces = []
        while size > 0:
            index = bisect.bisect_right(self._starts, start) - 1
            length = min(size, self._starts[index + 1] - start)
            with open(self._folder / name_of(index + 1), "rb") as file:
                file.seek(_HEADER.size + start - self._starts[index])
                pieces.append(file.read(length))
            start, size = start + length, size - length
        return b"".join(pieces)


def _shortened(text):
    return text if len(text) <= 200 else f"{text[:200]}..."
