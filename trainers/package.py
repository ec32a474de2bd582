"""Packages: the files of a run in numbered parts of a limited size, each array once, and bit for bit.

A package is a folder with `manifest.json` and `part-0001`, `part-0002` and so on, which one after another are
a stream of blocks. A *content* is an array as blocks (`trainers.coding`). A file is its arrays, each a
content, and the rest of its bytes between them, a content as well. Where an array has zeros, its other values
are one content and their places another: so the weights in a checkpoint and in a model of the same epoch are
the same content, though the one leaves out all zeros and the other only those outside of masks. The manifest
lists all this, with the SHA-256 of each file and part.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil

import numpy as np

from trainers.coding import Coded, block_sizes, decode, encode
from trainers.files import (
    PARTIAL,
    Hashed,
    RunError,
    beside,
    read_json,
    sha256,
    take_place,
    write_beside,
    write_json,
    writing,
)
from trainers.lock import Lock
from trainers.parts import HEADER_SIZE, Part, PartReader, PartWriter
from trainers.spans import ITEM_SIZES, LONGEST, spans

FORMAT = "keras_selfish package, version 1"
MANIFEST = "manifest.json"
# What a package may hold, in this order: a folder is a run once it has the last one.
NAMES = (
    *("checkpoint-*.npz", "best.keras", "final.keras", "masks-first.npz", "masks-last.npz", "history.csv"),
    *("history.png", "results.json", "vocabulary.txt", "environment.json", "checkpoint.json", "config.json"),
)
NEEDED = ("checkpoint.json", "config.json")
LARGEST_MANIFEST = 1 << 26  # bytes
LARGEST_FILE = 1 << 50
LONGEST_REST = 1 << 16  # bytes between two arrays; more are an array of bytes
_CHECKPOINT = re.compile(r"checkpoint-\d{5,9}(-\d{8,12})?\.npz")


def place_of(name):
    """Where in `NAMES` a file's name is.

    Raises:
        ValueError: if it is none of them.
    """
    is_checkpoint = isinstance(name, str) and _CHECKPOINT.fullmatch(name)
    return 0 if is_checkpoint else NAMES.index(name, 1)


# Writing


def write_package(files, output, part_size, is_wanted):
    """Writes files to a package; the same files give the same parts.

    Args:
        files: Dict from the names of files to `pathlib.Path` of what they hold.
        output: `pathlib.Path` of the package: a free place, an empty folder, or the folder of this package.
        part_size: Most bytes of a part.
        is_wanted: Function of a part's number: whether the part is to be written.

    Returns:
        The list of all `Part`, and the numbers of those that were written.

    Raises:
        RunError: if there is something else at `output`, or no part is wanted.
    """
    described = [
        {"name": name, "size": files[name].stat().st_size, "sha256": sha256(files[name])}
        for name in sorted(files, key=place_of)
    ]
    identity = _identity(part_size, described)
    before = _check_output(output, identity)
    with _made(output):
        _remove_partial(output)
        writer = PartWriter(output, bytes.fromhex(identity), part_size, is_wanted)
        try:
            packer = _Packer(writer)
            for one in described:
                one.update(packer.add(files[one["name"]]))
            parts = writer.finish()
            if not writer.wanted():
                raise RunError(f"--parts must name parts that there are. Received: none of 1-{len(parts)}")
            content = {
                "identity": identity,
                "part_size": part_size,
                "files": described,
                "contents": packer.contents,
                "parts": [dataclasses.asdict(part) for part in parts],
            }
            if before is not None and before != content:
                raise RunError(
                    "--output must hold parts that were written in the same way. Received: "
                    f"{output / MANIFEST}, which lists other ones of the same run, as another version of "
                    "Python or zlib writes them; choose another folder"
                )
            write_json(output / MANIFEST, {"format": FORMAT, "checksum": _checksum(content), **content})
            writer.take_places()
        finally:
            writer.discard()
    return parts, writer.wanted()


def _check_output(output, identity):
    """What the manifest of this package holds, if it is there already, else None."""
    if not output.exists():
        return None
    if not output.is_dir():
        raise RunError(f"--output must be a folder. Received: {output}, which is something else")
    names = {path.name for path in output.iterdir() if not path.name.startswith(PARTIAL)}
    if not names:
        return None
    if MANIFEST not in names:
        raise RunError(
            f"--output must be free, an empty folder or that of this package. Received: {output}, which has "
            f"no {MANIFEST} but other files; choose another folder"
        )
    found = _read_manifest(output, "--output")
    if found["identity"] != identity:
        raise RunError(
            f"--output must be free, an empty folder or that of this package. Received: {output}, which "
            "holds the package of another run, of another checkpoint or of another --part_size; move it "
            "away or choose another folder"
        )
    return found


@contextlib.contextmanager
def _made(path):
    """A context in which a folder is there; if it is made for it, an error removes it."""
    is_new = not path.exists()
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # if somebody else has put something there
                path.rmdir()
        raise


def _remove_partial(folder):
    """Removes what a program that was killed has left."""
    with writing(folder):
        for partial in folder.glob(f"{PARTIAL}*"):
            partial.unlink()


def _identity(part_size, files):
    """The SHA-256 of what a package holds, in hexadecimal digits."""
    told = [[one["name"], one["size"], one["sha256"]] for one in files]
    return hashlib.sha256(json.dumps([part_size, told]).encode()).hexdigest()


class _Packer:
    """Cuts files into contents and writes each content once.

    Args:
        writer: A `PartWriter`.
    """

    def __init__(self, writer):
        self.contents = []
        self._writer = writer
        self._known = {}

    def add(self, path):
        """Adds a file; returns what the manifest says of it besides name, size and SHA-256."""
        rest, pieces = [], []
        with open(path, "rb") as file:
            for gap, itemsize, entries in _cut(path):
                rest.append(file.read(gap))
                array = np.frombuffer(file.read(itemsize * entries), f"<u{itemsize}")
                pieces.append([gap, entries, *self._array(array)])
            rest.append(file.read())
        return {"rest": self._content(np.frombuffer(b"".join(rest), np.uint8)), "pieces": pieces}

    def _array(self, array):
        """The contents of an array: its values, and where they are; None where they are everywhere."""
        places = array != 0
        if array.itemsize == 1 or places.all():
            return self._content(array), None
        return self._content(array[places]), self._content(np.packbits(places))

    def _content(self, array):
        key = array.itemsize, hashlib.sha256(array).digest()
        if key not in self._known:
            self._known[key] = len(self.contents)
            coded = encode(array)
            if not np.array_equal(decode(coded), array):  # the original may be gone when it is unpacked
                raise RuntimeError("An array was not coded faithfully: do not trust this machine's memory")
            for block in coded.blocks:
                self._writer.write(block)
            self.contents.append(
                [coded.itemsize, coded.entries, coded.palette, *(len(block) for block in coded.blocks)]
            )
        return self._known[key]


def _cut(path):
    """The arrays of a file, all of it that is no array but long among them.

    Yields:
        Number of bytes before it, bytes of an entry, number of entries.
    """
    end = 0
    for span in [*spans(path), None]:
        gap = (path.stat().st_size if span is None else span.start) - end
        while gap >= LONGEST_REST:
            yield 0, 1, min(gap, LONGEST)
            gap -= min(gap, LONGEST)
        if span is not None:
            yield gap, span.itemsize, span.entries
            end = span.end


# Reading


class Package:
    """A package that was checked.

    Args:
        folder: `pathlib.Path` of it.

    Raises:
        RunError: if a part is missing, damaged, foreign or doubled, or the manifest is.
    """

    def __init__(self, folder):
        if not folder.is_dir():
            raise RunError(f"--input must be the folder of a package. Received: {folder}, which is none")
        manifest = _read_manifest(folder, "--input")
        self._path = folder / MANIFEST
        try:
            self._parts = PartReader(folder, bytes.fromhex(manifest["identity"]), _parts(manifest["parts"]))
            self._contents = _contents(manifest["contents"], len(self._parts))
            self._files = [_File(self._contents, **one) for one in manifest["files"]]
            _check_names([file.name for file in self._files])
            identity = _identity(manifest["part_size"], manifest["files"])
            _check(identity == manifest["identity"], "the identity")
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(self._path, "--input", error) from error
        self._parts.check()

    @property
    def size(self):
        """Bytes of all files."""
        return sum(file.size for file in self._files)

    def unpack(self, target):
        """Writes the files.

        Args:
            target: `pathlib.Path`: a free place or an empty folder.

        Returns:
            The names of the files.

        Raises:
            RunError: if there is something else, or a trainer uses the folder.
        """
        _check_target(target)
        free = shutil.disk_usage(_existing(target)).free
        if self.size > free:
            raise RunError(
                f"--workdir must be on a disk with room for {self.size:,} bytes. Received: {target}, with "
                f"{free:,} free; make room there, or choose another place"
            )
        with _made(target), _locked(target):
            _check_empty(target)
            _remove_partial(target)
            paths = [target / file.name for file in self._files]
            try:
                for file, path in zip(self._files, paths, strict=True):
                    write_beside(path, lambda place, file=file: self._write(file, place))
                for path in paths:
                    take_place(path)
            finally:
                for path in paths:
                    beside(path).unlink(missing_ok=True)
        return [file.name for file in self._files]

    def _write(self, file, place):
        try:
            with open(place, "wb") as raw:
                hashed = Hashed(raw)
                for piece in self._pieces(file):
                    hashed.write(piece)
        except ValueError as error:
            raise _damaged(self._path, "--input", f"of {file.name}: {error}") from error
        if hashed.hexdigest() != file.sha256:
            raise _damaged(self._path, "--input", f"{file.name} is not what it says")

    def _pieces(self, file):
        rest = memoryview(self._decoded(file.rest))
        for gap, entries, values, places in file.pieces:
            yield rest[:gap]
            rest = rest[gap:]
            yield self._array(entries, values, places)
        yield rest

    def _array(self, entries, values, places):
        found = self._decoded(values)
        if places is None:
            return found.tobytes()
        where = np.unpackbits(self._decoded(places), count=entries).view(bool)
        if np.count_nonzero(where) != found.size:
            raise ValueError(f"{found.size} values in other than as many places")
        array = np.zeros(entries, found.dtype)
        array[where] = found
        return array.tobytes()

    def _decoded(self, index):
        content = self._contents[index]
        start, blocks = content.start, []
        for size in content.stored:
            blocks.append(self._parts.read(start, size))
            start += size
        return decode(Coded(content.itemsize, content.entries, content.palette, blocks))


@dataclasses.dataclass
class _Content:
    """Where a content is in the stream, and what it is."""

    start: int
    itemsize: int
    entries: int
    palette: int
    stored: list

    def __post_init__(self):
        _check(type(self.itemsize) is int and self.itemsize in ITEM_SIZES, "the size of an entry")
        _check(_is_count(self.entries, LONGEST * 8 // self.itemsize), "the length of an array")
        _check(_is_count(self.palette, 256), "the number of values")
        sizes = block_sizes(self.itemsize, self.entries, self.palette)
        _check(len(self.stored) == len(sizes), "the number of blocks")
        for stored, size in zip(self.stored, sizes, strict=True):
            _check(_is_count(stored, size), "the size of a block")


@dataclasses.dataclass
class _File:
    """A file of the package."""

    contents: list
    name: str
    size: int
    sha256: str
    rest: int
    pieces: list

    def __post_init__(self):
        place_of(self.name)
        _check(_is_count(self.size, LARGEST_FILE), "the size of a file")
        _check(_is_digest(self.sha256), "the SHA-256 of a file")
        rest = self._content(self.rest, itemsize=1).entries
        total = rest
        for gap, entries, values, places in self.pieces:
            content = self._content(values)
            if places is None:
                _check(entries == content.entries, "the length of an array")
            else:
                _check(_is_count(entries, LONGEST), "the length of an array")
                bits = self._content(places, itemsize=1)
                _check(bits.entries == (entries + 7) // 8, "the length of places")
            _check(_is_count(gap, rest), "the bytes before an array")
            rest -= gap
            total += entries * content.itemsize
        _check(total == self.size, "the size of a file")

    def _content(self, index, itemsize=None):
        _check(_is_count(index, len(self.contents) - 1), "the number of a content")
        content = self.contents[index]
        _check(itemsize in (None, content.itemsize), "the size of an entry")
        return content


def _contents(listed, length):
    """The contents of a manifest, which take as many bytes together."""
    found, start = [], 0
    for itemsize, entries, palette, *stored in listed:
        found.append(_Content(start, itemsize, entries, palette, stored))
        start += sum(stored)
    _check(start == length, "the size of all contents")
    return found


def _parts(listed):
    parts = [Part(**one) for one in listed]
    for part in parts:
        _check(_is_count(part.size, LARGEST_FILE) and part.size > HEADER_SIZE, "the size of a part")
        _check(_is_digest(part.sha256), "the SHA-256 of a part")
    return parts


def _check_names(names):
    _check(len(set(names)) == len(names), "the name of a file")
    _check([place_of(name) for name in names].count(0) == 1, "the name of the checkpoint")
    _check(set(NEEDED) <= set(names), "what it lacks")
    _check(names == sorted(names, key=place_of), "the order of files")


def _is_count(value, most):
    return type(value) is int and 0 <= value <= most


def _is_digest(value):
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _check(condition, what):
    if not condition:
        raise ValueError(f"{what} is wrong")


def _read_manifest(folder, flag):
    """What a manifest holds, its own checksum being right."""
    path = folder / MANIFEST
    if not path.exists():
        raise RunError(
            f"{flag} must be the folder of a package. Received: {folder}, which has no {MANIFEST}; fetch it, "
            "or pack the run again"
        )
    try:
        _check(path.stat().st_size <= LARGEST_MANIFEST, "the size")
        content = read_json(path)
        found, checksum = content.pop("format", None), content.pop("checksum", None)
        _check(found == FORMAT, "the format")
        _check(checksum == _checksum(content), "the checksum")
        _check(_is_digest(content.get("identity")), "the identity")
    except (ValueError, OSError) as error:
        raise _damaged(path, flag, error) from error
    return content


def _damaged(path, flag, why):
    reason = " ".join(str(why).split())[:200]
    return RunError(
        f"{path.name} in {flag} must be as this version of the program has written it, but is damaged or "
        f"foreign. Received: {path} ({reason}); fetch it again"
    )


def _checksum(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# The folder of a run that comes from a package


def _check_target(target):
    if target.exists() and not target.is_dir():
        raise RunError(f"--workdir must be a folder. Received: {target}, which is something else")
    if target.exists():
        with _locked(target):
            _check_empty(target)


def _check_empty(target):
    for path in target.iterdir():
        if path.name != ".lock" and not path.name.startswith(PARTIAL):
            raise RunError(
                f"--workdir must be free or an empty folder. Received: {target}, with {path.name}; choose "
                "another folder, or move away what is there"
            )


def _existing(path):
    while not path.exists():
        path = path.parent
    return path


@contextlib.contextmanager
def _locked(folder):
    lock = Lock(folder / ".lock")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
