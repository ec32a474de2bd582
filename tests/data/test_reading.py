"""What is read in pieces, in memory or through the cache, is what reading a text whole gives."""

import functools
import io
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_selfish.data import CacheError, RandomWindows, Vocabulary, Windows, load_corpus, tokenization
from keras_selfish.data.counting import TokenNumbers
from keras_selfish.data.token_cache import release
from keras_selfish.data.tokenization import TOKENIZATIONS, read_pieces, read_text

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation", "test")
ANY_TEXT = st.text(
    st.one_of(
        st.sampled_from("aAΣσİ'’_.=<unk> \n\r\t\u2028\u3000\x01\ufeff"),
        st.characters(codec="utf-8", exclude_characters="\0"),
    )
)


def tokens_of(corpus):
    return [corpus.vocabulary.decode(getattr(corpus, split)) for split in SPLITS]


# Pieces of files


@given(text=ANY_TEXT, size=st.integers(1, 9))
@example(text="ΑΣ ΑΣ\nΣ", size=1)
@example(text="a\r\n\r\nb\r", size=1)
@example(text="\ufeff\ufeffa", size=2)
def test_pieces_have_the_text_and_the_tokens_of_the_whole(tmp_path_factory, text, size):
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(text.encode())
    whole, pieces = read_text(path), list(read_pieces(path, size))
    assert "".join(pieces) == whole
    assert all(pieces)
    for tokenize in TOKENIZATIONS.values():
        assert [token for piece in pieces for token in tokenize(piece)] == tokenize(whole)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_offset_of_a_zero_byte_is_that_in_the_file(tmp_path, size):
    path = tmp_path / "zero.txt"
    path.write_bytes(b"abc \0 d")
    with pytest.raises(ValueError, match="byte 0x00 at byte offset 4"):
        list(read_pieces(path, size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_the_offset_of_a_wrong_byte_is_that_in_the_file(tmp_path, size):
    path = tmp_path / "latin.txt"
    for data, message in ((b"abc \xe9 d", "0xe9 at byte offset 4"), (b"abc \xc3", "0xc3 at byte offset 4")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"UTF-8.* byte {message}"):
            list(read_pieces(path, size))


def test_a_long_line_is_cut_between_words_and_a_long_word_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "LONGEST_WORD", 50)
    path = tmp_path / "a.txt"
    path.write_text("word\t" * 100)
    assert max(map(len, read_pieces(path, 10))) <= 50
    path.write_text("word " * 100 + "w" * 70)
    with pytest.raises(ValueError, match=r"a\.txt must have whitespace at least every 50 characters, .*Rec"):
        list(read_pieces(path, 10))


# Vocabularies


TOKENS = st.lists(st.sampled_from(["<eos>", "<unk>", *"abcdefgh", *"αβγδ"]), min_size=1)
LIMITS = st.sampled_from([(None, 1), (None, 2), (None, 3), (3, 1), (4, 1), (6, 2), (9, 1)])


@settings(max_examples=200)
@given(tokens=TOKENS, limits=LIMITS, most=st.integers(1, 12), size=st.integers(1, 20))
def test_numbers_end_as_the_ids_of_a_vocabulary(tokens, limits, most, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_selfish.data.counting.MOST_TOKENS", 0)  # prunes what waits on disk early
        check_numbers(tokens, limits, most, size)


def check_numbers(tokens, limits, most, size):
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as ids:
        numbers, read = TokenNumbers(pathlib.Path(folder), most), io.BytesIO()
        for begin in range(0, len(tokens), size):
            read.write(numbers.number(tokens[begin : begin + size]).tobytes())
        vocabulary = numbers.vocabulary(read, *limits)
        numbers.write_ids(read, ids, vocabulary, np.uint16)
        ids.seek(0)
        found = np.frombuffer(ids.read(), np.uint16)
    expected = Vocabulary.build(tokens, *limits)
    assert vocabulary == expected
    np.testing.assert_array_equal(found, expected.encode(tokens))


# Corpora


@pytest.fixture
def folder(tmp_path):
    """A folder of 30 files."""
    generator = np.random.default_rng(0)
    words = [*"abcdefghij", "naïve", "ΑΣ", "\n", "\n\n", "\r\n"]
    (tmp_path / "text").mkdir()
    for number in range(30):
        text = " ".join(generator.choice(words, size=200))
        (tmp_path / "text" / f"{number:03}.txt").write_bytes(text.encode())
    return tmp_path / "text"


@pytest.mark.parametrize("cached", [False, True])
def test_many_files_are_split_as_their_joined_text(folder, cached, tmp_path):
    text = "".join(read_text(path) for path in sorted(folder.iterdir()))
    lines = [line + "\n" for line in text.split("\n")[:-1]]
    ends = 0, len(lines) * 8 // 10, len(lines) * 9 // 10, len(lines)
    tokenize = TOKENIZATIONS["words_and_marks"]
    whole = [tokenize("".join(lines[begin:end])) for begin, end in itertools.pairwise(ends)]
    vocabulary = Vocabulary.build(whole[0], min_count=2)
    corpus = load_corpus("text", folder, *[tmp_path / "cache"] * cached)
    assert corpus.vocabulary == vocabulary
    for split, tokens in zip(SPLITS, whole, strict=True):
        np.testing.assert_array_equal(getattr(corpus, split), vocabulary.encode(tokens))


def test_ids_are_written_once_and_mapped(folder, tmp_path):
    in_memory = load_corpus("text", folder)
    assert not isinstance(in_memory.train, np.memmap)
    first = load_corpus("text", folder, tmp_path / "cache")
    (cache,) = (tmp_path / "cache" / "tokens").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert set(before) == {"tokens.json", "vocabulary.txt", "train.ids", "validation.ids", "test.ids"}
    second = load_corpus("text", folder, tmp_path / "cache")
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    for corpus in (first, second):
        assert corpus.vocabulary == in_memory.vocabulary
        assert isinstance(corpus.train, np.memmap)
        assert corpus.train.dtype == np.uint16
        assert not corpus.train.flags.writeable
        for split in SPLITS:
            np.testing.assert_array_equal(getattr(corpus, split), getattr(in_memory, split))
        np.testing.assert_allclose(corpus.unigram_perplexity(), in_memory.unigram_perplexity())


def test_large_texts_go_to_the_cache_of_downloads_and_tell_how_far_they_are(
    folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("keras_selfish.data.reading.CACHED_FROM", 5_000)
    monkeypatch.setattr("keras_selfish.data.reading._SECONDS_BETWEEN_REPORTS", 0.0)
    with caplog.at_level(logging.INFO, logger="absl"):
        corpus = load_corpus("text", folder)
    (cache,) = (tmp_path / "home" / "datasets" / "keras_selfish" / "tokens").iterdir()
    assert cache == pathlib.Path(corpus.train.filename).parent
    length = sum(len(getattr(corpus, split)) for split in SPLITS)
    for pattern in (
        r"Read \d+% of the 0 MB of dataset 'text' \([\d,]+ tokens a second\), about \d+ s left",
        rf"Read the 0 MB of dataset 'text', {length:,} tokens, in \d+ s \([\d,]+ tokens a second\)",
    ):
        assert re.search(pattern, caplog.text)


def test_large_vocabularies_have_wide_ids(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text("\n".join(f"w{number}" for number in range(70_000)))
    corpus = load_corpus("ptb", folder, tmp_path / "cache")
    assert corpus.test.dtype == np.int32
    np.testing.assert_array_equal(corpus.train[::2], [0, *range(2, 70_001)])
    np.testing.assert_array_equal(corpus.test, corpus.train)


def test_other_text_or_limits_are_other_ids(folder, tmp_path):
    load = functools.partial(load_corpus, "text", folder, tmp_path / "cache")
    assert len(load().vocabulary) > len(load(max_size=5).vocabulary) == 5
    path = folder / "000.txt"
    status = path.stat()
    path.write_text("zebra zebra\n" + path.read_text())
    assert "zebra" in load().vocabulary
    text = path.read_text().replace("zebra", "zebu ")
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert "zebu" in load().vocabulary


def change(file, position=0):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "another value": lambda cache: change(cache / "train.ids", 10),
    "another word": lambda cache: change(cache / "vocabulary.txt"),
    "truncated": lambda cache: os.truncate(cache / "test.ids", 3),
    "longer": lambda cache: os.truncate(cache / "test.ids", 30_000),
    "empty": lambda cache: os.truncate(cache / "train.ids", 0),
    "missing": lambda cache: (cache / "validation.ids").unlink(),
    "no description": lambda cache: (cache / "tokens.json").unlink(),
    "no JSON": lambda cache: (cache / "tokens.json").write_text("{"),
    "a list": lambda cache: (cache / "tokens.json").write_text("[]"),
    "bytes": lambda cache: (cache / "tokens.json").write_bytes(b"\xff\xfe\0"),
    "an object": lambda cache: (cache / "tokens.json").write_text('{"format": 3, "sizes": null}'),
    "another dtype": lambda cache: (cache / "tokens.json").write_text(
        (cache / "tokens.json").read_text().replace("<u2", "<i4")
    ),
    "no dtype": lambda cache: (cache / "tokens.json").write_text(
        (cache / "tokens.json").read_text().replace("<u2", "O")
    ),
    "another format": lambda cache: (cache / "tokens.json").write_text(
        (cache / "tokens.json").read_text().replace("version 1", "version 2")
    ),
    "nothing": lambda cache: [path.unlink() for path in cache.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ids_are_made_again(folder, tmp_path, caplog, damage):
    sound = tokens_of(load_corpus("text", folder, tmp_path / "cache"))
    (cache,) = (tmp_path / "cache" / "tokens").iterdir()
    DAMAGES[damage](cache)
    with caplog.at_level(logging.WARNING, logger="absl"):
        again = load_corpus("text", folder, tmp_path / "cache")
    assert tokens_of(again) == sound
    assert f"The token ids in {cache} are made again: " in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert tokens_of(load_corpus("text", folder, tmp_path / "cache")) == sound
    assert "made again" not in caplog.text
    assert list((tmp_path / "cache" / "tokens").iterdir()) == [cache]


def test_what_is_not_ids_is_left_alone(folder, tmp_path):
    load_corpus("text", folder, tmp_path / "cache")
    (cache,) = (tmp_path / "cache" / "tokens").iterdir()
    (cache / "train.ids").unlink()
    (cache / "thesis.tex").write_text("mine")
    with pytest.raises(CacheError, match=rf"`cache_dir` must have nothing but token ids in {cache}; "):
        load_corpus("text", folder, tmp_path / "cache")
    assert (cache / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_be_written(folder, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match=r"`cache_dir` must be a folder that can be written\. Received: "):
        load_corpus("text", folder, tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


LOAD = """
import sys
from keras_selfish.data import load_corpus
try:
    print(load_corpus("text", sys.argv[1], sys.argv[2]))
except OSError as error:
    print(type(error).__name__, error)
"""


def load_alone(*arguments, limit=""):
    command = ["sh", "-c", f'{limit}exec "$0" "$@"', sys.executable, "-c", LOAD, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_a_full_disk_is_told_and_leaves_nothing(folder, tmp_path):
    for _ in range(5):  # more than a block of the limit
        for path in list(folder.iterdir()):
            shutil.copy(path, folder / f"{path.stem}_.txt")
    output, _ = load_alone(folder, tmp_path / "cache", limit="ulimit -f 8; ").communicate()
    assert output.startswith("CacheError `cache_dir` must have room for token ids. Received: ")
    assert output.count("\n") == 1
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_processes_at_once_get_the_same(folder, tmp_path):
    processes = [load_alone(folder, tmp_path / "cache") for _ in range(3)]
    outputs = {process.communicate()[0] for process in processes}
    assert outputs == {f"{load_corpus('text', folder)!r}\n"}
    (cache,) = (tmp_path / "cache" / "tokens").iterdir()
    assert json.loads((cache / "tokens.json").read_text())["dtype"] == "<u2"


def test_what_a_killed_process_left_goes_after_a_day(folder, tmp_path):
    tokens = tmp_path / "cache" / "tokens"
    for name, age in ((".partial-old", 100_000), (".partial-new", 100)):
        (tokens / name / "scratch").mkdir(parents=True)
        (tokens / name / "train.ids").write_bytes(b"0")
        for path in (tokens / name / "train.ids", tokens / name / "scratch", tokens / name):
            os.utime(path, times=(time.time() - age,) * 2)
    load_corpus("text", folder, tmp_path / "cache")
    assert sorted(path.name.split("-")[0] for path in tokens.iterdir()) == [".partial", "text"]
    assert (tokens / ".partial-new").is_dir()


def test_a_file_that_changes_while_it_is_read(folder, tmp_path, monkeypatch):
    def split_and_write(text):
        (folder / "029.txt").write_text("zebra")
        return TOKENIZATIONS["whitespace"](text)

    monkeypatch.setitem(TOKENIZATIONS, "words_and_marks", split_and_write)
    with pytest.raises(ValueError, match="dataset 'text' must stay as they are while they are read"):
        load_corpus("text", folder, tmp_path / "cache")
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


@pytest.mark.parametrize("text", ["<eos>\n\n", " \n"])
def test_a_split_without_words_is_not_kept(tmp_path, text):
    (tmp_path / "text").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "text" / f"{split}.txt").write_text(text if split == "test" else "a a <unk>")
    with pytest.raises(ValueError, match="The test split of dataset 'ptb' must hold at least one word"):
        load_corpus("ptb", tmp_path / "text", tmp_path / "cache")
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


# Windows of mapped ids


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("make", [Windows, RandomWindows])
@pytest.mark.parametrize(("columns", "steps"), [(1, 3), (3, 7), (4, 5000)])
def test_windows_of_mapped_ids(tmp_path, monkeypatch, make, columns, steps):
    monkeypatch.setattr("keras_selfish.data.windows._BLOCK", 100)
    monkeypatch.setattr("keras_selfish.data.windows._RESIDENT", 200)
    ids = np.random.default_rng(0).integers(0, 60_000, 2011).astype(np.uint16)
    ids.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", np.uint16, "r")
    expected, windows = make(ids, columns, steps), make(mapped, columns, steps)
    assert isinstance(windows.columns, np.memmap)
    for batches in (windows, windows.batches()):
        found = list(batches)
        assert len(found) == len(expected)
        for (inputs, targets), (expected_inputs, expected_targets) in zip(found, expected, strict=True):
            for one, other in (
                (inputs["tokens"], expected_inputs["tokens"]),
                (inputs["first"], expected_inputs["first"]),
                (targets, expected_targets),
            ):
                assert np.asarray(one).dtype == other.dtype == np.int32
                np.testing.assert_array_equal(one, other)


# Memory


def resident(array):
    """Bytes of an array's memory map that are in this process's memory."""
    address, found = array.ctypes.data, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            begin, end = (int(number, 16) for number in line.split(" ")[0].split("-"))
            found = begin <= address < end
        elif found and line.startswith("Rss:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no such map")


@pytest.mark.skipif(not pathlib.Path("/proc/self/smaps").exists(), reason="needs Linux")
@pytest.mark.parametrize("make", [Windows, RandomWindows])
def test_a_pass_over_mapped_ids_holds_little_of_them(tmp_path, monkeypatch, make):
    monkeypatch.setattr("keras_selfish.data.windows._RESIDENT", 1 << 18)
    np.zeros(1 << 25, np.uint16).tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", np.uint16, "r")
    assert mapped.sum() == 0
    assert resident(mapped) == 2 << 25
    release(mapped[5:])
    assert resident(mapped) == 0
    found = [resident(mapped) for index, _ in enumerate(make(mapped, 4, 5000)) if index % 40 == 7]
    assert len(found) > 8
    # Of each of four columns the kernel may have two pages of 2 MiB there, where it makes such of files.
    assert 0 < max(found) <= 16 << 20


GROWTH = """
import sys
from benchmarks.processes import peak_memory
from keras_selfish.data import load_corpus
before = peak_memory()
corpus = load_corpus("ptb", sys.argv[1], sys.argv[2], max_size=1000)
assert len(corpus.vocabulary) == 1000
print(peak_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("distinct", [5_000, 10**9])
def test_memory_is_bounded(tmp_path, distinct):
    (tmp_path / "text").mkdir()
    generator = np.random.default_rng(0)
    for split, lines in (("train", 150_000), ("valid", 10), ("test", 10)):
        with open(tmp_path / "text" / f"{split}.txt", "w") as file:
            for _ in range(lines):
                file.write(" ".join(map(str, generator.integers(0, distinct, 20))) + "\n")
    command = [sys.executable, "-c", GROWTH, tmp_path / "text", tmp_path / "cache"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    # Three million tokens take 260 MB as a list of strings.
    assert int(done.stdout) < (60e6 if distinct == 5_000 else 250e6)
