"""Rewiring: connections that are dropped and grown while a model trains."""

from keras_selfish._lazy import lazy_attributes
from keras_selfish.rewiring.registry import callback_modules

_SOURCES = {
    "METHODS": "registry",
    "MaskUpdates": "updates",
    "PolynomialDecay": "schedules",
    "Rewiring": "callback",
    **{name: module.removeprefix(f"{__name__}.") for name, module in callback_modules().items()},
}

__all__ = sorted(_SOURCES)

__getattr__ = lazy_attributes(__name__, _SOURCES)
