"""The folder of a run: its settings, its checkpoints and its history, safe against a kill at any moment."""

import concurrent.futures
import csv
import hashlib
import json
import os
import pathlib
import tempfile

import numpy as np

from keras_selfish.packing import pack, unpacked

PARTIAL = ".partial-"

# A run may be continued for more epochs, from another copy of the data and on other devices; all else is part
# of it.
MAY_CHANGE = ("epochs", "data_dir", "strategy")
# A continued run keeps the length that its schedules began with.
KEPT = ("schedule_epochs",)


class RunError(Exception):
    """A run that cannot start or go on; the message is one sentence for the user."""


class Workdir:
    """Files of one run.

    Args:
        path: Folder of the run, made if it is missing.
        kind: What is trained, such as "language model"; one kind of run is not taken for another.

    Attributes:
        path: `pathlib.Path` of the folder.
    """

    def __init__(self, path, kind):
        self.format = f"keras_selfish {kind} run, version 1"
        self.path = pathlib.Path(path).expanduser()
        self.config = self.path / "config.json"
        self.state = self.path / "checkpoint.json"
        self.history = self.path / "history.csv"
        self.best = self.path / "best.keras"
        self.final = self.path / "final.keras"
        self.saved_model = self.path / "saved_model"
        self.text_model = self.path / "text_model"
        self.tensorboard = self.path / "tensorboard"
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = None

    def prepare(self):
        """Makes the folder and checks that it can be written, before anything else is done."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            for partial in self.path.glob(f"{PARTIAL}*"):  # left by a run that was killed
                partial.unlink()
        except OSError as error:
            raise RunError(
                f"--workdir must be a folder that can be written. Received: {self.path} ({error.strerror}); "
                "choose another folder or change its permissions"
            ) from error

    def settle(self, settings):
        """Compares settings with those that the run began with; writes nothing.

        Args:
            settings: Dict of JSON values.

        Returns:
            The settings to use: those of the run, with what may change taken from `settings`.

        Raises:
            RunError: if the folder belongs to a run with other settings or to something else.
        """
        settings = json.loads(json.dumps(settings))
        if not self.config.exists():
            if self.state.exists():
                raise RunError(
                    "--workdir has a checkpoint but no config.json. "
                    f"Received: {self.path}; choose a new folder"
                )
            return settings
        begun = self._read(self.config)
        settings.update({name: begun[name] for name in KEPT if name in begun})
        differing = [
            f"{name}={settings.get(name)!r} (was {begun.get(name)!r})"
            for name in sorted(set(settings) | set(begun))
            if name not in MAY_CHANGE and settings.get(name) != begun.get(name)
        ]
        if differing:
            raise RunError(
                f"--workdir holds a run with other settings. Received: {', '.join(differing)}; "
                "give the settings of that run to resume it, or another --workdir"
            )
        return settings

    def begin(self, settings):
        """Writes the settings that the run is made with."""
        write_json(self.config, {"format": self.format, **settings})

    def _read(self, path):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != self.format:
                raise KeyError("format")
        except (ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{path.name} in --workdir must be from this trainer, but is damaged or foreign. "
                f"Received: {path}; choose another --workdir, or remove the damaged run"
            ) from error
        return content

    def checkpoint(self):
        """The last complete checkpoint, None in a new run.

        Returns:
            A dict with `epochs_done`, `weights` (a path), and what else was saved with it.

        Raises:
            RunError: if it is damaged or foreign.
        """
        self.wait()
        if not self.state.exists():
            return None
        state = self._read(self.state)
        weights = self.path / state["weights"]
        if not weights.exists() or _sha256(weights) != state["sha256"]:
            raise RunError(
                "The checkpoint in --workdir must be whole, but its weights are missing or damaged. "
                f"Received: {weights}; restore that file, or remove the folder to begin anew"
            )
        return {**state, "weights": weights}

    def save_checkpoint(self, model, epochs_done, **extra):
        """Copies all that training depends on; a thread writes it, then makes it the checkpoint in one step.

        Keras's `save_weights` leaves out the states of random number generators, so that dropout would not
        go on as it would have: here every variable is written. Training goes on meanwhile. A run that is
        killed before the thread is done has the checkpoint before.

        Raises:
            RunError: if the one before could not be written.
        """
        self.wait()
        from keras_selfish.variables import to_numpy  # which loads a backend

        # A view would show what training makes of the variable while it is written.
        arrays = {str(i): np.array(to_numpy(variable)) for i, variable in enumerate(_variables(model))}
        self._writing = self._writer.submit(self._write_checkpoint, arrays, epochs_done, extra)

    def wait(self):
        """Waits until the last checkpoint is written.

        Raises:
            RunError: if it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write_checkpoint(self, arrays, epochs_done, extra):
        weights = self.path / f"checkpoint-{epochs_done:05d}.npz"
        packed = {}
        while arrays:  # so that no array stays in memory when it is packed
            pack(packed, *arrays.popitem())
        replace(weights, lambda path: np.savez(path, **packed), suffix=".npz")
        state = {"format": self.format, "epochs_done": epochs_done, "weights": weights.name}
        write_json(self.state, {**state, "sha256": _sha256(weights), **extra})
        for old in self.path.glob("checkpoint-*.npz"):
            if old != weights:
                old.unlink()

    def restore(self, model, checkpoint):
        """Puts a checkpoint's variables into a model that is built and compiled, optimizer included.

        Raises:
            RunError: if they are not those of this model.
        """
        from keras_selfish.variables import placed_like

        with np.load(checkpoint["weights"]) as stored:
            arrays = unpacked(stored)
        arrays = [arrays[str(index)] for index in range(len(arrays))]
        variables = _variables(model)
        if [tuple(v.shape) for v in variables] != [array.shape for array in arrays]:
            raise RunError(
                "The checkpoint in --workdir must be of this model, but its weights do not fit. "
                f"Received: {checkpoint['weights']}; choose another --workdir"
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(placed_like(array, variable))

    def trim_history(self, epochs_done):
        """Drops rows of epochs after the checkpoint, which will be trained again. Returns the rows kept."""
        if not self.history.exists():
            return []
        with self.history.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if row["epoch"].isdigit() and int(row["epoch"]) <= epochs_done]
        if kept != rows:
            self.write_history(kept)
        return kept

    def write_history(self, rows):
        """Replaces history.csv; the columns are the keys of the first row."""

        def write(path):
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else ["epoch"])
                writer.writeheader()
                writer.writerows(rows)

        replace(self.history, write)


def replace(path, write, suffix=""):
    """Writes a file beside its place and then moves it there, so that it is never seen half written."""
    temporary = path.parent / f"{PARTIAL}{path.name}{suffix}"
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(
            f"{path.name} could not be written: {error.strerror or error}. Received: {path}; the last "
            "checkpoint is whole, so make room and start again with the same --workdir"
        ) from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path, content):
    """Writes JSON in one step."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    replace(path, lambda temporary: pathlib.Path(temporary).write_text(text, encoding="utf-8"))


def _variables(model):
    return [*model.variables, *model.optimizer.variables]


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
