"""Recurrent cells over whole sequences: what all backends share; the time loops are the backend's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
from keras import ops

from keras_selfish.backend import BACKEND, of_backend
from keras_selfish.recurrence import padding
from keras_selfish.recurrence.cells import split_last
from keras_selfish.typing import Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.recurrence.cells import Cell

# Elsewhere layers run in Keras's own loop.
IS_AVAILABLE = BACKEND in ("tensorflow", "jax")


@of_backend
def on_gpu() -> bool:
    """Whether Keras computes on a GPU, where it may call cuDNN."""
    return False


@of_backend
def project(inputs, kernel, bias):
    """What inputs `(time, batch, features)` and bias add to each step, in float32 at least."""
    raise NotImplementedError(f"Keras on {BACKEND} runs recurrent layers in its own loop.")


@of_backend
def run_loops(cell, x, states, kernels, biases, mask=None, dropout=None):
    """Runs a cell over all time steps, in the order of computation; the gradient is written by hand.

    Args:
        cell: A `Cell`.
        x: `(time, batch, width)`, what the inputs add to each step, as `project` gives it.
        states: The initial states, `(batch, units)`.
        kernels: For each product of the cell its recurrent kernel.
        biases: For each product a list with a bias, or None, for each gate.
        mask: Boolean `(time, batch, 1)`, False at padded steps, which repeat the states; or None.
        dropout: As in `run`.

    Returns:
        The first state after each step, `(time, batch, units)`; the last states.
    """
    raise NotImplementedError(f"Keras on {BACKEND} runs recurrent layers in its own loop.")


def run(
    cell: Cell,
    sequences: TensorLike | list[TensorLike],
    states: Sequence[Tensor],
    kernel: TensorLike,
    kernels: list[TensorLike],
    bias: TensorLike | None = None,
    biases: list[list[TensorLike | None]] | None = None,
    dropout: TensorLike | list[TensorLike] | None = None,
    go_backwards: bool = False,
    mask: TensorLike | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Runs a cell over whole sequences, with its hand-written gradient.

    What makes it fast: one product projects the inputs of all time steps, so that a step is left with the
    recurrent products and the gates; the derivatives of the gates are computed for all steps at once, so
    that a backward step is left with the transposed products and a few multiplications; and the gradient of
    each kernel is one product after the loop, where automatic differentiation adds up one for each step.

    In half precision products take and give that dtype; gates, states that are sums over time, and their
    gradients are float32.

    Args:
        cell: A `Cell` with the activations of its gradient.
        sequences: `(batch, time, features)`; batch and time may be dynamic on TensorFlow, where there must
            be a step. All other tensors have its dtype, or are cast to it. On TensorFlow also a list of
            these, one for each gate, which differ in their dropout.
        states: The states before the first step, a list of `(batch, units)`. They keep their dtype.
        kernel: `(features, width)`, with the gates that the inputs take part in side by side. A mask of its
            connections, if any, has been applied.
        kernels: A list of the recurrent kernels, `(units, width of the product)`, likewise.
        bias: `(width,)`, what is added to the projected inputs; or None.
        biases: For each recurrent product a list of what is added to its gates, with None for nothing; None
            for none at all.
        dropout: `(batch, units)`, by which all that goes into the recurrent products is multiplied, the
            same at all steps; or None. On TensorFlow it gets no gradient, and may be a list of these, one
            for each gate.
        go_backwards: If True, runs from the last time step to the first; the outputs are in the order in
            which they were computed.
        mask: Boolean `(batch, time)`, False at padded steps, which repeat the states and the output of the
            step before; or None. Before all others the output is zero on TensorFlow, and the initial state
            on JAX, as in Keras.

    Returns:
        `(outputs, states)`: `(batch, time, units)`, and the last states, `(batch, units)` each.

    Raises:
        LookupError: on TensorFlow, if a gradient of the gradient is asked for.
    """
    units = kernels[0].shape[0]
    biases = biases or [[None] * len(widths) for widths in cell.widths(units)]
    of_gates = isinstance(sequences, list)
    every = sequences if isinstance(sequences, list) else [sequences]
    tensors = [ops.convert_to_tensor(each) for each in every]
    dtype = keras.backend.standardize_dtype(tensors[0].dtype)

    def as_tensor(value):
        return None if value is None else ops.convert_to_tensor(value)

    def in_dtype(value):
        return None if value is None else ops.cast(as_tensor(value), dtype)

    bias, biases = as_tensor(bias), [list(map(as_tensor, each)) for each in biases]
    states = list(map(as_tensor, states))
    kernel, kernels = in_dtype(kernel), [in_dtype(each) for each in kernels]
    dropout = [in_dtype(each) for each in dropout] if isinstance(dropout, list) else in_dtype(dropout)
    mask = None if mask is None else _time_major(ops.cast(mask, "bool")[:, :, None], go_backwards)
    inputs = [_time_major(each, go_backwards) for each in tensors]
    if on_gpu():
        weights = padding.pad_units(cell, states, kernel, kernels, bias, biases, dropout)
        states, kernel, kernels, bias, biases, dropout = weights
        features = padding.padded_width(kernel.shape[0])
        inputs = [padding.pad_last(each, features) for each in inputs]
        kernel = padding.pad_rows(kernel, features)
    if of_gates:
        widths = cell.input_widths(kernels[0].shape[0])
        biases_of_gates = [None] * len(widths) if bias is None else split_last(bias, widths)
        gates = zip(inputs, split_last(kernel, widths), biases_of_gates, strict=True)
        x = ops.concatenate([project(*gate) for gate in gates], axis=-1)
    else:
        x = project(inputs[0], kernel, bias)
    outputs, states = run_loops(cell, x, states, kernels, biases, mask, dropout)
    outputs = ops.cast(ops.transpose(outputs, (1, 0, 2)), dtype)
    if on_gpu():
        outputs, *states = (tensor[..., :units] for tensor in (outputs, *states))
    return outputs, list(states)


def _time_major(tensor, go_backwards):
    tensor = ops.transpose(tensor, (1, 0, 2))
    return ops.flip(tensor, 0) if go_backwards else tensor
