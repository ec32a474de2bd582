"""What it costs to compare the connectivities of two language models.

Usage: python -m benchmarks.topology [--sizes 375,750,1500] [--sparsity 0.67] [--output FOLDER]

Masks drawn at random of an embedding, two LSTM layers and a decoder of 10,000 words: the most that matching
can have to do, since no unit is near any other. Each size has a process of its own, whose largest memory is
`peak`; `masks` is what both networks take of it, a byte for each entry.
"""

import json
import time

import numpy as np

from benchmarks.options import bare_parser, fraction, numbers, parse, positive
from benchmarks.output import print_table, write_figures
from benchmarks.processes import alternate, machine, peak_memory

COLUMNS = ("units", "seconds", "seconds_least", "seconds_largest", "masks_mb", "peak_mb", "distance")


def masks_of(units, words, sparsity, seed):
    """Random masks of a language model with two LSTM layers, by path."""
    generator = np.random.default_rng(seed)
    shapes = {"embedding/embeddings": (words, units)}
    for index in range(2):
        shapes[f"lstm_{index}/kernel"] = shapes[f"lstm_{index}/recurrent_kernel"] = (units, 4 * units)
    shapes["decoder/kernel"] = (units, words)
    return {path: generator.random(shape, np.float32) >= sparsity for path, shape in shapes.items()}


def measure(units, words, sparsity):
    """Seconds, bytes and the distance of two networks."""
    from keras_selfish.analysis import topology_distance

    networks = [masks_of(units, words, sparsity, seed) for seed in (0, 1)]
    began = time.perf_counter()
    distance = topology_distance(*networks).distance
    seconds = time.perf_counter() - began
    size = sum(mask.nbytes for network in networks for mask in network.values())
    return {"seconds": seconds, "distance": distance, "masks": size, "peak": peak_memory()}


def row_of(units, results):
    """A row of figures of the results of all rounds."""
    seconds = sorted(result["seconds"] for result in results)
    return {
        "units": units,
        "seconds": seconds[len(seconds) // 2],
        "seconds_least": seconds[0],
        "seconds_largest": seconds[-1],
        "masks_mb": results[0]["masks"] / 1e6,
        "peak_mb": max(result["peak"] for result in results) / 1e6,
        "distance": results[0]["distance"],
    }


def main():
    parser = bare_parser(__doc__)
    parser.add_argument("--sizes", type=numbers, default="375,750,1500", help="units (default: %(default)s)")
    parser.add_argument("--words", type=positive, default=10_000, help="vocabulary (default: %(default)s)")
    parser.add_argument("--sparsity", type=fraction, default=0.67, help="of all masks (default: %(default)s)")
    parser.add_argument("--one", action="store_true", help="measure the first size in this process, as JSON")
    options = parse(parser)
    if options.one:
        print(json.dumps(measure(options.sizes[0], options.words, options.sparsity)))
        return
    shared = [f"--words={options.words}", f"--sparsity={options.sparsity}", "--one"]
    commands = {str(units): ["benchmarks.topology", f"--sizes={units}", *shared] for units in options.sizes}
    results = alternate(commands, options.rounds)
    rows = [row_of(units, results[str(units)]) for units in options.sizes]
    where = machine()
    print(where, end="\n\n")
    cells = [[str(row["units"]), *(f"{row[name]:.4g}" for name in COLUMNS[1:])] for row in rows]
    print_table([name.replace("_", " ") for name in COLUMNS], cells)
    given = {"words": options.words, "sparsity": options.sparsity, "rounds": options.rounds}
    rows = [{**row, **given, "machine": where} for row in rows]
    write_figures(options.output, "topology", rows, (6, 4), lambda figure: draw(figure, rows))


def draw(figure, rows):
    """Seconds over units, both logarithmic."""
    axes = figure.subplots()
    axes.loglog([row["units"] for row in rows], [row["seconds"] for row in rows], "o-")
    axes.set(xlabel="units", ylabel="seconds")


if __name__ == "__main__":
    main()
