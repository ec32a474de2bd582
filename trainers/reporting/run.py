"""What the folder of a run tells: settings, history, results, masks, environment. Damage is an error."""

import csv
import dataclasses
import json
import math
import pathlib
import re

import numpy as np

from keras_selfish.rewiring.registry import METHODS
from trainers import records
from trainers.files import RunError

KIND = re.compile(r"keras_selfish (.+) run, version 1")
# Written by CSV writers for a figure that an epoch does not have.
MISSING = ("", "NA", "None")
MOST_EPOCHS = 10**7
MODELS = ("best.keras", "final.keras")


@dataclasses.dataclass(frozen=True)
class Measure:
    """The figure that a kind of run is judged by.

    Args:
        training: Its column of the history.
        validation: The same of the validation data.
        name: What it is called.
        percent: Whether it is a fraction.
        choose: `min` or `max`, whichever is best.
    """

    training: str
    validation: str
    name: str
    percent: bool = False
    choose: object = min


MEASURES = (
    Measure("perplexity", "val_perplexity", "perplexity"),
    Measure("accuracy", "val_accuracy", "accuracy", percent=True, choose=max),
    Measure("loss", "val_loss", "loss"),
)
# Columns of the history that are fractions.
FRACTIONS = ("accuracy", "val_accuracy", "sparsity", "training_flops", "pruning_rate")


@dataclasses.dataclass
class Masks:
    """Masks at one time of a run.

    Args:
        when: In words.
        weights: Dict from the name of a weight to its `StoredMask`.
    """

    when: str
    weights: dict


@dataclasses.dataclass
class Run:
    """What a report says of one run.

    Args:
        path: Its folder.
        kind: What was trained.
        settings: Dict of JSON values.
        history: Dict from column to a list of floats, by epoch; empty where no epoch is done.
        results: Dict from name to a number or text; empty where the run is not finished.
        sessions: What it ran with, a list of dicts.
        first: The `Masks` it began with, or None.
        last: The `Masks` of its last epoch or its best model, or None.
        missing: What the report lacks, and why, in sentences.
        label: Name in the report.
    """

    path: pathlib.Path
    kind: str
    settings: dict
    history: dict = dataclasses.field(default_factory=dict)
    results: dict = dataclasses.field(default_factory=dict)
    sessions: list = dataclasses.field(default_factory=list)
    first: Masks = None
    last: Masks = None
    missing: list = dataclasses.field(default_factory=list)
    label: str = ""

    @property
    def epochs_done(self):
        """Number of the last epoch of the history, 0 where there is none."""
        return int(self.history["epoch"][-1]) if self.history else 0

    @property
    def epochs(self):
        """Number of epochs that it is to have, or None."""
        epochs = [self.settings.get(name) for name in ("epochs", "finetune_epochs")]
        known = [number for number in epochs if isinstance(number, int)]
        return sum(known) if known else None

    @property
    def finished(self):
        """Whether its results are there, and of as many epochs as it is to have."""
        return bool(self.results) and (self.epochs is None or self.epochs_done >= self.epochs)

    @property
    def measure(self):
        """The `Measure` of its history."""
        found = (one for one in MEASURES if one.training in self.history or one.validation in self.history)
        return next(found, MEASURES[-1])

    def best(self):
        """Index of the best epoch by the validation measure, or None."""
        values = self.history.get(self.measure.validation, [])
        finite = [index for index, value in enumerate(values) if math.isfinite(value)]
        return self.measure.choose(finite, key=values.__getitem__) if finite else None

    def column(self, name):
        """The finite values of a column, without those that would overflow a sum."""
        return [value for value in self.history.get(name, []) if abs(value) < 1e100]


def read_run(path, with_masks=True):
    """Reads the folder of a run.

    Args:
        path: `pathlib.Path` of the folder.
        with_masks: Whether masks are wanted. Default True.

    Returns:
        A `Run`.

    Raises:
        RunError: if it is no folder of a run, or a file in it is damaged.
    """
    config = path / "config.json"
    if not config.is_file():
        raise RunError(
            "--workdir must be the folder of a run, which has a config.json. "
            f"Received: --workdir={path}; train there first, or name another folder"
        )
    settings = _json(config, "the settings of a run")
    kind = KIND.fullmatch(str(settings.pop("format", "")))
    if not kind:
        raise records.damaged(config, "the settings of a run")
    run = Run(path, kind[1], settings)
    run.history = _history(path / "history.csv")
    if not run.history:
        run.missing.append("No epoch is done yet: there is no history.")
    if (path / "results.json").exists():
        run.results = flat(_json(path / "results.json", "the results of a run"))
    else:
        run.missing.append(
            "The run is not finished: results.json, which has the test, is written at its end."
        )
    if run.results and not run.finished:
        run.missing.append("The run goes on: its results are from before it was continued.")
    if run.history and not any(name.startswith("density/") for name in run.history):
        run.missing.append(
            "The history has no densities of gates: the model is dense, or its trainer writes none."
        )
    run.sessions = records.read_sessions(path / records.ENVIRONMENT)
    if not run.sessions:
        run.missing.append("The run has no environment.json: versions and hardware were not written down.")
    if with_masks:
        _add_masks(run)
    else:
        run.missing.append("Masks were left out (--nomasks).")
    return run


def _json(path, content):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(type(found).__name__)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise records.damaged(path, content) from error
    return found


def flat(content, above=()):
    """A nested dict with the names of what is within what joined."""
    items = {}
    for name, value in content.items():
        if isinstance(value, dict):
            items.update(flat(value, (*above, name)))
        else:
            items[", ".join((*above, name))] = value
    return items


def _history(path):
    """The history of a run: of an epoch that stands there twice the later row counts."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            rows = list(reader)
        by_epoch = {}
        for row in rows:
            figures = {name: math.nan if row[name] in MISSING else float(row[name]) for name in columns}
            epoch = int(row["epoch"])
            if not 1 <= epoch < MOST_EPOCHS or None in row:  # where a row has more entries than the header
                raise ValueError(row)
            by_epoch[epoch] = figures
    except (ValueError, KeyError, TypeError, csv.Error, OSError) as error:
        raise records.damaged(path, "a row of numbers for each epoch") from error
    return {name: [by_epoch[epoch][name] for epoch in sorted(by_epoch)] for name in columns if by_epoch}


def _add_masks(run):
    """Reads the masks that a run has stored; an earlier version stored none beside those of its model."""
    stored = {}
    for name in (records.FIRST_MASKS, records.LAST_MASKS):
        if (run.path / name).exists():
            epoch, masks = records.read_masks(run.path / name)
            when = f"after epoch {epoch}" if epoch else "before training"
            stored[name] = Masks(when, _by_name(masks))
    run.first, run.last = stored.get(records.FIRST_MASKS), stored.get(records.LAST_MASKS)
    method = METHODS.get(str(run.settings.get("method")))
    if method and method.source is None:
        run.missing.append("The model is dense: it has no masks.")
        return
    model = next((run.path / name for name in MODELS if (run.path / name).exists()), None)
    if model and not (run.first and run.last):
        first, last = _masks_of_file(model, method)
        run.first, run.last = run.first or first, run.last or last
    for masks, which in ((run.first, "first"), (run.last, "last")):
        if not masks:
            run.missing.append(f"The {which} masks are not known: no file of this run has them.")


def _by_name(masks):
    """Masks by the names that the history has for them: Keras lets two weights have one."""
    found, counts = {}, {}
    for one in masks:
        counts[one.name] = counts.get(one.name, 0) + 1
        found[one.name if counts[one.name] == 1 else f"{one.name}_{counts[one.name] - 1}"] = one
    return found


def _masks_of_file(path, method):
    """The first and last masks of a run that a stored model tells, each None if it does not."""
    import keras

    import keras_selfish  # noqa: F401  its classes are in the file
    from keras_selfish.masks import masked_weights

    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever class the damage leads Keras to
        raise records.damaged(path, "a model") from error
    which = f"of {path.name}"
    if not masked_weights(model):
        zeros = _nonzero(model)
        return None, Masks(which, _by_name(zeros)) if zeros else None
    last = Masks(which, _by_name(records.masks_of(masked_weights(model))))
    if method is None or not method.begins_sparse or not hasattr(model, "architecture"):
        return None, last
    drawn = type(model).from_config(model.get_config())  # draws its masks from the seed, as it did then
    return Masks("before training", _by_name(records.masks_of(masked_weights(drawn)))), last


def _nonzero(model):
    """The masks of a model that was stripped of them: where its pruned matrices are not zero."""
    from keras_selfish.analysis.flops import weight_matrices

    found = []
    for variable, _ in weight_matrices(model):
        mask = np.array(variable) != 0
        if not mask.all():
            found.append(records.StoredMask(variable.path, mask))
    return found


def label_runs(runs):
    """Gives each run the last part of its path as its name, or as much as tells it from the others."""
    paths = [run.path.resolve().parts for run in runs]
    for run, parts in zip(runs, paths, strict=True):
        length = 1
        while length < len(parts) and sum(other[-length:] == parts[-length:] for other in paths) > 1:
            length += 1
        run.label = "/".join(parts[-length:])


def differing(runs):
    """Names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        name for name in names if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)
    ]
