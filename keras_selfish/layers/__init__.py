"""Keras layers whose weights are masked."""

from keras_selfish.layers.carried_state import CarriedState
from keras_selfish.layers.dense import SparseDense
from keras_selfish.layers.embedding import SparseEmbedding, SparseReversibleEmbedding
from keras_selfish.layers.gru import SparseGRU, SparseGRUCell
from keras_selfish.layers.hoisted import HoistedCell, HoistedRNN
from keras_selfish.layers.lstm import SparseLSTM, SparseLSTMCell
from keras_selfish.layers.simple_rnn import SparseSimpleRNN, SparseSimpleRNNCell
from keras_selfish.layers.switched_dense import SwitchedDense

__all__ = [
    "CarriedState",
    "HoistedCell",
    "HoistedRNN",
    "SparseDense",
    "SparseEmbedding",
    "SparseGRU",
    "SparseGRUCell",
    "SparseLSTM",
    "SparseLSTMCell",
    "SparseReversibleEmbedding",
    "SparseSimpleRNN",
    "SparseSimpleRNNCell",
    "SwitchedDense",
]
