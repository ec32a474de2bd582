"""The page of a report."""

import datetime
import math
import statistics

from keras_selfish.rewiring.registry import METHODS
from keras_selfish.version import __version__
from trainers.reporting import mask_section
from trainers.reporting.charts import COLORS, Line, chart, number, thinned
from trainers.reporting.markup import document, element
from trainers.reporting.run import differing
from trainers.reporting.style import STYLE
from trainers.reporting.tables import duration, figure, percent, setting, size, table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MOST_ROWS = 120
COLUMNS = {
    "loss": "loss",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "val_loss": "validation loss",
    "val_perplexity": "validation perplexity",
    "val_accuracy": "validation accuracy",
    "sparsity": "sparsity",
    "pruning_rate": "pruning rate",
    "training_flops": "training FLOPs",
    "tokens_per_second": "tokens/s",
    "seconds": "seconds",
}
FRACTIONS = ("accuracy", "val_accuracy", "sparsity", "training_flops", "pruning_rate")
WHOLE = ("sparsity", "training_flops")  # how far they are from none and from all is what they say
ENVIRONMENT = {
    "keras_selfish": "keras_selfish",
    "backend": "backend",
    "keras": "Keras",
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "torch": "PyTorch",
    "numpy": "NumPy",
    "python": "Python",
    "system": "system",
    "processor": "processor",
    "cores": "cores",
    "accelerators": "GPUs, TPUs",
    "began": "began (UTC)",
}
MODELS = {".keras": "Keras", ".tflite": "LiteRT", ".onnx": "ONNX"}


def page(runs):
    """The report of some runs as the text of an HTML file.

    Args:
        runs: A list of `Run`, labelled.
    """
    several = len(runs) > 1
    sections = [
        ("differences", "What differs", _differences(runs) if several else []),
        ("glance", "At a glance", _glance(runs)),
        ("curves", "Curves", _curves(runs)),
        ("gates", "Gates", _gates(runs)),
        ("masks", "Masks", _masks(runs)),
        ("results", "Results", _results(runs)),
        ("history", "History", _histories(runs)),
        ("settings", "Settings", _settings(runs)),
        ("environment", "Environment", _environment(runs)),
        ("files", "Models", _files(runs)),
        ("missing", "Not in this report", _missing(runs)),
    ]
    sections = [(name, title, content) for name, title, content in sections if content]
    title = " · ".join(run.label for run in runs)
    return document(
        element(
            "html",
            element(
                "head",
                element("meta", charset="utf-8"),
                element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                element("meta", http_equiv="Content-Security-Policy", content=POLICY),
                element("meta", name="generator", content=f"keras_selfish {__version__}"),
                element("title", title),
                element("style", STYLE),
            ),
            element(
                "body",
                _header(runs),
                _navigation(sections),
                element("main", [_section(*one) for one in sections]),
                _footer(),
            ),
            lang="en",
        )
    )


def _section(name, title, content):
    return element(
        "section", element("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title"
    )


def _navigation(sections):
    links = [element("li", element("a", title, href=f"#{name}")) for name, title, _ in sections]
    return element("nav", element("ul", links), aria_label="sections")


def _footer():
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return element(
        "footer", f"Written by keras_selfish {__version__} on {now}. This file needs nothing beside it."
    )


def _header(runs):
    if len(runs) == 1:
        (run,) = runs
        return element(
            "header",
            element("p", f"keras_selfish · {run.kind}", class_="eyebrow"),
            element("h1", run.label),
            element("p", _lead(run), class_="lead"),
            _status(run),
        )
    kinds = ", ".join(dict.fromkeys(run.kind for run in runs))
    items = [
        element("li", _letter(index), f" {run.label}", element("small", _lead(run)))
        for index, run in enumerate(runs)
    ]
    return element(
        "header",
        element("p", f"keras_selfish · {kinds}", class_="eyebrow"),
        element("h1", f"{len(runs)} runs compared"),
        element("ul", items, class_="runs"),
    )


def _letter_of(index):
    return chr(ord("A") + index)


def _letter(index):
    return element("span", _letter_of(index), class_=f"letter c{index % COLORS}")


def _lead(run):
    """The run in a sentence."""
    settings = run.settings
    if "network" in settings:
        what = str(settings["network"])
    else:
        units, layers = settings.get("units"), settings.get("layers")
        sizes = "–".join(map(str, units)) if isinstance(units, list) else f"{layers} × {units}"
        what = f"{str(settings.get('cell')).upper().replace('_', '-')} of {sizes} units"
    name = str(settings.get("method"))
    method = f", {name}" + (f": {METHODS[name].summary}" if name in METHODS else "")
    return f"{what} on {settings.get('dataset')}{method}."


def _status(run):
    of = f" of {run.epochs}" if run.epochs is not None else ""
    state = "finished" if run.finished else "not finished"
    text = f"{state}: {run.epochs_done}{of} epochs"
    return element("span", text, class_="pill" if run.finished else "pill wait")


def _glance(runs):
    """The figures one asks for first: as cards of one run, as a table of several."""
    figures = [_figures(run) for run in runs]
    if len(runs) == 1:
        cards = [
            element(
                "div", element("dt", name), element("dd", value, element("small", note) if note else None)
            )
            for name, (value, note) in figures[0].items()
        ]
        return [element("dl", cards, class_="cards")] if cards else []
    names = list(dict.fromkeys(name for one in figures for name in one))
    rows = []
    for index, (run, known) in enumerate(zip(runs, figures, strict=True)):
        values = [known.get(name, ("–", None)) for name in names]
        text = [
            f"{value} ({note.removeprefix('best, ')})" if note and note.startswith("best, ") else value
            for value, note in values
        ]
        rows.append([_named(index, run), f"{run.epochs_done} of {run.epochs}", *text])
    return [table("The runs in figures", ["run", "epochs", *names], rows)]


def _figures(run):
    """Dict from a name to a figure and a note on it."""
    measure, found = run.measure, {}
    show = (lambda value: percent(value, 4)) if measure.percent else number
    for name in ("test", f"test_{measure.name}"):
        value = run.results.get(name)
        if isinstance(value, (int, float)):
            found[f"test {measure.name}"] = (show(value), "of the best model" if name == "test" else None)
    best = run.best()
    if best is not None:
        value, epoch = run.history[measure.validation][best], run.history["epoch"][best]
        found[f"validation {measure.name}"] = (show(value), f"best, epoch {epoch:g}")
    for column, name, note in (
        ("sparsity", "sparsity", "of masked weights, at the end"),
        ("training_flops", "training FLOPs", "relative to no masks, mean"),
    ):
        values = run.column(column)
        if values:
            value = values[-1] if column == "sparsity" else statistics.fmean(values)
            found[name] = (percent(value), note)
    speed = run.column("tokens_per_second")
    if speed:
        found["tokens/s"] = (number(round(statistics.median(speed))), "in training, median")
    seconds = run.column("seconds")
    if seconds:
        found["time"] = (duration(sum(seconds)), "of all epochs")
    return found


def _differences(runs):
    names = differing(runs)
    if not names:
        return [element("p", "The settings are the same in all runs.", class_="note")]
    rows = [
        [name, *(setting(name, run.settings[name]) if name in run.settings else "–" for run in runs)]
        for name in names
    ]
    note = element("p", "All other settings are the same; they stand below.", class_="note")
    head = ["setting", *map(_named, range(len(runs)), runs)]
    return [note, table("Settings that differ", head, rows, of_text=True)]


def _named(index, run):
    return element("span", _letter(index), f" {run.label}")


def _legend(runs):
    if len(runs) == 1:
        return []
    return [
        element("ul", [element("li", _named(index, run)) for index, run in enumerate(runs)], class_="legend")
    ]


def _curves(runs):
    """Charts of the history."""
    boxes = []
    for measure in dict.fromkeys(run.measure for run in runs if run.history):
        columns = (measure.validation, measure.training)
        options = {"percent": measure.percent, "logarithmic": measure.name == "perplexity"}
        if len(runs) == 1:
            labels = zip(columns, ("valid", "train"), ("validation", "training"), range(2), strict=True)
            lines = [_line(runs[0], *label) for label in labels]
            boxes.append(
                _box(
                    f"curve-{measure.name}", measure.name.capitalize(), _best_note(runs[0]), lines, **options
                )
            )
            continue
        for column, of in zip(columns, ("validation", "training"), strict=True):
            title = f"{of} {measure.name}".capitalize()
            boxes.append(_box(f"curve-{column}", title, None, _of_runs(runs, column), **options))
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


def _of_runs(runs, column):
    several = len(runs) > 1
    return [
        _line(
            run,
            column,
            _letter_of(index) if several else "",
            run.label if several else column.replace("_", " "),
            index,
        )
        for index, run in enumerate(runs)
    ]


def _line(run, column, label, name, color):
    xs, ys = run.history.get("epoch", []), run.history.get(column)
    best = run.best() if column == run.measure.validation else None
    dashes = color % 3 if label == _letter_of(color) else 0  # runs that are alike cover each other
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


def _gates(runs):
    """Charts of the densities of gates, of each weight that has several, and of all weights that change."""
    content = []
    for index, run in enumerate(runs):
        weights = densities(run)
        short = mask_section.short_names(weights)
        gated = {weight: gates for weight, gates in weights.items() if len(gates) > 1}
        limits = [value for gates in gated.values() for values in gates.values() for value in values]
        limits = [value for value in limits if 0.0 <= value <= 1.0]
        boxes = []
        for place, (weight, gates) in enumerate(gated.items()):
            lines = [
                Line(f"gate {gate}", gate[:6], run.history["epoch"], values, color)
                for color, (gate, values) in enumerate(gates.items())
            ]
            note = ", ".join(f"{gate} {percent(values[-1])}" for gate, values in gates.items())
            options = {"percent": True, "limits": (min(limits), max(limits)) if limits else ()}
            boxes.append(_box(f"gates-{index}-{place}", short[weight], note, lines, **options))
        boxes.append(_matrices(f"weights-{index}", run, weights, short))
        boxes = [box for box in boxes if box is not None]
        if boxes:
            content += _of_run(index, run, runs, [element("div", boxes, class_="grid")])
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


def _of_run(index, run, runs, content):
    """Content below the name of its run, where there are several."""
    return [element("h3", _named(index, run)), *content] if len(runs) > 1 else content


def _masks(runs):
    content = []
    for index, run in enumerate(runs):
        found = mask_section.section(run, 1 / len(runs))
        if found:
            content += _of_run(index, run, runs, found)
    if not content:
        return []
    text = (
        "Which connections exist, inputs downwards and units to the right: the stronger the color of a cell, "
        "the more of its connections."
    )
    return [element("p", text, class_="note"), *content]


def _results(runs):
    names = list(dict.fromkeys(name for run in runs for name in run.results))
    if not names:
        return []
    rows = [
        [
            name.replace("_", " "),
            *(figure(run.results.get(name)) if name in run.results else "–" for run in runs),
        ]
        for name in names
    ]
    perplexities = any(run.measure.name == "perplexity" for run in runs)
    caption = "Perplexity of the best epoch's model" if perplexities else "The model at the end of training"
    head = [_named(index, run) for index, run in enumerate(runs)] if len(runs) > 1 else ["value"]
    return [table(caption, ["", *head], rows)]


def _histories(runs):
    content = []
    for index, run in enumerate(runs):
        if not run.history:
            continue
        columns = [name for name in COLUMNS if name in run.history]
        best = run.best()
        count = len(run.history["epoch"])
        shown = thinned(count, MOST_ROWS, () if best is None else (best,))
        rows = [
            [f"{run.history['epoch'][row]:g}", *(_entry(name, run.history[name][row]) for name in columns)]
            for row in shown
        ]
        caption = (
            "Key figures of each epoch"
            if len(shown) == count
            else f"Key figures of {len(shown)} of {count} epochs"
        )
        mark = shown.index(best) if best is not None else None
        head = ["epoch", *(COLUMNS[name] for name in columns)]
        content += _of_run(index, run, runs, [table(caption, head, rows, tall=True, best=mark)])
    return content


def _entry(name, value):
    if name in FRACTIONS:
        return percent(value, 4, aligned=True)
    if name == "tokens_per_second" and math.isfinite(value):
        return number(round(value))
    return number(value, 5, aligned=True)


def _settings(runs):
    """The settings that all runs share, or all of one."""
    shared = [name for name in runs[0].settings if len(runs) == 1 or name not in differing(runs)]
    given = [name for name in shared if runs[0].settings[name] is not None]
    items = [
        element(
            "div", element("dt", name), element("dd", setting(name, runs[0].settings[name]), class_="value")
        )
        for name in given
    ]
    content = [element("dl", items, class_="settings")] if items else []
    unset = [name for name in shared if name not in given]
    if unset:
        content.append(
            element(
                "p",
                f"Not set, which leaves them to the method or the model: {', '.join(unset)}.",
                class_="note",
            )
        )
    if len(runs) > 1 and content:
        content.insert(0, element("p", "Of all runs; what differs stands at the top.", class_="note"))
    return content


def _environment(runs):
    """What the runs ran with: a column for each, more where a run was continued elsewhere."""
    columns = []
    for index, run in enumerate(runs):
        for session in merged(run.sessions):
            epochs = f"from epoch {session['first_epoch']}"
            columns.append(
                (element("span", _letter(index), f" {epochs}") if len(runs) > 1 else epochs, session)
            )
    if not columns:
        return []
    names = list(dict.fromkeys(name for _, session in columns for name in session if name != "first_epoch"))
    names.sort(key=lambda name: list(ENVIRONMENT).index(name) if name in ENVIRONMENT else len(ENVIRONMENT))
    rows = [
        [
            ENVIRONMENT.get(name, name),
            *(_environment_entry(session.get(name)) for _, session in columns),
        ]
        for name in names
    ]
    return [
        table(
            "What the runs ran with" if len(runs) > 1 else "What the run ran with",
            ["", *(name for name, _ in columns)],
            rows,
            of_text=True,
        )
    ]


def merged(sessions):
    """Sessions without those that ran with the same as the one before."""
    found = []
    for session in sessions:
        same = [name for name in session if name not in ("first_epoch", "began")]
        if not found or any(found[-1].get(name) != session[name] for name in same):
            found.append(session)
    return found


def _environment_entry(value):
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)


def _files(runs):
    """The models that lie in the folders."""
    rows = []
    for index, run in enumerate(runs):
        for path in sorted(run.path.iterdir()):
            what = "SavedModel" if (path / "saved_model.pb").exists() else MODELS.get(path.suffix)
            if what and not path.name.startswith("."):
                files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
                name = element("span", _letter(index), f" {path.name}") if len(runs) > 1 else path.name
                rows.append([name, what, size(sum(part.stat().st_size for part in files))])
    return [table("Models in the folder of the run", ["file", "format", "size"], rows)] if rows else []


def _missing(runs):
    items = [
        element(
            "li", _named(index, run) if len(runs) > 1 else None, ": " if len(runs) > 1 else None, sentence
        )
        for index, run in enumerate(runs)
        for sentence in run.missing
    ]
    return [element("ul", items, class_="missing")] if items else []
