"""The folder of a run: its settings, its checkpoints and its history, safe against a kill at any moment."""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import tempfile
import threading
import time

import numpy as np
from absl import logging

from keras_selfish.packing import pack, unpacked
from trainers import history
from trainers.files import (
    PARTIAL,
    Hashed,
    RunError,
    WriteError,
    beside,
    is_whole_archive,
    read_json,
    replace,
    sha256,
    take_place,
    user_path,
    write_beside,
    write_json,
    write_text,
)
from trainers.lock import Lock

__all__ = ["Paused", "RunError", "Workdir", "WriteError", "replace", "write_json"]

# A run may be continued for more epochs, from another copy of the data and on other devices; all else is part
# of it.
MAY_CHANGE = ("epochs", "data_dir", "strategy")
# What a continued run keeps where no flag says anything: it may have begun with another default.
KEPT = ("warmup_epochs",)
# A continued run keeps the length that its schedules began with.
SCHEDULE = "schedule_epochs"
DATA = "data_sha256"
CHECKSUM = "checksum"


class Paused(Exception):
    """A run that stopped at a time limit or a signal, and goes on when it is started again."""


class Workdir:
    """Files of one run.

    What belongs to a checkpoint is written beside its place first. Then `checkpoint.json`, which names each
    file with its SHA-256, takes its place in one step, and after it the files. A run that was killed in
    between has them taken their places when it goes on.

    Args:
        path: Folder of the run, made if it is missing.
        kind: What is trained, such as "language model"; one kind of run is not taken for another.

    Attributes:
        path: `pathlib.Path` of the folder.
        epochs_done: Epochs of the last whole checkpoint, 0 without one.
        steps_done: Steps of the epoch after them that are in the checkpoint, too.
        time_limit: Seconds from now on that training may take; infinite by default.
        can_pause: Whether training stops after its present step once `wants_pause` is set.
        wants_pause: `threading.Event`, set to have training stop with a checkpoint.
    """

    def __init__(self, path, kind):
        if not str(path).strip():
            raise RunError(f"--workdir must name a folder. Received: --workdir={str(path)!r}")
        self._kind = f"keras_selfish {kind} run, version "
        self.format = f"{self._kind}1"
        self.path = user_path("--workdir", path)
        self.config = self.path / "config.json"
        self.state = self.path / "checkpoint.json"
        self.history = self.path / "history.csv"
        self.best = self.path / "best.keras"
        self.final = self.path / "final.keras"
        self.saved_model = self.path / "saved_model"
        self.text_model = self.path / "text_model"
        self.tensorboard = self.path / "tensorboard"
        self.epochs_done = self.steps_done = 0
        self.time_limit = math.inf
        self._opened = time.monotonic()
        self.can_pause = False
        self.wants_pause = threading.Event()
        self._lock = Lock(self.path / ".lock")
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = None
        self._data = None  # fingerprints that the run began with
        self._schedule = None  # epochs of its schedules
        self._best = None  # SHA-256 of best.keras
        self._staged = False  # whether a new best.keras waits for its checkpoint
        self._unplaced = []  # what a killed run has written, but not moved to its place
        self._rows_text = None  # what history.csv should hold
        self._epoch_ends = math.inf  # when the epoch is expected to end

    # The folder

    def prepare(self):
        """Makes the folder, checks that it can be written, and takes its lock."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise RunError(
                f"--workdir must be a folder that can be written. Received: {self.path} ({error.strerror}); "
                "choose another folder or change its permissions"
            ) from error
        self._lock.acquire()

    def close(self):
        """Waits for what is being written and gives the lock back."""
        try:
            self.wait()
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def open(self):
        """A context from `prepare` to `close`."""
        self.prepare()
        try:
            yield self
        except BaseException:
            with contextlib.suppress(WriteError):  # the first error is the one to tell
                self.wait()
            if self._staged:  # for a checkpoint that does not come, and in the way of making room
                beside(self.best).unlink(missing_ok=True)
            self._lock.release()
            raise
        self.close()

    def elsewhere(self, folder):
        """The same run with another folder, for a process whose files are thrown away."""
        other = Workdir(folder, "")
        other.epochs_done, other.steps_done, other._best = self.epochs_done, self.steps_done, self._best
        other._data, other._schedule = self._data, self._schedule
        return other

    # Settings and data

    def settle(self, settings, as_today=dict):
        """Compares settings with those that the run began with; writes nothing.

        Args:
            settings: Dict of JSON values.
            as_today: Function that brings such a dict of an earlier version into today's form; it raises
                `ValueError` for what cannot be settings.

        Returns:
            The settings to use: those of the run, with what may change taken from `settings`.

        Raises:
            RunError: if the folder belongs to a run with other settings or to something else.
        """
        settings = json.loads(json.dumps(settings))
        self._schedule = settings.get(SCHEDULE)
        if not self.config.exists():
            self._refuse_remains(self.config)
            return settings
        begun = self._read(self.config)
        self._data = begun.pop(DATA, None)
        with contextlib.suppress(ValueError):  # what cannot be a setting differs, as is told below
            begun = as_today(begun)
        for name in KEPT:
            if name in settings and settings[name] is None:
                settings[name] = begun.get(name)
        if self._schedule is not None and self.state.exists():  # it has begun
            self._schedule = settings[SCHEDULE] = self._begun_schedule(begun, settings)
        begun[SCHEDULE] = settings.get(SCHEDULE)
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

    def settle_as_begun(self):
        """As `settle`, with the settings of the run itself."""
        settings = self._read(self.config)
        settings.pop(DATA, None)
        return self.settle(settings)

    def _begun_schedule(self, begun, settings):
        # Earlier versions of the trainer of image classifiers knew --epochs only.
        epochs = begun.get(SCHEDULE, begun.get("epochs"))
        if type(epochs) is not int or epochs < 1:
            raise self._damaged(self.config, f"its {SCHEDULE} is {_shown(epochs)}")
        return epochs

    def check_data(self, fingerprints, settings):
        """Compares the data with those that the run began with; writes nothing.

        Args:
            fingerprints: SHA-256 by what it is of; that of a vocabulary is that of its file. A run of an
                earlier version has none, and gets these.
            settings: The settled settings, for the message.

        Raises:
            RunError: if the run began with other data.
        """
        begun, self._data = self._data, fingerprints
        vocabulary = self.path / "vocabulary.txt"
        if begun is None and self.state.exists() and vocabulary.exists():
            begun = {**fingerprints, "vocabulary": sha256(vocabulary)}
        if begun is None or begun == fingerprints:
            return
        if not isinstance(begun, dict) or begun.keys() != fingerprints.keys():
            raise self._damaged(self.config, f"its {DATA} is not of {', '.join(fingerprints)}")
        changed = " and ".join(name for name in fingerprints if begun[name] != fingerprints[name])
        dataset, data_dir = settings.get("dataset"), settings.get("data_dir")
        at = f"--data_dir={data_dir}" if data_dir else f"--dataset={dataset}"
        hint = ", which differs between versions of Python" if dataset == "python_docs" else ""
        raise RunError(
            f"The data must be those that the run in --workdir began with. Received: {at}{hint}, of which "
            f"the {changed} changed; give the data of that run to resume it, or another --workdir"
        )

    def begin(self, settings):
        """Writes the settings that the run is made with, and puts in order what a killed run has left."""
        for path in self._unplaced:
            take_place(path)
        self._unplaced = []
        for partial in self.path.glob(f"{PARTIAL}*"):
            partial.unlink()
        if not self.state.exists():
            for left in self._remains():  # of an earlier version, killed before its first checkpoint
                left.unlink()
        elif self._rows_text is not None and _bytes(self.history) != self._rows_text.encode():
            write_text(self.history, self._rows_text)
        data = {DATA: self._data} if self._data else {}
        write_json(self.config, {"format": self.format, **settings, **data})

    def _remains(self):
        """Files that only a checkpoint leaves."""
        found = [path for path in (self.history, self.best, self.final) if path.exists()]
        return [*found, *self.path.glob("checkpoint-*.npz")]

    def _refuse_remains(self, missing):
        """Refuses a folder that lacks a file which the others say was there."""
        remains = [self.state] if missing != self.state and self.state.exists() else self._remains()
        # Earlier versions, without fingerprints, wrote the first epoch's files before checkpoint.json.
        first = self.path / "checkpoint-00001.npz"
        begun = self.config.exists() and DATA not in self._read(self.config)
        if begun and not set(remains) - {self.history, self.best, first} and len(self._earlier_rows()) < 2:
            return
        if remains:
            names = ", ".join(sorted(path.name for path in remains))
            raise RunError(
                f"--workdir has a checkpoint but no {missing.name}. Received: {self.path} with {names}; "
                f"restore {missing.name}, or choose a new folder"
            )

    def _read(self, path):
        try:
            content = read_json(path)
            found = content.pop("format", None)
        except (ValueError, OSError) as error:
            raise self._damaged(path, error) from error
        if found != self.format:
            version = found.removeprefix(self._kind) if isinstance(found, str) else ""
            if version.isdecimal() and found.startswith(self._kind) and int(version) > 1:
                raise RunError(
                    f"{path.name} in --workdir must be of this version of the trainer or an earlier one. "
                    f"Received: {path}, whose format is {found!r}; install a newer keras_selfish, or choose "
                    "another --workdir"
                )
            raise self._damaged(path, f"its format is {_shown(found)}")
        return content

    def _damaged(self, path, why):
        return RunError(
            f"{path.name} in --workdir must be from this trainer, but is damaged or foreign. "
            f"Received: {path} ({_one_line(why)}); restore that file, or choose another --workdir"
        )

    # Checkpoints

    def checkpoint(self, without_best=False):
        """The last complete checkpoint, None in a new run; writes nothing.

        Args:
            without_best: Whether to do without a best.keras that is missing or damaged. Default False.

        Returns:
            A dict with `epochs_done`, `steps_done` (of the next epoch) and the `seconds` that these took,
            `weights` (a path), `rows` of the history, `lost_best` (whether the run does without), and what
            else was saved with it.

        Raises:
            RunError: if it is damaged or foreign.
        """
        self.wait()
        self._rows_text, self._unplaced = None, []
        if not self.state.exists():
            self._refuse_remains(self.state)
            return None
        state = self._checked_state(self._read(self.state))
        if state.get(SCHEDULE, self._schedule) != self._schedule:
            raise self._damaged(self.config, f"its {SCHEDULE} is not the checkpoint's {state[SCHEDULE]}")
        rows = self._checked_rows(state)
        weights = self._whole(self.path / state["weights"], state["sha256"])
        if weights is None:
            raise RunError(
                "The checkpoint in --workdir must be whole, but its weights are missing or damaged. "
                f"Received: {self.path / state['weights']}; restore that file, or remove the folder to begin "
                "anew"
            )
        lost_best = not self._has_best(state)
        self.epochs_done, self.steps_done = state["epochs_done"], state["steps_done"]
        if lost_best and not without_best:
            # What stands in the model within an epoch was not validated.
            next_one = state["epochs_done"] + bool(state["steps_done"])
            raise RunError(
                "best.keras in --workdir must be whole, but is missing or damaged. "
                f"Received: {self.best}; restore that file, or give --best_from_checkpoint to have the model "
                f"after epoch {next_one} take its place"
            )
        self._best = None if lost_best and self.steps_done else state.get("best_sha256")
        if self._best is None and self._is_earlier and "best" in state and self.best.exists():
            self._best = sha256(self.best)
        return {"seconds": 0.0, **state, "weights": weights, "rows": rows, "lost_best": lost_best}

    def _checked_state(self, state):
        epochs_done = state.get("epochs_done")
        self._is_earlier = CHECKSUM not in state
        if not self._is_earlier and state.pop(CHECKSUM) != _checksum(state):
            raise self._damaged(self.state, "its checksum does not fit")
        steps_done = state.setdefault("steps_done", 0)
        if type(steps_done) is not int or steps_done < 0:
            raise self._damaged(self.state, f"its steps_done is {_shown(steps_done)}")
        if type(epochs_done) is not int or epochs_done < (0 if steps_done else 1):
            raise self._damaged(self.state, f"its epochs_done is {_shown(epochs_done)}")
        if state.get("weights") != _weights_name(epochs_done, steps_done):
            place = _place(epochs_done, steps_done)
            raise self._damaged(self.state, f"its weights after {place} are {_shown(state.get('weights'))}")
        seconds = state.get("seconds", 0.0)
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise self._damaged(self.state, f"its seconds are {_shown(seconds)}")
        for name, kind in {"sha256": str, "best_sha256": str, "history": str}.items():
            if not isinstance(state.get(name, None if name == "sha256" else ""), kind):
                raise self._damaged(self.state, f"its {name} is {_shown(state.get(name))}")
        best = state.get("best")
        wrong = best is not None and (type(best) not in (int, float) or not best > 0)
        if wrong or (best == math.inf and self.best.exists()):
            raise self._damaged(self.state, f"its best is {_shown(best)}")
        return state

    def _checked_rows(self, state):
        epochs = state["epochs_done"]
        if not epochs:
            return []
        if "history" not in state:
            rows = self._earlier_rows()
            last = int(rows[-1]["epoch"]) if rows else 0
            if not self.history.exists():
                logging.warning("history.csv is missing and begins anew, after epoch %d", epochs)
            elif last < epochs:
                raise RunError(
                    "history.csv in --workdir must have a row for each epoch of the checkpoint. Received: "
                    f"{self.history}, which ends with epoch {last} of {epochs}; restore that file, or move "
                    "it away to begin a new one"
                )
            return [row for row in rows if int(row["epoch"]) <= epochs]
        self._rows_text = state["history"]
        try:
            rows = history.from_csv(self._rows_text)
        except ValueError as error:
            raise self._damaged(self.state, f"of its history, {error}") from error
        if not rows or rows[-1]["epoch"] != str(epochs):
            raise self._damaged(self.state, f"its history does not end with epoch {epochs}")
        found = _bytes(self.history)
        # A run that was killed has not written the last rows yet.
        if found is not None and not self._rows_text.encode().startswith(found):
            raise RunError(
                "history.csv in --workdir must be as the run has written it. Received: "
                f"{self.history}, which was changed; restore that file, or move it away to have it written "
                "anew from the checkpoint"
            )
        return rows

    def _earlier_rows(self):
        """The history of an earlier version, whose checkpoint has no copy."""
        if not self.history.exists():
            return []
        try:
            return history.from_csv(_bytes(self.history).decode("utf-8"))
        except ValueError as error:
            raise RunError(
                f"history.csv in --workdir must be as the run has written it. Received: {self.history} "
                f"({_one_line(error)}); restore that file, or move it away to begin a new one"
            ) from error

    def _has_best(self, state):
        if "best_sha256" in state:
            return self._whole(self.best, state["best_sha256"]) is not None
        if not self._is_earlier or state.get("best", math.inf) == math.inf:
            return True
        return is_whole_archive(self.best)

    def _whole(self, path, digest):
        """Where a file with this SHA-256 is: in its place or, if the run was killed, beside it; else None."""
        for place in (path, beside(path)):
            if place.is_file() and sha256(place) == digest:
                if place != path:
                    self._unplaced.append(path)
                return place
        return None

    def current(self, name):
        """Where a file of the last checkpoint is: in its place or, if the run was killed, beside it."""
        path = self.path / name
        return beside(path) if path in self._unplaced else path

    def stage_best(self, model):
        """Writes a model beside best.keras, whose place it takes with the next checkpoint."""
        self.wait()
        write_beside(self.best, model.save)
        self._staged = True

    @property
    def has_best(self):
        """Whether there is a best.keras, or one to come with the next checkpoint."""
        return self._staged or self._best is not None or self.best.exists()

    def save_checkpoint(self, model, epochs_done, rows=(), steps_done=0, **extra):
        """Copies all that training depends on; a thread writes it, then makes it the checkpoint in one step.

        Keras's `save_weights` leaves out the states of random number generators, so that dropout would not
        go on as it would have: here every variable is written. Training goes on meanwhile. A run that is
        killed before the thread is done has the checkpoint before.

        Args:
            model: A model that is built and compiled.
            epochs_done: Number of epochs that it is trained for.
            rows: The history, a dict of numbers for each of them.
            steps_done: Number of steps of the next epoch that it is trained for, too. Default 0.
            **extra: JSON values to save with it.

        Raises:
            WriteError: if the one before could not be written.
        """
        self.wait()
        self._epoch_ends = math.inf
        from keras_selfish.variables import to_numpy  # which loads a backend

        # A view would show what training makes of the variable while it is written.
        variables = [*_variables(model), *(model.metrics_variables if steps_done else [])]
        arrays = {str(i): np.array(to_numpy(variable)) for i, variable in enumerate(variables)}
        state = {"epochs_done": epochs_done, **extra}
        if steps_done:
            state["steps_done"] = steps_done
        if self._schedule is not None:
            state[SCHEDULE] = self._schedule
        if rows:
            state["history"] = history.to_csv(rows)
        self._writing = self._writer.submit(self._write_checkpoint, arrays, state)

    def wait(self):
        """Waits until the last checkpoint is written.

        Raises:
            WriteError: if it could not be.
        """
        pending, self._writing = self._writing, None
        if pending is not None:
            pending.result()

    def _write_checkpoint(self, arrays, state):
        steps_done = state.get("steps_done", 0)
        weights = self.path / _weights_name(state["epochs_done"], steps_done)
        packed = {}
        while arrays:  # so that no array stays in memory when it is packed
            pack(packed, *arrays.popitem())

        def write(path):
            with open(path, "wb") as file:
                hashed = Hashed(file)
                np.savez(hashed, **packed)
            state.update(weights=weights.name, sha256=hashed.hexdigest())

        write_beside(weights, write)
        placed = [weights]
        if self._staged:
            self._best = sha256(beside(self.best))
            placed.append(self.best)
        if self._best is not None:
            state["best_sha256"] = self._best
        write_json(self.state, {"format": self.format, CHECKSUM: _checksum(state), **state})
        self._staged = False
        for path in placed:
            take_place(path)
        self.epochs_done, self.steps_done = state["epochs_done"], steps_done
        if "history" in state:
            write_text(self.history, state["history"])
        for old in self.path.glob("checkpoint-*.npz"):
            if old != weights:
                old.unlink()

    def restore(self, model, checkpoint):
        """Puts a checkpoint's variables into a model that is built and compiled, optimizer included.

        Returns:
            A list of NumPy arrays, the values of the model's metrics in a checkpoint within an epoch. They
            have variables when training begins, and would be reset.

        Raises:
            RunError: if they are not those of this model.
        """
        from keras_selfish.variables import placed_like

        with np.load(checkpoint["weights"]) as stored:
            arrays = unpacked(stored)
        arrays = [arrays[str(index)] for index in range(len(arrays))]
        variables = _variables(model)
        count = len(variables) if checkpoint["steps_done"] else len(arrays)
        arrays, metrics = arrays[:count], arrays[count:]
        if [tuple(v.shape) for v in variables] != [array.shape for array in arrays]:
            raise RunError(
                "The checkpoint in --workdir must be of this model, but its weights do not fit. "
                f"Received: {checkpoint['weights']}; choose another --workdir"
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(placed_like(array, variable))
        return metrics

    # When it stops

    def seconds_left(self):
        """Seconds until the time limit, less than 0 after it."""
        return self._opened + self.time_limit - time.monotonic()

    def pause(self):
        """Ends training, once the last checkpoint is written.

        Raises:
            Paused: always.
        """
        self.wait()
        self.can_pause, self._epoch_ends = False, math.inf  # nothing more to wait for
        raise Paused

    def expect_epoch(self, seconds):
        """Notes in how many seconds the epoch that begins will end, by what the one before took."""
        self._epoch_ends = time.monotonic() + seconds

    @property
    def place(self):
        """What the last whole checkpoint is made after, such as "epoch 3", for messages."""
        return _place(self.epochs_done, self.steps_done)

    @property
    def has_checkpoint(self):
        """Whether there is a whole checkpoint."""
        return self.epochs_done > 0 or self.steps_done > 0

    def kept(self):
        """What a run that ends now leaves, for a message."""
        if self.has_checkpoint:
            return f"the checkpoint after {self.place} is kept in {self.path}"
        return f"nothing was saved yet in {self.path}"

    def last_words(self, seconds):
        """Waits for a checkpoint that is being written, or is about to be; returns what is kept.

        Args:
            seconds: For how long, at most.
        """
        before, end = self.place, time.monotonic() + seconds
        self.wants_pause.set()
        while time.monotonic() < end and self.place == before:
            pending = self._writing
            if (pending is None or pending.done()) and self._epoch_ends > end and not self.can_pause:
                break
            time.sleep(0.01)
        return f"{self.kept()}, from which the same command goes on" if self.has_checkpoint else self.kept()


def _variables(model):
    return [*model.variables, *model.optimizer.variables]


def _weights_name(epochs_done, steps_done):
    return f"checkpoint-{epochs_done:05d}{f'-{steps_done:08d}' if steps_done else ''}.npz"


def _place(epochs_done, steps_done):
    return f"step {steps_done} of epoch {epochs_done + 1}" if steps_done else f"epoch {epochs_done}"


def _checksum(state):
    """The SHA-256 of what `checkpoint.json` says."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _bytes(path):
    return path.read_bytes() if path.exists() else None


def _shown(value):
    """A value in a message: what is damaged may be long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error):
    return " ".join(str(error).split())[:200]
