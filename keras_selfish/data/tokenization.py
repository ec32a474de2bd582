"""Text from files, and the two ways of cutting it into tokens."""

import os
import re
from pathlib import Path

from keras_selfish.data.bounded import open_file

EOS = "<eos>"
UNK = "<unk>"

# A line end; the mark of an unknown word; a word, an apostrophe inside it included; a run of one
# punctuation mark ("..", "===").
_WORD_OR_MARK = re.compile(r"\n|<unk>|\w+(?:['’]\w+)*|([^\w\s])\1*")
LONGEST_RUN = 3


def read_text(path, keep_byte_order_mark=False, max_bytes=None):
    r"""Reads a whole UTF-8 file, with every line ended by `\n`.

    Args:
        path: the file.
        keep_byte_order_mark: whether a leading U+FEFF is part of the text. Default False.
        max_bytes: size of the file at most. Default None: no limit.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is larger, no regular file, not UTF-8, or has a zero byte, which tells of other
            encodings and of what is no text; the message names the file and the first offending byte.
        OSError: if it cannot be read.
    """
    path = Path(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"File {path} must have at most {max_bytes:,} bytes. Received: {size:,}")
        data = file.read()
    if (zero := data.find(0)) >= 0:
        raise ValueError(
            f"File {path} must be UTF-8 text; if it is text, convert it first, for example with "
            f"`iconv -f utf-16 -t utf-8`. Received: byte 0x00 at byte offset {zero}"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"File {path} must be UTF-8 text; convert it first, for example with "
            f"`iconv -f latin1 -t utf-8`. Received: byte 0x{data[error.start]:02x} at byte "
            f"offset {error.start}"
        ) from None
    if not keep_byte_order_mark:
        text = text.removeprefix("\ufeff")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") or not text else text + "\n"


def split_words(text):
    r"""Cuts text that is already tokenised: whitespace separates tokens, a line ends in `<eos>`.

    A blank line is one `<eos>`, as in the published preparation of WikiText-2.

    Args:
        text: string whose lines end in `\n`.

    Returns:
        List of strings.

    Example:
        >>> split_words("no it was n't\n")
        ['no', 'it', 'was', "n't", '<eos>']
    """
    return text.replace("\n", f" {EOS} ").split()


def split_words_and_marks(text):
    r"""Cuts plain text: lower-cased words and punctuation apart, a line ends in `<eos>`.

    A run of one punctuation mark is a single token, and a run of more than three is cut to three,
    so that the rules and underlines of plain-text documents do not become the commonest token. A
    blank line is one `<eos>`; `<unk>` stays whole.

    Args:
        text: string whose lines end in `\n`.

    Returns:
        List of strings.

    Example:
        >>> split_words_and_marks("Don't stop!\n==========\n")
        ["don't", 'stop', '!', '<eos>', '===', '<eos>']
    """
    tokens = []
    for match in _WORD_OR_MARK.finditer(text.lower()):
        token = match.group()
        if token == "\n":
            token = EOS
        elif match.lastindex:
            token = token[:LONGEST_RUN]
        tokens.append(token)
    return tokens


TOKENIZATIONS = {"whitespace": split_words, "words_and_marks": split_words_and_marks}
