"""Facts of a report, as tables: results, history, settings, environment, models, and what is missing."""

import math

from trainers.reporting.charts import number, thinned
from trainers.reporting.headings import letter, named, of_run
from trainers.reporting.markup import element
from trainers.reporting.run import FRACTIONS, differing
from trainers.reporting.tables import figure, percent, setting, size, table

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


def differences(runs):
    names = differing(runs)
    if not names:
        return [element("p", "The settings are the same in all runs.", class_="note")]
    rows = [
        [name, *(setting(name, run.settings[name]) if name in run.settings else "–" for run in runs)]
        for name in names
    ]
    note = element("p", "All other settings are the same; they stand below.", class_="note")
    head = ["setting", *map(named, range(len(runs)), runs)]
    return [note, table("Settings that differ", head, rows, of_text=True)]


def results(runs):
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
    head = [named(index, run) for index, run in enumerate(runs)] if len(runs) > 1 else ["value"]
    return [table(caption, ["", *head], rows)]


def histories(runs):
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
        content += of_run(index, run, runs, [table(caption, head, rows, tall=True, best=mark)])
    return content


def _entry(name, value):
    if name in FRACTIONS:
        return percent(value, 4, aligned=True)
    if name == "tokens_per_second" and math.isfinite(value):
        return number(round(value))
    return number(value, 5, aligned=True)


def settings(runs):
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


def environment(runs):
    """What the runs ran with: a column for each, more where a run was continued elsewhere."""
    columns = []
    for index, run in enumerate(runs):
        for session in merged(run.sessions):
            epochs = f"from epoch {session['first_epoch']}"
            columns.append(
                (element("span", letter(index), f" {epochs}") if len(runs) > 1 else epochs, session)
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


def files(runs):
    """The models that lie in the folders."""
    rows = []
    for index, run in enumerate(runs):
        for path in sorted(run.path.iterdir()):
            what = "SavedModel" if (path / "saved_model.pb").exists() else MODELS.get(path.suffix)
            if what and not path.name.startswith("."):
                files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
                name = element("span", letter(index), f" {path.name}") if len(runs) > 1 else path.name
                rows.append([name, what, size(sum(part.stat().st_size for part in files))])
    return [table("Models in the folder of the run", ["file", "format", "size"], rows)] if rows else []


def missing(runs):
    items = [
        element("li", named(index, run) if len(runs) > 1 else None, ": " if len(runs) > 1 else None, sentence)
        for index, run in enumerate(runs)
        for sentence in run.missing
    ]
    return [element("ul", items, class_="missing")] if items else []
