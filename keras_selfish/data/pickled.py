"""Pickles of dicts, lists, numbers, text and arrays, read as data: nothing in them is imported or called."""

import codecs
import math
import re
import struct
from typing import NamedTuple

import numpy as np

from keras_selfish.data.bounded import CHUNK, fill

__all__ = ["PickledArray", "read_pickle"]

# CIFAR's longest batch, 50,000 images, has 500,000 as Python 3 writes it again: ten for a name and a label.
_MOST_STEPS = 750_000
_LONGEST_NAME = 200  # bytes, of a function


def read_pickle(file, size):
    """Reads a pickle of protocol 2 to 4 without running it.

    Python's unpickler calls what a file names, and the classes of NumPy take bytes of the file for pointers.
    Here what makes an array or a type is noted, and everything else refused. Time and memory are bounded by
    the size and by a number of steps: text counts no more than once, and only text can be a key.

    Args:
        file: An open binary file with `read`, `readinto` and `readline`.
        size: Number of bytes of the pickle, which must end there.

    Returns:
        What the pickle holds. Text and bytes are both `bytes` (`bytearray` if they are long), arrays
        are of type `PickledArray`.

    Raises:
        Exception: Of any kind, for a pickle that is damaged or holds something else.

    Example:
        >>> import io, pickle
        >>> content = pickle.dumps({"labels": [6, 9]})
        >>> read_pickle(io.BytesIO(content), len(content))
        {b'labels': [6, 9]}
    """
    reader = _Reader(file, size)
    value = reader.run()
    if reader.left:
        raise ValueError(f"it goes on for {reader.left:,} bytes after its end")
    return value


class _Name(NamedTuple):
    """The name of a function or class in a pickle."""

    module: bytes
    name: bytes


class _PickledType:
    """The type of an array in a pickle, as it is written there."""

    __slots__ = ("name", "order")

    def __init__(self, name):
        self.name, self.order = name, b"|"

    def set(self, state):
        self.order = state[1]


class PickledArray:
    """An array in a pickle: shape, type and bytes as they are written there."""

    __slots__ = ("_by_columns", "_content", "_shape", "_type")

    def set(self, state):
        """Takes over what `numpy.ndarray.__setstate__` is given."""
        _, self._shape, self._type, self._by_columns, self._content = state

    def numbers(self):
        """The array; raises `ValueError` unless it is one of bytes or integers that fits its shape."""
        stored = self._type
        known = isinstance(stored, _PickledType) and stored.name in (b"u1", b"i4", b"i8")
        if not known or stored.order not in (b"|", b"<") or self._by_columns is not False:
            raise ValueError("it holds an array that is not of bytes or integers, row by row")
        shape, content = self._shape, self._content
        if not (
            isinstance(shape, tuple) and len(shape) <= 4 and all(type(n) is int and n >= 0 for n in shape)
        ):
            raise ValueError("it holds an array of an unknown shape")
        if not isinstance(content, (bytes, bytearray)) or len(content) != math.prod(shape) * int(
            stored.name[1:]
        ):
            raise ValueError("it holds an array that does not fit its shape")
        return np.frombuffer(content, f"<{stored.name.decode()}").reshape(shape)


class _Reader:
    """The machine that a pickle is a program for, with what batches of images need of it."""

    def __init__(self, file, size):
        self._file = file
        self.left = self._text_left = size
        self._stack, self._marks, self._memo = [], [], {}

    def run(self):
        for _ in range(_MOST_STEPS):
            code = self._bytes(1)
            if code == b".":
                return self._stack.pop()
            operation = _OPERATIONS.get(bytes(code))
            if operation is None:
                raise ValueError(f"it has the operation {bytes(code)!r}, which no pickled array needs")
            operation(self)
        raise ValueError(f"it has more than {_MOST_STEPS:,} steps")

    # What stands in the file

    def _bytes(self, count):
        if count > self.left:
            raise EOFError("it ends within a value")
        self.left -= count
        if count > CHUNK:
            content = bytearray(count)
            fill(self._file, content)
            return content
        content = self._file.read(count)
        if len(content) < count:
            raise EOFError("it ends early")
        return content

    def _number(self, form):
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _line(self):
        line = self._file.readline(_LONGEST_NAME)
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise ValueError("it holds a line without an end")
        return line[:-1]

    # The stack

    def push(self, value):
        self._stack.append(value)

    def push_number(self, form):
        self.push(self._number(form))

    def push_long(self):
        self.push(int.from_bytes(self._bytes(self._number("<B")), "little", signed=True))

    def push_bytes(self, form):
        self.push(self._bytes(self._number(form)))

    def push_name(self):
        self.push(_Name(self._line(), self._line()))

    def push_name_of_two(self):
        names = self._last(2)
        if not all(type(name) is bytes for name in names):
            raise ValueError("it names a function by what is no text")
        self.push(_Name(*names))

    def _last(self, count):
        if len(self._stack) < count:
            raise ValueError("it takes more values than it has")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def mark(self):
        self._marks.append(len(self._stack))

    def _marked(self):
        return self._last(len(self._stack) - self._marks.pop())

    def push_tuple(self, count=None):
        self.push(tuple(self._marked() if count is None else self._last(count)))

    def append(self, marked):
        values = self._marked() if marked else self._last(1)
        if not isinstance(self._stack[-1], list):
            raise ValueError("it adds to what is no list")
        self._stack[-1].extend(values)

    def set_items(self, marked):
        values = self._marked() if marked else self._last(2)
        keys = values[::2]
        # The hash of a tuple of tuples can take for ever.
        if not isinstance(self._stack[-1], dict) or not all(type(key) is bytes for key in keys):
            raise ValueError("it has a key that is no text")
        self._stack[-1].update(zip(keys, values[1::2], strict=True))

    def put(self, form=None):
        self._memo[len(self._memo) if form is None else self._number(form)] = self._stack[-1]

    def get(self, form):
        self.push(self._memo[self._number(form)])

    # Arrays

    def reduce(self):
        function, arguments = self._last(2)
        if not isinstance(function, _Name) or type(arguments) is not tuple:
            raise ValueError("it calls what is no function")
        make = {
            (b"numpy.core.multiarray", b"_reconstruct"): lambda *arguments: PickledArray(),
            (b"numpy", b"dtype"): lambda name, *arguments: _PickledType(name),
            (b"_codecs", b"encode"): self._latin,
        }.get((function.module.replace(b"_core", b"core"), function.name))
        if make is None:
            raise ValueError(f"it calls {function.module[:50]!r}, {function.name[:50]!r}")
        self.push(make(*arguments))

    def _latin(self, text, encoding):
        """What Python 3 writes for bytes in old protocols; in all no more than the file has."""
        self._text_left -= len(text)
        # From the byte C4 on, UTF-8 stands for characters that are not in Latin 1 and take more memory.
        if encoding != b"latin1" or self._text_left < 0 or re.search(rb"[\xc4-\xff]", text):
            raise ValueError("it encodes text in an unknown way")
        decoder = codecs.getincrementaldecoder("utf-8")()
        content = bytearray()
        for start in range(0, len(text), CHUNK):  # so that no third copy of a long text is made
            content += decoder.decode(text[start : start + CHUNK], start + CHUNK >= len(text)).encode(
                "latin1"
            )
        return bytes(content) if len(content) <= CHUNK else content

    def build(self):
        (state,) = self._last(1)
        if not isinstance(self._stack[-1], (PickledArray, _PickledType)):
            raise ValueError("it changes what is no array")
        self._stack[-1].set(state)


_OPERATIONS = {
    b"\x80": lambda reader: reader._number("<B"),  # the protocol
    b"\x95": lambda reader: reader._number("<Q"),  # the size of what follows
    b"N": lambda reader: reader.push(None),
    b"\x88": lambda reader: reader.push(True),
    b"\x89": lambda reader: reader.push(False),
    b"J": lambda reader: reader.push_number("<i"),
    b"K": lambda reader: reader.push_number("<B"),
    b"M": lambda reader: reader.push_number("<H"),
    b"\x8a": _Reader.push_long,
    b"U": lambda reader: reader.push_bytes("<B"),  # text of Python 2
    b"T": lambda reader: reader.push_bytes("<I"),
    b"\x8c": lambda reader: reader.push_bytes("<B"),  # text
    b"X": lambda reader: reader.push_bytes("<I"),
    b"\x8d": lambda reader: reader.push_bytes("<Q"),
    b"C": lambda reader: reader.push_bytes("<B"),  # bytes
    b"B": lambda reader: reader.push_bytes("<I"),
    b"\x8e": lambda reader: reader.push_bytes("<Q"),
    b"(": _Reader.mark,
    b")": lambda reader: reader.push(()),
    b"t": _Reader.push_tuple,
    b"\x85": lambda reader: reader.push_tuple(1),
    b"\x86": lambda reader: reader.push_tuple(2),
    b"\x87": lambda reader: reader.push_tuple(3),
    b"]": lambda reader: reader.push([]),
    b"a": lambda reader: reader.append(marked=False),
    b"e": lambda reader: reader.append(marked=True),
    b"}": lambda reader: reader.push({}),
    b"s": lambda reader: reader.set_items(marked=False),
    b"u": lambda reader: reader.set_items(marked=True),
    b"q": lambda reader: reader.put("<B"),
    b"r": lambda reader: reader.put("<I"),
    b"\x94": _Reader.put,
    b"h": lambda reader: reader.get("<B"),
    b"j": lambda reader: reader.get("<I"),
    b"c": _Reader.push_name,
    b"\x93": _Reader.push_name_of_two,
    b"R": _Reader.reduce,
    b"b": _Reader.build,
}
