"""The callback that rewires a model while it trains."""

import concurrent.futures
import math
import os

import keras
import numpy as np
from absl import logging
from keras import ops

from keras_selfish import masks
from keras_selfish.optimizers import state
from keras_selfish.rewiring import rules, schedules
from keras_selfish.rewiring.rewire import apply_change, choose_change, read_matrix

__all__ = ["Rewiring", "SelfishRewiring"]


class Rewiring(keras.callbacks.Callback):
    """Moves the connections of a model's masked weights while it trains; their number stays the same.

    At the end of each epoch, or each N steps, a fraction of the connections of every masked weight is
    dropped and as many are grown elsewhere in the same weight. What goes and comes is said by two rules,
    how much by a schedule, when by `frequency`. The rewiring of an epoch's end is carried out before the
    first batch of the next epoch: what was validated is what a checkpoint saves, and there is none after
    the last epoch.

    The state of the optimizer returns to its initial value wherever a connection was dropped or grown.
    All choices follow from `seed`, the step and the place of the weight in the model, so that they are the
    same on every replica and when training is resumed.

    At the end of each epoch the callback adds to the `logs`: `sparsity` (the fraction of zeros over all
    masked weights), `pruning_rate` (the fraction that is rewired at that step) and
    `density/<weight>/<gate>`. Callbacks that read logs, such as `CSVLogger`, stand after it in the list.

    Args:
        pruning_rate: Initial fraction of the connections that are rewired, in [0, 1].
        schedule: How the fraction changes over the training steps: `"cosine"`, `"linear"`, `"constant"`, or
            a callable `schedule(step, total_steps)` that returns it (see `schedules`).
        end_rate: Fraction at the end of a cosine or linear schedule.
        frequency: `"epoch"` or a number of training steps (updates of the optimizer).
        end_step: Last training step at which connections are rewired; None (default) for no end.
        total_steps: Length of the schedule in training steps. Default: epochs times the steps of an epoch.
        drop: Which connections go: `"magnitude"`, the smallest weights, or a drop rule (see `rules`).
        grow: Which connections come: `"random"`, uniformly at random, or a grow rule.
        reset_regrown: What happens to a connection that is dropped and grown again in the same rewiring. By
            default it keeps its value and its optimizer state, as published; True restarts it from zero.
        seed: Integer seed.

    Raises:
        ValueError: for an argument out of range; when training begins, for a model without a masked weight,
            an optimizer that does not update each weight by itself, or an unknown number of steps.

    Example:

    >>> import keras, numpy as np
    >>> from keras_selfish.layers import SparseDense
    >>> model = keras.Sequential([keras.Input((8,)), SparseDense(4, sparsity=0.75)])
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(np.ones((6, 8)), np.ones((6, 4)), batch_size=2, epochs=2, verbose=0,
    ...                     callbacks=[Rewiring(pruning_rate=0.5)])
    >>> history.history["sparsity"]
    [0.75, 0.75]
    """

    def __init__(
        self,
        pruning_rate=0.5,
        schedule="cosine",
        end_rate=0.005,
        frequency="epoch",
        end_step=None,
        total_steps=None,
        drop="magnitude",
        grow="random",
        reset_regrown=False,
        seed=0,
    ):
        super().__init__()
        _check_fraction("pruning_rate", pruning_rate)
        _check_fraction("end_rate", end_rate)
        if frequency != "epoch":
            _check_steps("frequency", frequency, '"epoch" or ')
        for name, value in (("end_step", end_step), ("total_steps", total_steps)):
            if value is not None:
                _check_steps(name, value, "None or ")
        masks.check_seed(seed)
        self.schedule = _resolve("schedule", schedule, schedules.SCHEDULES)
        if isinstance(schedule, str):
            self.schedule = self.schedule(pruning_rate, end_rate)
            if self.schedule.needs_total_steps and end_rate > pruning_rate:
                raise ValueError(
                    "`end_rate` must be at most `pruning_rate`. "
                    f"Received: end_rate={end_rate}, pruning_rate={pruning_rate}"
                )
        self.drop = _resolve("drop", drop, rules.DROP_RULES)
        self.grow = _resolve("grow", grow, rules.GROW_RULES)
        self.pruning_rate = pruning_rate
        self.frequency = frequency
        self.end_step = end_step
        self.total_steps = total_steps
        self.reset_regrown = reset_regrown
        self.seed = seed
        self._forget_training()

    def _forget_training(self):
        self._prepared = False
        self._epoch = 0
        self._epoch_due = False
        self._first_step = None
        self._last_step = None
        self._statistics = None

    # When.

    def on_train_begin(self, logs=None):
        self._forget_training()
        needs_total = getattr(self.schedule, "needs_total_steps", False) and self.total_steps is None
        if needs_total and self.frequency != "epoch" and self.params.get("steps") is None:
            raise ValueError(
                "`total_steps` must be given where the data's length is unknown and `frequency` is a number "
                f"of steps. Received: total_steps=None, frequency={self.frequency}"
            )
        if self.model.built:
            self._check_model()

    def on_epoch_begin(self, epoch, logs=None):
        if self._first_step is None:
            # In epoch 0 training starts, or goes on after an earlier `fit`; in a later one it is resumed.
            self._first_step = self._step() if epoch == 0 else 0
        self._epoch = epoch
        self._epoch_due = self.frequency == "epoch" and epoch > 0

    def on_train_batch_begin(self, batch, logs=None):
        # Not when training begins: callbacks that restore weights may stand after this one in the list, and
        # a model without an input shape, like its optimizer, is built by the first batch.
        if not self._prepared and self.model.built:
            self._prepare()
        if self._epoch_due or self.frequency != "epoch":
            self._sync()
            step = self._step()
            if self._is_due(step):
                self.rewire(self._rate(step, self._epoch), step)

    def _is_due(self, step):
        if self.frequency == "epoch":
            due, self._epoch_due = self._epoch_due, False
        else:
            last = step - self._steps_of_last_execution() if self._last_step is None else self._last_step
            due, self._last_step = 0 < step // self.frequency > last // self.frequency, step
        ended = self.end_step is not None and step > self.end_step
        return due and not ended and not self._just_triggered()

    def _steps_of_last_execution(self):
        """Training steps of the last call of the training function before this epoch.

        Where training is resumed it tells whether the multiple of `frequency` at or before the present step
        was passed by that call, so that its rewiring is still to come.
        """
        together, batches = self.model.steps_per_execution, self.params.get("steps")
        if batches is None:
            return together
        executed = (batches - 1) % together + 1
        before, accumulated = self._epoch * batches, self._accumulated_batches()
        return before // accumulated - (before - executed) // accumulated

    def on_epoch_end(self, epoch, logs=None):
        if not self._prepared:
            self._prepare()
        if logs is not None:
            logs.update(self.statistics())
            logs["pruning_rate"] = self._rate(self._step(), epoch + 1)

    def _just_triggered(self):
        """Whether averaging began at this very step: connections then stay until the next time."""
        return any(
            int(_scalar(leaf.trigger)) == int(_scalar(leaf.iterations))
            for leaf in state.leaves(self.model.optimizer)
            if hasattr(leaf, "trigger")
        )

    # How many.

    def _rate(self, step, epoch):
        if not getattr(self.schedule, "needs_total_steps", False):
            return self.schedule(step, self.total_steps)
        return self.schedule(step, self.total_steps or self._expected_total_steps(step, epoch))

    def _expected_total_steps(self, step, epoch):
        epochs, batches = self.params["epochs"], self.params.get("steps")
        if batches is None:  # as many in each epoch to come as there were so far
            steps = (step - self._first_step) / epoch
        else:
            steps = batches / self._accumulated_batches()
        return max(self._first_step + steps * epochs, 1)

    def _accumulated_batches(self):
        return state.innermost(self.model.optimizer).gradient_accumulation_steps or 1

    # What.

    def rewire(self, rate, step):
        """Rewires the model now; `fit` calls it, and a training loop of one's own may after `set_model`.

        Args:
            rate: Fraction of the connections of each masked weight to drop and grow, in [0, 1].
            step: Training step; together with the seed it determines which connections grow.

        Raises:
            ValueError: if the rate is out of range, or a weight is NaN.
        """
        _check_fraction("rate", rate)
        optimizer = self.model.optimizer
        weights = enumerate(masks.masked_weights(self.model))
        read = [(i, read_matrix(w, optimizer)) for i, w in weights if w.weight.trainable]

        def choose(index, matrix):
            generator = np.random.default_rng([self.seed, step, index])
            return choose_change(matrix, rate, self.drop, self.grow, generator, self.reset_regrown)

        # NumPy works outside the interpreter's lock. Nothing is changed before all is chosen.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            changes = list(pool.map(choose, *zip(*read, strict=True))) if read else []
        for (_, matrix), change in zip(read, changes, strict=True):
            if change is not None:
                apply_change(matrix.masked_weight, change, optimizer)
        self._statistics = None
        logging.vlog(1, "Step %d: rewired the fraction %.4f of the connections.", step, rate)

    def statistics(self):
        """The sparsity of all masked weights together and the density of each gate, as a dict of floats."""
        if self._statistics is None:  # masks change in rewiring only
            self._statistics = _measure(masks.masked_weights(self.model))
        return self._statistics

    def _prepare(self):
        self._sync()
        self._check_model()
        for masked_weight in masks.masked_weights(self.model):
            masked_weight.project()
        optimizer = self.model.optimizer
        for leaf in state.leaves(optimizer):
            if leaf.built and hasattr(leaf, "align_masks"):
                leaf.align_masks()
        self._prepared = optimizer.built

    def _check_model(self):
        """Raises `ValueError` for a model or optimizer that cannot be rewired."""
        weights = masks.masked_weights(self.model)
        if not weights:
            raise ValueError(
                "`model` must have masked weights to rewire, but has none. Received: "
                f"model={self.model.name!r}; give its layers a `sparsity` over 0"
            )
        for masked_weight in weights:
            # Until it is built, a `MultiOptimizer` does not know which of its optimizers holds a weight.
            for leaf in state.holders(self.model.optimizer, masked_weight.weight):
                state.check_elementwise(leaf)

    def _step(self):
        return int(_scalar(state.innermost(self.model.optimizer).iterations))

    def _sync(self):
        # On JAX the trainer carries the variables' values until someone asks for them.
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()


class SelfishRewiring(Rewiring):
    """Rewiring as in selfish sparse RNN training: weights of small magnitude go, random ones come.

    The gates of a recurrent kernel compete for the connections of their layer: weights are ranked over the
    whole concatenated kernel, and grow anywhere in it. The rewired fraction falls by a cosine over the
    training steps.

    Args:
        pruning_rate: Initial fraction of the connections that are rewired; 0.8 (default) for the published
            LSTM, 0.5 for the other published models.
        **kwargs: `end_rate`, `frequency`, `end_step`, `total_steps`, `reset_regrown`, `seed`: see `Rewiring`.

    Reference: Liu et al. 2021, "Selfish Sparse RNN Training", arXiv 2101.09048, section 3.
    """

    def __init__(self, pruning_rate=0.8, **kwargs):
        super().__init__(pruning_rate, **kwargs)


def _scalar(value):
    return ops.convert_to_numpy(value)


def _resolve(name, value, known):
    if callable(value):
        return value
    if value not in known:
        raise ValueError(
            f"`{name}` must be one of {', '.join(known)}, or a function. Received: {name}={value!r}"
        )
    return known[value]


def _check_fraction(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"`{name}` must be a number in [0, 1]. Received: {name}={value!r}")


def _check_steps(name, value, alternative):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` must be {alternative}a positive integer. Received: {name}={value!r}")


def _measure(weights):
    statistics = {}
    active = total = 0
    for masked_weight in weights:
        active += masked_weight.active
        total += math.prod(masked_weight.shape)
        for gate, density in masked_weight.gate_densities().items():
            statistics[f"density/{masked_weight.name}/{gate}"] = density
    return {"sparsity": 1.0 - active / total, **statistics}
