"""Rewiring: connections that are dropped and grown while a model trains."""

from keras_selfish._lazy import lazy_attributes

_SOURCES = {
    "DSR": "methods",
    "GMP": "pruning",
    "GSE": "methods",
    "METHODS": "registry",
    "SET": "methods",
    "SNFS": "methods",
    "SNIP": "pruning",
    "MaskUpdates": "updates",
    "PolynomialDecay": "schedules",
    "Rewiring": "callback",
    "RigL": "methods",
    "SelfishRewiring": "methods",
    "Static": "methods",
}

__all__ = list(_SOURCES)

__getattr__ = lazy_attributes(__name__, _SOURCES)
