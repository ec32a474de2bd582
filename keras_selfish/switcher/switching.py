"""Decisions that `SwitchedDense` layers ask for while their model trains."""

import threading

import keras
from keras import ops

from keras_selfish.switcher.constraint import Count, count, together, value_of
from keras_selfish.switcher.estimators import binary, uniform_noise
from keras_selfish.switcher.network import two_uses

# What a step trains or does: the task network with switches as they are; the same after the switcher has
# decided anew; the switcher.
TASK, REFRESH, SWITCHER = PHASES = ("task", "refresh", "switcher")

# Steps of the threshold before the last decision of a turn. It has followed the logits all along.
NEWTON_STEPS = 3


class Switching:
    """The state that a model and its switched layers share.

    Args:
        switcher: The `SwitcherNetwork`.
        constraint: The `SparsityConstraint`; None leaves the sparsity to the loss.
        seed_generator: The `keras.random.SeedGenerator` of the hard concrete gates; None for
            straight-through.

    Attributes:
        phase: The phase that a step being taken, or traced, is in.
    """

    def __init__(self, switcher, constraint=None, seed_generator=None):
        self.switcher = switcher
        self.constraint = constraint
        self.seed_generator = seed_generator
        self.phase = TASK
        # Of this thread: under MirroredStrategy replicas are traced in threads that take turns.
        self._local = threading.local()

    @property
    def decides(self):
        """Whether the switcher is asked in this phase."""
        return self.phase != TASK

    @property
    def learns(self):
        """Whether gradients go to the switcher in this phase."""
        return self.phase == SWITCHER

    def begin(self):
        """Clears the counts, and hands out the switcher's parameters anew, before a forward pass."""
        self._local.counts, self._local.parameters = [], None

    def settle(self, kernels):
        """Moves the threshold to where as many connections are open as wanted, before a turn's last decision.

        Args:
            kernels: The kernels of all layers that are switched.
        """
        if self.constraint is None:
            return
        kernels = [ops.convert_to_tensor(kernel) for kernel in kernels]
        if self.switcher.granularity == "neuron":  # units are few: they can be sorted, and their number jumps
            logits = [self.switcher.units(kernel)[0] for kernel in kernels]
            return self.constraint.place(logits, [kernel.shape[0] for kernel in kernels])
        position = self.constraint.position()
        for _ in range(NEWTON_STEPS):
            counts = [self.switcher.count(kernel, position.threshold, position.width) for kernel in kernels]
            position = self.constraint.moved(position, together(counts))
        self.constraint.move_to(position, advance=False)

    def end(self):
        """Passes the counts of a switcher's step to the constraint."""
        if self.constraint is not None and self.learns and self._local.counts:
            self.constraint.update(together(self._local.counts), advance=True)

    def switch_connections(self, kernel):
        """The kernel after switching and its mask, both (inputs, units)."""
        noise = None
        if self._draws():
            noise = uniform_noise(kernel.shape, self.seed_generator)
        switched, mask, counted = self.switcher.switched(
            ops.convert_to_tensor(kernel), *self._threshold_and_width(), noise, self._parameters()
        )
        self._local.counts.append(counted)
        return switched, mask

    def switch_units(self, kernel):
        """Switches, 0 or 1 with a gradient, and scales, both (units,)."""
        threshold, width = self._threshold_and_width()
        logits, scale = self.switcher.units(ops.convert_to_tensor(kernel), self._parameters())
        noise = keras.random.uniform(logits.shape, seed=self.seed_generator) if self._draws() else None
        inputs, units = kernel.shape
        sums = (inputs * one for one in count(logits, threshold, width))
        self._local.counts.append(Count(float(inputs * units), *sums))
        return binary(logits - threshold, noise), scale

    def _parameters(self):
        """The switcher's parameters for one layer, with gradients that sum in the order of the layers."""
        parameters = self._local.parameters or self.switcher.parameters()
        mine, self._local.parameters = two_uses(parameters)
        return mine

    def _draws(self):
        return self.seed_generator is not None and self.learns

    def _threshold_and_width(self):
        if self.constraint is None:
            return 0.0, 1.0
        return value_of(self.constraint.threshold), value_of(self.constraint.width)
