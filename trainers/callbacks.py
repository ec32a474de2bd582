"""Callbacks of the trainers: what a run writes down, and when it stops."""

import math
import sys
import time

import keras
from absl import logging

from keras_selfish.analysis import training_flops
from trainers.workdir import RunError, replace


class StopOnNaN(keras.callbacks.Callback):
    """Ends a run whose loss is no longer a number, before anything of that epoch is saved."""

    def __init__(self, workdir):
        super().__init__()
        self.workdir = workdir

    def on_train_batch_end(self, batch, logs=None):
        self._check("loss", logs)

    def on_test_end(self, logs=None):
        self._check("validation loss", logs)

    def _check(self, name, logs):
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(float(loss)):
            return
        step = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        kept = self.workdir.checkpoint()
        kept = (
            f"the checkpoint after epoch {kept['epochs_done']} is kept" if kept else "nothing was saved yet"
        )
        raise RunError(
            f"The {name} became {float(loss)} at step {step}: {kept} in {self.workdir.path}; "
            "try a smaller --learning_rate or --clipnorm in a new --workdir"
        )


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras's progress bar, without the densities per gate: they are for the files.

    Args:
        verbose: As in `Model.fit`, which must itself be told `verbose=0`.
    """

    def __init__(self, verbose=1):
        super().__init__()
        self._wanted = verbose

    def set_params(self, params):
        super().set_params({**params, "verbose": self._wanted})

    def on_epoch_end(self, epoch, logs=None):
        shown = {name: value for name, value in (logs or {}).items() if not name.startswith("density/")}
        super().on_epoch_end(epoch, shown)


class RemainingTime(keras.callbacks.Callback):
    """Logs how far a run is and how long it will take; within an epoch only where there is no progress bar.

    Args:
        interval: Seconds between two lines within an epoch.
    """

    def __init__(self, interval=30.0):
        super().__init__()
        self.interval = interval

    def on_train_begin(self, logs=None):
        self._began = self._last = time.perf_counter()
        self._first_epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._first_epoch = epoch if self._first_epoch is None else self._first_epoch

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if sys.stdout.isatty() or now - self._last < self.interval:
            return
        self._last = now
        steps = self.params["steps"]
        logging.info(
            "Epoch %d of %d, step %d of %d: perplexity %.1f; %s left",
            self._epoch + 1,
            self.params["epochs"],
            batch + 1,
            steps,
            float(logs.get("perplexity", math.nan)),
            self._left(now, self._epoch - self._first_epoch + (batch + 1) / steps),
        )

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter()
        left = self._left(now, epoch - self._first_epoch + 1)
        logging.info("Epoch %d of %d done; %s left", epoch + 1, self.params["epochs"], left)

    def _left(self, now, epochs_done):
        epochs = self.params["epochs"] - self._first_epoch
        seconds = (now - self._began) / epochs_done * (epochs - epochs_done)
        return f"about {seconds / 60:.0f} min" if seconds > 90 else f"about {seconds:.0f} s"


class Recorder(keras.callbacks.Callback):
    """Writes a run down at the end of each epoch: history, best model, checkpoint; in this order.

    It stands last in the list of callbacks, so that the others' statistics are in `logs` and what is
    saved is what was validated. It adds seconds, tokens a second, and the operations of a training step as a
    fraction of those without masks.

    Args:
        workdir: The run's `Workdir`.
        tokens_per_epoch: Number of predicted tokens in an epoch of training.
        best: Lowest validation perplexity so far, None in a new run.
        rows: Rows of the history so far.
    """

    def __init__(self, workdir, tokens_per_epoch, best=None, rows=()):
        super().__init__()
        self.workdir = workdir
        self.tokens_per_epoch = tokens_per_epoch
        self.best = math.inf if best is None else best
        self.rows = list(rows)

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_test_begin(self, logs=None):
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        logs["training_flops"] = training_flops(self.model).ratio
        logs["seconds"] = time.perf_counter() - self._began
        logs["tokens_per_second"] = self.tokens_per_epoch / (self._trained - self._began)
        self.rows.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        self.workdir.write_history(self.rows)
        if logs["val_perplexity"] < self.best:
            self.best = float(logs["val_perplexity"])
            replace(self.workdir.best, self.model.save, suffix=".keras")
        self.workdir.save_checkpoint(self.model, epoch + 1, best=self.best)
