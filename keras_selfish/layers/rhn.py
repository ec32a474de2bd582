"""Sparse recurrent highway network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import keras
from keras import ops

from keras_selfish import checks, recurrence
from keras_selfish.layers.sparse_hoisted import SparseHoistedCell, SparseHoistedRNN
from keras_selfish.typing import Config, Shape, Tensor

if TYPE_CHECKING:
    from keras_selfish.layers.options import HighwayCellOptions, HighwayOptions
    from keras_selfish.recurrence.cells import RecurrentWeights


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseRHNCell(SparseHoistedCell):
    """The cell of `SparseRHN`.

    The kernel (inputs, gates * units) and one recurrent kernel (units, gates * units) for each depth each
    concatenate the gates h (candidate), t (transform) and, unless coupled, c (carry); in each matrix they
    compete for its connections. The bias (depth, gates * units) is dense.

    Args: see `SparseRHN`; those of the cell are all but the ones of `keras.layers.RNN`.
    """

    recurrence_class = recurrence.RHN

    def __init__(
        self,
        units: int,
        depth: int = 10,
        *,
        coupled: bool = True,
        transform_bias: float | None = -2.0,
        **kwargs: Unpack[HighwayCellOptions],
    ) -> None:
        depth = checks.integer("depth", depth, at_least=1)
        super().__init__(units, **kwargs)
        self.depth = depth
        self.coupled = bool(coupled)
        self.transform_bias = None if transform_bias is None else float(transform_bias)

    @property
    def gates(self) -> tuple[str, ...]:
        return ("h", "t") if self.coupled else ("h", "t", "c")

    def recurrence_options(self) -> dict[str, Any]:
        return {"depth": self.depth, "coupled": self.coupled}

    @property
    def recurrent_names(self) -> list[str]:
        return [f"recurrent_kernel_{index}" for index in range(self.depth)]

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (self.depth, len(self.gates) * self.units)

    def initial_bias(self, shape: Shape, dtype: str | None = None) -> Tensor:
        bias = self.bias_initializer(shape, dtype=dtype)
        if self.transform_bias is None:
            return bias
        before, _, after = ops.split(bias, [self.units, 2 * self.units], axis=1)
        transform = ops.full((self.depth, self.units), self.transform_bias, dtype=dtype)
        return ops.concatenate([before, transform, after], axis=1)

    def recurrent_weights(self) -> RecurrentWeights:
        kernels, bias, _ = super().recurrent_weights()
        if bias is None:
            return kernels, None, None
        first, *others = ops.unstack(bias)
        count = len(self.gates)
        return kernels, first, [[None] * count, *(ops.split(row, count) for row in others)]

    def get_config(self) -> Config:
        config = {"depth": self.depth, "coupled": self.coupled, "transform_bias": self.transform_bias}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseRHN(SparseHoistedRNN):
    """Recurrent highway network whose kernels are sparse from the first step on.

    Within a time step the state s passes through `depth` highway layers, of which the first one sees the
    input, too:

        h = tanh(x W_h + s R_h + b_h)        t = sigmoid(x W_t + s R_t + b_t)
        s <- h * t + s * c                   c = 1 - t, or a gate of its own

    Each depth has a recurrent kernel of its own, and so a mask and a budget of connections of its own,
    which its gates share as rewiring goes on. The input is projected once per sequence. In half precision
    the state is kept in float32. At sparsity 0 the layer makes no mask.

    Args:
        units: Number of units.
        depth: Number of highway layers in a time step. Default 10.
        coupled: Whether the carry gate is 1 - t (default) or has weights of its own.
        activation: Activation of the candidate h. Default `"tanh"`.
        recurrent_activation: Activation of the gates. Default `"sigmoid"`.
        use_bias: Whether each depth adds a bias. Default True.
        transform_bias: Initial bias of the transform gate: below zero the state is carried on at first.
            Default -2.0, that of Zilly et al. on the Penn Treebank (-4.0 on enwik8); None draws it from
            `bias_initializer`, as the biases of the other gates and as in the code of Liu et al. 2021.
        weight_drop: Fraction of the connections of the recurrent kernels dropped in training, drawn once per
            call. Default 0.
        dropout: Fraction of the input features dropped in training. Default 0.
        recurrent_dropout: Fraction of the state dropped, where the recurrent kernels see it, in training.
            Default 0. Both draw one mask per sequence, for all time steps, depths and gates.
        seed: Integer seed of dropout.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, initializers, regularizers and constraints
            as in `keras.layers.SimpleRNN` (`recurrent_*` holds for each depth), and the arguments of
            `keras.layers.RNN`.

    Call arguments: as in `keras.layers.RNN`: inputs (batch, time steps, features); outputs (batch, units),
        or (batch, time steps, units) with `return_sequences`; one state (batch, units).

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide a kernel.

    Example:

    >>> import numpy as np
    >>> layer = SparseRHN(8, depth=2, sparsity=0.75, mask_seed=1)
    >>> layer(np.ones((2, 3, 4), "float32")).shape == (2, 8)
    True
    >>> from keras_selfish.masks import masked_weights
    >>> [(weight.shape, weight.gates, weight.active) for weight in masked_weights(layer)]
    [((4, 16), ('h', 't'), 16), ((8, 16), ('h', 't'), 32), ((8, 16), ('h', 't'), 32)]

    Reference: Zilly et al. 2017, "Recurrent Highway Networks", arXiv 1607.03474, equations 6 to 9.
    """

    cell_class = SparseRHNCell
    cell_name = "rhn_cell"

    if TYPE_CHECKING:

        def __init__(self, units: int, depth: int = 10, **kwargs: Unpack[HighwayOptions]) -> None: ...
