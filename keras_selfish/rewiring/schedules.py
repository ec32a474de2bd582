"""Schedules: which fraction of the connections is rewired at a training step.

A schedule is any callable `schedule(step, total_steps)` that returns a fraction in [0, 1]. One that reads
`total_steps` says so by an attribute `needs_total_steps = True`; the others may be given None.
"""

import dataclasses
import math

__all__ = ["SCHEDULES", "Constant", "Cosine", "Linear"]


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Falls from `rate` to `end_rate` along half a cosine: slowly, fast, slowly.

    Args:
        rate: Fraction at step 0.
        end_rate: Fraction at step `total_steps` and after it.

    Reference: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.
    """

    rate: float
    end_rate: float = 0.005
    needs_total_steps = True

    def __call__(self, step, total_steps):
        progress = min(step / total_steps, 1.0)
        return self.end_rate + (self.rate - self.end_rate) * (1.0 + math.cos(math.pi * progress)) / 2.0


@dataclasses.dataclass(frozen=True)
class Linear:
    """Falls from `rate` at step 0 to `end_rate` at step `total_steps` along a line."""

    rate: float
    end_rate: float = 0.005
    needs_total_steps = True

    def __call__(self, step, total_steps):
        return self.rate + (self.end_rate - self.rate) * min(step / total_steps, 1.0)


@dataclasses.dataclass(frozen=True)
class Constant:
    """Stays at `rate`; `end_rate` is not used."""

    rate: float
    end_rate: float = 0.005
    needs_total_steps = False

    def __call__(self, step, total_steps=None):
        return self.rate


SCHEDULES = {"cosine": Cosine, "linear": Linear, "constant": Constant}
