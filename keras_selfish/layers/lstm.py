"""Sparse long short-term memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish import recurrence
from keras_selfish.layers.forms import sparse_form_of
from keras_selfish.layers.recurrent import SparseCell, SparseRecurrent

if TYPE_CHECKING:
    from keras_selfish.layers.options import LSTMCellOptions, LSTMOptions


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.LSTMCell, without=("weight_drop",))
class SparseLSTMCell(SparseCell, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` with masked kernels.

    The kernel (inputs, 4 * units) and the recurrent kernel (units, 4 * units) each concatenate the gates
    i (input), f (forget), c (cell candidate) and o (output); the bias stays dense. At sparsity 0 it makes
    no mask and is Keras's cell.

    Args:
        units: Number of units.
        weight_drop: See `SparseLSTM`, which draws the dropped connections; by itself the cell does not.
        *args: As in `keras.layers.LSTMCell`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.LSTMCell`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide a kernel.
    """

    gates = ("i", "f", "c", "o")
    recurrence_class = recurrence.LSTM

    if TYPE_CHECKING:

        def __init__(self, units: int, *args: Any, **kwargs: Unpack[LSTMCellOptions]) -> None: ...


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.LSTM, without=("weight_drop",))
class SparseLSTM(SparseRecurrent, keras.layers.LSTM):
    """`keras.layers.LSTM` whose kernels are sparse from the first step on.

    The masks are drawn with an exact number of connections when the layer is built, saved with it, and
    moved during training by `SelfishRewiring`, which lets the gates compete for the connections of the
    layer. Everything else is Keras's: cuDNN where it applies, `Bidirectional` (each direction with masks
    of its own), padded steps, states, dropout and mixed precision. At sparsity 0 the layer makes no
    mask and computes what `keras.layers.LSTM` computes.

    Args:
        units: Number of units.
        weight_drop: Fraction of recurrent connections that each call in training does without, in [0, 1);
            the others are scaled by 1 / (1 - weight_drop). Default 0.
        *args: As in `keras.layers.LSTM`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.LSTM`.

    Call arguments: as in `keras.layers.LSTM`: inputs (batch, time steps, features); outputs (batch, units),
        or (batch, time steps, units) with `return_sequences`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide a kernel.

    Example:

    >>> import numpy as np
    >>> layer = SparseLSTM(8, sparsity=0.75, mask_seed=1)
    >>> layer(np.ones((2, 3, 4), "float32")).shape == (2, 8)
    True
    >>> from keras_selfish.masks import masked_weights
    >>> [(weight.shape, weight.active) for weight in masked_weights(layer)]
    [((4, 32), 32), ((8, 32), 64)]

    Reference: Liu et al. 2021, "Selfish Sparse RNN Training", arXiv 2101.09048; Merity et al. 2018,
        arXiv 1708.02182 (`weight_drop`).
    """

    cell_class = SparseLSTMCell
    cell_name = "lstm_cell"

    if TYPE_CHECKING:

        def __init__(self, units: int, *args: Any, **kwargs: Unpack[LSTMOptions]) -> None: ...
