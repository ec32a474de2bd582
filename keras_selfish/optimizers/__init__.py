"""Optimizers for sparse training, and what they need to know of masks."""

from keras_selfish._lazy import load_all
from keras_selfish.optimizers.averaging import NonMonotonicAveraging
from keras_selfish.optimizers.protocol import Averaging, MaskedState
from keras_selfish.optimizers.snt_asgd import SNTASGD

__all__ = ["SNTASGD", "Averaging", "MaskedState", "NonMonotonicAveraging"]

load_all(__name__)
