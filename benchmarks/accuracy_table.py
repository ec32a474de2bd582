"""Accuracy against sparsity of finished runs of the image trainer: a table, a CSV and plots.

Usage:
    python -m benchmarks.accuracy_table RUNS_DIR
"""

import collections
import csv
import dataclasses
import importlib.util
import json
import math
import pathlib
import statistics
import sys

from trainers.image_settings import Settings

COLUMNS = (
    *("network", "method", "wanted sparsity", "sparsity", "test accuracy", "standard deviation", "seeds"),
    "standard error",
)
# In which the runs of one row may differ: where data are, and what follows from --epochs, say nothing.
OF_A_RUN = ("seed", "schedule_epochs", "data_dir")
# Those that have columns of their own, and those whose value says by itself what it is of.
SHOWN = ("network", "method", "sparsity")
BY_VALUE = ("architecture", "estimator", "distribution")
# In percent.
SPARSITY_TICKS = (0, 50, 70, 80, 90, 95, 97, 98, 99, 99.5, 99.9)
ACCURACY_TICKS = (0, 50, 70, 80, 90, 95, 97, 98, 98.5, 99, 99.3, 99.5, 99.7, 99.9)


def rows(runs):
    """A row for the runs whose settings differ in their seeds only, sorted."""
    settings, results = {}, {}
    for file in sorted(runs.glob("*/results.json")):
        settings[file.parent] = settings_of(file.parent)
        results[file.parent] = json.loads(file.read_text(encoding="utf-8"))
    groups = collections.defaultdict(list)
    for run, label in labels(settings).items():
        key = (settings[run]["network"], label, settings[run]["sparsity"])
        groups[key].append((results[run]["sparsity"], results[run]["test_accuracy"]))
    found = []
    for key, pairs in sorted(groups.items()):
        sparsities, accuracies = zip(*pairs, strict=True)
        several = len(pairs) > 1
        spread = statistics.stdev(accuracies) if several else None
        error = spread / math.sqrt(len(pairs)) if several else None
        found.append(
            (*key, statistics.mean(sparsities), statistics.mean(accuracies), spread, len(pairs), error)
        )
    return found


def settings_of(run):
    """The settings of a run, a dict; what an earlier version did not have is as it is by default."""
    settings = {one.name: one.default for one in dataclasses.fields(Settings)}
    settings |= json.loads((run / "config.json").read_text(encoding="utf-8"))
    if settings["method"] == "dense":  # where no sparsity is wanted
        settings["sparsity"] = -1.0
    return settings


def labels(settings):
    """The method of each run, and what tells it from other runs of its network.

    Args:
        settings: Dict of settings by run.

    Returns:
        Dict of texts by run: the method; what of its `BY_VALUE` is not the default; and whatever else runs of
        one network and method in this dict do not share.
    """
    found = {}
    names = [one.name for one in dataclasses.fields(Settings) if one.name not in (*OF_A_RUN, *SHOWN)]
    for run, mine in settings.items():
        alike = [one for one in settings.values() if all(one[name] == mine[name] for name in SHOWN[:2])]
        parts = [mine["method"]]
        for name in names:
            if name in BY_VALUE:
                parts += [] if mine[name] == getattr(Settings, name) else [mine[name]]
            elif any(one[name] != mine[name] for one in alike):
                parts.append(f"{name}={mine[name]}")
        found[run] = ", ".join(parts)
    return found


def table(found):
    """Rows as Markdown, in percent."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for network, method, wanted, sparsity, accuracy, spread, seeds, error in found:
        spread, error = ("" if one is None else f"{100 * one:.2f}" for one in (spread, error))
        figures = (
            f"{100 * wanted:.0f}" if wanted >= 0 else "",
            f"{100 * sparsity:.2f}",
            f"{100 * accuracy:.2f}",
            spread,
            str(seeds),
            error,
        )
        lines.append((network, method, *figures))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plot(found, network, path):
    """A network's accuracy over sparsity, a line for each method, broken where it has options.

    Both axes are logarithmic in what is missing to 100%: half the errors or half the connections are the same
    distance everywhere.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    lines = collections.defaultdict(list)
    for name, method, _, sparsity, accuracy, *_ in found:
        if name == network:
            lines[method].append((_distance(100 * sparsity), _distance(100 * accuracy)))
    # A colour for each method, a marker for each of its options.
    places = collections.Counter()
    for method, points in lines.items():
        alone = method.split(",")[0]
        place = places[alone]
        places[alone] += 1
        style = {"color": f"C{list(places).index(alone)}", "marker": "os^vD"[place % 5]}
        style["linestyle"] = "--" if place else "-"
        axes.plot(*zip(*sorted(points), strict=True), label=method, **style)
    for axis, label, all_ticks in (
        (axes.xaxis, "sparsity of the dense layers", SPARSITY_TICKS),
        (axes.yaxis, "test accuracy", ACCURACY_TICKS),
    ):
        low, high = axis.get_view_interval()
        ticks = [tick for tick in all_ticks if low <= _distance(tick) <= high]
        axis.set_ticks([_distance(tick) for tick in ticks], [f"{tick:g}%" for tick in ticks])
        axis.set_label_text(label)
    axes.set_title(network)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _distance(percent):
    return -math.log10(max(100 - percent, 0.01))


def main(arguments):
    if len(arguments) != 1:
        sys.exit(__doc__)
    runs = pathlib.Path(arguments[0])
    found = rows(runs)
    if not found:
        sys.exit(f"RUNS_DIR must hold finished runs. Received: {runs}, without any */results.json")
    with (runs / "accuracy.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *found])
    if importlib.util.find_spec("matplotlib") is not None:
        for network in dict.fromkeys(row[0] for row in found):
            plot(found, network, runs / f"accuracy_{network}.png")
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
