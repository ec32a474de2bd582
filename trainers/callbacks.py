"""Callbacks of the trainers: what a run writes down, and when it stops.

Those that are `async_safe` do not make Keras wait for the loss of each step where it need not (on JAX).
"""

import importlib.util
import math
import sys
import time

import keras
from absl import logging

from keras_selfish import masks
from keras_selfish.analysis import training_flops
from keras_selfish.optimizers.protocol import can_average
from keras_selfish.optimizers.wrappers import leaves
from keras_selfish.variables import to_numpy
from trainers import records
from trainers.files import RunError


class StopOnNaN(keras.callbacks.Callback):
    """Ends a run whose loss is no longer a number, before anything of that epoch is saved.

    Args:
        workdir: The run's `Workdir`.
        advice: What to try instead, such as "a smaller --learning_rate".
    """

    async_safe = True

    def __init__(self, workdir, advice):
        super().__init__()
        self.workdir = workdir
        self.advice = advice

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._check("loss", logs, batch + 1)

    def on_test_end(self, logs=None):
        self._check("validation loss", logs, self.params["steps"])

    def _check(self, name, logs, batches):
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(float(loss)):
            return
        step = self._epoch * self.params["steps"] + batches
        self.workdir.wait()
        raise RunError(
            f"The {name} became {float(loss)} at step {step}: {self.workdir.kept()}; "
            f"try {self.advice} in a new --workdir"
        )


class Hearing(keras.callbacks.Callback):
    """Tells `Workers` that the others are there: each batch needs all of them.

    Args:
        workers: The `Workers` of the run.
    """

    async_safe = True

    def __init__(self, workers):
        super().__init__()
        self.workers = workers

    def _hear(self, *arguments, **logs):
        self.workers.hear()

    on_epoch_begin = on_epoch_end = on_train_batch_begin = on_train_batch_end = _hear
    on_test_begin = on_test_end = on_test_batch_begin = on_test_batch_end = _hear


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras's progress bar, without the densities per gate: they are for the files.

    Args:
        verbose: As in `Model.fit`, which must itself be told `verbose=0`.
    """

    def __init__(self, verbose=1):
        super().__init__()
        self._wanted = verbose
        self.async_safe = verbose != 1  # without a bar, the order of the steps does not matter

    def set_params(self, params):
        super().set_params({**params, "verbose": self._wanted})

    def on_epoch_end(self, epoch, logs=None):
        shown = {name: value for name, value in (logs or {}).items() if not name.startswith("density/")}
        super().on_epoch_end(epoch, shown)


class RemainingTime(keras.callbacks.Callback):
    """Logs how far a run is and how long it will take; within an epoch only where there is no progress bar.

    Args:
        shown: Names of the metrics to log, those that there are.
        epochs: Epochs of the whole run, where `fit` is told of a part only.
        progress_bar: Whether there is one on a terminal.
        interval: Seconds between two lines within an epoch.
    """

    async_safe = True

    def __init__(self, shown, epochs=None, progress_bar=False, interval=30.0):
        super().__init__()
        self.shown = shown
        self.epochs = epochs
        self.interval = math.inf if progress_bar and sys.stdout.isatty() else interval

    def on_train_begin(self, logs=None):
        self._began = self._last = time.perf_counter()
        self._first_epoch = None
        self._before = self.params.get("batches_begun", 0) / self.params["steps"]
        self.epochs = self.epochs or self.params["epochs"]

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._first_epoch = epoch if self._first_epoch is None else self._first_epoch

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if now - self._last < self.interval:
            return
        self._last = now
        steps = self.params["steps"]
        epochs_done = self._epoch - self._first_epoch + (batch + 1) / steps
        self._log(f", step {batch + 1} of {steps}", logs, now, epochs_done)

    def on_epoch_end(self, epoch, logs=None):
        self._log(" done", logs, time.perf_counter(), epoch - self._first_epoch + 1)

    def _log(self, where, logs, now, epochs_done):
        shown = [f"{name} {logs[name]:.4g}" for name in self.shown if name in logs]
        left = self.epochs - self._first_epoch - epochs_done
        seconds = (now - self._began) / (epochs_done - self._before) * left
        left = f"about {seconds / 60:.0f} min" if seconds > 90 else f"about {seconds:.0f} s"
        logging.info(
            "Epoch %d of %d%s: %s", self._epoch + 1, self.epochs, where, ", ".join([*shown, f"{left} left"])
        )


def tensorboard(workdir):
    """The callback that writes TensorBoard's logs, in a list; an empty one without TensorFlow."""
    if importlib.util.find_spec("tensorflow") is None:
        logging.info("No TensorBoard logs: Keras writes them with TensorFlow, which is not installed")
        return []
    return [keras.callbacks.TensorBoard(str(workdir.tensorboard), write_graph=False)]


class Recorder(keras.callbacks.Callback):
    """Writes a run down: what it runs with, and at the end of each epoch masks, history and checkpoint.

    It stands behind the callbacks whose statistics are to be in the history, and whose changes are to be
    saved. Subclasses say what their kind of run measures and keeps besides.

    Args:
        workdir: The run's `Workdir`.
        rows: Rows of the history so far.
        seconds: Seconds that the first epoch took before, where training goes on within it.
    """

    def __init__(self, workdir, rows=(), seconds=0.0):
        super().__init__()
        self.workdir = workdir
        self.rows = list(rows)
        self._seconds = seconds
        self._recorded = False

    def on_train_begin(self, logs=None):
        if self._recorded:  # `fit` is called again for another phase
            return
        self._recorded = True
        records.add_session(self.workdir.path, self.workdir.epochs_done + 1)
        if not self.workdir.has_checkpoint:
            self._write_masks(records.FIRST_MASKS, 0)

    def on_epoch_begin(self, epoch, logs=None):
        self._began, self._seconds = time.perf_counter() - self._seconds, 0.0
        if self.rows:
            self.workdir.expect_epoch(self.seconds_of_last_epoch)

    @property
    def seconds_of_last_epoch(self):
        """How long the last epoch took, 0 where there was none."""
        return float(self.rows[-1]["seconds"]) if self.rows else 0.0

    def on_epoch_end(self, epoch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.measure(logs)
        logs["seconds"] = time.perf_counter() - self._began
        self.rows.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        self._write_masks(records.LAST_MASKS, epoch + 1)
        self.keep(logs)
        self.workdir.save_checkpoint(self.model, epoch + 1, self.rows, **self.state())

    def save_within_epoch(self, steps):
        """Saves a checkpoint after so many steps of the present epoch."""
        seconds = {"seconds": time.perf_counter() - self._began}
        epochs = self.workdir.epochs_done
        self.workdir.save_checkpoint(self.model, epochs, self.rows, steps, **seconds, **self.state())

    def on_train_end(self, logs=None):
        self.workdir.wait()

    def _write_masks(self, name, epoch):
        weights = masks.masked_weights(self.model)
        if weights:
            records.write_masks(self.workdir.path / name, records.masks_of(weights), epoch)

    def measure(self, logs):
        """Adds to the logs of an epoch."""

    def keep(self, logs):
        """Saves what the checkpoint lacks."""

    def state(self):
        """What the checkpoint is to say besides, as a dict."""
        return {}


class LanguageModelRecorder(Recorder):
    """Adds speed, operations relative to no masks, and whether averages were validated; keeps the best model.

    Args:
        tokens_per_epoch: Number of predicted tokens in an epoch of training.
        best: Lowest validation perplexity so far, None in a new run.
    """

    def __init__(self, workdir, tokens_per_epoch, best=None, rows=(), seconds=0.0):
        super().__init__(workdir, rows, seconds)
        self.tokens_per_epoch = tokens_per_epoch
        self.best = math.inf if best is None else best

    def on_test_begin(self, logs=None):
        self._trained = time.perf_counter()

    def measure(self, logs):
        logs["training_flops"] = training_flops(self.model).ratio
        logs["tokens_per_second"] = self.tokens_per_epoch / (self._trained - self._began)
        logs["averaged"] = float(any(map(_averages_are_in, leaves(self.model.optimizer))))

    def keep(self, logs):
        if logs["val_perplexity"] < self.best or not self.workdir.has_best:
            self.best = float(logs["val_perplexity"])
            self.workdir.stage_best(self.model)

    def state(self):
        return {"best": self.best if math.isfinite(self.best) else None}


def _averages_are_in(optimizer):
    return can_average(optimizer) and to_numpy(optimizer.averages_in) > 0


class ClassifierRecorder(Recorder):
    """Adds the sparsity of all masked weights together, in place of the densities of each."""

    def measure(self, logs):
        for name in [name for name in logs if name.startswith("density/")]:
            del logs[name]
        logs["sparsity"] = masks.overall_sparsity(masks.masked_weights(self.model))
