"""Further arguments of `Rewiring`, by name, for annotations of the `**kwargs` of methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from keras_selfish.rewiring.gradients import GradientData
    from keras_selfish.rewiring.rules import DropRule, GrowRule, RedistributionRule
    from keras_selfish.rewiring.schedules import Schedule


class RewiringOptions(TypedDict, total=False):
    """Arguments of `Rewiring` but the pruning rate, of which each method has its own default."""

    schedule: Schedule
    end_rate: float
    frequency: int | Literal["epoch"]
    end_step: int | None
    total_steps: int | None
    stop_fraction: float
    drop: DropRule
    drop_scope: Literal["matrix", "model"]
    grow: GrowRule
    redistribution: RedistributionRule | None
    gradient_data: GradientData | None
    reset_regrown: bool
    seed: int
