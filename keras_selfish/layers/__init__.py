"""Keras layers whose weights are masked."""

from keras_selfish._lazy import load_all
from keras_selfish.layers.attention import SparseGroupQueryAttention, SparseMultiHeadAttention
from keras_selfish.layers.carried_state import CarriedState
from keras_selfish.layers.composite import SparseComposite
from keras_selfish.layers.convolution import (
    SparseConv1D,
    SparseConv1DTranspose,
    SparseConv2D,
    SparseConv2DTranspose,
    SparseConv3D,
    SparseConv3DTranspose,
    SparseDepthwiseConv1D,
    SparseDepthwiseConv2D,
    SparseSeparableConv1D,
    SparseSeparableConv2D,
)
from keras_selfish.layers.dense import SparseDense
from keras_selfish.layers.dropout import ActivationRegularization, LockedDropout
from keras_selfish.layers.einsum_dense import SparseEinsumDense
from keras_selfish.layers.embedding import SparseEmbedding, SparseReversibleEmbedding
from keras_selfish.layers.forms import sparse_form_of
from keras_selfish.layers.gru import SparseGRU, SparseGRUCell
from keras_selfish.layers.hoisted import HoistedCell, HoistedRNN
from keras_selfish.layers.lstm import SparseLSTM, SparseLSTMCell
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.layers.mixture_of_softmaxes import MixtureOfSoftmaxes
from keras_selfish.layers.on_lstm import SparseONLSTM, SparseONLSTMCell
from keras_selfish.layers.rhn import SparseRHN, SparseRHNCell
from keras_selfish.layers.simple_rnn import SparseSimpleRNN, SparseSimpleRNNCell
from keras_selfish.layers.switched_dense import SwitchedDense
from keras_selfish.layers.weight_drop import EmbeddingDropout, WeightDrop

__all__ = [
    "ActivationRegularization",
    "CarriedState",
    "EmbeddingDropout",
    "HoistedCell",
    "HoistedRNN",
    "LockedDropout",
    "MixtureOfSoftmaxes",
    "SparseComposite",
    "SparseConv1D",
    "SparseConv1DTranspose",
    "SparseConv2D",
    "SparseConv2DTranspose",
    "SparseConv3D",
    "SparseConv3DTranspose",
    "SparseDense",
    "SparseDepthwiseConv1D",
    "SparseDepthwiseConv2D",
    "SparseEinsumDense",
    "SparseEmbedding",
    "SparseGRU",
    "SparseGRUCell",
    "SparseGroupQueryAttention",
    "SparseLSTM",
    "SparseLSTMCell",
    "SparseLayer",
    "SparseMultiHeadAttention",
    "SparseONLSTM",
    "SparseONLSTMCell",
    "SparseRHN",
    "SparseRHNCell",
    "SparseReversibleEmbedding",
    "SparseSeparableConv1D",
    "SparseSeparableConv2D",
    "SparseSimpleRNN",
    "SparseSimpleRNNCell",
    "SwitchedDense",
    "WeightDrop",
    "sparse_form_of",
]

load_all(__name__)
