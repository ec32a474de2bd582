"""The callback that starts averaging and swaps averages in for validation."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from absl import logging
from keras import ops

from keras_selfish import checks
from keras_selfish.backend import BACKEND
from keras_selfish.optimizers.protocol import Averaging, can_average
from keras_selfish.optimizers.snt_asgd import HISTORY_LENGTH, NO_VALUE
from keras_selfish.optimizers.wrappers import leaves
from keras_selfish.typing import Logs


class NonMonotonicAveraging(keras.callbacks.Callback):
    """Starts averaging when validation stops improving, and from then on validates the averages.

    The optimizer averages: `SNTASGD`, or another that has what `Averaging` lists.

    With v_k the monitored value of the k-th validation, averaging starts after validation k >= n + 2 if

        v_k > min(v_1, ..., v_{k-1-n})

    that is, if it is worse than the best one more than `patience` n validations before. From then on the
    averages stand in the model from the beginning of each validation to the end of its epoch, so that
    callbacks which save the model save what was validated, whatever their place in the list; the raw
    weights come back bit by bit when the next epoch begins. An epoch without validation ends with the raw
    weights. When training ends the averages are the model's weights.

    All state is in the variables of the optimizer. A checkpoint with the optimizer in it therefore holds
    weights and averages, and a training that is resumed from it goes on as if never interrupted; so does
    a second `fit`. To train on from the averages instead compile the model with a new optimizer. `evaluate`
    and `predict` on their own use the weights as they are.

    Weights that others set at the end of training, as `EarlyStopping(restore_best_weights=True)` does, stay
    in the model. A `fit` that finds weights that were set since the last one trains on from these, and
    averages from there on.

    Args:
        monitor: Name of the validation metric, lower is better. Default `"val_loss"`.
        patience: n, an integer from 0 to 128. Default 5, as published.
        restart_epochs: Numbers of epochs after which averaging, where it has begun, begins anew from the
            weights as they are then; the published ON-LSTM does so after 500 and 1000. Default (), never.

    Raises:
        ValueError: for an argument out of range; when training begins with an optimizer that does
            not average (inside `LossScaleOptimizer` or `MultiOptimizer` is fine); after the first validation
            if it gives no such metric.

    Example:

    >>> from keras_selfish.optimizers import SNTASGD
    >>> x, y = np.eye(4), np.ones((4, 2))
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile(SNTASGD(0.1), loss="mse")
    >>> # Validated on targets that it learns to be far from, it gets worse: averaging starts after epoch 2.
    >>> history = model.fit(x, y, validation_data=(x, -y), epochs=3, verbose=0,
    ...                     callbacks=[NonMonotonicAveraging(patience=0)])
    >>> int(model.optimizer.trigger), int(model.optimizer.averages_in)
    (2, 1)

    Reference: Merity et al. 2018, arXiv 1708.02182, algorithm 1; Liu et al. 2021, arXiv 2101.09048.
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 5, restart_epochs: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if not isinstance(monitor, str) or not monitor.startswith("val_"):
            raise ValueError(
                "`monitor` must be the name of a validation metric, which begins with 'val_'. "
                f"Received: monitor={monitor!r}"
            )
        self.monitor = monitor
        self.restart_epochs = tuple(checks.integers("restart_epochs", restart_epochs))
        self.patience = checks.integer("patience", patience, at_least=0, at_most=HISTORY_LENGTH)
        self._in_fit = False
        self._validated = False
        self._begun = 0  # batches of the first epoch that came before this `fit`, as in `MaskCallback`

    @property
    def optimizers(self) -> list[Averaging]:
        """The model's averaging optimizers that are built, also within wrappers."""
        found: list[Averaging] = [leaf for leaf in leaves(self.model.optimizer) if can_average(leaf)]
        if not found:
            raise ValueError(
                "`optimizer` of the compiled model must be a SNTASGD, or another with the methods of "
                "`keras_selfish.optimizers.Averaging`, for NonMonotonicAveraging. "
                f"Received: optimizer={type(self.model.optimizer).__name__}"
            )
        if BACKEND == "jax":
            self.model.jax_state_sync()  # otherwise the variables are empty, and writing to them is lost
        return [optimizer for optimizer in found if optimizer.built]

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._in_fit = True
        self._begun = (self.params or {}).get("batches_begun", 0)
        self._validated = False
        for optimizer in self.optimizers:
            optimizer.align_masks()
            if optimizer.weights_were_replaced():
                logging.info("Averaging starts anew, from weights that were set after the last training.")
                optimizer.start_averaging()
                optimizer.averages_in.assign(0.0)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._put_averages(inside=False)
        resumed_within, self._begun = self._begun > 0, 0
        if epoch in self.restart_epochs and not resumed_within:  # as many are done: Keras counts from 0
            for optimizer in self.optimizers:
                if _number(optimizer.trigger) >= 0:
                    optimizer.start_averaging()
                    logging.info("Averaging starts anew after epoch %d.", epoch)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        if self._in_fit:
            self._put_averages(inside=True)

    def on_test_end(self, logs: Logs | None = None) -> None:
        # Not at the end of the epoch: callbacks before this one in the list save their checkpoint there.
        if not self._in_fit:
            return
        self._validated = True
        value = self._monitored(logs)
        for optimizer in self.optimizers:
            if _number(optimizer.trigger) >= 0:
                continue
            history = ops.convert_to_numpy(optimizer.validation_history)
            if triggers(history, value, self.patience):
                optimizer.start_averaging()
                logging.info("Averaging starts after update %d.", _number(optimizer.trigger))
            optimizer.validation_history.assign(appended(history, value))

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        for optimizer in self.optimizers:
            optimizer.remember_weights()

    def on_train_end(self, logs: Logs | None = None) -> None:
        if any(optimizer.weights_were_replaced() for optimizer in self.optimizers):
            logging.info("The averages stay out of the model: another callback has set its weights.")
        else:
            self._put_averages(inside=True)
        self._in_fit = False
        if not self._validated:
            logging.warning("NonMonotonicAveraging has seen no validation: give `fit` `validation_data`.")

    def _put_averages(self, inside):
        for optimizer in self.optimizers:
            if _number(optimizer.trigger) >= 0 and bool(_number(optimizer.averages_in)) != inside:
                optimizer.exchange_averages()
                optimizer.remember_weights()

    def _monitored(self, logs):
        name = self.monitor.removeprefix("val_")  # Keras adds it after the validation
        if name not in (logs or {}):
            raise ValueError(
                f"`monitor` must be one of {', '.join(f'val_{key}' for key in logs or {})}. "
                f"Received: monitor={self.monitor!r}"
            )
        return float(logs[name])


def triggers(history, value, patience):
    """Whether averaging starts, by the published rule.

    Args:
        history: NumPy vector of the values before, oldest first, `NO_VALUE` where none are yet.
        value: The present one.
        patience: The number of values before it that are not compared.
    """
    past = _values(history)
    # As float32 like the history, so that a value is never larger than itself.
    return len(past) > patience and bool(np.float32(value) > past[: len(past) - patience].min())


def appended(history, value):
    """The history and one more value; in a full one, the smaller of the two oldest stands for both."""
    past = _values(history)
    if len(past) == len(history):
        past = np.append(past[:2].min(), past[2:])
    past = np.append(past, np.float32(np.inf if np.isnan(value) else value))  # which is as bad a value
    return np.append(past, np.full(len(history) - len(past), NO_VALUE)).astype("float32")


def _values(history):
    return history[~np.isnan(history) & (history != NO_VALUE)]  # earlier versions marked free places by NaN


def _number(variable):
    return ops.convert_to_numpy(variable).item()  # float() refuses variables that are on several devices
