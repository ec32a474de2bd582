"""Elements of HTML and SVG, and small pictures within them. All text is escaped by the standard library."""

import base64
import struct
import unicodedata
import xml.etree.ElementTree as ElementTree
import zlib

LEVELS = 16
MASK_COLOR = (76, 134, 245)  # is seen on white and on black


def element(tag, *children, **attributes):
    """An element of HTML or SVG.

    Args:
        tag: Its name.
        *children: Elements and strings, and lists of them; None is left out.
        **attributes: `class_` is `class`, and other underscores are hyphens; None is left out.

    Returns:
        An `xml.etree.ElementTree.Element`.
    """
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    made = ElementTree.Element(
        tag, {names[name]: clean(str(value)) for name, value in attributes.items() if value is not None}
    )
    _append(made, children)
    return made


def _append(parent, children):
    for child in children:
        if isinstance(child, (list, tuple)):
            _append(parent, child)
        elif isinstance(child, ElementTree.Element):
            parent.append(child)
        elif child is not None:
            text = clean(str(child))
            if len(parent):
                parent[-1].tail = (parent[-1].tail or "") + text
            else:
                parent.text = (parent.text or "") + text


def clean(text):
    """Text without what HTML cannot hold: control characters, and what was not UTF-8, are spelled out."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in ("Cc", "Cs", "Cn", "Cf") else _spelled(char)
        for char in text
    )


def _spelled(char):
    return char.encode("unicode_escape").decode("ascii")


def document(html):
    """The text of a page, from its `html` element."""
    return "<!DOCTYPE html>\n" + ElementTree.tostring(html, encoding="unicode", method="html") + "\n"


def mask_picture(levels):
    """A picture of a mask, transparent where nothing is, as the address of an `img`.

    Args:
        levels: Array of whole numbers below `LEVELS`, (height, width).
    """
    height, width = levels.shape
    rows = levels.astype("uint8")
    if width % 2:  # a byte holds two
        rows = _wider(rows)
    packed = (rows[:, 0::2] << 4) | rows[:, 1::2]
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    alpha = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)),
        (b"PLTE", bytes(MASK_COLOR) * LEVELS),
        (b"tRNS", alpha),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    ]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _wider(rows):
    import numpy as np

    return np.pad(rows, ((0, 0), (0, 1)))


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
