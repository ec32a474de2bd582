"""What one rewiring costs, against one training step and against a rewiring that sorts everything.

Usage: python -m benchmarks.rewiring [--units 1500] [--pruning_rate 0.8] [--output FOLDER]

The `ptb_lstm` model (66 million weights at 1500 units, density 0.33), the optimizer's state included. Each
round takes some training steps and one rewiring of ours, and again some steps and one rewiring by sorting,
all on one model. `sorting` is the obvious way in NumPy: matrix by matrix, an argsort of all magnitudes and
a permutation of all positions without a connection. It chooses as ours does, and writes by the same code.
"""

import dataclasses
import statistics
import time

import numpy as np

from benchmarks.options import fraction, make_parser, parse, positive, sizes_of
from benchmarks.output import draw_bars, print_table, write_figures
from benchmarks.processes import machine
from benchmarks.task import PUBLISHED, SETTINGS, windows


def make_model(sizes):
    from keras_selfish import SNTASGD, TokenCrossEntropy, language_model

    model = language_model(
        "ptb_lstm", sizes.vocabulary, units=sizes.units, layers=sizes.layers, batch_size=sizes.batch
    )
    model.compile(SNTASGD(**{**SETTINGS, "learning_rate": 40.0}), loss=TokenCrossEntropy())
    return model


def sorted_change(matrix, rate, generator):
    """Chooses by sorting what `choose_change` chooses by selection, without `reset_regrown`.

    Args:
        matrix: A `rules.Matrix` without blocks.
        rate: Fraction of the connections to rewire.
        generator: A `numpy.random.Generator`.

    Returns:
        A `Change`.
    """
    from keras_selfish.rewiring.matrix_change import Change, rewired_count

    mask = matrix.mask
    count = rewired_count(rate, np.count_nonzero(mask), mask.size)
    order = np.argsort(np.abs(matrix.weight), axis=None)
    smallest = order[mask.reshape(-1)[order]][:count]
    after = mask.copy()
    after.reshape(-1)[smallest] = False
    free = np.flatnonzero(~after)
    after.reshape(-1)[generator.permutation(free)[:count]] = True
    return Change(after, mask & ~after, after & ~mask)


def rewire_by_sorting(model, rate, generator):
    """Rewires all masked weights of a model."""
    from keras_selfish.masks import masked_weights
    from keras_selfish.rewiring.matrix_change import apply_change, read_matrix

    for masked_weight in masked_weights(model):
        change = sorted_change(read_matrix(masked_weight, model.optimizer), rate, generator)
        apply_change(masked_weight, change, [model.optimizer])


def measure(sizes, rate, rounds, steps):
    """Seconds of each training step, each rewiring and each rewiring by sorting, as a dict of lists."""
    from benchmarks.keras_step import Clock
    from keras_selfish import SelfishRewiring

    model = make_model(sizes)
    data = windows(sizes, steps).batches()
    rewiring = SelfishRewiring(rate)
    rewiring.set_model(model)
    generator = np.random.default_rng(0)
    clock = Clock()
    seconds = {"training step": [], "rewiring": [], "sorting": []}

    def train():
        model.fit(data, verbose=0, shuffle=False, callbacks=[clock])
        return clock.seconds

    train()  # compiles
    rewirings = {
        "rewiring": lambda number: rewiring.rewire(rate, step=number),
        "sorting": lambda number: rewire_by_sorting(model, rate, generator),
    }
    for number in range(rounds):
        for name, rewire in rewirings.items():
            # Steps before each, so that both find weights that have trained since the last rewiring.
            seconds["training step"] += train()
            began = time.perf_counter()
            rewire(number)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def main():
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument(
        "--pruning_rate",
        type=fraction,
        default=PUBLISHED.training.pruning_rate,
        help="fraction of the connections that is rewired (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=positive, default=3, help="training steps before each rewiring (default: %(default)s)"
    )
    options = parse(parser)
    sizes, rate = sizes_of(options), options.pruning_rate
    where = machine()
    seconds = measure(sizes, rate, options.rounds, options.steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    step, sorting = medians["training step"], medians["sorting"]
    rows = [
        {
            "what": name,
            "seconds": value,
            "seconds_least": min(seconds[name]),
            "seconds_largest": max(seconds[name]),
            "times_training_step": value / step,
            "times_sorting": value / sorting,
        }
        for name, value in medians.items()
    ]
    print(where)
    print(f"{sizes}; pruning rate {rate}; {options.rounds} rounds\n")
    print_table(
        ["median of", "s", "least", "largest", "x training step", "x sorting"],
        [[row["what"], *(f"{value:.3f}" for value in list(row.values())[1:])] for row in rows],
    )
    settings = {**dataclasses.asdict(sizes), "pruning_rate": rate, "rounds": options.rounds, "machine": where}

    def draw(figure):
        axes = figure.subplots()
        spans = [(row["seconds_least"], row["seconds_largest"]) for row in rows]
        draw_bars(axes, [row["what"] for row in rows], [row["seconds"] for row in rows], spans)
        axes.set_xlabel("seconds (median; least and largest)")
        axes.set_title(f"One rewiring at pruning rate {rate}\n{sizes}", fontsize="medium")

    rows = [{**row, **settings} for row in rows]
    write_figures(options.output, "rewiring", rows, (8, 2.6), draw)


if __name__ == "__main__":
    main()
