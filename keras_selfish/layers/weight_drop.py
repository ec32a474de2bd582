"""The layers' own dropout of connections and words, by the names of the AWD-LSTM.

Functions that return a layer, as `keras.Input` is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_selfish.cloning import config_of, from_config
from keras_selfish.layers.dropout import check_rate
from keras_selfish.layers.embedding import SparseEmbedding, SparseReversibleEmbedding
from keras_selfish.layers.gru import SparseGRU
from keras_selfish.layers.lstm import SparseLSTM
from keras_selfish.layers.simple_rnn import SparseSimpleRNN

if TYPE_CHECKING:
    import keras


def WeightDrop(layer: keras.layers.RNN, rate: float) -> keras.layers.RNN:
    """The same recurrent layer with DropConnect on its recurrent kernel (of an RHN: on all of them).

    In training each call drops other connections, the same ones at all time steps, and scales what is left by
    1 / (1 - rate); of a masked kernel, the existing connections. `WeightDrop(SparseLSTM(8), 0.5)` is
    `SparseLSTM(8, weight_drop=0.5)`.

    Args:
        layer: Recurrent layer of this package, or `keras.layers.LSTM`, `GRU` or `SimpleRNN`, which becomes
            its sparse form with all connections. It must not have weights yet, and is left as it is.
        rate: Fraction of the connections to drop, in [0, 1).

    Returns:
        A new layer, with the name and all other arguments of `layer`.

    Raises:
        ValueError: for another kind of layer, one that has weights already, or a rate out of range.

    Example:

    >>> import keras
    >>> WeightDrop(keras.layers.LSTM(8), 0.5).weight_drop
    0.5

    Reference: Wan et al. 2013, "Regularization of neural networks using DropConnect"; Merity et al. 2018,
    arXiv 1708.02182, section 2.
    """
    return _with_rate(layer, "weight_drop", rate, (SparseLSTM, SparseGRU, SparseSimpleRNN))


def EmbeddingDropout(
    layer: keras.layers.Embedding, rate: float
) -> SparseEmbedding | SparseReversibleEmbedding:
    """The same embedding with dropout of words: in training each call does without some of the vocabulary.

    A dropped word's embedding is zero wherever the word stands, and the others are scaled by 1 / (1 - rate).
    `EmbeddingDropout(SparseEmbedding(9, 4), 0.1)` is `SparseEmbedding(9, 4, embedding_dropout=0.1)`.

    Args:
        layer: Embedding of this package, or `keras.layers.Embedding` or `ReversibleEmbedding`, which becomes
            its sparse form with all connections. It must not have weights yet, and is left as it is.
        rate: Fraction of the vocabulary to drop, in [0, 1).

    Returns:
        A new layer, with the name and all other arguments of `layer`.

    Raises:
        ValueError: for another kind of layer, one that has weights already, or a rate out of range.

    Example:

    >>> import keras
    >>> EmbeddingDropout(keras.layers.Embedding(9, 4), 0.1).embedding_dropout
    0.1

    Reference: Gal and Ghahramani 2016, arXiv 1512.05287; Merity et al. 2018, arXiv 1708.02182, section 4.3.
    """
    return _with_rate(layer, "embedding_dropout", rate, (SparseEmbedding, SparseReversibleEmbedding))


def _with_rate(layer, argument, rate, sparse_classes):
    rate = check_rate(rate)
    sparse_forms = {sparse_class.plain_class: sparse_class for sparse_class in sparse_classes}
    if type(layer) not in sparse_forms and not hasattr(layer, argument):
        raise ValueError(
            f"`layer` must have the argument `{argument}`, or be one of Keras's layers "
            f"{', '.join(each.__name__ for each in sparse_forms)}. Received: layer={layer!r}"
        )
    if layer.weights:
        raise ValueError(
            "`layer` must not have weights yet, for it is made anew. "
            f"Received: layer={layer!r}, which has {len(layer.weights)}"
        )
    config = {**config_of(layer), argument: rate}
    if type(layer) not in sparse_forms:
        return from_config(type(layer), config)
    return from_config(sparse_forms[type(layer)], {**config, "sparsity": 0.0})
