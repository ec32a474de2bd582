"""The page of a report."""

import datetime
import statistics

from keras_selfish.rewiring.registry import METHODS
from keras_selfish.version import __version__
from trainers.reporting import curve_section, fact_section, mask_section
from trainers.reporting.charts import number
from trainers.reporting.headings import letter, named
from trainers.reporting.markup import document, element
from trainers.reporting.style import STYLE
from trainers.reporting.tables import duration, percent, table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(runs):
    """The report of some runs as the text of an HTML file.

    Args:
        runs: A list of `Run`, labelled.
    """
    several = len(runs) > 1
    sections = [
        ("differences", "What differs", fact_section.differences(runs) if several else []),
        ("glance", "At a glance", glance(runs)),
        ("curves", "Curves", curve_section.curves(runs)),
        ("gates", "Gates", curve_section.gates(runs)),
        ("masks", "Masks", mask_section.masks(runs)),
        ("results", "Results", fact_section.results(runs)),
        ("history", "History", fact_section.histories(runs)),
        ("settings", "Settings", fact_section.settings(runs)),
        ("environment", "Environment", fact_section.environment(runs)),
        ("files", "Models", fact_section.files(runs)),
        ("missing", "Not in this report", fact_section.missing(runs)),
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
        element("li", letter(index), f" {run.label}", element("small", _lead(run)))
        for index, run in enumerate(runs)
    ]
    return element(
        "header",
        element("p", f"keras_selfish · {kinds}", class_="eyebrow"),
        element("h1", f"{len(runs)} runs compared"),
        element("ul", items, class_="runs"),
    )


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


def glance(runs):
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
        rows.append([named(index, run), f"{run.epochs_done} of {run.epochs}", *text])
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
