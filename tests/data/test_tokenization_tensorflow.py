import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_selfish.data.tokenization import TOKENIZATIONS

tf = pytest.importorskip("tensorflow")

# Pieces that the rules are about, with any text between them.
PIECES = st.sampled_from(
    ["\n", "\r\n", "\r", " ", "\xa0", "\u2028", "\x1f", "'", "’", "--", "====", "<unk>", "_"]
)
# Python and TensorFlow know different versions of Unicode; what stood in 3.2 is known to both.
KNOWN = st.characters(exclude_characters="\0", exclude_categories=["Cn", "Cs"]).filter(
    lambda character: unicodedata.ucd_3_2_0.category(character) != "Cn"
)
LETTERS = st.text(KNOWN, max_size=4)
TEXTS = st.lists(st.one_of(PIECES, LETTERS), max_size=12).map("".join)


def lines_of(text):
    """What `read_text` makes of a file with this text; an empty text is an empty line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"


@pytest.mark.parametrize("tokenization", TOKENIZATIONS)
@pytest.mark.parametrize("compiled", [False, True])
def test_tokens_are_those_of_the_corpus(tokenization, compiled):
    from keras_selfish.data.tokenization_tensorflow import tokenizer

    tokenize = tokenizer(tokenization)
    if compiled:
        tokenize = tf.function(tokenize, input_signature=[tf.TensorSpec((None,), tf.string)])

    @settings(max_examples=20 if not compiled else 150, deadline=None, derandomize=True)
    @given(st.lists(TEXTS, min_size=1, max_size=4))
    @example(["Don't stop!\n====== ..\n\n", "", "ÄÖ ﬁ Ω1½²", "a--b——c ''", "<unk><UNK> <unk", "- -- .\n."])
    def check(texts):
        expected = [TOKENIZATIONS[tokenization](lines_of(text)) for text in texts]
        actual = tokenize(tf.constant([text.encode() for text in texts]))
        assert [[token.decode() for token in row] for row in actual.to_list()] == expected

    check()
    assert tokenize(tf.constant([], tf.string)).to_list() == []
    assert tokenize(tf.constant([b"a\0b c"])).to_list()[0][-2:] == [b"c", b"<eos>"]


def test_an_unknown_tokenization_is_refused():
    from keras_selfish.data.tokenization_tensorflow import tokenizer

    with pytest.raises(
        ValueError, match=r"one of whitespace, words_and_marks\. Received: tokenization='letters'"
    ):
        tokenizer("letters")
