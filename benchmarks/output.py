"""Where the figures of a benchmark go: a table on the screen, a CSV file, a plot."""

import csv


def print_table(header, rows):
    """Prints rows of text in columns, the first one to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        first, *others = (
            f"{cell:{'>' if index else '<'}{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]))


def write_figures(folder, name, rows, size, draw):
    """Writes `name.csv` and, where matplotlib is installed, `name.png` into a folder.

    Args:
        folder: A `pathlib.Path`, or None to write nothing.
        name: Name of the files.
        rows: List of dicts with the same keys.
        size: Inches of the plot.
        draw: A function that draws on a `matplotlib.figure.Figure`.
    """
    if folder is None:
        return
    path = folder / f"{name}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"\nWrote {path}")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print(f"{name}.png was not drawn: pip install 'keras_selfish[plot]'")
        return
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / f"{name}.png", dpi=150)
    print(f"Wrote {folder / name}.png")


def draw_bars(axes, names, values, extremes=None):
    """Horizontal bars from top to bottom, each with its value, and with whiskers from least to largest."""
    whiskers = None
    if extremes is not None:
        spans = [
            (value - least, largest - value) for value, (least, largest) in zip(values, extremes, strict=True)
        ]
        whiskers = list(zip(*spans, strict=True))
    bars = axes.barh(names, values, xerr=whiskers, ecolor="0.3", capsize=3, height=0.65)
    axes.bar_label(bars, fmt="{:,.4g}", padding=5)
    axes.margins(x=0.2)
    axes.set_ylim(len(names) - 0.5, -0.5)
