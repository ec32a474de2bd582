"""Plots of a training run, from the history that it wrote."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Mapping

from keras_selfish.typing import PathLike

LOSSES = (("perplexity", "val_perplexity", "perplexity"), ("loss", "val_loss", "loss (nats)"))
MISSING = ("", "NA", "None")  # what CSVLogger and others write for a figure that an epoch does not have


def plot_history(csv_path: PathLike, png_path: PathLike) -> pathlib.Path:
    """Draws perplexity, the density of every gate and the speed over the epochs of a training run.

    How the densities of gates drift apart is what selfish rewiring is about: they start equal and compete
    for the connections of their layer.

    Args:
        csv_path: A history with a header and a row per epoch, as written by the trainer or by a
            `keras.callbacks.CSVLogger` that stands after `SelfishRewiring`. The columns drawn are `epoch`,
            `perplexity` and `val_perplexity` (else `loss` and `val_loss`), `density/<weight>/<gate>`,
            `sparsity` and `tokens_per_second`; all but `epoch` and one of the losses may be missing.
        png_path: Where to write the picture (PNG, 150 dots per inch).

    Returns:
        The path of the picture as a `pathlib.Path`.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        FileNotFoundError: if there is no such history.
        ValueError: if the history has no rows or lacks the columns it must have, or an entry is no number.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`plot_history` needs matplotlib, which is not installed: pip install 'keras_selfish[plot]'"
        ) from error

    history = read_history(csv_path)
    gates = gate_densities(history)
    speed = "tokens_per_second" in history
    rows = -(-len(gates) // 2)
    heights = [3.4] + [2.3] * rows + [1.6] * speed
    figure = Figure(figsize=(10, sum(heights) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    _draw_losses(figure.add_subplot(grid[0, :]), history)
    shared = None
    for index, (weight, densities) in enumerate(gates.items()):
        shared = figure.add_subplot(grid[1 + index // 2, index % 2], sharey=shared)
        _draw_densities(shared, history["epoch"], weight, densities)
    if speed:
        _draw_speed(figure.add_subplot(grid[-1, :]), history)
    for axes in figure.axes:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return _save(figure, png_path)


def _save(figure, png_path):
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    path = pathlib.Path(png_path)
    figure.savefig(path, format="png", dpi=150)
    return path


def read_history(csv_path: PathLike) -> dict[str, list[float]]:
    """Reads a history.

    Args:
        csv_path: A CSV file with a header and a column `epoch`. Of an epoch that stands there twice, as in a
            run that was resumed, the later row counts.

    Returns:
        A dict from column to a list of floats, by increasing epoch; NaN where an entry is missing.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there are no rows, no epochs, no loss, or an entry is no number.
    """
    path = pathlib.Path(csv_path)
    if not path.is_file():
        raise FileNotFoundError(f"`csv_path` must be a training history. Received: {path}, which is no file")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        rows = [{name: _number(row[name], name, path) for name in columns} for row in reader]
    if not rows or "epoch" not in rows[0] or not any(train in rows[0] for train, _, _ in LOSSES):
        raise ValueError(
            "`csv_path` must have a column `epoch`, one of `perplexity` and `loss`, and a row per epoch. "
            f"Received: {path} with {len(rows)} rows and the columns {', '.join(columns) or '(none)'}"
        )
    by_epoch = {row["epoch"]: row for row in rows if not math.isnan(row["epoch"])}
    return {name: [by_epoch[epoch][name] for epoch in sorted(by_epoch)] for name in columns}


def _number(text, name, path):
    if text is None or text in MISSING:  # None: a row that was cut short
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"`csv_path` must hold numbers. Received: {text!r} in column {name!r} of {path}"
        ) from None


def gate_densities(history: Mapping[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """The columns `density/<weight>/<gate>` of weights that have gates.

    Args:
        history: A dict from column to values.

    Returns:
        A dict from weight to a dict from gate to values.
    """
    weights: dict[str, dict[str, list[float]]] = {}
    for column, values in history.items():
        kind, _, rest = column.partition("/")
        weight, _, gate = rest.rpartition("/")
        if kind == "density" and weight:
            weights.setdefault(weight, {})[gate] = values
    # The density of a weight without gates never changes.
    return {weight: densities for weight, densities in weights.items() if len(densities) > 1}


def _draw_losses(axes, history):
    train, validation, label = next(names for names in LOSSES if names[0] in history)
    epochs, drawn = history["epoch"], []
    for column, name in ((train, "training"), (validation, "validation")):
        if column not in history:
            continue
        values = history[column]
        known = [(value, epoch) for value, epoch in zip(values, epochs, strict=True) if math.isfinite(value)]
        drawn += [value for value, _ in known]
        if column == validation and known:
            best, at = min(known)
            name += f", best {best:,.4g} after epoch {at:g}"
        axes.plot(epochs, values, marker="o", markersize=3.5, label=name)
    if label == "perplexity" and drawn and max(drawn) > 3 * min(drawn) > 0:
        _logarithmic(axes)
    sparsity = [value for value in history.get("sparsity", ()) if math.isfinite(value)]
    axes.set_title("Perplexity" if label == "perplexity" else "Loss")
    if sparsity:
        axes.set_title(f"sparsity {sparsity[-1]:.2%}", loc="right", fontsize="medium")
    axes.set_ylabel(label)
    axes.legend()


def _logarithmic(axes):
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 6)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_minor_formatter("")


def _draw_densities(axes, epochs, weight, densities):
    # Gates are equal parts of their matrix, so that its density is their mean.
    whole = [sum(values) / len(densities) for values in zip(*densities.values(), strict=True)]
    lines = {}
    for gate, values in densities.items():
        (line,) = axes.plot(epochs, values, marker="o", markersize=2.5, label=f"{gate}  {values[-1]:.3f}")
        lines[line] = values[-1]
    (line,) = axes.plot(epochs, whole, color="0.4", linestyle="--", label=f"all  {whole[-1]:.3f}")
    lines[line] = whole[-1]
    axes.set_title(weight, fontsize="medium")
    axes.set_ylabel("density")
    axes.legend(
        handles=sorted(lines, key=lines.get, reverse=True),  # as the lines end, from top to bottom
        title="gate, last",
        title_fontsize="small",
        fontsize="small",
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        handlelength=1.2,
    )


def _draw_speed(axes, history):
    speeds = history["tokens_per_second"]
    axes.plot(history["epoch"], speeds, marker="o", markersize=3.5)
    axes.set_ylim(0, 1.15 * max([speed for speed in speeds if math.isfinite(speed)], default=1))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_title("Training speed")
    axes.set_ylabel("tokens per second")


def plot_classifier_history(csv_path: PathLike, png_path: PathLike) -> pathlib.Path:
    """Draws accuracy and sparsity over the epochs of a run of the image trainer.

    Args:
        csv_path: A history with the columns `epoch`, `loss`, `accuracy` and `sparsity`, and perhaps
            `val_accuracy`.
        png_path: Where to write the picture (PNG, 150 dots per inch).

    Returns:
        The path of the picture as a `pathlib.Path`.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        FileNotFoundError: if there is no such history.
        ValueError: if the history has no rows or lacks a column, or an entry is no number.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`plot_classifier_history` needs matplotlib, which is not installed: "
            "pip install 'keras_selfish[plot]'"
        ) from error
    history = read_history(csv_path)
    if not {"accuracy", "sparsity"} <= set(history):
        raise ValueError(f"`csv_path` must have the columns accuracy and sparsity. Received: {csv_path}")
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for column, label in (("accuracy", "training"), ("val_accuracy", "validation")):
        if column in history:
            above.plot(history["epoch"], history[column], marker="o", markersize=3, label=label)
    above.set_ylabel("accuracy")
    above.legend()
    below.plot(history["epoch"], history["sparsity"], marker="o", markersize=3, color="0.3")
    below.set_ylabel("sparsity")
    below.set_xlabel("epoch")
    return _save(figure, png_path)
