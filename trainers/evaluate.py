"""Tests an exported language model of any format: perplexity, speed, size and time to load.

Example:
    python -m trainers.evaluate --model runs/ptb/model.tflite --dataset ptb --data_dir ptb/
"""

import time

import numpy as np
from absl import flags, logging

from keras_selfish.data import DATASETS, load_corpus
from keras_selfish.data.windows import batch_columns
from trainers import program
from trainers.artifacts import formats, open_artifact
from trainers.files import RunError, write_json

FLAGS = flags.FLAGS
WARM_UP, STEPS = 20, 500

flags.DEFINE_string("model", None, f"What to test: {formats()}.", required=True)
flags.DEFINE_enum("dataset", "ptb", sorted(DATASETS), "Corpus that the model was trained on.")
flags.DEFINE_string("data_dir", None, "Folder with the corpus's files; without it, they are downloaded.")
flags.DEFINE_string(
    "cache_dir", None, "Folder of downloads and of the token ids of large corpora; by default Keras's."
)
flags.DEFINE_enum("split", "test", ["validation", "test"], "Part of the corpus.")
flags.DEFINE_integer("columns", 20, "Columns that the corpus is read in at a time.", lower_bound=1)
flags.DEFINE_integer("most_tokens", 0, "Tokens of the corpus to read; 0 for all.", lower_bound=0)
flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1)
flags.DEFINE_string("json", None, "File to write the figures to.")


def evaluate():
    """Tests the model of the flags and prints what came out."""
    file = program.file_to_write("json") if FLAGS.json else None
    corpus = load_corpus(FLAGS.dataset, program.path("data_dir"), program.path("cache_dir"))
    artifact = open_artifact(program.path("model"), FLAGS.threads)
    check_vocabulary(artifact, corpus.vocabulary.tokens)
    tokens = getattr(corpus, FLAGS.split)
    columns = batch_columns(tokens[: FLAGS.most_tokens or None], FLAGS.columns)
    predictions = columns[:, 1:].size
    artifact.log_probabilities(columns[:, :3])  # compiles, and allocates memory
    began = time.perf_counter()
    total = artifact.log_probabilities(columns, Progress(predictions))
    seconds = time.perf_counter() - began
    latencies = step_milliseconds(artifact, tokens)
    results = {
        "model": str(artifact.path),
        "format": artifact.kind,
        "dataset": FLAGS.dataset,
        "split": FLAGS.split,
        "columns": FLAGS.columns,
        "tokens": predictions,
        "threads": FLAGS.threads,
        "perplexity": float(np.exp(-total / predictions)),
        "tokens_per_second": predictions / seconds,
        "latency_p50_ms": float(np.percentile(latencies, 50)),
        "latency_p99_ms": float(np.percentile(latencies, 99)),
        "bytes": artifact.size,
        "load_seconds": artifact.load_seconds,
    }
    print_results(results)
    if file is not None:
        write_json(file, results)
    return results


def check_vocabulary(artifact, tokens):
    """Refuses a model with another vocabulary than the corpus's."""
    if artifact.tokens is None:
        logits, _ = artifact.step(np.zeros((1, 1), np.int32), artifact.states(1))
        matches, what = logits.shape[-1] == len(tokens), f"{logits.shape[-1]} tokens"
    else:
        matches, what = list(tokens) == list(artifact.tokens), f"{len(artifact.tokens)} tokens"
    if not matches:
        same = "of which some are others" if what == f"{len(tokens)} tokens" else "another number"
        raise RunError(
            f"--model must have the vocabulary of --dataset={FLAGS.dataset}, which has {len(tokens)} tokens. "
            f"Received: --model={artifact.path} with {what}, {same}"
        )


def step_milliseconds(artifact, tokens):
    """Time of single steps of one text, in milliseconds, an array."""
    states, times = artifact.states(1), []
    for index in range(WARM_UP + STEPS):
        token = np.array([[tokens[index % len(tokens)]]], np.int32)
        began = time.perf_counter()
        _, states = artifact.step(token, states)
        times.append(time.perf_counter() - began)
    return 1000 * np.array(times[WARM_UP:])


class Progress:
    """Logs how far reading has come, every half minute."""

    def __init__(self, total):
        self.total = total
        self.began = self.last = time.perf_counter()

    def __call__(self, done):
        now = time.perf_counter()
        if now - self.last > 30:
            self.last = now
            left = (now - self.began) * (self.total - done) / done
            logging.info("Read %d of %d tokens, about %.0f s left", done, self.total, left)


def print_results(results):
    rows = [
        ("perplexity", f"{results['perplexity']:.2f} ({results['split']}, {results['columns']} columns)"),
        ("tokens a second", f"{results['tokens_per_second']:,.0f} ({results['columns']} at a time)"),
        (
            "a token",
            f"{results['latency_p50_ms']:.3f} ms (p50), {results['latency_p99_ms']:.3f} ms (p99), "
            f"{results['threads']} thread{'s' * (results['threads'] > 1)}",
        ),
        ("size", f"{results['bytes'] / 1e6:.2f} MB"),
        ("loading", f"{results['load_seconds']:.2f} s"),
    ]
    print(f"{results['format']} {results['model']}")
    for name, value in rows:
        print(f"  {name:16} {value}")


main = program.tool(evaluate, smaller="--columns or --most_tokens")


def run():
    """Entry point."""
    program.run_tool(main)


if __name__ == "__main__":
    run()
