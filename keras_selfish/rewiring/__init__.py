"""Rewiring: connections that are dropped and grown while a model trains."""

from keras_selfish.rewiring.callback import Rewiring, SelfishRewiring

__all__ = ["Rewiring", "SelfishRewiring"]
