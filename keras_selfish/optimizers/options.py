"""Further arguments of optimizers, by name, for annotations of `**kwargs`."""

from typing import TypedDict


class OptimizerOptions(TypedDict, total=False):
    """Arguments of `keras.optimizers.Optimizer` that optimizers of this package pass on."""

    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
