"""The rules of `tokenization.py` as TensorFlow operations, for strings inside a graph.

Of TensorFlow's string operations only the regular expressions know whitespace and letters of Unicode, as
Python does. So they mark where tokens end, and the plain split cuts there. Nothing else is needed.
(A letter that is newer than the Unicode of one of the two is a letter to the other only.)
"""

import tensorflow as tf

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
    if tokenization not in TOKENIZATIONS:
        raise ValueError(
            f"`tokenization` must be one of {', '.join(TOKENIZATIONS)}. "
            f"Received: tokenization={tokenization!r}"
        )
    split = {"whitespace": _split_words, "words_and_marks": _split_words_and_marks}[tokenization]

    def tokenize(texts):
        texts = tf.strings.regex_replace(texts, _END, "\ufffd")
        texts = tf.strings.regex_replace(texts, r"\r\n?", "\n")
        texts = tf.strings.regex_replace(texts, r"\n?\z", "\n", replace_global=False)
        tokens = split(texts)
        return tokens.with_flat_values(tf.where(tokens.flat_values == "\n", EOS, tokens.flat_values))

    return tokenize


def _split_words(texts):
    texts = tf.strings.regex_replace(texts, rf"[{_SPACE}]+", _END)
    return _split_at_ends(tf.strings.regex_replace(texts, r"\n", f"{_END}\n{_END}"))


def _split_words_and_marks(texts):
    texts = tf.strings.lower(texts, encoding="utf-8")
    texts = tf.strings.regex_replace(texts, rf"[{_SPACE}]+", " ")
    tokens = _split_at_ends(tf.strings.regex_replace(texts, rf"\n| |{UNK}|{_WORD}|{_MARK}", rf"\0{_END}"))
    # RE2 has no back-references, so marks come one by one; a run of one mark is a single token. A space
    # between two marks is still there and goes afterwards.
    flat, rows = tokens.flat_values, tokens.value_rowids()
    continues = (
        tf.strings.regex_full_match(flat, _MARK)[1:] & (flat[1:] == flat[:-1]) & (rows[1:] == rows[:-1])
    )
    first = tf.concat([[True], tf.logical_not(continues)], 0)[: tf.size(flat)]
    lengths = tf.math.bincount(tf.cumsum(tf.cast(first, tf.int32)) - 1)
    kept, rows = flat[first], rows[first]
    for length in range(1, LONGEST_RUN):
        kept = tf.where(lengths > length, tf.strings.join([kept, flat[first]]), kept)
    is_token = kept != " "
    return tf.RaggedTensor.from_value_rowids(kept[is_token], rows[is_token], tokens.nrows())


def _split_at_ends(texts):
    tokens = tf.strings.split(texts, _END)
    return tf.ragged.boolean_mask(tokens, tokens != "")
