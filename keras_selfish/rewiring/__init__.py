"""Rewiring: connections that are dropped and grown while a model trains."""

from keras_selfish.rewiring.callback import Rewiring
from keras_selfish.rewiring.methods import DSR, GSE, METHODS, SET, SNFS, RigL, SelfishRewiring, Static
from keras_selfish.rewiring.pruning import GMP, SNIP
from keras_selfish.rewiring.schedules import PolynomialDecay
from keras_selfish.rewiring.updates import MaskUpdates

__all__ = [
    "DSR",
    "GMP",
    "GSE",
    "METHODS",
    "SET",
    "SNFS",
    "SNIP",
    "MaskUpdates",
    "PolynomialDecay",
    "Rewiring",
    "RigL",
    "SelfishRewiring",
    "Static",
]
