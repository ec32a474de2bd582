"""What a package holds and where: its manifest, which is read as one of bad will."""

import dataclasses
import hashlib
import json
import re

from trainers.coding import block_sizes
from trainers.files import RunError, read_json, write_json
from trainers.parts import HEADER_SIZE, Part
from trainers.spans import ITEM_SIZES, LONGEST

NAME = "manifest.json"
FORMAT = "keras_selfish package, version 1"
# What a package may hold, in this order: a folder is a run once it has the last one.
CHECKPOINT = re.compile(r"checkpoint-\d{5,9}(-\d{8,12})?\.npz")
OTHER_NAMES = (
    *("best.keras", "final.keras", "masks-first.npz", "masks-last.npz", "history.csv", "history.png"),
    *("results.json", "vocabulary.txt", "environment.json", "checkpoint.json", "config.json"),
)
NEEDED = {"checkpoint.json", "config.json"}
LARGEST = 1 << 26  # bytes of a manifest
LARGEST_FILE = 1 << 50
LARGEST_CONTENT = 8 * LONGEST


@dataclasses.dataclass
class Content:
    """An array that is in the stream of a package as blocks.

    Args:
        itemsize: Bytes of an entry.
        entries: How many there are.
        palette: As of a `trainers.coding.Coded`.
        stored: A list with the bytes of each block.
    """

    itemsize: int
    entries: int
    palette: int
    stored: list

    def check(self):
        """Raises `ValueError` for what cannot be a content."""
        _check(type(self.itemsize) is int and self.itemsize in ITEM_SIZES, "the size of an entry")
        _check(_is_count(self.entries, LARGEST_CONTENT // self.itemsize), "the length of an array")
        _check(_is_count(self.palette, 256), "the number of values")
        sizes = block_sizes(self.itemsize, self.entries, self.palette)
        _check(len(self.stored) == len(sizes), "the number of blocks")
        for stored, size in zip(self.stored, sizes, strict=True):
            _check(_is_count(stored, size), "the size of a block")


@dataclasses.dataclass
class File:
    """A file of a package.

    Args:
        name: Its name.
        size: Its bytes.
        sha256: Its SHA-256 in hexadecimal digits.
        rest: The number of the content with what is not in its arrays, one after another.
        pieces: Its arrays, a list each: how many bytes of the rest stand before it, its entries, the number
            of the content with its values, and that with the places where they are, as bits; None where they
            are everywhere. In other places the array is zero.
    """

    name: str
    size: int
    sha256: str
    rest: int = 0
    pieces: list = dataclasses.field(default_factory=list)

    def check(self, contents):
        """Raises `ValueError` for what cannot be a file of these contents."""
        place_of(self.name)
        _check(_is_count(self.size, LARGEST_FILE), "the size of a file")
        _check(_is_digest(self.sha256), "the SHA-256 of a file")
        rest = _at(contents, self.rest, itemsize=1).entries
        total = rest
        for gap, entries, values, places in self.pieces:
            content = _at(contents, values)
            if places is None:
                _check(entries == content.entries, "the length of an array")
            else:
                _check(_is_count(entries, LONGEST), "the length of an array")
                bits = _at(contents, places, itemsize=1)
                _check(bits.entries == (entries + 7) // 8, "the length of places")
            _check(_is_count(gap, rest), "the bytes before an array")
            rest -= gap
            total += entries * content.itemsize
        _check(total == self.size, "the size of a file")


@dataclasses.dataclass
class Manifest:
    """What a package holds.

    Args:
        part_size: Most bytes of a part.
        files: A list of `File`, in the order of their names' places.
        contents: A list of `Content`, in the order of the stream.
        parts: A list of `Part`.
    """

    part_size: int
    files: list
    contents: list = dataclasses.field(default_factory=list)
    parts: list = dataclasses.field(default_factory=list)

    @property
    def identity(self):
        """The SHA-256 of what files the package holds in parts of what size, as bytes."""
        told = [[file.name, file.size, file.sha256] for file in self.files]
        return hashlib.sha256(json.dumps([self.part_size, told]).encode()).digest()

    def check(self):
        """Raises `ValueError` unless all of it fits together."""
        for part in self.parts:
            _check(_is_count(part.size, LARGEST_FILE) and part.size > HEADER_SIZE, "the size of a part")
            _check(_is_digest(part.sha256), "the SHA-256 of a part")
        for content in self.contents:
            content.check()
        stored = sum(sum(content.stored) for content in self.contents)
        _check(stored == sum(part.size - HEADER_SIZE for part in self.parts), "the size of all contents")
        for file in self.files:
            file.check(self.contents)
        names = [file.name for file in self.files]
        _check(len(set(names)) == len(names), "the name of a file")
        _check(sum(CHECKPOINT.fullmatch(name) is not None for name in names) == 1, "what is the checkpoint")
        _check(set(names) >= NEEDED, "what it lacks")
        _check(names == sorted(names, key=place_of), "the order of files")

    def write(self, folder):
        """Writes it into a folder."""
        content = dataclasses.asdict(self)
        content["contents"] = [[*one.values()] for one in content["contents"]]
        write_json(folder / NAME, {"format": FORMAT, "checksum": _checksum(content), **content})

    @classmethod
    def read(cls, folder, flag):
        """The manifest in a folder.

        Args:
            folder: `pathlib.Path` of it.
            flag: The flag that names it, for errors.

        Raises:
            RunError: if there is none, or it is damaged or foreign.
        """
        path = folder / NAME
        if not path.is_file():
            raise RunError(
                f"{flag} must be the folder of a package. Received: {folder}, which has no {NAME}; fetch it, "
                "or pack the run again"
            )
        try:
            _check(path.stat().st_size <= LARGEST, "the size")
            content = read_json(path)
            found, checksum = content.pop("format", None), content.pop("checksum", None)
            _check(found == FORMAT, "the format")
            _check(checksum == _checksum(content), "the checksum")
            manifest = cls(
                content.pop("part_size"),
                [File(**one) for one in content.pop("files")],
                [Content(*one) for one in content.pop("contents")],
                [Part(**one) for one in content.pop("parts")],
            )
            _check(not content, "what else it says")
            manifest.check()
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise damaged(folder, flag, error) from error
        return manifest


def place_of(name):
    """Where in a package a file's name is.

    Raises:
        ValueError: if it is not there.
    """
    is_checkpoint = isinstance(name, str) and CHECKPOINT.fullmatch(name)
    return -1 if is_checkpoint else OTHER_NAMES.index(name)


def damaged(folder, flag, why):
    """The error of a manifest that is not as it was written, or says what its package does not hold."""
    reason = " ".join(str(why).split())[:200].encode("unicode_escape").decode()  # it may quote what is there
    return RunError(
        f"{NAME} in {flag} must be as this version of the program has written it, but is damaged or foreign. "
        f"Received: {folder / NAME} ({reason}); fetch it again"
    )


def _at(contents, index, itemsize=None):
    _check(_is_count(index, len(contents) - 1), "the number of a content")
    content = contents[index]
    _check(itemsize in (None, content.itemsize), "the size of an entry")
    return content


def _is_count(value, most):
    return type(value) is int and 0 <= value <= most


def _is_digest(value):
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _check(condition, what):
    if not condition:
        raise ValueError(f"{what} is wrong")


def _checksum(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
