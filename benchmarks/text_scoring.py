"""What `score_text` of an exported text model takes for a token, against `model.evaluate` of the same model.

Usage: python -m benchmarks.text_scoring --dataset ptb --data_dir ptb/ [--units 256,656] [--batches 20,100]
           [--output FOLDER]

Language models of two LSTM layers with random weights. `evaluate` reads the first tokens of the test split as
training does, in rows of `--time_steps`; `score_text` reads the lines that they make, some at a time: as they
come, sorted by their length, and cut anew into texts of one length. Each round takes all of them once.
"""

import pathlib
import statistics
import tempfile
import time

import numpy as np

from benchmarks.options import bare_parser, fraction, numbers, parse, positive
from benchmarks.output import draw_bars, print_table, write_figures
from benchmarks.processes import machine

LAYERS, EVALUATE = 2, "evaluate"
COLUMNS = ("units", "texts", "texts_a_call", "tokens_per_second", "times_evaluate")


def lines_of(corpus, count):
    """The lines that the first tokens of the test split make, without the tokens that end them."""
    from keras_selfish.data import EOS

    lines = [[]]
    for word in corpus.vocabulary.decode(corpus.test[:count]):
        if word == EOS:
            lines.append([])
        else:
            lines[-1].append(word)
    return [line for line in lines if line]


def orders(lines, time_steps):
    """Dict from a name to texts of the same words."""
    words = [word for line in lines for word in line]
    length = time_steps - 1  # and the end of the line
    cut = [words[start : start + length] for start in range(0, len(words) - length + 1, length)]
    forms = {"as they come": lines, "sorted by length": sorted(lines, key=len), "of one length": cut}
    return {name: [" ".join(words) for words in form] for name, form in forms.items()}


def calls(served, texts, size):
    """A function that scores all texts, some at a time, and the number of their tokens."""
    import tensorflow as tf

    batches = [tf.constant(texts[start : start + size]) for start in range(0, len(texts), size)]

    def score():
        for batch in batches:
            served.score_text(batch)["loss"].numpy()

    results = [served.score_text(batch)["tokens"].numpy() for batch in batches]
    return score, sum(np.count_nonzero(tokens != b"") for tokens in results)


def evaluation(model, corpus, options):
    """A function that evaluates a model on the test split, and the number of its predictions."""
    from keras_selfish import TokenCrossEntropy
    from keras_selfish.data import Windows

    model.compile(loss=TokenCrossEntropy())
    windows = Windows(corpus.test[: options.tokens], options.batch, options.time_steps)
    batches = windows.dataset()
    count = sum(windows[index][1].size for index in range(len(windows)))
    return lambda: model.evaluate(batches, verbose=0), count


def measure(units, corpus, options):
    """Dict from what is measured to the list of its tokens a second, one a round."""
    import tensorflow as tf

    from keras_selfish import LanguageModel, export
    from keras_selfish.data.tokenization_tensorflow import tokenizer

    model = LanguageModel(
        len(corpus.vocabulary),
        units=units,
        layers=LAYERS,
        batch_size=options.batch,
        sparsity=options.sparsity,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "text_model"
        export.text_model(model, path, corpus.vocabulary, tokenizer(corpus.tokenization))
        served = tf.saved_model.load(str(path))
    runs = {(EVALUATE, options.batch): evaluation(model, corpus, options)}
    for name, texts in orders(lines_of(corpus, options.tokens), options.time_steps).items():
        runs |= {(name, size): calls(served, texts, size) for size in options.batches}
    for run, _ in runs.values():
        run()  # compiles
    rates = {key: [] for key in runs}
    for _ in range(options.rounds):
        for key, (run, tokens) in runs.items():
            began = time.perf_counter()
            run()
            rates[key].append(tokens / (time.perf_counter() - began))
    return rates


def rows_of(units, rates, batch):
    """The rows of the table: medians, and the median over the rounds of the ratio to `evaluate`."""
    evaluated = rates[EVALUATE, batch]
    return [
        {
            "units": units,
            "texts": name,
            "texts_a_call": size,
            "tokens_per_second": statistics.median(rate),
            "times_evaluate": statistics.median(a / b for a, b in zip(rate, evaluated, strict=True)),
        }
        for (name, size), rate in rates.items()
    ]


def main():
    parser = bare_parser(__doc__, rounds=5)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--units", type=numbers, default="256,656", help="default: %(default)s")
    parser.add_argument("--sparsity", type=fraction, default=0.67, help="default: %(default)s")
    parser.add_argument(
        "--batches", type=numbers, default="20,100", help="texts a call (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=positive, default=20000, help="of the test split (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=positive, default=20, help="rows of `evaluate` (default: %(default)s)"
    )
    parser.add_argument("--time_steps", type=positive, default=35, help="default: %(default)s")
    options = parse(parser)
    where = machine()

    from keras_selfish.data import load_corpus

    corpus = load_corpus(options.dataset, options.data_dir)
    rows = []
    for units in options.units:
        rows += rows_of(units, measure(units, corpus, options), options.batch)
    print(where, end="\n\n")
    print_table(
        ("units", "texts", "a call", "tokens/s", "x evaluate"),
        [
            [*(str(row[key]) for key in COLUMNS[:3]), *(f"{row[key]:.3g}" for key in COLUMNS[3:])]
            for row in rows
        ],
    )
    rows = [{**row, "rounds": options.rounds, "machine": where} for row in rows]
    write_figures(options.output, "text_scoring", rows, (8, 5), lambda figure: draw(figure, rows))


def draw(figure, rows):
    """Times `evaluate`, a bar for each way to give texts."""
    axes = figure.subplots()
    others = [row for row in rows if row["texts"] != EVALUATE]
    names = [f"2×{row['units']}, {row['texts_a_call']} {row['texts']}" for row in others]
    draw_bars(axes, names, [row["times_evaluate"] for row in others])
    axes.set_xlabel("tokens a second, `evaluate` = 1")


if __name__ == "__main__":
    main()
