"""The step counter of a model, over optimizers and calls of `fit`."""

from __future__ import annotations

import weakref
from typing import Any

import keras
from absl import logging
from keras import ops

from keras_selfish import masks
from keras_selfish.optimizers import wrappers

__all__ = ["Clock", "clock_of"]

_clocks: weakref.WeakKeyDictionary[Any, Clock] = weakref.WeakKeyDictionary()


def clock_of(model):
    """The model's clock, one for its whole life."""
    if model not in _clocks:
        _clocks[model] = Clock(model)
    return _clocks[model]


class Clock:
    """The training steps of a model, and the optimizers that make them.

    The steps are the updates of the optimizer that trains the masked weights: that of `compile`, or another
    one that the model has as an attribute, as adversarial networks have two. Where none is found, batches are
    counted. A model that is compiled again gets a new optimizer, whose updates are added to those before.

    Args:
        model: A Keras model, of which a weak reference is kept.

    Attributes:
        epoch_is_due: Whether an epoch has ended after which nothing has been rewired.
    """

    def __init__(self, model):
        self._model = weakref.ref(model)
        self._before = 0  # updates of earlier optimizers
        self._counted = None  # weak reference to the optimizer whose updates were last read
        self._last = 0
        self._batches = self._batches_before = self._begun = 0
        self._counts_batches = False
        self.epoch_is_due = False

    @property
    def optimizers(self):
        """Optimizers that train masked weights; before they are built, the one of `compile`."""
        model = self._model()
        compiled = getattr(model, "optimizer", None)
        others = [one for one in vars(model).values() if isinstance(one, keras.optimizers.Optimizer)]
        candidates = [one for one in [compiled, *others] if isinstance(one, keras.optimizers.Optimizer)]
        weights = [masked_weight.weight for masked_weight in masks.masked_weights(model)]
        found = []
        for optimizer in candidates:
            known = any(optimizer is other for other in found)
            if (
                not known
                and optimizer.built
                and any(wrappers.trains(optimizer, weight) for weight in weights)
            ):
                found.append(optimizer)
        return found or candidates[:1]

    @property
    def optimizer(self):
        """The optimizer whose updates count, without the wrapper that scales the loss, or None."""
        found = self.optimizers
        return wrappers.innermost(found[0]) if found else None

    def read(self):
        """The number of training steps so far."""
        optimizer = None if self._counts_batches else self.optimizer
        if optimizer is None:
            return self._batches
        counted = None if self._counted is None else self._counted()
        if self._counted is not None and counted is not optimizer:
            self._before, self._last = self._before + self._last, 0
        self._counted = weakref.ref(optimizer)
        self._last = int(ops.convert_to_numpy(optimizer.iterations))
        return self._before + self._last

    def begin_epoch(self):
        """Notes that a pass over the data begins."""
        self._batches += self._begun
        self._begun, self._batches_before = 0, self._batches

    def begin_batches(self, count):
        """Notes that this number of batches begins, and that earlier ones are done."""
        self._batches += self._begun
        self._begun = count

    def end_epoch(self, batches=None):
        """Notes that a pass has ended, with its number of batches if that is known."""
        self._batches += self._begun
        self._begun = 0
        if batches is not None:
            self._batches = self._batches_before + batches
        self.epoch_is_due = True
        if self._counts_batches or not self._batches or self.read():
            return
        self._counts_batches = True
        logging.warning(
            "No optimizer is known that trains the masked weights of %s: training steps are counted by "
            "batches, and the optimizer's state of connections dropped or grown stays as it is. Make "
            "the optimizer an attribute of the model.",
            self._model().name,
        )
