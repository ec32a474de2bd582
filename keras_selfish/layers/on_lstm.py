"""Sparse long short-term memory with ordered neurons."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

import keras
from keras import ops

from keras_selfish import checks, recurrence
from keras_selfish.layers.sparse_hoisted import SparseHoistedCell, SparseHoistedRNN
from keras_selfish.typing import Config, OpenShape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import OrderedCellOptions, OrderedOptions

SCALINGS = ("training", "inference")


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseONLSTMCell(SparseHoistedCell):
    """The cell of `SparseONLSTM`.

    The kernel (inputs, width) and the recurrent kernel (units, width) each concatenate, in the order of the
    published code, the gates `master_input` and `master_forget` of units / chunk_size columns each, and
    o (output), c (cell candidate), i (input) and f (forget) of `units` columns each. The bias is dense.

    Args: see `SparseONLSTM`; those of the cell are all but `return_distances` and the ones of
        `keras.layers.RNN`. `weight_drop` needs the layer, which draws once per sequence.
    """

    gates = ("master_input", "master_forget", "o", "c", "i", "f")
    recurrence_class = recurrence.ONLSTM
    # The loop gives back one tensor a step: for a layer that returns them, the distances stand behind h, in
    # the state, too, since on JAX the output of a padded step is the first state.
    appends_distances = False

    def __init__(
        self,
        units: int,
        chunk_size: int = 10,
        *,
        weight_drop_scaling: Literal["training", "inference"] = "training",
        **kwargs: Unpack[OrderedCellOptions],
    ) -> None:
        chunk_size = checks.integer("chunk_size", chunk_size, at_least=1)
        if units % chunk_size:
            raise ValueError(
                "`chunk_size` must be a positive integer that divides `units`. "
                f"Received: chunk_size={chunk_size!r}, units={units}"
            )
        checks.one_of("weight_drop_scaling", weight_drop_scaling, SCALINGS)
        super().__init__(units, **kwargs)
        self.chunk_size = chunk_size
        self.weight_drop_scaling = weight_drop_scaling
        self.state_size = [units, units]

    @property
    def gate_sizes(self) -> tuple[int, ...]:
        return (self.units // self.chunk_size,) * 2 + (self.units,) * 4

    def recurrence_options(self) -> dict[str, Any]:
        return {"chunk_size": self.chunk_size}

    def step(
        self, projected: TensorLike, states: Sequence[Tensor], training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        states, kept = self.computed(projected, [states[0][:, : self.units], states[1]], training)
        if self.appends_distances:
            # Of the forget gate and the input gate, of which the input's falls from 1.
            distances = [1 - ops.mean(ops.cumsum(shares, -1), -1, keepdims=True) for shares in kept[1::-1]]
            states[0] = ops.concatenate([states[0], *distances], -1)
        return ops.cast(states[0], self.compute_dtype), states

    @contextlib.contextmanager
    def effective_weights(self, training: bool = False) -> Iterator[None]:
        """As in the base class; scaled in inference, dropped weights are smaller by as much in training."""
        with super().effective_weights(training=training):
            scaled = (
                self.dropped_names if self.weight_drop_scaling == "inference" and self.weight_drop else ()
            )
            kept = {name: self.in_use(name) * (1 - self.weight_drop) for name in scaled}
            with self._computed_weights(self._effective | kept):
                yield

    def get_config(self) -> Config:
        own = {"chunk_size": self.chunk_size, "weight_drop_scaling": self.weight_drop_scaling}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseONLSTM(SparseHoistedRNN):
    """LSTM with ordered neurons whose kernels are sparse from the first step on.

    Two master gates, cumulative sums of a softmax over chunks of units, order the cell state: of each
    state a lower part is written anew and an upper part kept, so that units high up remember for longer.
    With cumax(x) = cumsum(softmax(x)), logistic gates i, f, o and the candidate c~ of an LSTM:

        m_f = cumax(...)     m_i = 1 - cumax(...)     w = m_f * m_i
        c <- (f * w + m_f - w) * c + (i * w + m_i - w) * c~          h = o * tanh(c)

    The input is projected once per sequence. In half precision states and gates are float32. At sparsity 0
    the layer makes no mask.

    Args:
        units: Number of units.
        chunk_size: How many units share an entry of the master gates; it must divide `units`. Default 10.
        activation: Activation of the candidate and of the cell state. Default `"tanh"`.
        recurrent_activation: Activation of the gates i, f, o. Default `"sigmoid"`.
        use_bias: Whether the gates have a bias. Default True.
        weight_drop: Fraction of the recurrent kernel's weights dropped in training, drawn once per call
            (DropConnect), and none in inference. Default 0.
        weight_drop_scaling: Where the loss is made good: in `"training"` (default), where the weights that
            are left are multiplied by 1 / (1 - weight_drop), as in `SparseLSTM`; or in `"inference"`, where
            all are multiplied by 1 - weight_drop, as in the published code. Weights of the same function are
            smaller by that factor in the first form, and steps on them shorter by its square.
        dropout: Fraction of the input features dropped in training. Default 0.
        recurrent_dropout: Fraction of the state h dropped, where the recurrent kernel sees it, in training.
            Default 0. Both draw one mask per sequence, for all time steps and gates.
        return_distances: Whether to return, after outputs and states, two tensors (batch, time steps): the
            forget distance 1 - mean(m_f), high where a constituent ends, and the input distance mean(m_i).
            Needs `return_sequences`; not within a `Bidirectional`. Default False.
        seed: Integer seed of dropout.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, initializers, regularizers and constraints
            as in `keras.layers.SimpleRNN`, and the arguments of `keras.layers.RNN`.

    Call arguments: as in `keras.layers.RNN`: inputs (batch, time steps, features); outputs (batch, units),
        or (batch, time steps, units) with `return_sequences`; two states h and c (batch, units).

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide a kernel.

    Example:

    >>> import numpy as np
    >>> layer = SparseONLSTM(8, chunk_size=4, sparsity=0.75, return_sequences=True, return_distances=True)
    >>> outputs, forget_distance, input_distance = layer(np.ones((2, 3, 4), "float32"))
    >>> outputs.shape == (2, 3, 8), forget_distance.shape == (2, 3)
    (True, True)
    >>> from keras_selfish.masks import masked_weights
    >>> [(weight.shape, weight.active) for weight in masked_weights(layer)]
    [((4, 36), 36), ((8, 36), 72)]

    Reference: Shen et al. 2019, "Ordered Neurons", arXiv 1810.09536, equations 9 to 14.
    """

    cell_class = SparseONLSTMCell
    cell_name = "on_lstm_cell"

    def __init__(
        self, units: int, *args: int, return_distances: bool = False, **kwargs: Unpack[OrderedOptions]
    ) -> None:
        super().__init__(units, *args, **kwargs)
        if return_distances and not self.return_sequences:
            raise ValueError(
                "`return_distances` needs return_sequences=True, since each time step has its distances. "
                "Received: return_distances=True, return_sequences=False"
            )
        self.return_distances = bool(return_distances)
        self.cell.appends_distances = self.return_distances

    def _whole_sequence_applies(self, mask, training):
        return not self.return_distances and super()._whole_sequence_applies(mask, training)

    def inner_loop(
        self,
        sequences: TensorLike,
        initial_state: Sequence[Tensor],
        mask: TensorLike | None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        if not self.return_distances:
            return super().inner_loop(sequences, initial_state, mask, training=training)
        h, c = initial_state
        initial_state = [ops.pad(h, [[0, 0], [0, 2]]), c]
        last, outputs, (h, c) = super().inner_loop(sequences, initial_state, mask, training=training)
        return last, outputs, [h[:, : self.units], c]

    def call(
        self,
        sequences: TensorLike,
        initial_state: Sequence[TensorLike] | None = None,
        mask: TensorLike | None = None,
        training: bool = False,
    ) -> Any:
        results = super().call(sequences, initial_state=initial_state, mask=mask, training=training)
        if not self.return_distances:
            return results
        outputs, *states = results if self.return_state else [results]
        outputs, forget, input_ = ops.split(outputs, [self.units, self.units + 1], axis=-1)
        return outputs, *states, ops.squeeze(forget, -1), ops.squeeze(input_, -1)

    def compute_output_shape(self, sequences_shape: OpenShape, initial_state_shape: Any = None) -> Any:
        shape = super().compute_output_shape(sequences_shape)
        if not self.return_distances:
            return shape
        distances = tuple(sequences_shape[:2])
        return (*(shape if self.return_state else [shape]), distances, distances)

    def compute_mask(self, inputs: Any, mask: Any) -> Any:
        output_mask = super().compute_mask(inputs, mask)
        if not self.return_distances:
            return output_mask
        return [*(output_mask if self.return_state else [output_mask]), None, None]

    def get_config(self) -> Config:
        return {**super().get_config(), "return_distances": self.return_distances}
