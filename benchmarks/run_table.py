"""Tables of finished runs of the language-model trainer: perplexities, density per gate, operations, time.

FOLDER holds runs, or what `--output` has written of them: `runs.csv`, from which every table can be made
again, and the history of each run. Operations are those of training, averaged over the epochs, as a fraction
of the same model without masks; the gradients that rules ask for at a rewiring are not counted. Densities
are those of the last epoch, each gate's over all kernels of the recurrent layers, weighted alike.
"""

import argparse
import collections
import csv
import json
import math
import pathlib
import re
import shutil
import statistics
import sys

from trainers import records

RUNS = "runs.csv"
PUBLISHED = pathlib.Path(__file__).parent / "published.csv"
# What is kept of a run, in this order.
COLUMNS = (
    *("run", "preset", "method", "units", "seed", "epochs", "best_epoch", "validation", "test"),
    *("first_averaged_epoch", "validation_before_averaging", "sparsity", "gates", "flops"),
    *("seconds", "seconds_per_epoch", "hardware", "backend"),
)


def row(folder):
    """What is kept of one run, a dict of strings by `COLUMNS`; None if it is not finished.

    Args:
        folder: `pathlib.Path` of the run.
    """
    if not (folder / "results.json").exists():
        return None
    scores = _json(folder / "results.json")
    settings = _json(folder / "config.json") if (folder / "config.json").exists() else {}
    epochs = _rows(folder / "history.csv")
    perplexities = [float(epoch["val_perplexity"]) for epoch in epochs]
    seconds = [float(epoch["seconds"]) for epoch in epochs]
    flops = [float(epoch["training_flops"]) for epoch in epochs if epoch.get("training_flops")]
    averaged = [index for index, epoch in enumerate(epochs) if float(epoch.get("averaged") or 0)]
    sessions = records.read_sessions(folder / records.ENVIRONMENT)
    return {
        "run": folder.name,
        **{name: str(settings.get(name, "")) for name in ("preset", "method", "units", "seed")},
        "epochs": str(len(epochs)),
        "best_epoch": epochs[perplexities.index(min(perplexities))]["epoch"],
        "validation": f"{scores['validation']:.2f}",
        "test": f"{scores['test']:.2f}",
        "first_averaged_epoch": epochs[averaged[0]]["epoch"] if averaged else "",
        "validation_before_averaging": f"{min(perplexities[: averaged[0]]):.2f}" if averaged else "",
        "sparsity": f"{float(epochs[-1].get('sparsity') or 0):.4f}",
        "gates": gates(epochs[-1]),
        "flops": f"{sum(flops) / len(flops):.3f}" if flops else "",
        "seconds": f"{sum(seconds):.0f}",
        "seconds_per_epoch": f"{statistics.median(seconds):.1f}",
        "hardware": "; ".join(dict.fromkeys(map(_hardware, sessions))),
        "backend": "; ".join(
            dict.fromkeys(f"{one['backend']} {one.get(one['backend'])}" for one in sessions)
        ),
    }


def _hardware(session):
    accelerators = session.get("accelerators")
    return ", ".join(accelerators) if accelerators else f"{session['cores']} × {session['processor']}"


def gates(epoch):
    """Mean density of each gate over the kernels that have it, as text."""
    densities = collections.defaultdict(list)
    for column, value in epoch.items():
        gate = column.rsplit("/", 1)[-1]
        if column.startswith("density/") and gate != "all":
            densities[gate].append(float(value))
    return " ".join(f"{gate} {sum(values) / len(values):.2f}" for gate, values in densities.items())


def rows_of(folder):
    """The rows of a folder of runs, or of the `runs.csv` that was written of one, by name."""
    if (folder / RUNS).exists():
        return {one["run"]: one for one in _rows(folder / RUNS)}
    return {path.parent.name: row(path.parent) for path in sorted(folder.glob("*/results.json"))}


def write(folder, rows, output):
    """Adds rows to `runs.csv` in a folder, those of the same names replaced, and each run's history."""
    output.mkdir(parents=True, exist_ok=True)
    before = {one["run"]: one for one in _rows(output / RUNS)} if (output / RUNS).exists() else {}
    for name in rows:
        history = folder / name / "history.csv"
        if history.exists():
            shutil.copyfile(history, output / f"{name}.csv")
    with open(output / RUNS, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**before, **rows}.values())


def runs_table(rows):
    """A line for each run, as Markdown."""
    header = ("run", "validation", "test", "best epoch", "sparsity", "density per gate", "FLOPs", "s/epoch")
    lines = [
        (
            *(one["run"], _short(one["validation"]), _short(one["test"]), one["best_epoch"]),
            *(f"{float(one['sparsity']):.2f}", one["gates"], one["flops"] and f"{float(one['flops']):.2f}"),
            f"{float(one['seconds_per_epoch']):.0f}",
        )
        for one in rows.values()
    ]
    return markdown(header, lines)


def seeds_table(rows):
    """A line for each group of runs that differ in their seed: mean and standard error, as Markdown."""
    groups = collections.defaultdict(list)
    for one in rows.values():
        groups[re.sub(r"_\d+$", "", one["run"])].append(one)
    header = ("runs", "seeds", "validation", "test", "density per gate, mean")
    lines = [
        (
            *(name, str(len(group))),
            *(_mean([float(one[split]) for one in group]) for split in ("validation", "test")),
            _mean_gates([one["gates"] for one in group]),
        )
        for name, group in groups.items()
    ]
    return markdown(header, lines)


def published_table(rows):
    """Published figures beside ours, as Markdown; a published one without a run of ours is left open."""
    published = {one["run"]: one for one in _rows(PUBLISHED)}
    header = (
        *("run", "published validation / test", "ours", "seed", "epochs"),
        *("averaged from epoch", "validation before", "hours", "hardware"),
    )
    lines = []
    for one in (one for one in rows.values() if one["run"].startswith("published_")):
        other = published.get(re.sub(r"_\d+$", "", one["run"]))
        averaged = (one["first_averaged_epoch"] or "–", _short(one["validation_before_averaging"]) or "–")
        lines.append(
            (
                one["run"],
                f"{other['validation']} / {other['test']}" if other else "–",
                f"{one['validation']} / {one['test']}",
                *(one["seed"], one["epochs"], *averaged),
                *(f"{float(one['seconds']) / 3600:.2f}", one["hardware"]),
            )
        )
    return markdown(header, lines)


TABLES = {"runs": runs_table, "seeds": seeds_table, "published": published_table}


def _short(number):
    return number and f"{float(number):.1f}"


def _mean(values):
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.2f} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def _mean_gates(texts):
    parts = [dict(zip(text.split()[::2], map(float, text.split()[1::2]), strict=True)) for text in texts]
    return " ".join(f"{gate} {statistics.mean(one[gate] for one in parts):.2f}" for gate in parts[0])


def markdown(header, lines):
    """A table as Markdown.

    Args:
        header: Strings.
        lines: Tuples of as many strings.
    """
    lines = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=pathlib.Path, metavar="FOLDER", help="folder of runs, or of a runs.csv"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs, or beginnings of their names (all)")
    parser.add_argument("--table", choices=TABLES, default="runs", help="which table (default: %(default)s)")
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FOLDER", help="add to runs.csv there, and histories"
    )
    options = parser.parse_args(arguments)
    rows = rows_of(options.folder)
    if options.names:
        rows = {name: one for name, one in rows.items() if name.startswith(tuple(options.names))}
    if not rows:
        sys.exit(f"FOLDER must hold finished runs, or {RUNS}. Received: {options.folder}")
    if options.output is not None:
        write(options.folder, rows, options.output)
    print(TABLES[options.table](rows))


if __name__ == "__main__":
    main(sys.argv[1:])
