import hashlib
import io
import logging
import os
import zipfile

import numpy as np
import pytest

from keras_selfish.data import DATASETS, DownloadError, load_corpus


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def words(corpus, split):
    return " ".join(corpus.vocabulary.decode(getattr(corpus, split)))


# Penn Treebank and WikiText-2


def test_ptb_counts(shared):
    corpus = load_corpus("ptb", shared / "data" / "ptb")
    assert repr(corpus) == "<Corpus 'ptb': 929,589 / 73,760 / 82,430 tokens, vocabulary 10,000>"
    assert corpus.train.dtype == corpus.validation.dtype == corpus.test.dtype == np.int32
    # Ids are in the order of first appearance: the first line is 24 rare words and a line end.
    np.testing.assert_array_equal(corpus.train[:25], np.arange(25))
    assert corpus.vocabulary.eos_id == 24
    assert (corpus.train == 24).sum() == 42_068
    assert words(corpus, "test").startswith("no it was n't black monday <eos> but while the")


@pytest.mark.parametrize("name", ["ptb", "wikitext2"])
def test_published_text_is_cut_at_whitespace_only(tmp_path, name):
    folder = write(tmp_path, train_txt=" The cat 's N.\n\n", valid_txt="cat", test_txt=" The <unk> \n")
    with pytest.raises(ValueError, match=r"no '<unk>'.*Received: '<unk>' at position 1"):
        load_corpus(name, folder)
    write(tmp_path, train_txt=" The cat 's <unk> N.\n\n", valid_txt="cat dog")
    corpus = load_corpus(name, str(folder))
    assert corpus.vocabulary.tokens == ("The", "cat", "'s", "<unk>", "N.", "<eos>")
    assert words(corpus, "train") == "The cat 's <unk> N. <eos> <eos>"
    assert words(corpus, "validation") == "cat <unk> <eos>"


@pytest.mark.parametrize(
    ("name", "folder", "pattern"),
    [
        ("ptb", "", "ptb.{}.txt"),
        ("ptb", "simple-examples/data", "ptb.{}.txt"),
        ("ptb", "penn", "{}.txt"),
        ("wikitext2", "", "wiki.{}.tokens"),
        ("wikitext2", "wikitext-2", "wiki.{}.tokens"),
        ("wikitext2", "wikitext-2", "{}.txt"),
    ],
)
def test_files_under_the_names_of_the_archives(tmp_path, name, folder, pattern):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid", "test"):
        (tmp_path / folder / pattern.format(split)).write_text(f"{split} train valid test <unk>\n")
    corpus = load_corpus(name, tmp_path)
    assert words(corpus, "validation") == "valid train valid test <unk> <eos>"


def test_a_missing_split_is_told_by_file_and_folder(shared):
    folder = shared / "data" / "wikitext-2"
    message = rf"'wikitext2' must have a file wiki\.train\.tokens or train\.txt in {folder}, and"
    with pytest.raises(FileNotFoundError, match=message):
        load_corpus("wikitext2", folder)
    with pytest.raises(FileNotFoundError, match=message):
        load_corpus("wikitext2", folder.parent)


def test_ptb_is_downloaded_once(shared, server, tmp_path):
    for path in (shared / "data" / "ptb").iterdir():
        server.files[f"mirror/{path.name}"] = path.read_bytes()
    for _ in range(2):
        corpus = load_corpus("ptb", cache_dir=tmp_path, url=server.url("mirror/"))
        assert len(corpus.train) == 929_589
    assert sorted(path for path, _ in server.seen) == [
        f"/mirror/ptb.{split}.txt" for split in ("test", "train", "valid")
    ]


def test_a_download_of_other_content_is_refused(server, tmp_path, monkeypatch):
    server.files = {f"ptb.{split}.txt": b"other text" for split in ("train", "valid", "test")}
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(DownloadError, match=r"ptb\.train\.txt must have the SHA-256 fcea919f.*; or name a f"):
        load_corpus("ptb", url=server.url())
    folder = tmp_path / "datasets" / "keras_selfish" / "ptb"
    assert list(folder.iterdir()) == []


def archive_of(shared, **changes):
    folder = shared / "data" / "wikitext-2"
    files = {
        "wiki.train.tokens": b" = Train = \n <unk> \n",
        "wiki.valid.tokens": (folder / "wiki.valid.tokens").read_bytes(),
        "wiki.test.tokens": (folder / "wiki.test.tokens").read_bytes(),
        **{name.replace("_", "."): content for name, content in changes.items()},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(f"wikitext-2/{name}", content)
    return buffer.getvalue()


@pytest.fixture
def load_archive(server, tmp_path):
    def load(content):
        server.files["wikitext-2-v1.zip"] = content
        sha256 = hashlib.sha256(content).hexdigest()
        url = server.url("wikitext-2-v1.zip")
        return load_corpus("wikitext2", cache_dir=tmp_path, url=url, sha256=sha256)

    return load


def test_wikitext2_is_downloaded_with_the_users_checksum(shared, server, tmp_path, load_archive):
    corpus = load_archive(archive_of(shared))
    assert corpus.vocabulary.tokens == ("=", "Train", "<eos>", "<unk>")
    assert (len(corpus.validation), len(corpus.test)) == (217_646, 245_569)
    assert len(server.seen) == 1
    again = load_corpus("wikitext2", cache_dir=tmp_path)  # the files are there: no checksum needed
    np.testing.assert_array_equal(again.test, corpus.test)
    assert not list((tmp_path / "wikitext2").glob("*.zip"))


def test_an_archive_with_another_validation_text(shared, load_archive):
    with pytest.raises(ValueError, match=r"wiki\.valid\.tokens in .*must have the SHA-256 f0737ed3"):
        load_archive(archive_of(shared, wiki_valid_tokens=b"other"))


def packed(kind, size):
    def pack(content):
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(buffer, "w", kind) as archive:
            for name in whole.namelist():
                archive.writestr(name, bytes(size) if "train" in name else whole.read(name))
        return buffer.getvalue()

    return pack


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (packed(zipfile.ZIP_DEFLATED, 2**26 + 1), "Received: it has more than 67,108,864 bytes"),
        (packed(zipfile.ZIP_BZIP2, 10), "packed in an unknown way"),
        (lambda content: content.replace(b"<unk>", b"<UNK>", 1), "Bad CRC-32"),
        (
            lambda content: content[2000:],
            "`url` must be the address of a zip archive|File is|must be possible",
        ),
        (lambda content: content[:-30], "`url` must be the address of a zip archive"),
        (lambda content: content[:-22] + b"PK\x05\x06" + b"\xff" * 18, "`url` must be the address of a zip"),
    ],
)
def test_an_archive_that_cannot_be_unpacked(shared, tmp_path, load_archive, change, message):
    with pytest.raises(ValueError, match=message):
        load_archive(change(archive_of(shared)))
    assert [path.name for path in (tmp_path / "wikitext2").iterdir()] == ["wikitext-2-v1.zip"]


def test_an_archive_without_the_training_text(shared, load_archive):
    with pytest.raises(FileNotFoundError, match=r"must hold wiki\.train\.tokens, it does not"):
        load_archive(archive_of(shared, wiki_train_tokens=None))


def test_an_archive_that_is_none(load_archive):
    with pytest.raises(ValueError, match="`url` must be the address of a zip archive"):
        load_archive(b"<html>")


def test_wikitext2_needs_files_or_a_checksum(tmp_path):
    with pytest.raises(ValueError, match=r"`sha256` must be given to download .*or name the folder of wiki"):
        load_corpus("wikitext2", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


# A folder of text files


def test_text_in_named_splits(tmp_path, caplog):
    folder = write(
        tmp_path,
        a_train_txt="The cat, the CAT.\n",
        b_train_txt="A dog. A cow?",
        valid_txt="The cow\n",
        news_test_txt="a cat\n",
        readme_md="not text of the corpus\n",
        _hidden_train_txt="hidden\n",
    )
    with caplog.at_level(logging.WARNING, logger="absl"):
        corpus = load_corpus("text", folder)
    assert words(corpus, "train") == "the cat <unk> the cat . <eos> a <unk> . a <unk> <unk> <eos>"
    assert words(corpus, "validation") == "the <unk> <eos>"
    assert words(corpus, "test") == "a cat <eos>"
    assert "leaves out readme.md: not named after a split" in caplog.text


def test_text_split_by_lines_in_the_order_of_the_file_names(tmp_path):
    lines = [f"line {number}\n" for number in range(25)]
    folder = write(tmp_path, b_txt="".join(lines[9:]), a_txt="".join(lines[:9]))
    corpus = load_corpus("text", folder, min_count=1, max_size=100)
    assert words(corpus, "train") == "".join(lines[:20]).replace("\n", " <eos> ").strip()
    assert words(corpus, "validation") == "line <unk> <eos> line <unk> <eos>"
    assert len(corpus.test) == 9


def test_the_vocabulary_of_text_can_be_limited(tmp_path):
    folder = write(tmp_path, train_txt="b b a a a c c d", valid_txt="a", test_txt="a")
    assert load_corpus("text", folder).vocabulary.tokens == ("b", "a", "c", "<eos>", "<unk>")
    assert load_corpus("text", folder, max_size=4).vocabulary.tokens == ("b", "a", "<eos>", "<unk>")
    assert load_corpus("text", folder, min_count=3).vocabulary.tokens == ("a", "<eos>", "<unk>")


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "`data_dir` must hold text files.*Received: data_dir="),
        ({"train_txt": "a", "test_txt": "a"}, FileNotFoundError, "no validation file such as validation"),
        ({"a_txt": "one\ntwo\n"}, ValueError, "at least 10 lines .*Received: 2 lines in"),
        ({"a_txt": ""}, ValueError, "at least 10 lines .*Received: 0 lines in"),
        ({"a_txt": "\n" * 10}, ValueError, "The train split of dataset 'text' must hold at least one word"),
        (
            {"train_txt": "a", "valid_txt": " \n\n", "test_txt": "a"},
            ValueError,
            "The validation split .*Received: 2 lines without any",
        ),
    ],
)
def test_folders_without_enough_text(tmp_path, files, error, message):
    with pytest.raises(error, match=message):
        load_corpus("text", write(tmp_path / "corpus", **files))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.name)])
def test_what_is_no_file_is_no_text(tmp_path, make):
    folder = write(tmp_path, valid_txt="a", test_txt="a")
    make(folder / "train.txt")
    with pytest.raises(FileNotFoundError, match=r"no train file such as train\.txt"):
        load_corpus("text", folder)
    with pytest.raises(FileNotFoundError, match=r"must have a file ptb\.train\.txt or train\.txt"):
        load_corpus("ptb", folder)


@pytest.mark.parametrize("content", [b"a\n\0\n", "a line\n".encode("utf-16-le")])
@pytest.mark.parametrize("name", ["text", "ptb"])
def test_a_text_file_with_zero_bytes(tmp_path, content, name):
    folder = write(tmp_path, train_txt="a", valid_txt="a")
    (folder / "test.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"test\.txt must be UTF-8 text.*byte 0x00 at byte offset"):
        load_corpus(name, folder)


def test_a_text_file_that_is_not_utf8(tmp_path):
    folder = write(tmp_path, train_txt="a", valid_txt="a")
    (folder / "test.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"test\.txt must be UTF-8 text.*byte 0xe9 at byte offset 3"):
        load_corpus("text", folder)


# The embedded corpus


def test_python_docs_is_a_small_english_corpus():
    corpus = load_corpus("python_docs")
    sizes = np.array([len(corpus.train), len(corpus.validation), len(corpus.test)])
    # The text differs between versions of Python; these bounds do not depend on which.
    assert 60_000 < sizes.sum() < 200_000
    np.testing.assert_allclose(sizes / sizes.sum(), [0.8, 0.1, 0.1], atol=0.02)
    assert 1_500 < len(corpus.vocabulary) < 5_000
    for split in (corpus.train, corpus.validation, corpus.test):
        assert 0.005 < (split == corpus.vocabulary.unk_id).mean() < 0.08
    again = load_corpus("python_docs")
    assert again.vocabulary == corpus.vocabulary
    np.testing.assert_array_equal(again.train, corpus.train)


def test_python_docs_holds_no_paragraph_twice():
    corpus = load_corpus("python_docs", min_count=1, max_size=10_000)
    paragraphs = words(corpus, "train").split(" <eos> <eos> ")
    long = [paragraph for paragraph in paragraphs if len(paragraph.split()) > 20]
    assert len(long) > 500
    assert len(set(long)) == len(long)


def test_unigram_perplexity_by_hand(tmp_path):
    write(tmp_path, train_txt="a a b b a", valid_txt="a", test_txt="a b c")
    corpus = load_corpus("text", tmp_path)
    assert corpus.vocabulary.tokens == ("a", "b", "<eos>", "<unk>")
    # Counts and one: a 4, b 3, <eos> 2, <unk> 1, of 10; the test is a b <unk> <eos>.
    expected = (0.4 * 0.3 * 0.1 * 0.2) ** (-1 / 4)
    np.testing.assert_allclose(corpus.unigram_perplexity(), expected)
    np.testing.assert_allclose(corpus.unigram_perplexity("validation"), (0.4 * 0.2) ** (-1 / 2))


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ptbb"}, "`name` must be one of 'ptb', 'wikitext2', 'text', 'python_docs'. Rec.*'ptbb'"),
        ({"name": "text"}, "`data_dir` must name the folder .*Received: data_dir=None"),
        ({"name": "python_docs", "data_dir": "x"}, "`data_dir` must be None .*Received: data_dir='x'"),
        ({"name": "python_docs", "url": "http://x"}, "`url` must be None .*Received: url='http://x'"),
        ({"name": "ptb", "data_dir": "x", "url": "http://x"}, "`url` must be None .*Received: url='http"),
        ({"name": "ptb", "sha256": "0"}, "`sha256` must be None unless .*Received: sha256='0'"),
        (
            {"name": "python_docs", "min_count": 0},
            "`min_count` must be None or a positive integer. Received: min_count=0",
        ),
        (
            {"name": "python_docs", "max_size": 2},
            "`max_size` must be None or an integer of at least 3. Received: max_size=2; ",
        ),
        ({"name": "wikitext2", "data_dir": "x", "sha256": "0"}, "`sha256` must be None unless .*Received"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(**arguments)


@pytest.mark.parametrize("name", ["ptb", "wikitext2", "text"])
def test_a_missing_folder(tmp_path, name):
    assert name in DATASETS
    with pytest.raises(
        FileNotFoundError, match=r"`data_dir` must be an existing folder\. Received: .*absent"
    ):
        load_corpus(name, tmp_path / "absent")
