"""Recurrent and other Keras networks that are sparse from the first training step to the served artifact.

Sparse layers (`SparseLSTM`, ...), the callback that rewires them (`SelfishRewiring`) and the averaging
optimizer (`SNTASGD`, `NonMonotonicAveraging`) compose in `model.fit`.
"""

from keras_selfish._lazy import lazy_attributes, load_with_keras
from keras_selfish.rewiring.registry import callback_modules
from keras_selfish.version import __version__

_SOURCES = {
    "SNTASGD": "optimizers",
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
    "SparseConv1D": "layers",
    "SparseConv1DTranspose": "layers",
    "SparseConv2D": "layers",
    "SparseConv2DTranspose": "layers",
    "SparseConv3D": "layers",
    "SparseConv3DTranspose": "layers",
    "SparseDense": "layers",
    "SparseDepthwiseConv1D": "layers",
    "SparseDepthwiseConv2D": "layers",
    "SparseEinsumDense": "layers",
    "SparseEmbedding": "layers",
    "SparseGRU": "layers",
    "SparseGRUCell": "layers",
    "SparseGroupQueryAttention": "layers",
    "SparseLSTM": "layers",
    "SparseLSTMCell": "layers",
    "SparseMultiHeadAttention": "layers",
    "SparseONLSTM": "layers",
    "SparseONLSTMCell": "layers",
    "SparseRHN": "layers",
    "SparseRHNCell": "layers",
    "SparseReversibleEmbedding": "layers",
    "SparseSeparableConv1D": "layers",
    "SparseSeparableConv2D": "layers",
    "SparseSimpleRNN": "layers",
    "SparseSimpleRNNCell": "layers",
    "SparsityConstraint": "switcher",
    "SwitchedDense": "layers",
    "SwitchedModel": "switcher",
    "SwitcherNetwork": "switcher",
    "TokenCrossEntropy": "models",
    "WeightDrop": "layers",
    "from_tfmot": "conversion",
    "image_classifier": "models",
    "language_model": "models",
    "masked_weights": "masks",
    "sparsify": "conversion",
    "strip": "export",
    **dict.fromkeys(callback_modules(), "rewiring"),
}

__all__ = ["__version__", *sorted(_SOURCES)]

__getattr__ = lazy_attributes(__name__, _SOURCES)

load_with_keras(__name__, _SOURCES)


def __dir__():
    return __all__
