"""Files that are written as a whole or not at all, and errors of one sentence about them."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import struct
import zipfile
import zlib

PARTIAL = ".partial-"

# What a file system answers that takes no more bytes.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What NumPy, TensorFlow, XLA and JAX say where memory is too little, up to where it was wanted.
_NO_MEMORY = re.compile(
    r"(Unable to allocate|OOM when allocating|Out of memory).*?(?= on /job:|\.?( \[Op|$))", re.MULTILINE
)


class RunError(Exception):
    """A run that cannot start or go on; the message is one sentence for the user."""


class WriteError(RunError):
    """A file that could not be written.

    Args:
        path: `pathlib.Path` of the file.
        reason: What the operating system says.
        advice: What to do, the end of the sentence.
    """

    def __init__(self, path, reason, advice="make room there, or choose another place"):
        super().__init__(f"{path.name} could not be written: {reason}. Received: {path}; {advice}")
        self.path, self.reason = path, reason


def user_path(name, text):
    """The path that a flag gives, in which ~ stands for a home folder.

    Args:
        name: Name of the flag, for the message.
        text: What it gives.

    Raises:
        RunError: for the home folder of an unknown user.
    """
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise RunError(
            f"{name} must not begin with ~ unless that is a home folder. Received: {name}={text}; write the "
            "path in full"
        ) from error


def absolute_path(name, text):
    """As `user_path`, but an absolute path as a string."""
    return os.path.abspath(user_path(name, text))


def no_room(error):
    """What the file system has said if an error came of its being full, else None.

    Libraries put what went wrong into words of their own, or fail once more while they clean up; so the words
    are looked for in the error and in those that it came from.
    """
    for one in _origins(error):
        for number in _FULL:
            if getattr(one, "errno", None) == number or os.strerror(number) in str(one):
                return os.strerror(number)
    return None


def no_memory(error):
    """What could not be had if an error came of too little memory, of the host or of a device, else None."""
    for one in _origins(error):
        said = _NO_MEMORY.search(str(one))
        if said is not None or isinstance(one, MemoryError):
            return said[0] if said else "out of memory"
    return None


def _origins(error):
    """An error and those that it came from."""
    for _ in range(20):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def writing(path):
    """A context in which a file or folder is written: what the operating system refuses is a `WriteError`."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:  # h5py, zipfile and TensorFlow have kinds of their own
        reason = no_room(error)
        if reason is None and isinstance(error, OSError) and error.errno:
            reason = error.strerror
        if reason is None:
            raise
        raise WriteError(path, reason) from error


def beside(path):
    """Where a file is written before it takes its place."""
    return path.parent / f"{PARTIAL}{path.name}"


def write_beside(path, write):
    """Writes a file beside its place and has it on the disk; nothing stays there if that fails.

    Args:
        path: `pathlib.Path` of the place.
        write: Function that is given the path to write to.
    """
    temporary = beside(path)
    try:
        with writing(path):
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def take_place(path):
    """Moves what `write_beside` has written to its place."""
    with writing(path):
        os.replace(beside(path), path)


def replace(path, write):
    """Writes a file beside its place and then moves it there, so that it is never seen half written."""
    write_beside(path, write)
    take_place(path)


def write_text(path, text):
    """Writes UTF-8 text in one step, line ends as they are."""
    replace(path, lambda temporary: pathlib.Path(temporary).write_bytes(text.encode("utf-8")))


def write_json(path, content):
    """Writes JSON in one step."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path):
    """The dict that a JSON file holds.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


class Hashed(io.RawIOBase):
    """A file to write from begin to end, with the SHA-256 of what was written.

    Args:
        file: Binary file, open for writing.
    """

    def __init__(self, file):
        super().__init__()
        self._file = file
        self._digest = hashlib.sha256()

    def writable(self):
        return True

    def write(self, data):
        self._digest.update(data)
        return self._file.write(data)

    def hexdigest(self):
        return self._digest.hexdigest()


def sha256(path):
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole_archive(path):
    """Whether a .keras or .npz file is there and as its own checksums say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error):
        return False
