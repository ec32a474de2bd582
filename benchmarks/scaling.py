"""How the cost of our sparse training step grows with units, time steps, vocabulary, batch and layers.

Usage: python -m benchmarks.scaling [--axis units,vocabulary] [--quick] [--output FOLDER]

Each axis is varied around one base point, which the options for the sizes move. Every point is measured as
`sparse` of benchmarks.training_step, in processes of its own, all points alternately. To the points of an
axis a power law is fitted by least squares of the logarithms; beside its exponent stands that of the
operations counted over the same points. Time's is the smaller one where small sizes do not fill the
machine.
"""

import dataclasses
import math

import numpy as np

from benchmarks import training_step
from benchmarks.options import make_parser, names_among, numbers, parse, sizes_of
from benchmarks.output import print_table, write_figures
from benchmarks.processes import alternate, extremes, machine, median

AXES = {
    "units": [128, 256, 512, 1024, 2048],
    "time_steps": [35, 70, 140, 280],
    "vocabulary": [1_000, 2_500, 5_000, 10_000, 20_000, 40_000],
    "batch": [10, 20, 40, 80],
    "layers": [1, 2, 3, 4],
}


def exponent(values, costs):
    """The exponent of the power of `values` that fits `costs` best, by least squares of the logarithms."""
    slope, _ = np.polyfit(np.log(values), np.log(costs), 1)
    return float(slope)


def few(values):
    """The first, the middle and the last."""
    return sorted({values[0], values[len(values) // 2], values[-1]})


def points_of(axes, base):
    """The points of some axes: dicts from a value of the axis to `Sizes`.

    Args:
        axes: Dict from axis to values.
        base: The `Sizes` that all points share but for their axis.
    """
    return {
        axis: {value: dataclasses.replace(base, **{axis: value}) for value in values}
        for axis, values in axes.items()
    }


def summarise(points, results):
    """One dict of figures per point.

    Args:
        points: As `points_of` returns them.
        results: Dict from `Sizes` as text to the results of all rounds.
    """
    rows = []
    for axis, sizes_at in points.items():
        steps = {value: median(results[str(sizes)], "step") for value, sizes in sizes_at.items()}
        counts = {value: sizes.operations for value, sizes in sizes_at.items()}
        exponents = {
            "time_exponent": exponent(list(steps), list(steps.values())),
            "operations_exponent": exponent(list(counts), list(counts.values())),
        }
        for value, sizes in sizes_at.items():
            least, largest = extremes(results[str(sizes)], "step")
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "step_seconds": steps[value],
                    "step_seconds_least": least,
                    "step_seconds_largest": largest,
                    "operations": counts[value],
                    "teraflops": counts[value] / steps[value] / 1e12,
                    "tokens_per_second": sizes.tokens / steps[value],
                    "peak_memory_bytes": median(results[str(sizes)], "memory"),
                    **exponents,
                    **dataclasses.asdict(sizes),
                }
            )
    return rows


def print_figures(rows):
    print_table(
        ["point", "step ms", "TFLOP", "TFLOP/s", "tokens/s", "peak MB"],
        [
            [
                f"{row['axis']} {row['value']}",
                f"{1000 * row['step_seconds']:.1f}",
                f"{row['operations'] / 1e12:.4g}",
                f"{row['teraflops']:.3f}",
                f"{row['tokens_per_second']:.0f}",
                f"{row['peak_memory_bytes'] / 1e6:.0f}",
            ]
            for row in rows
        ],
    )
    print()
    fits = {row["axis"]: (row["time_exponent"], row["operations_exponent"]) for row in rows}
    print_table(
        ["exponent of", "time", "operations"],
        [[axis, f"{time:.2f}", f"{operations:.2f}"] for axis, (time, operations) in fits.items()],
    )


def drawing(rows, base):
    """The function that draws the figures, one panel per axis."""
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))

    def draw(figure):
        panels = figure.subplots(1, len(axes_names), sharey=True, squeeze=False)[0]
        for panel, axis in zip(panels, axes_names, strict=True):
            of_axis = [row for row in rows if row["axis"] == axis]
            values = [row["value"] for row in of_axis]
            seconds = [row["step_seconds"] for row in of_axis]
            operations = [row["operations"] for row in of_axis]
            # Through the points' geometric mean, where a least-squares line of the logarithms goes too.
            per_operation = math.exp(np.mean(np.log(seconds)) - np.mean(np.log(operations)))
            panel.loglog(
                values,
                [1000 * second for second in seconds],
                marker="o",
                label=f"time, exponent {of_axis[0]['time_exponent']:.2f}",
            )
            panel.loglog(
                values,
                [1000 * per_operation * count for count in operations],
                color="0.4",
                linestyle="--",
                label=f"operations, exponent {of_axis[0]['operations_exponent']:.2f}",
            )
            panel.set_xticks(values, [f"{value:,}" for value in values], fontsize="small")
            panel.set_xticks([], minor=True)
            panel.set_xlabel(axis.replace("_", " "))
            panel.legend(fontsize="small")
        panels[0].set_ylabel("ms per training step")
        figure.suptitle(f"Our sparse training step around {base}")

    return draw


def main():
    parser = make_parser(__doc__, steps=12, units=512)
    parser.add_argument(
        "--axis",
        type=names_among(AXES),
        default=",".join(AXES),
        metavar="A,B",
        help="which axes to vary (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="three points of each axis only")
    parser.add_argument(
        "--values",
        type=numbers,
        metavar="N,M",
        help="the points of the only axis chosen, in place of its own",
    )
    options = parse(parser)
    axes = {axis: few(AXES[axis]) if options.quick else AXES[axis] for axis in options.axis}
    if options.values is not None:
        if len(axes) != 1 or len(options.values) < 2:
            parser.error(
                "--values must be at least two different numbers, with one --axis. "
                f"Received: {options.values} for {', '.join(axes)}"
            )
        axes = {axis: options.values for axis in axes}
    base = sizes_of(options)
    points = points_of(axes, base)
    where = machine()
    # Axes meet in the base point, which is measured once.
    sizes = dict.fromkeys(sizes for sizes_at in points.values() for sizes in sizes_at.values())
    commands = {str(each): training_step.command("sparse", each, options.steps) for each in sizes}
    rows = summarise(points, alternate(commands, options.rounds))
    print(where)
    print(f"sparse, around {base}; {options.steps} steps, {options.rounds} rounds\n")
    print_figures(rows)
    settings = {"steps": options.steps, "rounds": options.rounds, "machine": where}
    size = (1.5 + 3.2 * len(points), 4)
    rows = [{**row, **settings} for row in rows]
    write_figures(options.output, "scaling", rows, size, drawing(rows, base))


if __name__ == "__main__":
    main()
