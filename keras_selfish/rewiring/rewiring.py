"""The callback that rewires a model while it trains."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self

from absl import logging
from keras import ops

from keras_selfish import checks
from keras_selfish.optimizers import wrappers
from keras_selfish.rewiring import rules, schedules
from keras_selfish.rewiring.mask_callback import MaskCallback
from keras_selfish.rewiring.model_change import DROP_SCOPES, choose_changes
from keras_selfish.typing import Logs

if TYPE_CHECKING:
    from keras_selfish.masks import MaskedWeight
    from keras_selfish.rewiring.gradients import GradientData
    from keras_selfish.rewiring.rules import DropRule, GrowRule, RedistributionRule
    from keras_selfish.rewiring.schedules import Schedule

__all__ = ["Rewiring"]


class Rewiring(MaskCallback):
    """Moves the connections of a model's masked weights while it trains; their number stays the same.

    At the end of each epoch, or each N steps, a fraction of the connections is dropped and as many are grown
    elsewhere: in the same weight, unless `redistribution` says otherwise. Rules say which are dropped and
    grown, a schedule how many, `frequency` when. The rewiring of an epoch's end is carried out before
    the first batch of the next epoch: what was validated is what a checkpoint saves, and there is none after
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
        total_steps: Length of the training in steps. Default: epochs times the steps of an epoch.
        stop_fraction: Fraction of `total_steps` at which the schedule and rewiring end, in (0, 1].
        drop: Which connections are dropped: `"magnitude"`, the smallest weights; `"magnitude_by_sign"`;
            `"magnitude_and_gradient"`; `"sensitivity"`; or a drop rule (see `rules`).
        drop_scope: `"matrix"` (default) to rewire the same fraction of each weight; `"model"` to drop those
            with the smallest scores of all weights together, so that one threshold holds everywhere.
        grow: Which connections are grown: `"random"`, uniformly; `"gradient"`; `"momentum"`; `"guided"`; or a
            grow rule.
        redistribution: Which weight gets the connections that are grown: None (default) or `"none"` for the
            one that lost them; `"nonzeros"`, `"magnitude"`, `"momentum"` or a redistribution rule for a share
            of all.
        gradient_data: The training data, if a rule needs gradients of connections that do not exist: one
            batch, a `PyDataset`, a `tf.data.Dataset`, or a function from the step to a batch.
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

    # Of the number of connections that a matrix loses.
    rounding: Callable[[float], int] = staticmethod(math.ceil)

    def __init__(
        self,
        pruning_rate: float = 0.5,
        schedule: Schedule = "cosine",
        end_rate: float = 0.005,
        frequency: int | Literal["epoch"] = "epoch",
        end_step: int | None = None,
        total_steps: int | None = None,
        stop_fraction: float = 1.0,
        drop: DropRule = "magnitude",
        drop_scope: Literal["matrix", "model"] = "matrix",
        grow: GrowRule = "random",
        redistribution: RedistributionRule | None = None,
        gradient_data: GradientData | None = None,
        reset_regrown: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(gradient_data, seed)
        checks.number("pruning_rate", pruning_rate, "[0, 1]")
        checks.number("end_rate", end_rate, "[0, 1]")
        checks.number("stop_fraction", stop_fraction, "(0, 1]")
        checks.integer("frequency", frequency, at_least=1, others=("epoch",))
        checks.integer("end_step", end_step, at_least=1, others=(None,))
        checks.integer("total_steps", total_steps, at_least=1, others=(None,))
        self.schedule = rules.resolve("schedule", schedule, schedules.SCHEDULES)
        if isinstance(schedule, str):
            self.schedule = self.schedule(pruning_rate, end_rate)
            if self.schedule.needs_total_steps and end_rate > pruning_rate:
                raise ValueError(
                    "`end_rate` must be at most `pruning_rate`. "
                    f"Received: end_rate={end_rate}, pruning_rate={pruning_rate}"
                )
        self.drop = rules.resolve("drop", drop, rules.DROP_RULES)
        self.grow = rules.resolve("grow", grow, rules.GROW_RULES)
        self.redistribution = redistribution
        if redistribution is not None:
            self.redistribution = rules.resolve("redistribution", redistribution, rules.REDISTRIBUTION_RULES)
        checks.one_of("drop_scope", drop_scope, DROP_SCOPES)
        self._gradient_batches = rules.batches_needed(self.drop, self.grow, self.redistribution)
        self.check_gradient_data(self._gradient_batches)
        self.drop_scope = drop_scope
        self.pruning_rate = pruning_rate
        self.frequency = frequency
        self.end_step = end_step
        self.total_steps = total_steps
        self.stop_fraction = stop_fraction
        self.reset_regrown = reset_regrown

    @classmethod
    def for_run(
        cls, *, sparsity: float, total_steps: int, data: GradientData, seed: int, **options: Any
    ) -> Self:
        return cls(total_steps=total_steps, gradient_data=data, seed=seed, **options)

    def _forget_training(self):
        super()._forget_training()
        self._epoch_due = False
        self._first_step = self._first_epoch = None
        self._follows_a_fit = False

    # When.

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        needs_total = self.total_steps is None and self._needs_total_steps
        if needs_total and not self._parameters:
            self._expected_total_steps(0, 0)
        if needs_total and self.frequency != "epoch" and self._parameters.get("steps") is None:
            raise ValueError(
                "`total_steps` must be given where the data's length is unknown and `frequency` is a number "
                f"of steps. Received: total_steps=None, frequency={self.frequency}"
            )

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        resumed_within = self._first_step is None and self.batches_begun > 0
        if self._first_step is None:
            # In epoch 0 training starts, or goes on after an earlier `fit`; in a later one it is resumed.
            step = self._step()
            resumed = epoch > 0 or resumed_within
            self._first_step, self._first_epoch = 0 if resumed else step, epoch
            self._follows_a_fit = self._clock.epoch_is_due and step > 0
            if self._follows_a_fit and self.total_steps is None and self._needs_total_steps:
                logging.warning(
                    "The schedule of %s knows the epochs of one `fit` only, and this is not the first: "
                    "give `total_steps`, the steps of all of them together.",
                    type(self).__name__,
                )
        due = epoch > 0 or (self._clock.epoch_is_due and self._follows_a_fit)
        self._epoch_due = self.frequency == "epoch" and due and not resumed_within

    def is_due(self, last: int, step: int) -> bool:
        if self.frequency == "epoch":
            return self._epoch_due
        return 0 < step // self.frequency > last // self.frequency

    def on_epoch_end(self, epoch: int | None = None, logs: Logs | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._clock.end_epoch(self._parameters.get("steps"))
        self._epoch_due = self.frequency == "epoch"  # in a loop that does not say when an epoch begins
        if logs is not None:
            logs["pruning_rate"] = self._rate(self._step(), self._epoch + 1)

    def _just_triggered(self):
        """Whether averaging began at this very step, so that rewiring waits until the next time."""
        return any(
            int(ops.convert_to_numpy(leaf.trigger)) == int(ops.convert_to_numpy(leaf.iterations))
            for optimizer in self._clock.optimizers
            for leaf in wrappers.leaves(optimizer)
            if hasattr(leaf, "trigger")
        )

    # How many.

    def _rate(self, step, epoch):
        if not getattr(self.schedule, "needs_total_steps", False):
            return self.schedule(step, self.total_steps)
        if self._is_one_of_many_fits():
            return self.schedule(0, 1)
        return self.schedule(step, self._schedule_steps(step, epoch))

    def _is_one_of_many_fits(self):
        """Whether this is a `fit` of one epoch after another one, which by itself rewires nothing."""
        epochs = self._parameters.get("epochs")
        if epochs is None or not self._follows_a_fit or self.frequency != "epoch":
            return False
        return self.total_steps is None and epochs - self._first_epoch <= 1

    def _schedule_steps(self, step, epoch):
        return self.stop_fraction * (self.total_steps or self._expected_total_steps(step, epoch))

    @property
    def _needs_total_steps(self):
        return getattr(self.schedule, "needs_total_steps", False) or self.stop_fraction < 1.0

    def _expected_total_steps(self, step, epoch):
        epochs, batches = self._parameters.get("epochs"), self._parameters.get("steps")
        if epochs is None:
            raise ValueError(
                f"`total_steps` must be given to {type(self).__name__} in a training loop of your own, which "
                "does not say how long it is. Received: total_steps=None"
            )
        if batches is None:  # as many in each epoch to come as there were so far
            steps = (step - self._first_step) / epoch
        else:
            steps = batches / self.accumulated_batches()
        return max(self._first_step + steps * epochs, 1)

    # What.

    def update(self, step: int) -> None:
        self._epoch_due = self._clock.epoch_is_due = False
        if not self._has_ended(step) and not self._just_triggered():
            self.rewire(self._rate(step, self._epoch), step)

    def _has_ended(self, step):
        ended = self.end_step is not None and step > self.end_step
        return ended or (self.stop_fraction < 1.0 and step > self._schedule_steps(step, self._epoch))

    def rewire(self, rate: float, step: int) -> None:
        """Rewires the model now; `fit` calls it, and a custom training loop may, after `set_model`.

        Args:
            rate: Fraction of the connections of each masked weight to drop and grow, in [0, 1].
            step: Training step; together with the seed it determines which connections grow.

        Raises:
            ValueError: if the rate is out of range, or a weight is NaN.
        """
        checks.number("rate", rate, "[0, 1]")
        if rate == 0:
            return
        choose = functools.partial(
            choose_changes,
            rate=rate,
            drop=self.drop,
            drop_scope=self.drop_scope,
            grow=self.grow,
            redistribution=self.redistribution,
            reset_regrown=self.reset_regrown,
            rounding=self.rounding,
        )
        read_tensors = rules.read_tensors(self.drop, self.grow, self.redistribution)
        self.change(step, choose, self._gradient_batches, read_tensors)
        logging.vlog(1, "Step %d: rewired the fraction %.4f of the connections.", step, rate)

    def check_weight(self, masked_weight: MaskedWeight) -> None:
        if masked_weight.n_of_m and (self.redistribution is not None or self.drop_scope == "model"):
            raise ValueError(
                f"`n_of_m` fixes the number of connections of {masked_weight.name!r}, which "
                f"{type(self).__name__} would change. Received: n_of_m={masked_weight.n_of_m}; use a method "
                "that keeps each weight's number, such as SelfishRewiring, SET or RigL"
            )
