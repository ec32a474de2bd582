"""From dense models, and from models that were pruned elsewhere, to sparse ones."""

# Imported at once: `sparsify` names a module too, and whichever is bound last stays.
from keras_selfish._lazy import load_all
from keras_selfish.conversion.sparsify import sparsify
from keras_selfish.conversion.tfmot import from_tfmot

__all__ = ["from_tfmot", "sparsify"]

load_all(__name__)
