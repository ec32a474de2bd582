"""What one training step of each recurrent layer costs, against another checkout of this repository.

Usage: python -m benchmarks.cells [--cells rhn,on_lstm] [--against FOLDER] [--output FOLDER]

One layer, masked at sparsity 0.67, reads random sequences of as many features as it has units, forward and
backward, in a compiled step of the backend. All run alternately, each time in a process of its own. The RHN
has depth 10 and the ON-LSTM chunks of 10 units, as published; lstm_cudnn is the LSTM in Keras's call of
cuDNN, the others never call it.
"""

import os
import sys

# Before anything of the package is loaded: the checkout that a process measures.
if "--tree" in sys.argv:
    sys.path.insert(0, sys.argv[sys.argv.index("--tree") + 1])

import dataclasses
import json
import math
import statistics
import time

import numpy as np

from benchmarks.options import make_parser, names_among, parse, sizes_of
from benchmarks.output import draw_bars, print_table, write_figures
from benchmarks.processes import ROOT, alternate, extremes, machine, median
from benchmarks.task import SPARSITY

CELLS = ("lstm", "gru", "simple_rnn", "rhn", "on_lstm")
ON_A_GPU = ("lstm_cudnn",)
DTYPES = ("float32", "mixed_bfloat16")
MODULE = "benchmarks.cells"


def make_layer(cell, units, dtype):
    from keras_selfish import layers

    options = {"return_sequences": True, "sparsity": SPARSITY, "mask_seed": 1, "dtype": dtype}
    if cell == "rhn":
        return layers.SparseRHN(units, depth=10, **options)
    if cell == "on_lstm":
        return layers.SparseONLSTM(units, chunk_size=math.gcd(units, 10), **options)
    if cell in ("lstm", "lstm_cudnn", "gru"):
        options["use_cudnn"] = cell == "lstm_cudnn"
    names = {
        "lstm": "SparseLSTM",
        "lstm_cudnn": "SparseLSTM",
        "gru": "SparseGRU",
        "simple_rnn": "SparseSimpleRNN",
    }
    return getattr(layers, names[cell])(units, **options)


def compiled_step(layer, sequences):
    """A function that computes the gradients of all weights once, and waits for them."""
    import keras
    from keras import ops

    values = [weight.value for weight in layer.trainable_weights]
    if keras.backend.backend() == "jax":
        import jax

        def loss(values, sequences):
            mapping = list(zip(layer.trainable_weights, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return ops.mean(ops.square(layer(sequences)))

        gradient = jax.jit(jax.grad(loss))
        return lambda: jax.block_until_ready(gradient(values, sequences))
    import tensorflow as tf

    @tf.function(autograph=False)
    def gradient(sequences):
        with tf.GradientTape() as tape:
            found = tf.reduce_mean(tf.square(tf.cast(layer(sequences), tf.float32)))
        return tape.gradient(found, values)

    return lambda: [each.numpy().ravel()[:1] for each in gradient(sequences)]


def measure(cell, sizes, steps, dtype):
    from keras import ops

    sequences = np.random.default_rng(0).normal(size=(sizes.batch, sizes.time_steps, sizes.units))
    layer, sequences = make_layer(cell, sizes.units, dtype), ops.convert_to_tensor(sequences, "float32")
    layer.build(sequences.shape)
    step, seconds = compiled_step(layer, sequences), []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return {"first": seconds[0], "step": statistics.median(seconds[2:])}


def main():
    parser = make_parser(__doc__, steps=12, units=830)
    parser.add_argument(
        "--cells",
        type=names_among((*CELLS, *ON_A_GPU)),
        default=",".join(CELLS),
        help="which (default: %(default)s)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    parser.add_argument("--against", metavar="FOLDER", help="another checkout to compare with")
    parser.add_argument("--cell", choices=(*CELLS, *ON_A_GPU), help="measure this one in this process")
    parser.add_argument("--tree", help="the checkout that --cell is of")
    options = parse(parser)
    sizes = sizes_of(options)
    if options.cell:
        print(json.dumps(measure(options.cell, sizes, options.steps, options.dtype)))
        return
    where = machine()
    trees = {"this": str(ROOT)} | ({"other": os.path.abspath(options.against)} if options.against else {})
    commands = {
        f"{cell}, {name}": [
            MODULE, f"--cell={cell}", "--tree", tree, f"--dtype={options.dtype}", f"--steps={options.steps}",
            *sizes.flags(),
        ]
        for cell in options.cells
        for name, tree in trees.items()
    }  # fmt: skip
    results = alternate(commands, options.rounds)
    rows = []
    for name, found in results.items():
        least, largest = extremes(found, "step")
        other = results.get(f"{name.split(',')[0]}, other")
        rows.append(
            {
                "cell": name,
                "step_seconds": median(found, "step"),
                "step_seconds_least": least,
                "step_seconds_largest": largest,
                "times_other": median(found, "step") / median(other, "step") if other else "",
                "first_step_seconds": median(found, "first"),
            }
        )
    print(where)
    print(f"{sizes.units} units, batch {sizes.batch}, {sizes.time_steps} time steps, {options.dtype}\n")
    print_table(
        ["layer", "step ms", "least", "largest", "x other", "first step s"],
        [
            [
                row["cell"],
                *(f"{1000 * row[f'step_seconds{end}']:.2f}" for end in ("", "_least", "_largest")),
                f"{row['times_other']:.3f}" if row["times_other"] else "",
                f"{row['first_step_seconds']:.2f}",
            ]
            for row in rows
        ],
    )

    def draw(figure):
        axes = figure.subplots()
        spans = [(1000 * row["step_seconds_least"], 1000 * row["step_seconds_largest"]) for row in rows]
        draw_bars(axes, [row["cell"] for row in rows], [1000 * row["step_seconds"] for row in rows], spans)
        axes.set_xlabel("ms forward and backward (median; least and largest round)")

    settings = {**dataclasses.asdict(sizes), "steps": options.steps, "rounds": options.rounds}
    rows = [{**row, **settings, "dtype": options.dtype, "machine": where} for row in rows]
    write_figures(options.output, "cells", rows, (8, 1.6 + 0.4 * len(rows)), draw)


if __name__ == "__main__":
    main()
