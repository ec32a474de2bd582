"""Recurrent cells whose input projection is computed once per sequence, outside of the time loop."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import keras

from keras_selfish.typing import Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import RNNOptions

# Not an attribute of the cell: two threads may run the same model, one of them outside of its loop.
_projected_cells: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar(
    "cells whose inputs have been projected", default=()
)


class HoistedCell:
    """Mixin, placed before a Keras layer class, for a recurrent cell that declares its input projection.

    A cell reads its inputs through a matrix product that does not depend on the states. Done for all time
    steps at once it is one large product, and so is the gradient of its kernel; inside the loop it would be
    many small ones, each with a gradient of the size of the kernel to be added up.

    The cell defines `project_inputs` and `step` in place of `call`. In `HoistedRNN` the projection then
    leaves the loop; in a plain `keras.layers.RNN` the cell gives the same numbers, projecting at each step.
    """

    compute_dtype: str  # of the Keras layer that it is placed before

    def project_inputs(self, inputs: TensorLike, training: bool = False) -> Tensor:
        """What of a time step depends on the inputs alone.

        Args:
            inputs: `(batch, time, features)`; or `(batch, features)`, where the loop is not ours.
            training: Whether dropout, if any, is on.

        Returns:
            The projection, with the same leading dimensions.
        """
        raise ValueError(f"{type(self).__name__} must define `project_inputs`.")

    def step(
        self, projected: TensorLike, states: Sequence[Tensor], training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """A time step of the cell.

        Args:
            projected: What `project_inputs` gives for this step, `(batch, width)`.
            states: List of states, as in the `call` of a Keras cell.
            training: Whether dropout, if any, is on.

        Returns:
            `(output, new_states)`.
        """
        raise ValueError(f"{type(self).__name__} must define `step`.")

    def call(
        self, inputs: TensorLike, states: Sequence[Tensor], training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        if not any(cell is self for cell in _projected_cells.get()):
            inputs = self.project_inputs(inputs, training=training)
        return self.step(inputs, states, training=training)

    @contextlib.contextmanager
    def inputs_projected(self) -> Iterator[None]:
        """Within the block the cell takes its inputs for projected ones."""
        token = _projected_cells.set((*_projected_cells.get(), self))
        try:
            yield
        finally:
            _projected_cells.reset(token)


@keras.saving.register_keras_serializable(package="keras_selfish")
class HoistedRNN(keras.layers.RNN):
    """`keras.layers.RNN` that projects the inputs of all time steps in one product.

    The loop is Keras's: padded steps, `go_backwards`, `unroll`, states, on every backend.

    Args:
        cell: A cell that is a `HoistedCell`, of the dtype policy of the layer.
        *args: As in `keras.layers.RNN`.
        **kwargs: As in `keras.layers.RNN`.

    Call arguments: as in `keras.layers.RNN`: inputs (batch, time steps, features).

    Raises:
        ValueError: for a cell that declares no input projection, or one of another dtype.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> class Sum(HoistedCell, keras.layers.Layer):
    ...     state_size = 2
    ...
    ...     def build(self, input_shape):
    ...         self.kernel = self.add_weight(shape=(input_shape[-1], 2), initializer="ones")
    ...
    ...     def project_inputs(self, inputs, training=False):
    ...         return ops.matmul(inputs, self.kernel)
    ...
    ...     def step(self, projected, states, training=False):
    ...         total = states[0] + projected
    ...         return total, [total]
    >>> print(ops.convert_to_numpy(HoistedRNN(Sum())(np.ones((1, 4, 3), "float32"))))
    [[12. 12.]]
    """

    def __init__(self, cell: HoistedCell, *args: Any, **kwargs: Unpack[RNNOptions]) -> None:
        super().__init__(cell, *args, **kwargs)
        if not isinstance(cell, HoistedCell):
            raise ValueError(
                "`cell` must be a `HoistedCell`, which declares its input projection. "
                f"Received: cell={cell}; use `keras.layers.RNN` for other cells"
            )
        if cell.compute_dtype != self.compute_dtype:
            # The projection is computed as the layer's, the steps as the cell's.
            raise ValueError(
                "`cell` must compute in the dtype of its layer. Received: a cell that computes in "
                f"{cell.compute_dtype}, in a layer that computes in {self.compute_dtype}"
            )

    def inner_loop(
        self,
        sequences: TensorLike,
        initial_state: Sequence[Tensor],
        mask: TensorLike | None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        projected = self.cell.project_inputs(sequences, training=training)
        with self.cell.inputs_projected():
            return super().inner_loop(projected, initial_state, mask, training=training)
