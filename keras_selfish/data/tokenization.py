"""Text from files, and two tokenizations."""

import codecs
import io
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
PIECE = 1 << 20  # bytes of a file that are read at a time
LONGEST_WORD = 1 << 24  # characters that are held in the search of a word's end


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
    return "".join(_decoded(Path(path), -1, keep_byte_order_mark, max_bytes))


def read_pieces(path, size=PIECE):
    r"""Reads a UTF-8 file of any length in pieces, which joined are what `read_text` reads.

    A piece ends where a line does or, in a longer line, where whitespace stands before a word; so the tokens
    of the pieces are those of the whole.

    Args:
        path: the file.
        size: bytes that are read at a time. Default 1 MiB.

    Yields:
        Strings.

    Raises:
        FileNotFoundError, ValueError: as `read_text`; also if there is no whitespace for 16 Mi characters.
    """
    path, rest = Path(path), ""
    for text in _decoded(path, size):
        text = rest + text
        end = _last_border(text)
        if not end and len(text) > LONGEST_WORD:
            raise ValueError(
                f"File {path} must have whitespace at least every {LONGEST_WORD:,} characters, to be read in "
                f"pieces. Received: {len(text):,} characters without any; break it into lines first"
            )
        if end:
            yield text[:end]
        rest = text[end:]
    if rest:
        yield rest


def _last_border(text):
    """Where the last line of a text ends, or else where its last word begins; 0 if there is one word only."""
    if end := text.rfind("\n") + 1:
        return end
    return len(text) if text[-1].isspace() else len(text) - len(text.rsplit(maxsplit=1)[-1])


def _decoded(path, size, keep_byte_order_mark=False, max_bytes=None):
    """Yields the text of a file, `size` bytes at a time (-1: all), with every line ended."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    begun, last, position, data = keep_byte_order_mark, "\n", 0, True
    with open_file(path) as file:
        whole = os.fstat(file.fileno()).st_size
        if max_bytes is not None and whole > max_bytes:
            raise ValueError(f"File {path} must have at most {max_bytes:,} bytes. Received: {whole:,}")
        while data:
            data = file.read(size)
            if (zero := data.find(0)) >= 0:
                raise ValueError(
                    f"File {path} must be UTF-8 text; if it is text, convert it first, for example with "
                    f"`iconv -f utf-16 -t utf-8`. Received: byte 0x00 at byte offset {position + zero}"
                )
            position += len(data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"File {path} must be UTF-8 text; convert it first, for example with "
                    f"`iconv -f latin1 -t utf-8`. Received: byte 0x{error.object[error.start]:02x} at byte "
                    f"offset {position - len(error.object) + error.start}"
                ) from None
            if not begun and text:
                begun, text = True, text.removeprefix("\ufeff")
            if text:
                last = text[-1]
                yield text
    if last != "\n":
        yield "\n"


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
