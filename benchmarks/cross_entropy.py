"""What the cross-entropy of a batch of tokens takes, and its gradient, on TensorFlow.

Usage: python -m benchmarks.cross_entropy [--tokens 700] [--vocabulary 10000] [--output FOLDER]

Random logits in float32; each in a process of its own, in turn:

    ours            `TokenCrossEntropy`: loss and gradient of the logits
    tensorflow      TensorFlow's own operation: loss and gradient
    torch           PyTorch's: loss and gradient
    score           the log-probabilities of an exported text model's `score_text`, without a gradient
    log_sum_exp     the same by TensorFlow's log-sum-exp

PyTorch comes with the extra `bench`; without it, `torch` is left out. A time is the median over rounds of the
median over calls.
"""

import json
import os
import statistics
import time

import numpy as np

from benchmarks.options import bare_parser, names_among, parse, positive
from benchmarks.output import draw_bars, print_table, write_figures
from benchmarks.processes import alternate, extremes, machine, median
from benchmarks.training_step import available

VARIANTS = ("ours", "tensorflow", "torch", "score", "log_sum_exp")


def function_of(variant, logits, targets):
    """A function without arguments that computes what a variant stands for."""
    return of_torch(logits, targets) if variant == "torch" else of_tensorflow(variant, logits, targets)


def of_torch(logits, targets):
    import torch

    logits = torch.tensor(logits, requires_grad=True)
    targets = torch.tensor(targets, dtype=torch.long)

    def compute():
        logits.grad = None
        torch.nn.functional.cross_entropy(logits, targets).backward()

    return compute


def of_tensorflow(variant, logits, targets):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the trainers do

    import tensorflow as tf

    from keras_selfish import TokenCrossEntropy
    from keras_selfish.export.reading_tensorflow import log_probabilities_of

    logits, targets = tf.constant(logits), tf.constant(targets)

    def with_gradient(loss):
        def compute():
            with tf.GradientTape() as tape:
                tape.watch(logits)
                value = tf.reduce_mean(loss(targets, logits))
            return value, tape.gradient(value, logits)

        return compute

    functions = {
        "ours": with_gradient(TokenCrossEntropy()),
        "tensorflow": with_gradient(tf.nn.sparse_softmax_cross_entropy_with_logits),
        "score": lambda: log_probabilities_of(targets[tf.newaxis], logits[tf.newaxis]),
        "log_sum_exp": lambda: (
            tf.gather(logits, targets, batch_dims=1) - tf.reduce_logsumexp(logits, axis=-1)
        ),
    }
    return tf.function(functions[variant])


def measure(variant, options):
    """The median seconds of a call, once what it needs is compiled."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(options.tokens, options.vocabulary)).astype("float32")
    targets = generator.integers(0, options.vocabulary, options.tokens).astype("int32")
    compute = function_of(variant, logits, targets)
    seconds = []
    for _ in range(options.calls + 2):
        began = time.perf_counter()
        compute()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[2:])}


def main():
    parser = bare_parser(__doc__, rounds=5)
    parser.add_argument("--tokens", type=positive, default=700, help="default: %(default)s")
    parser.add_argument("--vocabulary", type=positive, default=10000, help="default: %(default)s")
    parser.add_argument("--calls", type=positive, default=20, help="of each process (default: %(default)s)")
    parser.add_argument(
        "--variants", type=names_among(VARIANTS), default=",".join(VARIANTS), metavar="A,B", help="which"
    )
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one here and print one JSON object")
    options = parse(parser)
    if options.variant:
        print(json.dumps(measure(options.variant, options)))
        return
    where = machine()
    variants = available(options.variants)
    sizes = {name: getattr(options, name) for name in ("tokens", "vocabulary", "calls")}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    results = alternate(
        {name: ["benchmarks.cross_entropy", f"--variant={name}", *flags] for name in variants}, options.rounds
    )
    rows = []
    for variant in variants:
        least, largest = extremes(results[variant], "seconds")
        times = {"seconds": median(results[variant], "seconds"), "least": least, "largest": largest}
        rows.append({"variant": variant, **times, **sizes, "rounds": options.rounds, "machine": where})
    print(where, end="\n\n")
    print_table(
        ("variant", "ms", "least", "largest"),
        [
            [row["variant"], *(f"{1000 * row[key]:.2f}" for key in ("seconds", "least", "largest"))]
            for row in rows
        ],
    )
    write_figures(options.output, "cross_entropy", rows, (7, 3), lambda figure: draw(figure, rows))


def draw(figure, rows):
    """A bar for each variant."""
    axes = figure.subplots()
    names = [row["variant"] for row in rows]
    extremes = [(1000 * row["least"], 1000 * row["largest"]) for row in rows]
    draw_bars(axes, names, [1000 * row["seconds"] for row in rows], extremes)
    axes.set_xlabel("ms a call (median; least and largest round)")


if __name__ == "__main__":
    main()
