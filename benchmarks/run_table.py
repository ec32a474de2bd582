"""A table of finished runs of the language-model trainer: perplexities, density per gate, operations, time.

Usage:
    python -m benchmarks.run_table RUNS_DIR NAME...

Operations are those of training, averaged over the epochs, as a fraction of the same model without masks; the
gradients that some rules ask for at a rewiring are not counted. Densities are those of the last epoch, each
gate's over all kernels of the recurrent layers, weighted alike.
"""

import collections
import csv
import json
import pathlib
import sys

COLUMNS = ("run", "validation", "test", "best epoch", "sparsity", "density per gate", "FLOPs", "s/epoch")


def row(folder):
    """The cells of one run's row; None if it is not finished."""
    results = folder / "results.json"
    if not results.exists():
        return None
    scores = json.loads(results.read_text(encoding="utf-8"))
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    best = min(epochs, key=lambda epoch: float(epoch["val_perplexity"]))
    seconds = sorted(float(epoch["seconds"]) for epoch in epochs)
    flops = [float(epoch["training_flops"]) for epoch in epochs if epoch.get("training_flops")]
    return (
        folder.name,
        f"{scores['validation']:.1f}",
        f"{scores['test']:.1f}",
        best["epoch"],
        f"{float(epochs[-1].get('sparsity') or 0):.2f}",
        gates(epochs[-1]),
        f"{sum(flops) / len(flops):.2f}" if flops else "",
        f"{seconds[len(seconds) // 2]:.0f}",
    )


def gates(epoch):
    """Mean density of each gate over the kernels that have it, as text."""
    densities = collections.defaultdict(list)
    for column, value in epoch.items():
        gate = column.rsplit("/", 1)[-1]
        if column.startswith("density/") and gate != "all":
            densities[gate].append(float(value))
    return " ".join(f"{gate} {sum(values) / len(values):.2f}" for gate, values in densities.items())


def table(rows):
    """Rows as Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments):
    if not arguments:
        sys.exit(__doc__)
    runs = pathlib.Path(arguments[0])
    names = arguments[1:] or sorted(path.parent.name for path in runs.glob("*/results.json"))
    rows = {name: row(runs / name) for name in names}
    print(table([cells for cells in rows.values() if cells]))
    if missing := [name for name, cells in rows.items() if not cells]:
        print(f"\nnot finished: {', '.join(missing)}")


if __name__ == "__main__":
    main(sys.argv[1:])
