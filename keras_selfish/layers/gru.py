"""Sparse gated recurrent unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import keras
from keras import ops

from keras_selfish import recurrence
from keras_selfish.layers.forms import sparse_form_of
from keras_selfish.layers.recurrent import SparseCell, SparseRecurrent
from keras_selfish.recurrence.cells import wide_dtype

if TYPE_CHECKING:
    from keras_selfish.layers.options import GRUCellOptions, GRUOptions
    from keras_selfish.recurrence.cells import RecurrentWeights


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.GRUCell, without=("weight_drop",))
class SparseGRUCell(SparseCell, keras.layers.GRUCell):
    """`keras.layers.GRUCell` with masked kernels; the gates are z (update), r (reset) and h (candidate).

    Args: `sparsity` and the other arguments of `MaskSpec`, `weight_drop`, and those of
        `keras.layers.GRUCell`.
    """

    gates = ("z", "r", "h")
    recurrence_class = recurrence.GRU

    if TYPE_CHECKING:

        def __init__(self, units: int, *args: Any, **kwargs: Unpack[GRUCellOptions]) -> None: ...

    def recurrence_options(self) -> dict[str, Any]:
        return {"reset_after": self.reset_after}

    def recurrent_weights(self) -> RecurrentWeights:
        kernels, bias, _ = super().recurrent_weights()
        if not self.reset_after:
            return ops.split(kernels[0], [2 * self.units], axis=1), bias, None
        if bias is None:
            return kernels, None, None
        # Outside of the loop all biases can be added but the one that the reset gate multiplies.
        bias, recurrent_bias = ops.unstack(ops.cast(bias, wide_dtype(bias.dtype)))
        gates, candidate = ops.split(recurrent_bias, [2 * self.units])
        return kernels, bias + ops.pad(gates, [[0, self.units]]), [[None, None, candidate]]


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.GRU, without=("weight_drop",))
class SparseGRU(SparseRecurrent, keras.layers.GRU):
    """`keras.layers.GRU` whose kernels are sparse from the first step on.

    Args: `sparsity` and the other arguments of `MaskSpec`, `weight_drop` (see `SparseLSTM`), and those of
        `keras.layers.GRU`.

    Example:

    >>> import numpy as np
    >>> SparseGRU(8, return_sequences=True)(np.ones((2, 3, 4), "float32")).shape == (2, 3, 8)
    True
    """

    cell_class = SparseGRUCell
    cell_name = "gru_cell"

    if TYPE_CHECKING:

        def __init__(self, units: int, *args: Any, **kwargs: Unpack[GRUOptions]) -> None: ...
