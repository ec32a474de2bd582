"""Curves of a report: how the history of the runs went, and how their gates changed."""

from trainers.reporting.charts import COLORS, Line, chart, number
from trainers.reporting.headings import letter_of, named, of_run, short_names
from trainers.reporting.markup import element
from trainers.reporting.run import FRACTIONS, MEASURES
from trainers.reporting.tables import percent

WHOLE = ("sparsity", "training_flops")  # how far they are from none and from all is what they say


def curves(runs):
    """Charts of the history."""
    boxes = [box for measure in _measures(runs) for box in _of_measure(measure, runs)]
    for column, title, note in (
        ("sparsity", "Sparsity", "zeros among all masked weights"),
        ("pruning_rate", "Pruning rate", "connections that a rewiring moves"),
        ("training_flops", "Training FLOPs", "of a step, relative to no masks"),
        ("tokens_per_second", "Tokens per second", "in training"),
    ):
        lines = _of_runs(runs, column)
        options = {"percent": column in FRACTIONS, "limits": (0.0, 1.0) if column in WHOLE else ()}
        boxes.append(_box(f"curve-{column}", title, note, lines, **options))
    boxes = [box for box in boxes if box is not None]
    if not boxes:
        return []
    note = element(
        "p",
        "Point at a chart for the values of an epoch. The numbers are in the table of the history.",
        class_="note",
    )
    return [note, *_legend(runs), element("div", boxes, class_="grid")]


def _measures(runs):
    """What there are curves of; not of the loss beside a perplexity, which says the same."""
    found = [one for one in MEASURES if any(one.training in run.history for run in runs)]
    return found if len(found) == 1 or found[:1] != [MEASURES[0]] else found[:-1]


def _of_measure(measure, runs):
    """Charts of a measure: one of both its columns for one run, one of each for several."""
    columns = (measure.validation, measure.training)
    options = {"percent": measure.percent, "logarithmic": measure.name == "perplexity"}
    if len(runs) > 1:
        for column, of in zip(columns, ("validation", "training"), strict=True):
            title = f"{of} {measure.name}".capitalize()
            yield _box(f"curve-{column}", title, None, _of_runs(runs, column), **options)
        return
    (run,) = runs
    labels = zip(columns, ("valid", "train"), ("validation", "training"), range(2), strict=True)
    lines = [_line(run, *label) for label in labels]
    note = _best_note(run) if measure == run.measure else None
    yield _box(f"curve-{measure.name}", measure.name.capitalize(), note, lines, **options)


def _legend(runs):
    if len(runs) == 1:
        return []
    return [
        element("ul", [element("li", named(index, run)) for index, run in enumerate(runs)], class_="legend")
    ]


def _of_runs(runs, column):
    """A line for each run; of several, dashed in ways of their own: some that are alike cover each other."""
    if len(runs) == 1:
        return [_line(runs[0], column, "", column.replace("_", " "), 0)]
    return [
        _line(run, column, letter_of(index), run.label, index, index % 3) for index, run in enumerate(runs)
    ]


def _line(run, column, label, name, color, dashes=0):
    xs, ys = run.history.get("epoch", []), run.history.get(column)
    best = run.best() if column == run.measure.validation else None
    return Line(name, label, xs if ys else [], ys or [], color, best, dashes)


def _best_note(run):
    best = run.best()
    if best is None:
        return None
    value = run.history[run.measure.validation][best]
    shown = percent(value, 4) if run.measure.percent else number(value)
    return f"best validation {shown} in epoch {run.history['epoch'][best]:g}"


def _box(identity, title, note, lines, legend=None, **options):
    drawn = chart(identity, title, lines, **options)
    if drawn is None:
        return None
    caption = element("figcaption", title, element("small", note) if note else None)
    return element("figure", caption, drawn, legend, class_="chartbox")


def densities(run):
    """The densities of a history: a dict from weight to a dict from gate to a list of values."""
    weights = {}
    for column, values in run.history.items():
        kind, _, rest = column.partition("/")
        weight, _, gate = rest.rpartition("/")
        if kind == "density" and weight:
            weights.setdefault(weight, {})[gate] = values
    return weights


def gates(runs):
    """Charts of the densities of gates, of each weight that has several, and of all weights that change."""
    content = []
    for index, run in enumerate(runs):
        weights = densities(run)
        short = short_names(weights)
        gated = {weight: parts for weight, parts in weights.items() if len(parts) > 1}
        limits = [value for parts in gated.values() for values in parts.values() for value in values]
        limits = [value for value in limits if 0.0 <= value <= 1.0]
        boxes = []
        for place, (weight, parts) in enumerate(gated.items()):
            lines = [
                Line(f"gate {gate}", gate[:6], run.history["epoch"], values, color)
                for color, (gate, values) in enumerate(parts.items())
            ]
            note = ", ".join(f"{gate} {percent(values[-1])}" for gate, values in parts.items())
            options = {"percent": True, "limits": (min(limits), max(limits)) if limits else ()}
            boxes.append(_box(f"gates-{index}-{place}", short[weight], note, lines, **options))
        boxes.append(_matrices(f"weights-{index}", run, weights, short))
        boxes = [box for box in boxes if box is not None]
        if boxes:
            content += of_run(index, run, runs, [element("div", boxes, class_="grid")])
    if not content:
        return []
    text = (
        "How many of its possible connections each gate has. Gates begin equal and compete for the "
        "connections of their layer."
    )
    return [element("p", text, class_="note"), *content]


def _matrices(identity, run, weights, short):
    """A chart of the densities of whole matrices, if they change; gates count alike."""
    means = {
        weight: [sum(values) / len(gates) for values in zip(*gates.values(), strict=True)]
        for weight, gates in weights.items()
    }
    if not any(max(values) - min(values) > 0.002 for values in means.values()):
        return None
    lines = [
        Line(short[weight], str(index + 1), run.history["epoch"], values, index)
        for index, (weight, values) in enumerate(means.items())
    ]
    items = [
        element("li", element("span", line.label, class_=f"letter c{line.color % COLORS}"), line.name)
        for line in lines
    ]
    legend = element("ul", items, class_="legend")
    return _box(identity, "Whole matrices", "density of each", lines, legend, percent=True)
