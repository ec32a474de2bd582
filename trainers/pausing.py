"""Training that stops after any step and goes on there: at a time limit, or at a signal."""

import contextlib

import keras
import numpy as np

from keras_selfish.backend import BACKEND
from keras_selfish.variables import to_numpy


class Pause(keras.callbacks.Callback):
    """Stops a training that is wanted to pause, with a checkpoint of where it stands.

    It stands first in the list: what others do before a step is to be done once, when training goes on.

    Args:
        workdir: The run's `Workdir`, which says whether training is to pause.
        recorder: The run's `Recorder`.
        within_epochs: Whether a checkpoint can be made within an epoch. Else training pauses between two of
            them, if the next is not expected to end before the time limit.
    """

    def __init__(self, workdir, recorder, within_epochs=True):
        super().__init__()
        self.workdir = workdir
        self.recorder = recorder
        self.within_epochs = within_epochs
        self._has_trained = False

    def on_train_begin(self, logs=None):
        self.workdir.can_pause = self.within_epochs

    def on_train_end(self, logs=None):
        self.workdir.can_pause = False

    # Before a step, which Keras has a callback do in time on every backend.
    def on_train_batch_begin(self, batch, logs=None):
        has_trained, self._has_trained = self._has_trained, True
        if not has_trained or not self._is_time(batch):
            return
        if batch:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            if not all(np.isfinite(to_numpy(one)).all() for one in self.model.metrics_variables):
                return  # not to be saved: `StopOnNaN` is about to end it
            self.recorder.save_within_epoch(batch)
        self.workdir.pause()

    def _is_time(self, batch):
        if self.within_epochs:
            return self.workdir.wants_pause.is_set() or self.workdir.seconds_left() <= 0
        return not batch and self.workdir.seconds_left() < self.recorder.seconds_of_last_epoch


class ContinuedCallbacks(keras.callbacks.CallbackList):
    """Callbacks that see one training in several calls of `fit`, the first of which goes on within an epoch.

    Args:
        callbacks: List of callbacks.
        model: The model.
        epochs: Epochs of the whole training.
        steps: Batches of a whole epoch.
        begun: Number of batches of the first epoch that were trained on before.
        metrics: The values of the model's metrics then, as from `Workdir.restore`.
    """

    def __init__(self, callbacks, model, epochs, steps, begun=0, metrics=()):
        parameters = {"epochs": epochs, "steps": steps, "batches_begun": begun}
        super().__init__(callbacks, add_history=True, model=model, **parameters)
        self._begun, self._metrics = begun, metrics
        self._has_begun, self._is_last = False, True

    @contextlib.contextmanager
    def rest_of_epoch(self):
        """A context of the `fit` of the first epoch's other batches, which another `fit` follows."""
        self._is_last = False
        yield
        self._is_last, self._begun = True, 0

    def on_train_begin(self, logs=None):
        if not self._has_begun:
            self._has_begun = True
            super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        metrics, self._metrics = self._metrics, ()
        for variable, value in zip(self.model.metrics_variables if metrics else (), metrics, strict=True):
            variable.assign(value)

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(self._begun + batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(self._begun + batch, logs)

    def on_train_end(self, logs=None):
        if self._is_last:
            super().on_train_end(logs)


def fit(model, batches, steps, first, last, begun, metrics, callbacks, **options):
    """Trains a model from a place within an epoch on.

    Args:
        model: The compiled model.
        batches: Function of a number of epochs and one of batches that are done; returns the others as `fit`
            takes them, whole epochs but for the first.
        steps: Batches of a whole epoch.
        first: Number of epochs that are done.
        last: Number of epochs to end with.
        begun: Number of batches of the next epoch that are done.
        metrics: The values of the model's metrics then.
        callbacks: List of callbacks.
        **options: Further arguments of `fit`.
    """
    if first >= last:
        return
    continued = ContinuedCallbacks(callbacks, model, last, steps, begun, metrics)
    options = {"callbacks": continued, "shuffle": False, "verbose": 0, **options}
    if begun:
        if BACKEND == "tensorflow":  # where metrics have no variables before a first step
            model.evaluate(batches(first, begun), steps=1, verbose=0)
        with continued.rest_of_epoch() if first + 1 < last else contextlib.nullcontext():
            model.fit(batches(first, begun), initial_epoch=first, epochs=first + 1, **options)
        first += 1
    if first < last:
        model.fit(batches(first, 0), initial_epoch=first, epochs=last, **options)
