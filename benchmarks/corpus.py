"""How fast, and in how much memory, text becomes token ids and is fed to a model.

Text is made from a seed: lines of 20 words, whose frequencies follow Zipf's law, as training, validation and
test files. What is measured, each in a process of its own:

    whole    whole text and all its tokens as Python strings in memory, of --whole_megabytes only
    pieces   text read in pieces, its ids written into the cache
    cached   these ids, verified and mapped
    feed     a pass over the windows of the mapped ids, as Keras's backend gets them
    feed, in memory  the same of an array

Example:
    python -m benchmarks.corpus --megabytes 1000 --words 500000
"""

import itertools
import json
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

from benchmarks.options import bare_parser, parse, positive
from benchmarks.output import draw_bars, print_table, write_figures
from benchmarks.processes import alternate, median, peak_memory

MODULE = "benchmarks.corpus"
WORDS_A_LINE, LINES = 20, 1_000  # that are made at a time
SPLITS = {"train": 0.9, "valid": 0.05, "test": 0.05}
BATCH, TIME_STEPS = 20, 35


def make_text(folder, size, words, seed=0):
    """Writes `size` bytes of text into `train.txt`, `valid.txt` and `test.txt` of a folder."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    known = np.array(["".join(letters[_digits(number, 26)]) for number in range(words)], object)
    limits = np.cumsum(1.0 / np.arange(1, words + 1))
    folder.mkdir()
    for split, part in SPLITS.items():
        with open(folder / f"{split}.txt", "w", encoding="utf-8") as file:
            # The first of the training text is a word that the vocabulary lacks.
            file.write("<unk>\n")
            while file.tell() < part * size:
                drawn = np.searchsorted(limits, limits[-1] * generator.random((LINES, WORDS_A_LINE)))
                file.write("\n".join(map(" ".join, known[drawn].tolist())) + "\n")


def _digits(number, base):
    digits = [number % base]
    while number := number // base:
        number -= 1
        digits.append(number % base)
    return digits


def whole(text, cache, dataset, max_size):
    """Reads text as one string and one list of tokens for each split."""
    from keras_selfish.data.tokenization import TOKENIZATIONS, read_text
    from keras_selfish.data.vocabulary import Vocabulary

    cut = TOKENIZATIONS["whitespace" if dataset == "ptb" else "words_and_marks"]
    tokens = [cut(read_text(text / f"{split}.txt")) for split in SPLITS]
    vocabulary = Vocabulary.build(tokens[0], max_size)
    return sum(len(vocabulary.encode(of_split)) for of_split in tokens)


def load(text, cache, dataset, max_size):
    """Reads text in pieces, or what the cache has of it."""
    return sum(map(len, _splits(_load(text, cache, dataset, max_size))))


def feed(text, cache, dataset, max_size, in_memory=False):
    """Takes all windows of the mapped ids, once Keras's backend has made its first ones."""
    from keras_selfish.data import Windows

    tokens = _load(text, cache, dataset, max_size).train
    batches = Windows(np.array(tokens) if in_memory else tokens, BATCH, TIME_STEPS).batches()
    for _ in itertools.islice(batches, 10):
        pass
    began = clock()
    fed = sum(int(np.prod(targets.shape)) for _, targets in batches)
    return fed, began


def feed_from_memory(*given):
    """Takes all windows of ids that are an array in memory."""
    return feed(*given, in_memory=True)


WAYS = {"whole": whole, "pieces": load, "cached": load, "feed": feed, "feed, in memory": feed_from_memory}


def _load(text, cache, dataset, max_size):
    from keras_selfish.data import load_corpus

    return load_corpus(dataset, text, cache, max_size=max_size)


def _splits(corpus):
    return corpus.train, corpus.validation, corpus.test


def measure(way, text, cache, dataset, max_size):
    """Runs one way in this process and prints its figures as JSON."""
    before = peak_memory()
    began = clock()
    tokens = WAYS[way](pathlib.Path(text), pathlib.Path(cache), dataset, int(max_size))
    if isinstance(tokens, tuple):  # what was before is not measured
        tokens, began = tokens
    seconds, of_processor = (now - then for now, then in zip(clock(), began, strict=True))
    peak = peak_memory()
    figures = {"seconds": seconds, "cpu_seconds": of_processor, "peak": peak, "held": peak - before}
    print(json.dumps({"tokens": tokens, **figures}))


def clock():
    """Seconds that have passed, and seconds of the processor that this process has taken."""
    return time.perf_counter(), time.process_time()


def measured(folder, options):
    """The figures of all ways, a list of rows."""
    for name, megabytes in (("whole", options.whole_megabytes), ("text", options.megabytes)):
        make_text(folder / name, 10**6 * megabytes, options.words)
    results = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way in WAYS:
            text = folder / ("whole" if way == "whole" else "text")
            given = [text, folder / f"cache{number}", options.dataset, options.max_size]
            results[way] += alternate({way: [MODULE, "--process", way, *map(str, given)]}, 1)[way]
    return [_row(way, results[way], options) for way in WAYS]


def _row(way, results, options):
    tokens, cpu_seconds = results[0]["tokens"], median(results, "cpu_seconds")
    return {
        "way": way,
        "megabytes": options.whole_megabytes if way == "whole" else options.megabytes,
        "tokens": tokens,
        "seconds": round(median(results, "seconds"), 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "tokens_per_cpu_second": round(tokens / cpu_seconds),
        "bytes_per_token": round(median(results, "held") / tokens, 1),
        "peak_megabytes": round(median(results, "peak") / 1e6),
        "dataset": options.dataset,
        "words": options.words,
        "rounds": options.rounds,
    }


def main(arguments=None):
    """Entry point."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--process"]:
        measure(*arguments[1:])
        return
    parser = bare_parser(__doc__, rounds=1)
    for name, default, text in (
        ("megabytes", 1000, "size of the text"),
        ("whole_megabytes", 100, "size of the text that is read whole, in 15 times as much memory or more"),
        ("words", 500_000, "number of words that there are to draw from"),
        ("max_size", 50_000, "size of the vocabulary at most"),
    ):
        parser.add_argument(
            f"--{name}", type=positive, default=default, help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--dataset",
        choices=["ptb", "text"],
        default="ptb",
        help="how text is cut: ptb at whitespace, text into words and marks (default: %(default)s)",
    )
    parser.add_argument(
        "--folder", type=pathlib.Path, help="where text and ids are put and removed (default: temporary)"
    )
    options = parse(parser, arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measured(pathlib.Path(folder), options)
    shown = [name for name in rows[0] if name not in ("dataset", "words", "rounds")]
    print(f"{options.dataset}, {options.words:,} words, {os.cpu_count()} cores, {options.rounds} rounds\n")
    print_table(shown, [[_shown(row[name]) for name in shown] for row in rows])
    write_figures(options.output, "corpus", rows, (7, 3), lambda figure: _draw(figure, rows))


def _shown(value):
    return value if isinstance(value, str) else f"{value:,}"


def _draw(figure, rows):
    axes = figure.subplots()
    draw_bars(axes, [row["way"] for row in rows], [row["tokens_per_cpu_second"] for row in rows])
    axes.set_xlabel("tokens a second of the processor")


if __name__ == "__main__":
    main()
