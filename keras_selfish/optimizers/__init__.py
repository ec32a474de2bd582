"""Optimizers for sparse training, and what other optimizers need for it."""

from keras_selfish._lazy import load_all
from keras_selfish.optimizers.averaging import NonMonotonicAveraging
from keras_selfish.optimizers.protocol import Averaging, MaskedState
from keras_selfish.optimizers.snt_asgd import SNTASGD

__all__ = ["SNTASGD", "Averaging", "MaskedState", "NonMonotonicAveraging"]

load_all(__name__)
