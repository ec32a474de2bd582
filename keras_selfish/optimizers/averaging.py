"""When averaging starts, and where the averages stand while a model is trained."""

import keras
import numpy as np
from absl import logging

from keras_selfish.optimizers.snt_asgd import SNTASGD


class NonMonotonicAveraging(keras.callbacks.Callback):
    """Starts the averaging of `SNTASGD` when validation stops improving, and validates the averages."""

    def __init__(self, monitor="val_loss", patience=5):
        super().__init__()
        self.monitor = monitor
        self.patience = patience
        self._training = False

    @property
    def optimizers(self):
        """The `SNTASGD` optimizers of the model, inside wrappers too."""
        outer = self.model.optimizer
        outer = getattr(outer, "inner_optimizer", outer)
        found = [o for o in getattr(outer, "optimizers", [outer]) if isinstance(o, SNTASGD)]
        if not found:
            raise ValueError(
                "`optimizer` must be a SNTASGD for NonMonotonicAveraging. "
                f"Received: optimizer={type(outer).__name__}"
            )
        return [o for o in found if o.built]

    def _sync(self):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()

    def _averages(self, wanted):
        self._sync()
        for optimizer in self.optimizers:
            if _value(optimizer.trigger) >= 0 and bool(_value(optimizer.averages_in)) != wanted:
                optimizer.exchange_averages()

    def on_train_begin(self, logs=None):
        self._training = True
        self._validated = False
        for optimizer in self.optimizers:
            optimizer.align_masks()

    def on_epoch_begin(self, epoch, logs=None):
        self._averages(False)

    def on_test_begin(self, logs=None):
        if self._training:
            self._averages(True)

    def on_test_end(self, logs=None):
        if not self._training:
            return
        name = self.monitor.removeprefix("val_")
        if name not in logs:
            raise ValueError(
                f"`monitor` must be one of {', '.join('val_' + key for key in logs)}. "
                f"Received: monitor={self.monitor!r}"
            )
        self._validated = True
        for optimizer in self.optimizers:
            if _value(optimizer.trigger) < 0 and self._record(optimizer, float(logs[name])):
                optimizer.start_averaging()
                logging.info("Averaging starts at update %d.", _value(optimizer.iterations))

    def _record(self, optimizer, value):
        state = keras.ops.convert_to_numpy(optimizer.history)
        values = state[~np.isnan(state)]
        fires = (
            len(values) > self.patience and np.float32(value) > values[: len(values) - self.patience].min()
        )
        values = np.append(values, np.float32(value))
        if len(values) > len(state):
            values = np.append(values[:2].min(), values[2:])
        optimizer.history.assign(np.append(values, np.full(len(state) - len(values), np.nan, np.float32)))
        return fires

    def on_train_end(self, logs=None):
        self._averages(True)
        self._training = False


def _value(variable):
    # `float(variable)` fails on a variable that is mirrored on several devices.
    return keras.ops.convert_to_numpy(variable).item()
