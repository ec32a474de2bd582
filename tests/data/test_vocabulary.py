import os

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keras_selfish.data import Vocabulary

TEXT = ["b", "a", "<eos>", "c", "a", "b", "d", "<eos>", "a", "<eos>"]  # a 3, <eos> 3, b 2, c 1, d 1


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({}, "b a <eos> c d"),
        ({"min_count": 2}, "b a <eos> <unk>"),
        ({"min_count": 3}, "a <eos> <unk>"),
        ({"max_size": 6}, "b a <eos> c d <unk>"),
        ({"max_size": 5}, "b a <eos> c <unk>"),
        ({"max_size": 3}, "a <eos> <unk>"),
        ({"max_size": 5, "min_count": 2}, "b a <eos> <unk>"),
    ],
)
def test_order_of_first_appearance_under_limits(limits, tokens):
    assert Vocabulary.build(TEXT, **limits).tokens == tuple(tokens.split())


def test_unk_of_the_text_keeps_its_place():
    text = ["a", "<unk>", "b", "<unk>", "a"]
    assert Vocabulary.build(text).tokens == ("a", "<unk>", "b")
    assert Vocabulary.build(text, min_count=2).tokens == ("a", "<unk>")
    assert Vocabulary.build(text, max_size=3).tokens == ("a", "<unk>", "b")


def test_eos_and_unk_are_not_left_out_for_being_rare():
    text = ["a", "a", "<eos>", "b", "b", "b"]
    assert Vocabulary.build(text, min_count=2).tokens == ("a", "<eos>", "b", "<unk>")
    assert Vocabulary.build(text, max_size=3).tokens == ("<eos>", "b", "<unk>")
    assert Vocabulary.build(["a", "a", "<unk>"], min_count=2).tokens == ("a", "<unk>")


def test_encode_and_decode():
    vocabulary = Vocabulary.build(TEXT, min_count=2)
    assert (vocabulary.eos_id, vocabulary.unk_id, len(vocabulary)) == (2, 3, 4)
    ids = vocabulary.encode(TEXT)
    np.testing.assert_array_equal(ids, [0, 1, 2, 3, 1, 0, 3, 2, 1, 2])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(vocabulary.encode("a never\tb"), [1, 3, 0])
    assert vocabulary.decode(np.array([[0, 3], [2, 1]])) == ["b", "<unk>", "<eos>", "a"]
    assert vocabulary.encode([]).shape == (0,)
    assert "a" in vocabulary
    assert "c" not in vocabulary


def test_a_closed_vocabulary_refuses_unknown_tokens():
    vocabulary = Vocabulary.build(TEXT)
    assert vocabulary.unk_id is None
    message = r"no '<unk>'.*`min_count=2`.*Received: 'zebra' at position 1"
    with pytest.raises(ValueError, match=message):
        vocabulary.encode(["a", "zebra"])


@pytest.mark.parametrize("wrong", [-1, 5])
def test_decode_refuses_ids_outside(wrong):
    with pytest.raises(ValueError, match=rf"`ids` must be in \[0, 5\).*Received: {wrong}"):
        Vocabulary.build(TEXT).decode([0, wrong])


ANY_TOKEN = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda t: t.split() == [t] and "\0" not in t
)


@given(tokens=st.lists(ANY_TOKEN, min_size=1, unique=True))
@example(tokens=["\ufeffa", "b"])  # a byte order mark belongs to its token
def test_a_saved_vocabulary_is_loaded_as_it_was(tmp_path_factory, tokens):
    path = tmp_path_factory.getbasetemp() / "vocabulary.txt"
    vocabulary = Vocabulary(tokens)
    vocabulary.save(path)
    assert path.read_bytes().decode() == "".join(token + "\n" for token in tokens)
    assert Vocabulary.load(path) == vocabulary


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"must hold at least one token"),
        ("a\nb\na\n", r"distinct. Received: 'a' as tokens 0 and 2"),
        ("a\n\nb\n", r"non-empty.*Received: '' as token 1"),
        ("a b\nc\n", r"without whitespace .*Received: 'a b' as token 0"),
        ("a" * 1_000_000 + " b\n", r"Received: 'a{100}' as token 0$"),
    ],
)
def test_a_damaged_file_is_told_by_name(tmp_path, content, message):
    path = tmp_path / "vocabulary.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"vocabulary\.txt must hold one token a line: .*{message}"):
        Vocabulary.load(path)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (os.mkfifo, ValueError, "must be a file"),
        (os.mkdir, ValueError, "must be a file"),
        (lambda path: path.symlink_to("/dev/zero"), ValueError, "must be a file"),
        (lambda path: path.symlink_to(path.name), FileNotFoundError, "There is no file"),
        (lambda path: path.symlink_to("none"), FileNotFoundError, "There is no file"),
        (lambda path: path.write_bytes(b"a\n\0\n"), ValueError, "byte 0x00 at byte offset 2"),
        (lambda path: path.write_bytes("a\n".encode("utf-16")), ValueError, "byte 0x00 at byte offset 3"),
        (lambda path: path.write_bytes(b"a\n\xff\n"), ValueError, "byte 0xff at byte offset 2"),
        (lambda path: path.open("wb").truncate(2**40), ValueError, "at most 268,435,456 bytes"),
    ],
)
def test_what_is_no_vocabulary_file_is_told_by_name(tmp_path, make, error, message):
    make(tmp_path / "vocabulary.txt")
    with pytest.raises(error, match=rf"vocabulary\.txt.*{message}|{message}.*vocabulary\.txt"):
        Vocabulary.load(tmp_path / "vocabulary.txt")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_count": 0}, "`min_count` must be None or a positive integer. Received: min_count=0"),
        (
            {"max_size": 2},
            "`max_size` must be None or an integer of at least 3. Received: max_size=2; .* take three",
        ),
    ],
)
def test_bad_limits(limits, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.build(TEXT, **limits)


def test_equality():
    assert Vocabulary(["a", "b"]) == Vocabulary(("a", "b"))
    assert Vocabulary(["a", "b"]) != Vocabulary(["b", "a"])
    assert Vocabulary(["a"]) != ("a",)
    assert len({Vocabulary(["a"]), Vocabulary(["a"])}) == 1
