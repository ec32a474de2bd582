"""Perplexity against latency and size: trained language models, exported to LiteRT in float32 and in int8.

Usage: python -m benchmarks.front --dataset ptb --data_dir ptb/ [--output FOLDER] WORKDIR...

Each WORKDIR is the folder of a run of trainers.language_model that has finished an epoch. Its best model is
exported and tested one format after the other, each in a process of its own, on one thread.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from benchmarks.options import bare_parser, parse
from benchmarks.output import print_table, write_figures
from benchmarks.processes import machine

FORMATS = {"float32": (), "int8": ("--quantize=int8",)}
FIGURES = ("perplexity", "latency_p50_ms", "latency_p99_ms", "bytes")


def run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"trainers.{program}", *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr.splitlines()[-1])


def measure(workdir, name, options, folder):
    """A row of the table: what a run's model is, and its figures in a format."""
    path, figures = folder / f"{workdir.name}_{name}.tflite", folder / "figures.json"
    run("export", f"--workdir={workdir}", "--format=litert", f"--output={path}", *FORMATS[name])
    rounds = []
    for _ in range(options.rounds):
        data = [
            f"--dataset={options.dataset}",
            *([f"--data_dir={options.data_dir}"] if options.data_dir else []),
        ]
        most = f"--most_tokens={options.most_tokens}"
        run("evaluate", f"--model={path}", *data, most, f"--json={figures}")
        rounds.append(json.loads(figures.read_text()))
    settings = json.loads((workdir / "config.json").read_text())
    return {
        "run": workdir.name,
        "units": settings["units"],
        "sparsity": settings["sparsity"],
        "block_shape": "x".join(map(str, settings["block_shape"])),
        "values": name,
        **{key: statistics.median(row[key] for row in rounds) for key in FIGURES},
    }


def draw(figure, rows):
    """Perplexity over latency and over size, a mark for each model and format."""
    for axes, key, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("latency_p50_ms", "bytes"),
        ("ms a token (median, one thread)", "bytes"),
        strict=True,
    ):
        for name, marker in zip(FORMATS, "os", strict=True):
            mine = [row for row in rows if row["values"] == name]
            axes.plot([row[key] for row in mine], [row["perplexity"] for row in mine], marker, label=name)
            for row in mine:
                axes.annotate(row["run"], (row[key], row["perplexity"]), fontsize="x-small")
        axes.set(xscale="log", xlabel=label)
        axes.legend()
    figure.axes[0].set_ylabel("test perplexity")


def main():
    parser = bare_parser(__doc__)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path, metavar="WORKDIR")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--most_tokens", type=int, default=0, help="of the test split; 0 for all (default)")
    options = parse(parser)
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(workdir, name, options, pathlib.Path(folder))
            for workdir in options.workdirs
            for name in FORMATS
        ]
    print(where, end="\n\n")
    print_table(
        ["run", "values", "test perplexity", "p50 ms", "p99 ms", "MB"],
        [
            [
                row["run"],
                row["values"],
                f"{row['perplexity']:.2f}",
                f"{row['latency_p50_ms']:.3f}",
                f"{row['latency_p99_ms']:.3f}",
                f"{row['bytes'] / 1e6:.2f}",
            ]
            for row in rows
        ],
    )
    rows = [{**row, "rounds": options.rounds, "machine": where} for row in rows]
    write_figures(options.output, "front", rows, (10, 4.5), lambda figure: draw(figure, rows))


if __name__ == "__main__":
    main()
