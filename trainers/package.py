"""Packages: the files of a run in numbered parts of a limited size, each array once, and bit for bit.

A package is a folder with `manifest.json` and `part-0001`, `part-0002` and so on, which one after another are
a stream of blocks. A *content* is an array as blocks (`trainers.coding`). A file is its arrays, each a
content, and the rest of its bytes between them, a content as well. Where an array has zeros, its other values
are one content and their places another: so the weights in a checkpoint and in a model of the same epoch are
the same content, though the one leaves out all zeros and the other only those outside of masks. The manifest
lists all this, with the SHA-256 of each file and part.
"""

import contextlib
import hashlib
import itertools
import shutil

import numpy as np

from trainers import manifest
from trainers.coding import Coded, decode, encode
from trainers.files import PARTIAL, Hashed, RunError, beside, sha256, take_place, write_beside, writing
from trainers.lock import Lock
from trainers.manifest import Content, File, Manifest
from trainers.parts import PartReader, PartWriter
from trainers.spans import LONGEST, spans

LONGEST_REST = 1 << 16  # bytes between two arrays; more are an array of bytes


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
    names = sorted(files, key=manifest.place_of)
    new = Manifest(part_size, [File(name, files[name].stat().st_size, sha256(files[name])) for name in names])
    before = _manifest_before(output, new)
    with _made(output):
        _remove_partial(output)
        writer = PartWriter(output, new.identity, part_size, is_wanted)
        try:
            packer = _Packer(writer)
            for file in new.files:
                file.rest, file.pieces = packer.add(files[file.name])
            new.contents, new.parts = packer.contents, writer.finish()
            if not writer.wanted():
                raise RunError(
                    f"--parts must name parts that there are. Received: none of 1-{len(new.parts)}"
                )
            if before not in (None, new):
                raise RunError(
                    "--output must hold parts that were written in the same way. Received: "
                    f"{output / manifest.NAME}, which lists other ones of the same run, as another version "
                    "of Python or zlib writes them; choose another folder"
                )
            new.write(output)
            writer.take_places()
        finally:
            writer.discard()
    return new.parts, writer.wanted()


def _manifest_before(output, new):
    """The manifest that is there already, if it is of the same package; None if there is none."""
    if output.exists() and not output.is_dir():
        raise RunError(f"--output must be a folder. Received: {output}, which is something else")
    if not output.exists() or all(path.name.startswith(PARTIAL) for path in output.iterdir()):
        return None
    if not (output / manifest.NAME).exists():
        raise RunError(
            f"--output must be free, an empty folder or that of this package. Received: {output}, which has "
            f"no {manifest.NAME} but other files; choose another folder"
        )
    found = Manifest.read(output, "--output")
    if found.identity != new.identity:
        raise RunError(
            f"--output must be free, an empty folder or that of this package. Received: {output}, which "
            "holds the package of another run, of another checkpoint or of another --part_size; move it "
            "away or choose another folder"
        )
    return found


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
        """Adds a file; returns the `rest` and the `pieces` of a `File`."""
        rest, pieces = [], []
        with open(path, "rb") as file:
            for gap, itemsize, entries in _cut(path):
                rest.append(file.read(gap))
                array = np.frombuffer(file.read(itemsize * entries), f"<u{itemsize}")
                pieces.append([gap, entries, *self._array(array)])
            rest.append(file.read())
        return self._content(np.frombuffer(b"".join(rest), np.uint8)), pieces

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
                raise RuntimeError(
                    "An array must be decoded as it was. Received: another one; pack again, and if that "
                    "fails as well, do not trust the memory of this machine"
                )
            for block in coded.blocks:
                self._writer.write(block)
            sizes = [len(block) for block in coded.blocks]
            self.contents.append(Content(coded.itemsize, coded.entries, coded.palette, sizes))
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
        self._folder = folder
        found = Manifest.read(folder, "--input")
        self._files, self._contents = found.files, found.contents
        self._starts = list(itertools.accumulate((sum(one.stored) for one in found.contents), initial=0))
        self._parts = PartReader(folder, found.identity, found.parts)
        self._parts.check()
        self.size = sum(file.size for file in found.files)

    def unpack(self, target):
        """Writes the files.

        Args:
            target: `pathlib.Path`: a free place or an empty folder.

        Returns:
            The names of the files.

        Raises:
            RunError: if there is something else, or a trainer uses the folder.
        """
        if target.exists() and not target.is_dir():
            raise RunError(f"--workdir must be a folder. Received: {target}, which is something else")
        paths = [target / file.name for file in self._files]
        with _made(target), _locked(target):
            _check_empty(target)
            _remove_partial(target)
            self._check_room(target)
            try:
                for file, path in zip(self._files, paths, strict=True):
                    write_beside(path, lambda place, file=file: self._write(file, place))
                for path in paths:
                    take_place(path)
            except BaseException:
                for path in paths:
                    path.unlink(missing_ok=True)
                    beside(path).unlink(missing_ok=True)
                raise
        return [path.name for path in paths]

    def _check_room(self, target):
        free = shutil.disk_usage(target).free
        if self.size > free:
            raise RunError(
                f"--workdir must be on a disk with room for {self.size:,} bytes. Received: {target}, with "
                f"{free:,} free; make room there, or choose another place"
            )

    def _write(self, file, place):
        try:
            with open(place, "wb") as raw:
                hashed = Hashed(raw)
                for piece in self._pieces(file):
                    hashed.write(piece)
        except ValueError as error:
            raise manifest.damaged(self._folder, "--input", f"of {file.name}: {error}") from error
        if hashed.hexdigest() != file.sha256:
            raise manifest.damaged(self._folder, "--input", f"{file.name} is not what it says")

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
        content, start = self._contents[index], self._starts[index]
        starts = itertools.accumulate(content.stored, initial=start)
        blocks = [self._parts.read(begin, size) for begin, size in zip(starts, content.stored, strict=False)]
        return decode(Coded(content.itemsize, content.entries, content.palette, blocks))


# Folders


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


@contextlib.contextmanager
def _locked(folder):
    lock = Lock(folder / ".lock")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_partial(folder):
    """Removes what a program that was killed has left."""
    with writing(folder):
        for partial in folder.glob(f"{PARTIAL}*"):
            partial.unlink()


def _check_empty(target):
    for path in target.iterdir():
        if path.name != ".lock" and not path.name.startswith(PARTIAL):
            raise RunError(
                f"--workdir must be free or an empty folder. Received: {target}, with {path.name}; choose "
                "another folder, or move away what is there"
            )
