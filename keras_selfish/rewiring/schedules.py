"""Schedules: the fraction of the connections that is rewired at a training step.

A schedule is any callable `schedule(step, total_steps)` that returns a fraction in [0, 1]. One that reads
`total_steps` says so by an attribute `needs_total_steps = True`; the others may be given None.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

from keras_selfish import checks
from keras_selfish.masks import check_sparsity

__all__ = ["SCHEDULES", "Constant", "Cosine", "Linear", "PolynomialDecay"]


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Decay from `rate` to `end_rate` along half a cosine: slow, fast, slow.

    Args:
        rate: Fraction at step 0.
        end_rate: Fraction at step `total_steps` and after it.

    Reference: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.
    """

    rate: float
    end_rate: float = 0.005
    needs_total_steps = True

    def __call__(self, step: int, total_steps: int) -> float:
        progress = min(step / total_steps, 1.0)
        return self.end_rate + (self.rate - self.end_rate) * (1.0 + math.cos(math.pi * progress)) / 2.0


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear decay from `rate` at step 0 to `end_rate` at step `total_steps`."""

    rate: float
    end_rate: float = 0.005
    needs_total_steps = True

    def __call__(self, step: int, total_steps: int) -> float:
        return self.rate + (self.end_rate - self.rate) * min(step / total_steps, 1.0)


@dataclasses.dataclass(frozen=True)
class Constant:
    """No decay: always `rate`. `end_rate` is ignored; accepted so that all schedules share one signature."""

    rate: float
    end_rate: float = 0.005
    needs_total_steps = False

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        return self.rate


# A name, or a function of the step and the number of steps.
Schedule: TypeAlias = Literal["cosine", "linear", "constant"] | Callable[[int, Any], float]

SCHEDULES = {"cosine": Cosine, "linear": Linear, "constant": Constant}


@dataclasses.dataclass(frozen=True)
class PolynomialDecay:
    """Sparsity over time for `GMP`: it rises fast, then slower, up to its final value.

    The same formula and arguments as `tfmot.sparsity.keras.PolynomialDecay`, without TensorFlow.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`.
        final_sparsity: Fraction of zeros at `end_step`.
        begin_step: First training step at which weights are pruned.
        end_step: Last training step at which weights are pruned.
        power: Exponent of the polynomial; 3, as published.
        frequency: Steps from one pruning to the next.

    Reference: Zhu and Gupta 2017, arXiv 1710.01878, equation 1.
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self):
        for name in ("initial_sparsity", "final_sparsity"):
            check_sparsity(getattr(self, name), name)
        checks.integer("frequency", self.frequency, at_least=1)
        checks.integer("begin_step", self.begin_step, at_least=0)
        advice = f"it must come after begin_step={self.begin_step}"
        checks.integer("end_step", self.end_step, at_least=self.begin_step + 1, advice=advice)

    def __call__(self, step: int) -> tuple[bool, float]:
        """Whether to prune at this step, and the sparsity to prune to."""
        since = step - self.begin_step
        due = self.begin_step <= step <= self.end_step and since % self.frequency == 0
        left = 1.0 - min(max(since / (self.end_step - self.begin_step), 0.0), 1.0)
        return due, self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * left**self.power


class PruningSchedule(Protocol):
    """The schedules that `GMP` takes: `PolynomialDecay`, or one of TensorFlow Model Optimization."""

    @property
    def begin_step(self) -> int:
        """First training step at which weights are pruned."""

    @property
    def end_step(self) -> int:
        """Last training step at which weights are pruned; -1 for no end."""

    @property
    def frequency(self) -> int:
        """Steps from one pruning to the next."""

    def __call__(self, step: int) -> tuple[Any, Any]:
        """Whether to prune at this step, and the sparsity to prune to."""
