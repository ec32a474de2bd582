"""The callback that changes masks while a model trains: its timing and its reports."""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import keras
import numpy as np
from keras import ops

from keras_selfish import masks
from keras_selfish.optimizers import slot_reset, wrappers
from keras_selfish.rewiring import device_arrays, host_arrays
from keras_selfish.rewiring.clock import clock_of
from keras_selfish.rewiring.gradients import DenseGradients
from keras_selfish.rewiring.matrix_change import apply_change, read_matrix
from keras_selfish.typing import Logs

if TYPE_CHECKING:
    from keras_selfish.masks import MaskedWeight
    from keras_selfish.rewiring.gradients import GradientData
    from keras_selfish.rewiring.matrix_change import Change
    from keras_selfish.rewiring.rules import Matrix

__all__ = ["MaskCallback"]


class MaskCallback(keras.callbacks.Callback):
    """Base of all methods: changes the masks of a model between two training steps.

    A subclass says when in `is_due(last, step)` and what in `update(step)`, which calls `change` with a
    function that chooses. Everything it decides follows from `seed`, the step and the place of the weight in
    the model, so that it is the same on every replica and when training is resumed.

    At the end of each epoch the callback adds to the `logs`: `sparsity` (the fraction of zeros over all
    masked weights) and `density/<weight>/<gate>`. Callbacks that read logs, such as `CSVLogger`, stand after
    it in the list.

    Args:
        gradient_data: Where gradients come from if a rule needs them (see `DenseGradients`).
        seed: Integer seed.
    """

    # Dense-to-sparse methods make every mask all-True when training starts.
    starts_dense = False
    # Methods that change masks before the first step cannot wait for a first batch to build the model.
    needs_built_model = False
    # Gradients are those of the loss in training, with its dropout, or else in inference.
    gradients_in_training = True

    def __init__(self, gradient_data: GradientData | None = None, seed: int = 0) -> None:
        super().__init__()
        masks.check_seed(seed)
        self.gradients = None
        if gradient_data is not None:
            self.gradients = DenseGradients(gradient_data, self.gradients_in_training)
        self.seed = seed
        self._forget_training()

    @classmethod
    def for_run(
        cls, *, sparsity: float, total_steps: int, data: GradientData, seed: int, **options: Any
    ) -> Self:
        """The callback that a trainer trains with.

        Args:
            sparsity: Fraction of zeros that the run is to end with.
            total_steps: Training steps in all.
            data: The training data, for rules that need gradients.
            seed: Integer seed.
            **options: Further arguments, as the method's registration says that it takes them.
        """
        return cls(gradient_data=data, seed=seed, **options)

    def _forget_training(self):
        self._prepared = False
        self._epoch = 0
        self._last_step = None
        self._possible_steps = 0
        self._statistics = None

    @property
    def _parameters(self):
        """The parameters of `fit`; empty in a custom training loop."""
        return self.params or {}

    @property
    def batches_begun(self) -> int:
        """Batches of the first epoch that came before this `fit`, where training is resumed within an epoch.

        Keras does not know of that: whoever resumes so adds `"batches_begun"` to the callbacks' parameters.
        """
        return self._parameters.get("batches_begun", 0)

    @property
    def _clock(self):
        """The model's step counter, which outlives a call of `fit`."""
        return clock_of(self.model)

    # What a subclass says.

    def is_due(self, last: int, step: int) -> bool:
        """Whether a change of the masks is due after the step `last` and up to `step`.

        It reads nothing from the device and, once True, stays so for later `step`s.
        """
        raise ValueError(f"{type(self).__name__} must define `is_due`.")

    def update(self, step: int) -> None:
        """Changes the masks."""
        raise ValueError(f"{type(self).__name__} must define `update`.")

    # When.

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._forget_training()
        if self.gradients is not None:
            self.gradients.check()
        if self.model.built:
            self._check_model()
        elif self.needs_built_model:
            raise ValueError(
                f"`model` must be built before training with {type(self).__name__}, which changes its masks "
                f"before the first step. Received: model={self.model.name!r}; begin it with a `keras.Input`"
            )

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch
        self._clock.begin_epoch()

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        # Not when training begins: callbacks that restore weights may stand after this one in the list, and
        # a model without an input shape, like its optimizer, is built by the first batch.
        if not self._prepared and self.model.built:
            wrappers.build_before_trace(self.model)
            self._prepare()
        # The training step is read from the device only where it may have come far enough.
        self._possible_steps += self._steps_together
        self._clock.begin_batches(self._steps_together)
        last = self._last_step
        if last is not None and not self.is_due(last, last + self._possible_steps):
            return
        self._sync()
        step = self._step()
        last = step - self._steps_of_last_execution() if last is None else last
        self._last_step, self._possible_steps = step, 0
        if self.is_due(last, step):
            self.update(step)

    def _steps_of_last_execution(self):
        """Number of training steps in the last call of the training function before this epoch.

        Where training is resumed it tells whether a step at which an update is due, at or before the present
        one, was passed by that call, so that its update is still to come.
        """
        together, batches = self._steps_together, self._parameters.get("steps")
        if batches is None:
            return together
        begun = self.batches_begun
        executed = together if begun else (batches - 1) % together + 1
        before = self._epoch * batches + begun
        accumulated = self.accumulated_batches()
        return before // accumulated - (before - executed) // accumulated

    def accumulated_batches(self) -> int:
        """Number of batches in one update of the optimizer."""
        return getattr(self._clock.optimizer, "gradient_accumulation_steps", None) or 1

    @property
    def _steps_together(self):
        return getattr(self.model, "steps_per_execution", 1) or 1

    def on_epoch_end(self, epoch: int | None = None, logs: Logs | None = None) -> None:
        if not self._prepared:
            self._prepare()
        if logs is not None:
            logs.update(self.statistics())

    # What.

    def matrices(
        self, step: int, gradient_batches: int = 0, arrays: ModuleType = host_arrays
    ) -> list[Matrix]:
        """The trainable masked weights as `rules.Matrix`.

        Args:
            step: Training step.
            gradient_batches: Number of batches over which the rules need gradients.
            arrays: `host_arrays` (default) for NumPy arrays, `device_arrays` for tensors.
        """
        weights = [(i, w) for i, w in enumerate(masks.masked_weights(self.model)) if w.weight.trainable]
        gradients = self._gradients_of([weight for _, weight in weights], step, gradient_batches)
        optimizer = getattr(self.model, "optimizer", None)
        return [
            read_matrix(weight, optimizer, gradient, np.random.default_rng([self.seed, step, index]), arrays)
            for (index, weight), gradient in zip(weights, gradients, strict=True)
        ]

    def _gradients_of(self, weights, step, batches):
        if not (batches and weights):
            return [None] * len(weights)
        self._sync()
        return self.gradients(self.model, weights, step, batches)

    def change(
        self,
        step: int,
        choose: Callable[[list[Matrix], Callable[..., list[Any]]], list[Change | None]],
        gradient_batches: int = 0,
        read_tensors: bool = False,
    ) -> None:
        """Chooses a `Change` (None for none) of each trainable masked weight and applies it.

        Args:
            step: Training step.
            choose: A function of a list of `rules.Matrix` and a `map`, parallel on the host; nothing is
                changed before it returns.
            gradient_batches: Number of batches over which the rules need gradients.
            read_tensors: Whether the function and its rules read tensors as well as NumPy arrays (see
                `rules.reads_tensors`); it gets them where the choice is better made on the device.
        """
        on_device = read_tensors and device_arrays.serve(self.model)
        matrices = self.matrices(step, gradient_batches, device_arrays if on_device else host_arrays)
        if on_device:
            changes = choose(matrices, lambda *arguments: list(map(*arguments)))
        else:
            # NumPy works outside the interpreter's lock.
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                changes = choose(matrices, lambda *arguments: list(pool.map(*arguments)))
        weights = [matrix.masked_weight for matrix in matrices]
        del matrices  # which are views: a weight that is looked at would not be written in place
        for masked_weight, change in zip(weights, changes, strict=True):
            if change is not None:
                apply_change(masked_weight, change, self._clock.optimizers)
        self._statistics = None

    def check_gradient_data(self, batches: int) -> None:
        """Raises `ValueError` if rules need gradients of some batches and there is no data for them."""
        if batches and self.gradients is None:
            raise ValueError(
                f"`gradient_data` must be given to {type(self).__name__}: a rule needs the gradients of "
                "connections that do not exist. Received: gradient_data=None; pass the training data"
            )

    def statistics(self) -> dict[str, float]:
        """Overall sparsity of the masked weights and density of each gate, a dict of floats."""
        if self._statistics is None:  # masks change in updates only
            self._statistics = _measure(masks.masked_weights(self.model))
        return self._statistics

    def _prepare(self):
        self._sync()
        self._check_model()
        if self.starts_dense and self._step() == 0:
            masks.densify(self.model)
        self.align()
        self._prepared = all(optimizer.built for optimizer in self._clock.optimizers)

    def align(self) -> None:
        """Fits the state of the optimizers to masks that were changed otherwise than by `change`."""
        optimizers = self._clock.optimizers
        for masked_weight in masks.masked_weights(self.model):
            holders = [leaf for one in optimizers for leaf in wrappers.holders(one, masked_weight.weight)]
            for leaf in holders:
                masked_weight.watch(leaf, slot_reset.reset_state)
            masked_weight.project()
            if not self.needs_built_model:  # no method that opens all masks
                masked_weight.unpruned = None
            if not masked_weight.is_settled:
                absent = ops.logical_not(ops.convert_to_tensor(masked_weight.mask))
                for leaf in filter(lambda leaf: leaf.built and not hasattr(leaf, "align_masks"), holders):
                    slot_reset.reset_state(leaf, masked_weight, absent, ops.zeros_like(absent))
                masked_weight.settle()
        for leaf in (leaf for one in optimizers for leaf in wrappers.leaves(one)):
            if leaf.built and hasattr(leaf, "align_masks"):
                leaf.align_masks()

    def _check_model(self):
        """Raises `ValueError` for a model or optimizer whose masks cannot change."""
        weights = masks.masked_weights(self.model)
        if not weights:
            raise ValueError(
                "`model` must have masked weights to rewire, but has none. Received: "
                f"model={self.model.name!r}; give its layers a `sparsity` over 0"
            )
        for masked_weight in weights:
            # Until it is built, a `MultiOptimizer` does not know which of its optimizers holds a weight.
            for optimizer in self._clock.optimizers:
                for leaf in wrappers.holders(optimizer, masked_weight.weight):
                    slot_reset.check_elementwise(leaf)
            self.check_weight(masked_weight)

    def check_weight(self, masked_weight: MaskedWeight) -> None:
        """Raises `ValueError` for a masked weight that this method cannot change."""

    def _step(self):
        return self._clock.read()

    def _sync(self):
        # On JAX the trainer carries the variables' values until someone asks for them.
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()


def _measure(weights):
    statistics = {"sparsity": masks.overall_sparsity(weights)}
    names = collections.Counter()
    for masked_weight in weights:
        name = masked_weight.name
        names[name] += 1
        if names[name] > 1:  # Keras lets layers in different models have one name
            name = f"{name}_{names[name] - 1}"
        for gate, density in masked_weight.gate_densities().items():
            statistics[f"density/{name}/{gate}"] = density
    return statistics
