"""The rules of `tokenization.py` as TensorFlow operations, for strings inside a graph.

Of TensorFlow's own string operations only the regular expressions know whitespace and letters of Unicode, as
Python does; they mark where words end, and the plain split cuts there. Words and marks apart need TensorFlow
Text, whose split tells where each token stood. (A letter that is newer than the Unicode of one of the two is
a letter to the other only.)
"""

import tensorflow as tf

from keras_selfish import checks
from keras_selfish.data.tokenization import EOS, LONGEST_RUN, TOKENIZATIONS, UNK

# Python's classes \s and \w over Unicode, in the syntax of RE2.
_SPACE = r"\t\v\f\r\x{1c}-\x{1f}\x{85}\pZ"  # without the line end, which is a token
_LETTER = r"\pL\pN_"
_WORD = rf"[{_LETTER}]+(?:['’][{_LETTER}]+)*"
_MARK = rf"[^{_LETTER}{_SPACE}\n]"
_END = "\0"  # of a token; there is none in a text


def tokenizer(tokenization):
    r"""A function that cuts strings into tokens as `keras_selfish.data` cuts files, every line ended by `\n`.

    Args:
        tokenization: How, as in `Corpus`: `"whitespace"` or `"words_and_marks"`.

    Returns:
        A function from a string tensor (batch,), UTF-8, to a `tf.RaggedTensor` of strings (batch, tokens).
        The last token of each text is `<eos>`.

    Raises:
        ValueError: for an unknown tokenization.

    Example:

    >>> tokenizer("words_and_marks")(tf.constant(["Don't stop!"])).to_list()
    [[b"don't", b'stop', b'!', b'<eos>']]
    """
    checks.one_of("tokenization", tokenization, TOKENIZATIONS)
    split = {"whitespace": _split_words, "words_and_marks": _split_words_and_marks}[tokenization]

    def tokenize(texts):
        texts = tf.strings.regex_replace(texts, _END, "\ufffd")  # TensorFlow Text drops a text with zeros
        texts = tf.strings.regex_replace(texts, r"\r\n?", "\n")
        texts = tf.strings.regex_replace(texts, r"\n?\z", "\n", replace_global=False)
        tokens = split(texts)
        return tokens.with_flat_values(tf.where(tokens.flat_values == "\n", EOS, tokens.flat_values))

    return tokenize


def _split_words(texts):
    # Without TensorFlow Text, so that a SavedModel that cuts text in this way can be loaded without it.
    texts = tf.strings.regex_replace(texts, rf"[{_SPACE}]+", _END)
    tokens = tf.strings.split(tf.strings.regex_replace(texts, r"\n", f"{_END}\n{_END}"), _END)
    return tf.ragged.boolean_mask(tokens, tokens != "")


def _split_words_and_marks(texts):
    import tensorflow_text

    token = rf"\n|{UNK}|{_WORD}|{_MARK}"
    texts = tf.strings.lower(texts, encoding="utf-8")
    tokens, begins, ends = tensorflow_text.regex_split_with_offsets(texts, rf"{token}|[{_SPACE}]+", token)
    # RE2 has no back-references, so marks come one by one; a run of one mark is a single token.
    flat, rows = tokens.flat_values, tokens.value_rowids()
    continues = (
        tf.strings.regex_full_match(flat, _MARK)[1:]
        & (flat[1:] == flat[:-1])
        & (begins.flat_values[1:] == ends.flat_values[:-1])
        & (rows[1:] == rows[:-1])
    )
    first = tf.concat([[True], tf.logical_not(continues)], 0)[: tf.size(flat)]
    lengths = tf.math.bincount(tf.cumsum(tf.cast(first, tf.int32)) - 1)
    kept, rows = flat[first], rows[first]
    for length in range(1, LONGEST_RUN):
        kept = tf.where(lengths > length, tf.strings.join([kept, flat[first]]), kept)
    return tf.RaggedTensor.from_value_rowids(kept, rows, tokens.nrows())
