"""Masks of a report: pictures of the first and the last, and what changed between them."""

import math

import numpy as np

from trainers.reporting.headings import of_run, short_names
from trainers.reporting.markup import LEVELS, element, mask_picture
from trainers.reporting.tables import percent, table

# The pictures of a report share so many bytes; one of a side s takes about half of s² in base64.
ALL_BYTES, BYTES_PER_CELL = 420_000, 0.53
SMALLEST_SIDE, LARGEST_SIDE = 16, 100


def as_matrix(mask):
    """A mask of any shape as (inputs, units)."""
    return mask.reshape(-1, mask.shape[-1]) if mask.ndim > 1 else mask.reshape(1, -1)


def cells(mask, side):
    """Densities of the equal cells that a mask is divided in, at most `side` in each direction.

    A cell is a power of two connections wide and high, as blocks are.

    Args:
        mask: Boolean array (inputs, units).
        side: The largest number of cells along an axis.
    """
    steps = [2 ** max(0, math.ceil(math.log2(length / side))) for length in mask.shape]
    edges = [np.arange(0, length, step) for length, step in zip(mask.shape, steps, strict=True)]
    sums = np.add.reduceat(np.add.reduceat(mask, edges[0], 0, dtype="int64"), edges[1], 1)
    sizes = [np.diff(np.append(edge, length)) for edge, length in zip(edges, mask.shape, strict=True)]
    return sums / np.outer(*sizes)


def masks(runs):
    content = []
    for index, run in enumerate(runs):
        found = _of_one(run, 1 / len(runs))
        if found:
            content += of_run(index, run, runs, found)
    if not content:
        return []
    text = (
        "Which connections exist, inputs downwards and units to the right: the stronger the color of a cell, "
        "the more of its connections."
    )
    return [element("p", text, class_="note"), *content]


def _of_one(run, share):
    """The masks of a run, elements; an empty list where none are known.

    Args:
        run: The `Run`.
        share: Its share of the bytes that pictures of a report may have, in (0, 1].
    """
    known = [masks for masks in (run.first, run.last) if masks]
    names = list(dict.fromkeys(name for masks in known for name in masks.weights))
    if not names:
        return []
    pictures = sum(len(one.parts()) for masks in known for one in masks.weights.values())
    side = math.isqrt(int(share * ALL_BYTES / BYTES_PER_CELL / pictures))
    most = max(1, pictures if side >= SMALLEST_SIDE else int(pictures * side**2 / SMALLEST_SIDE**2))
    side = min(LARGEST_SIDE, max(SMALLEST_SIDE, side))
    short, drawn, parts = short_names(names), 0, []
    for name in names:
        found = [(masks.when, masks.weights[name]) for masks in known if name in masks.weights]
        drawn += sum(len(one.parts()) for _, one in found)
        if drawn > most:
            parts.append(
                element(
                    "p",
                    f"Pictures from {short[name]} on are left out to keep this file small.",
                    class_="note",
                )
            )
            break
        parts.append(_weight(short[name], found, side))
    return [_summary(run, names, short), element("div", parts, class_="weights")]


def _weight(name, found, side):
    """The pictures of one weight, of each gate the first and the last beside each other."""
    divided = [
        (when, {gate: cells(as_matrix(part), side) for gate, part in one.parts().items()})
        for when, one in found
    ]
    densities = np.concatenate([part.ravel() for _, gates in divided for part in gates.values()])
    full = float(np.quantile(densities, 0.995)) or 1.0
    pairs = []
    for gate in divided[0][1]:
        shown = [(when, gates[gate]) for when, gates in divided if gate in gates]
        images = [
            element(
                "div",
                element(
                    "img",
                    src=_picture(part, full),
                    alt=f"mask {when}, density {percent(_density(found, when, gate))}",
                ),
                element("span", when),
            )
            for when, part in shown
        ]
        change = " → ".join(percent(_density(found, when, gate)) for when, _ in shown)
        label = "whole matrix" if gate == "all" else f"gate {gate}"
        pairs.append(
            element(
                "figure", element("div", images), element("figcaption", f"{label}: {change}"), class_="pair"
            )
        )
    shape = " × ".join(map(str, found[0][1].mask.shape))
    title = element("h4", name + " ", element("small", f"{shape}, full color at {percent(full, 2)}"))
    return element(
        "div",
        title,
        element("div", pairs, class_="pairs"),
        class_="weight wide" if len(pairs) > 1 else "weight",
    )


def _density(found, when, gate):
    return next(float(one.parts()[gate].mean()) for at, one in found if at == when)


def _picture(part, full):
    return mask_picture(np.ceil(np.minimum(part / full, 1.0) * (LEVELS - 1)).astype("uint8"))


def _summary(run, names, short):
    """A table of what became of each weight's connections."""
    rows = []
    for name in names:
        first = run.first.weights.get(name) if run.first else None
        last = run.last.weights.get(name) if run.last else None
        mask = (last or first).mask
        matrix = as_matrix(mask)
        kept = "–"
        if first and last and first.mask.shape == last.mask.shape and last.mask.any():
            kept = percent(float((first.mask & last.mask).sum() / last.mask.sum()))
        rows.append(
            [
                short[name],
                " × ".join(map(str, mask.shape)),
                f"{int(mask.sum()):,}",
                percent(float(first.mask.mean())) if first else "–",
                percent(float(last.mask.mean())) if last else "–",
                kept,
                f"{int((~matrix.any(1)).sum()):,}",
                f"{int((~matrix.any(0)).sum()):,}",
            ]
        )
    last = f"last: {run.last.when}" if run.last else "last: not known"
    first = f"first: {run.first.when}" if run.first else "first: not known"
    head = ["weight", "shape", "connections", "density, first", "density, last", "there from the start"]
    head += ["inputs without any", "units without any"]
    return table(f"Connections of each weight; {first}, {last}", head, rows)
