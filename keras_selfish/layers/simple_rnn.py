"""Sparse fully connected recurrent network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish.layers.forms import sparse_form_of
from keras_selfish.layers.recurrent import SparseCell, SparseRecurrent

if TYPE_CHECKING:
    from keras_selfish.layers.options import SimpleRNNCellOptions, SimpleRNNOptions


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.SimpleRNNCell, without=("weight_drop",))
class SparseSimpleRNNCell(SparseCell, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` with masked kernels; it has no gates.

    Args: `sparsity` and the other arguments of `MaskSpec`, `weight_drop`, and those of
        `keras.layers.SimpleRNNCell`.
    """

    if TYPE_CHECKING:

        def __init__(self, units: int, *args: Any, **kwargs: Unpack[SimpleRNNCellOptions]) -> None: ...


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.SimpleRNN, without=("weight_drop",))
class SparseSimpleRNN(SparseRecurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` whose kernels are sparse from the first step on.

    Args: `sparsity` and the other arguments of `MaskSpec`, `weight_drop` (see `SparseLSTM`), and those of
        `keras.layers.SimpleRNN`.

    Example:

    >>> import numpy as np
    >>> SparseSimpleRNN(8, return_sequences=True)(np.ones((2, 3, 4), "float32")).shape == (2, 3, 8)
    True
    """

    cell_class = SparseSimpleRNNCell
    cell_name = "simple_rnn_cell"

    if TYPE_CHECKING:

        def __init__(self, units: int, *args: Any, **kwargs: Unpack[SimpleRNNOptions]) -> None: ...
