"""Recurrent and other Keras networks that are sparse from the first training step to the served artifact.

Sparse layers (`SparseLSTM`, ...), the callback that rewires them (`SelfishRewiring`) and the averaging
optimizer (`SNTASGD`, `NonMonotonicAveraging`) compose in `model.fit`.
"""

from keras_selfish._lazy import lazy_attributes, load_with_keras
from keras_selfish.version import __version__

_SOURCES = {
    "DSR": "rewiring",
    "GMP": "rewiring",
    "GSE": "rewiring",
    "SET": "rewiring",
    "SNFS": "rewiring",
    "SNIP": "rewiring",
    "ActivationRegularization": "layers",
    "AlternatingOptimizer": "switcher",
    "CarriedState": "layers",
    "EmbeddingDropout": "layers",
    "HoistedCell": "layers",
    "HoistedRNN": "layers",
    "LanguageModel": "models",
    "LockedDropout": "layers",
    "MaskedWeight": "masks",
    "MixtureOfSoftmaxes": "layers",
    "NonMonotonicAveraging": "optimizers",
    "Perplexity": "models",
    "PolynomialDecay": "rewiring",
    "Rewiring": "rewiring",
    "RigL": "rewiring",
    "SNTASGD": "optimizers",
    "SelfishRewiring": "rewiring",
    "SparseConv1D": "layers",
    "SparseConv2D": "layers",
    "SparseDense": "layers",
    "SparseDepthwiseConv2D": "layers",
    "SparseEinsumDense": "layers",
    "SparseEmbedding": "layers",
    "SparseGRU": "layers",
    "SparseGRUCell": "layers",
    "SparseLSTM": "layers",
    "SparseLSTMCell": "layers",
    "SparseONLSTM": "layers",
    "SparseONLSTMCell": "layers",
    "SparseRHN": "layers",
    "SparseRHNCell": "layers",
    "SparseReversibleEmbedding": "layers",
    "SparseSimpleRNN": "layers",
    "SparseSimpleRNNCell": "layers",
    "SparsityConstraint": "switcher",
    "SwitchedDense": "layers",
    "SwitchedModel": "switcher",
    "SwitcherNetwork": "switcher",
    "TokenCrossEntropy": "models",
    "Static": "rewiring",
    "WeightDrop": "layers",
    "from_tfmot": "conversion",
    "image_classifier": "models",
    "language_model": "models",
    "masked_weights": "masks",
    "sparsify": "conversion",
    "strip": "export",
}

__all__ = ["__version__", *sorted(_SOURCES)]

__getattr__ = lazy_attributes(__name__, _SOURCES)

load_with_keras(__name__, _SOURCES)


def __dir__():
    return __all__
