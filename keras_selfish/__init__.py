"""Recurrent and other Keras networks that are sparse from the first training step to the served artifact.

Sparse layers (`SparseLSTM`, ...), the callback that rewires them (`SelfishRewiring`) and the averaging
optimizer (`SNTASGD`, `NonMonotonicAveraging`) compose in `model.fit`.
"""

from typing import TYPE_CHECKING

from keras_selfish._lazy import lazy_attributes, load_with_keras
from keras_selfish.rewiring.registry import callback_modules
from keras_selfish.version import __version__

if TYPE_CHECKING:
    # What editors and type checkers read of the names that load lazily; `as` exports them.
    from keras_selfish.conversion import from_tfmot as from_tfmot
    from keras_selfish.conversion.sparsify import sparsify as sparsify
    from keras_selfish.export.strip import strip as strip
    from keras_selfish.layers import ActivationRegularization as ActivationRegularization
    from keras_selfish.layers import CarriedState as CarriedState
    from keras_selfish.layers import EmbeddingDropout as EmbeddingDropout
    from keras_selfish.layers import HoistedCell as HoistedCell
    from keras_selfish.layers import HoistedRNN as HoistedRNN
    from keras_selfish.layers import LockedDropout as LockedDropout
    from keras_selfish.layers import MixtureOfSoftmaxes as MixtureOfSoftmaxes
    from keras_selfish.layers import SparseConv1D as SparseConv1D
    from keras_selfish.layers import SparseConv1DTranspose as SparseConv1DTranspose
    from keras_selfish.layers import SparseConv2D as SparseConv2D
    from keras_selfish.layers import SparseConv2DTranspose as SparseConv2DTranspose
    from keras_selfish.layers import SparseConv3D as SparseConv3D
    from keras_selfish.layers import SparseConv3DTranspose as SparseConv3DTranspose
    from keras_selfish.layers import SparseDense as SparseDense
    from keras_selfish.layers import SparseDepthwiseConv1D as SparseDepthwiseConv1D
    from keras_selfish.layers import SparseDepthwiseConv2D as SparseDepthwiseConv2D
    from keras_selfish.layers import SparseEinsumDense as SparseEinsumDense
    from keras_selfish.layers import SparseEmbedding as SparseEmbedding
    from keras_selfish.layers import SparseGroupQueryAttention as SparseGroupQueryAttention
    from keras_selfish.layers import SparseGRU as SparseGRU
    from keras_selfish.layers import SparseGRUCell as SparseGRUCell
    from keras_selfish.layers import SparseLSTM as SparseLSTM
    from keras_selfish.layers import SparseLSTMCell as SparseLSTMCell
    from keras_selfish.layers import SparseMultiHeadAttention as SparseMultiHeadAttention
    from keras_selfish.layers import SparseONLSTM as SparseONLSTM
    from keras_selfish.layers import SparseONLSTMCell as SparseONLSTMCell
    from keras_selfish.layers import SparseReversibleEmbedding as SparseReversibleEmbedding
    from keras_selfish.layers import SparseRHN as SparseRHN
    from keras_selfish.layers import SparseRHNCell as SparseRHNCell
    from keras_selfish.layers import SparseSeparableConv1D as SparseSeparableConv1D
    from keras_selfish.layers import SparseSeparableConv2D as SparseSeparableConv2D
    from keras_selfish.layers import SparseSimpleRNN as SparseSimpleRNN
    from keras_selfish.layers import SparseSimpleRNNCell as SparseSimpleRNNCell
    from keras_selfish.layers import SwitchedDense as SwitchedDense
    from keras_selfish.layers import WeightDrop as WeightDrop
    from keras_selfish.mask_spec import MaskSpec as MaskSpec
    from keras_selfish.masks import MaskedWeight as MaskedWeight
    from keras_selfish.masks import masked_weights as masked_weights
    from keras_selfish.models import LanguageModel as LanguageModel
    from keras_selfish.models import Perplexity as Perplexity
    from keras_selfish.models import TokenCrossEntropy as TokenCrossEntropy
    from keras_selfish.models import image_classifier as image_classifier
    from keras_selfish.models import language_model as language_model
    from keras_selfish.optimizers import SNTASGD as SNTASGD
    from keras_selfish.optimizers import NonMonotonicAveraging as NonMonotonicAveraging
    from keras_selfish.rewiring import DSR as DSR
    from keras_selfish.rewiring import GMP as GMP
    from keras_selfish.rewiring import GSE as GSE
    from keras_selfish.rewiring import SET as SET
    from keras_selfish.rewiring import SNFS as SNFS
    from keras_selfish.rewiring import SNIP as SNIP
    from keras_selfish.rewiring import PolynomialDecay as PolynomialDecay
    from keras_selfish.rewiring import Rewiring as Rewiring
    from keras_selfish.rewiring import RigL as RigL
    from keras_selfish.rewiring import SelfishRewiring as SelfishRewiring
    from keras_selfish.rewiring import Static as Static
    from keras_selfish.switcher import AlternatingOptimizer as AlternatingOptimizer
    from keras_selfish.switcher import SparsityConstraint as SparsityConstraint
    from keras_selfish.switcher import SwitchedModel as SwitchedModel
    from keras_selfish.switcher import SwitcherNetwork as SwitcherNetwork

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
    "MaskSpec": "mask_spec",
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

if not TYPE_CHECKING:  # to a type checker any name would be one of them
    __getattr__ = lazy_attributes(__name__, _SOURCES)

load_with_keras(__name__, _SOURCES)


def __dir__():
    return __all__
