"""Bounded reading of files, whatever a file claims about itself."""

import errno
import io
import os
import stat
import zipfile
import zlib

__all__ = ["Bounded", "Inflated", "fill", "open_file", "open_member"]

CHUNK = 1 << 18  # bytes


def open_file(path):
    """Opens a file for reading its bytes, unless it is a pipe, a device or a folder.

    Args:
        path: The path.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is something else, which might never end.
        OSError: If it cannot be read.
    """
    try:
        # A pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise FileNotFoundError(f"There is no file {path}") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"File {path} must be a file. Received: a folder, a pipe or a device")
    return open(descriptor, "rb")


def fill(file, buffer):
    """Reads from a file until a buffer is full, without holding any of it twice.

    Args:
        file: An open binary file with `readinto`.
        buffer: What to fill, one-dimensional, of bytes: a `bytearray` or an array of uint8.

    Raises:
        EOFError: If the file ends before.
    """
    view = memoryview(buffer)
    start = 0
    while start < len(view):
        count = file.readinto(view[start : start + CHUNK])
        if not count:
            raise EOFError(f"it ends after {start:,} bytes of a part of {len(view):,}")
        start += count


class Bounded(io.RawIOBase):
    """A binary file of which `left` bytes may be read; reading further raises `ValueError`.

    Bytes that are skipped do not count. It has what `zipfile` needs; one call of `read` reserves no more
    memory than is left.

    Args:
        file: The open file.
        left: Number of bytes. May be set anew at any time.
    """

    def __init__(self, file, left):
        self._file = file
        self.left = left

    def seekable(self):
        return self._file.seekable()

    def seek(self, offset, whence=io.SEEK_SET):
        return self._file.seek(offset, whence)

    def tell(self):
        return self._file.tell()

    def read(self, size=-1):
        content = self._file.read(self.left + 1 if size is None or size < 0 else min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError("it asks for more to be read than any such file holds")
        return content


class Inflated(io.RawIOBase):
    """The content of a gzip file of one member, whose checksum is checked at its end.

    Unlike `gzip.GzipFile` it reads the header in C, which may be as long as the file.

    Args:
        file: The open compressed file.
    """

    def __init__(self, file):
        self._file = file
        self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self._inflater.eof:
            compressed = self._inflater.unconsumed_tail or self._file.read(CHUNK)
            if not compressed:
                raise EOFError("the compressed file ends early")
            content = self._inflater.decompress(compressed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)
        if self._inflater.unused_data or self._file.read(1):
            raise ValueError("the compressed file goes on after its end")
        return 0


def open_member(archive, name):
    """Opens a member of a `zipfile.ZipFile` whose content can be read piece by piece.

    Raises:
        KeyError: If there is none.
        ValueError: If it is packed in another way than a published file: of those that remain, a piece of
            4 kB may become gigabytes at once.
    """
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed in an unknown way")
    return archive.open(member)
