import pytest

from keras_selfish.data.tokenization import read_text, split_words, split_words_and_marks


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"one", "one\n"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"\xef\xbb\xbfna\xc3\xafve\n", "naïve\n"),
        ("a\x0cb\u2028c\n".encode(), "a\x0cb\u2028c\n"),
    ],
)
def test_line_ends_and_byte_order_mark(tmp_path, data, text):
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == text


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("déjà".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt must be UTF-8 .*0xe9 at byte offset 1"):
        read_text(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*absent\.txt"):
        read_text(tmp_path / "absent.txt")


def test_words_of_prepared_text():
    tokens = split_words(" the <unk> is N \n\n= Title =\n")
    assert " ".join(tokens) == "the <unk> is N <eos> <eos> = Title = <eos>"
    assert split_words("") == []


def test_words_and_marks_of_plain_text():
    tokens = split_words_and_marks(
        "The `assert`-statement (PEP 8): isn’t it?!\n\n*******\nx **= __y__ ... ==== <UNK>\n"
    )
    assert " ".join(tokens) == (
        "the ` assert ` - statement ( pep 8 ) : isn’t it ? ! <eos> <eos> "
        "*** <eos> x ** = __y__ ... === <unk> <eos>"
    )


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("wikitext-2/wiki.valid.tokens", split_words, (217_646, 3_760)),
        ("wikitext-2/wiki.test.tokens", split_words, (245_569, 4_358)),
        ("ptb/ptb.valid.txt", split_words, (73_760, 3_370)),
        # PTB is tokenised already; marks inside words ("n't", "N.") come apart.
        ("ptb/ptb.valid.txt", split_words_and_marks, (77_198, 3_370)),
    ],
)
def test_counts_of_published_text(shared, name, split, counts):
    tokens = split(read_text(shared / "data" / name))
    assert (len(tokens), tokens.count("<eos>")) == counts
