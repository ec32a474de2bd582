"""Sparse fully connected recurrent network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish.layers.masked import MaskedAttribute
from keras_selfish.layers.recurrent import SparseCell, SparseRecurrent

if TYPE_CHECKING:
    from keras_selfish.layers.options import SimpleRNNCellOptions, SimpleRNNOptions


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseSimpleRNNCell(SparseCell, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` with masked kernels; it has no gates.

    Args: see `SparseLSTMCell` for `sparsity`, `distribution`, `block_shape`, `n_of_m`, `mask_seed` and
        `weight_drop`; the others are those of `keras.layers.SimpleRNNCell`.
    """

    keras_layer = keras.layers.SimpleRNNCell
    kernel = MaskedAttribute()
    recurrent_kernel = MaskedAttribute()

    if TYPE_CHECKING:

        def __init__(self, units: int, *args: Any, **kwargs: Unpack[SimpleRNNCellOptions]) -> None: ...


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseSimpleRNN(SparseRecurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` whose kernels are sparse from the first step on.

    Args: see `SparseLSTM` for `sparsity`, `distribution`, `block_shape`, `n_of_m`, `mask_seed` and
        `weight_drop`; the others are those of `keras.layers.SimpleRNN`.

    Example:

    >>> import numpy as np
    >>> SparseSimpleRNN(8, return_sequences=True)(np.ones((2, 3, 4), "float32")).shape == (2, 3, 8)
    True
    """

    keras_layer = keras.layers.SimpleRNN
    cell_class = SparseSimpleRNNCell
    cell_name = "simple_rnn_cell"

    if TYPE_CHECKING:

        def __init__(self, units: int, *args: Any, **kwargs: Unpack[SimpleRNNOptions]) -> None: ...
