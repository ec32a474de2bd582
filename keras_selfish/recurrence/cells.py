"""Recurrent cells as data: what a time step computes, and its gradient, for the drivers to run.

Tensors of one time step are `(batch, width)`, those of all steps `(time, batch, width)`. A step multiplies
by recurrent kernels through a function that it is given, `product`, and its gradient by their transposes
through `transposed`; the inputs' part of the gates, and everything else, is the driver's. The derivatives
of the gates do not depend on the gradient that comes in, and so are computed for all steps at once.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import keras
from keras import ops

from keras_selfish.backend import BACKEND
from keras_selfish.typing import Tensor

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax.numpy as jnp


def tanh(tensor):
    """The hyperbolic tangent, in the dtype of the tensor: Keras's on JAX rounds float64 to float32."""
    if BACKEND != "jax" or isinstance(tensor, keras.KerasTensor):
        return ops.tanh(tensor)
    return jnp.tanh(tensor)


def wide_dtype(dtype):
    """The dtype of sums over time: float32 for half precision."""
    dtype = keras.backend.standardize_dtype(dtype)
    return "float32" if dtype in ("bfloat16", "float16") else dtype


def of_sigmoid(value: Tensor, factor: Tensor) -> Tensor:
    """The derivative of a sigmoid, of its value, times a factor."""
    if BACKEND == "tensorflow":  # one pass over the memory
        return tf.raw_ops.SigmoidGrad(y=value, dy=factor)
    return factor * value * (1 - value)


def of_tanh(value: Tensor, factor: Tensor) -> Tensor:
    """The derivative of tanh, of its value, times a factor."""
    if BACKEND == "tensorflow":
        return tf.raw_ops.TanhGrad(y=value, dy=factor)
    return factor * (1 - value**2)


@dataclasses.dataclass(frozen=True)
class Cell(abc.ABC):
    """Base of recurrent cells; a subclass defines `widths`, `kept`, `step`, `factors` and `back`.

    Args:
        activation: Function of the candidate and the output; None (default) for tanh.
        gate_activation: Function of the gates; None (default) for the logistic function. With functions of
            its own a cell has no gradient here.

    Attributes:
        wide_states: For each state, whether half precision keeps it in float32, because it is a sum over
            time. The first state is the output.
        layer: Name of the layer without "Sparse", for error messages.
        unit_step: What the number of units is a multiple of.
    """

    activation: Callable | None = None
    gate_activation: Callable | None = None

    wide_states: ClassVar[tuple[bool, ...]] = (True,)
    layer = "RNN"
    unit_step = 1

    @property
    def has_gradient(self) -> bool:
        """Whether the activations are those that the gradient is written for."""
        return self.activation is None and self.gate_activation is None

    def activate(self, tensor: Tensor) -> Tensor:
        return tanh(tensor) if self.activation is None else self.activation(tensor)

    def gate(self, tensor: Tensor) -> Tensor:
        return ops.sigmoid(tensor) if self.gate_activation is None else self.gate_activation(tensor)

    @abc.abstractmethod
    def widths(self, units: int) -> list[list[int]]:
        """For each product with a recurrent kernel the widths of the gates that it gives, a list of lists."""

    def input_gates(self) -> list[tuple[int, int] | None]:
        """Which gates the inputs take part in, a list.

        Each is (product, gate) where the projected inputs are added to that gate of that product, and so
        have its gradient; or None for a gate of `units` whose gradient `back` returns. By default the gates
        of the first product.
        """
        return [(0, gate) for gate in range(len(self.widths(1)[0]))]

    def padding_values(self) -> list[float]:
        """For each gate of the inputs what pads it, so that added units stay zero; by default 0."""
        return [0.0] * len(self.input_gates())

    @abc.abstractmethod
    def kept(self, units: int) -> list[int]:
        """The widths of the tensors that `step` keeps."""

    @abc.abstractmethod
    def step(
        self, x: list[Tensor], states: list[Tensor], product: Callable[[int, Tensor], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """A time step.

        Args:
            x: What the inputs and their bias add to each gate, a list.
            states: The states before the step, a list.
            product: `product(index, state)` gives the gates of a product, a list.

        Returns:
            The states after the step; the tensors that `factors` needs of it.
        """

    def inputs(self, before: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        """What is multiplied by each recurrent kernel, of all steps; by default the first state."""
        return [before[0]]

    @abc.abstractmethod
    def factors(self, before: list[Tensor], after: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        """What `back` needs, computed for all steps at once.

        Args:
            before: The states before each step.
            after: Those after it.
            kept: What `step` kept.

        Returns:
            A list of tensors of all steps.
        """

    @abc.abstractmethod
    def back(
        self, d: list[Tensor], factors: list[Tensor], transposed: Callable[[int, list[Tensor]], Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient of a time step.

        Args:
            d: The gradients of the states after the step.
            factors: What `factors` gives, of this step.
            transposed: `transposed(index, d_gates)` gives, of the gradients of the gates of a product, that
                of what was multiplied. To be called once for each product.

        Returns:
            The gradients of the states before the step; those of `x` in gates that are in no product.
        """

    def input_widths(self, units: int) -> list[int]:
        """The widths of the gates that the inputs take part in."""
        widths = self.widths(units)
        return [units if place is None else widths[place[0]][place[1]] for place in self.input_gates()]

    def of_inputs(self, d_products: list[Tensor], apart: list[Tensor], units: int) -> Tensor:
        """The gradient of the projected inputs of all steps.

        Args:
            d_products: The gradient of each product, of all steps.
            apart: Those that `back` returned besides, of all steps.
            units: The number of units.
        """
        places, all_widths, others = self.input_gates(), self.widths(units), iter(apart)
        if places == [(0, gate) for gate in range(len(all_widths[0]))]:
            return d_products[0]
        split = [split_last(*pair) for pair in zip(d_products, all_widths, strict=True)]
        parts = [next(others) if place is None else split[place[0]][place[1]] for place in places]
        return ops.concatenate(parts, axis=-1)


# The recurrent kernels, the bias of the inputs, and those of the products; see `driver.run`.
RecurrentWeights: TypeAlias = tuple[list[Tensor], Tensor | None, list[list[Tensor | None]] | None]


def split_last(tensor, widths):
    """Splits a tensor into parts of these widths."""
    ends = list(itertools.accumulate(widths[:-1]))
    return ops.split(tensor, ends, axis=-1) if ends else [tensor]


class LSTM(Cell):
    """Long short-term memory, gates in Keras's order i, f, c, o.

    Reference: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997; the
        forget gate is that of Gers, Schmidhuber and Cummins, "Learning to Forget", 2000.
    """

    wide_states = (False, True)
    layer = "LSTM"

    def widths(self, units: int) -> list[list[int]]:
        return [[units] * 4]

    def kept(self, units: int) -> list[int]:
        return [units] * 4

    def step(
        self, x: list[Tensor], states: list[Tensor], product: Callable[[int, Tensor], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        h, c = states
        i, f, g, o = (of_x + of_h for of_x, of_h in zip(x, product(0, h), strict=True))
        i, f, o = (self.gate(gate) for gate in (i, f, o))
        g = self.activate(g)
        c = f * c + i * g
        return [o * self.activate(c), c], [i, f, g, o]

    def factors(self, before: list[Tensor], after: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        i, f, g, o = kept
        tanh_c = tanh(after[1])
        of_gates = [of_sigmoid(i, g), of_sigmoid(f, before[1]), of_tanh(g, i), of_sigmoid(o, tanh_c)]
        return [*of_gates, of_tanh(tanh_c, o), f]

    def back(
        self, d: list[Tensor], factors: list[Tensor], transposed: Callable[[int, list[Tensor]], Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        (dh, dc), (of_i, of_f, of_g, of_o, from_h, f) = d, factors
        dc = dc + dh * from_h
        dz = [dc * of_i, dc * of_f, dc * of_g, dh * of_o]
        return [transposed(0, dz), dc * f], []


@dataclasses.dataclass(frozen=True)
class GRU(Cell):
    """Gated recurrent unit, gates in Keras's order z, r, h.

    Args:
        reset_after: Whether the reset gate multiplies the recurrent product of the candidate (one product a
            step, as in cuDNN) rather than the output that goes into it (two products, as published).

    Reference: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
        Translation", 2014, arXiv 1406.1078, where the reset gate comes before the product.
    """

    reset_after: bool = True

    layer = "GRU"

    def widths(self, units: int) -> list[list[int]]:
        return [[units] * 3] if self.reset_after else [[units] * 2, [units]]

    def input_gates(self) -> list[tuple[int, int] | None]:
        return [(0, 0), (0, 1), None if self.reset_after else (1, 0)]

    def kept(self, units: int) -> list[int]:
        return [units] * (4 if self.reset_after else 3)

    def step(
        self, x: list[Tensor], states: list[Tensor], product: Callable[[int, Tensor], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        (h,) = states
        z, r, *candidate = product(0, h)
        z, r = self.gate(x[0] + z), self.gate(x[1] + r)
        of_h = r * candidate[0] if self.reset_after else product(1, r * h)[0]
        g = self.activate(x[2] + of_h)
        return [g + z * (h - g)], [z, r, g, *candidate]

    def inputs(self, before: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        return before if self.reset_after else [before[0], kept[1] * before[0]]

    def factors(self, before: list[Tensor], after: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        z, r, g, *candidate = kept
        of_z, of_g = of_sigmoid(z, before[0] - g), of_tanh(g, 1 - z)
        if self.reset_after:
            return [of_z, of_sigmoid(r, of_g * candidate[0]), of_g * r, of_g, z]
        return [of_z, of_sigmoid(r, before[0]), r, of_g, z]

    def back(
        self, d: list[Tensor], factors: list[Tensor], transposed: Callable[[int, list[Tensor]], Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        (dh,), (of_z, of_r, r, of_g, z) = d, factors
        dz, dg = dh * of_z, dh * of_g
        if self.reset_after:  # r is that of the candidate's product
            dr = dh * of_r
            return [transposed(0, [dz, dr, dh * r]) + dh * z], [dg]
        d_reset = transposed(1, [dg])
        dr = d_reset * of_r
        return [transposed(0, [dz, dr]) + d_reset * r + dh * z], []


class SimpleRNN(Cell):
    """Simple recurrent network.

    Reference: Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.
    """

    wide_states = (False,)
    layer = "SimpleRNN"

    def widths(self, units: int) -> list[list[int]]:
        return [[units]]

    def kept(self, units: int) -> list[int]:
        return []

    def step(
        self, x: list[Tensor], states: list[Tensor], product: Callable[[int, Tensor], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return [self.activate(x[0] + product(0, states[0])[0])], []

    def factors(self, before: list[Tensor], after: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        h = ops.cast(after[0], wide_dtype(after[0].dtype))
        return [1 - h * h]

    def back(
        self, d: list[Tensor], factors: list[Tensor], transposed: Callable[[int, list[Tensor]], Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return [transposed(0, [d[0] * factors[0]])], []


@dataclasses.dataclass(frozen=True)
class RHN(Cell):
    """Recurrent highway network, gates h (candidate), t (transform) and, unless coupled, c (carry).

    Args:
        depth: Number of highway layers in a step, of which the first sees the inputs.
        coupled: Whether the carry gate is 1 - t.

    Reference: Zilly et al. 2017, "Recurrent Highway Networks", arXiv 1607.03474, equations 6 to 9.
    """

    depth: int = 1
    coupled: bool = True

    layer = "RHN"

    def widths(self, units: int) -> list[list[int]]:
        return [[units] * (2 if self.coupled else 3)] * self.depth

    def kept(self, units: int) -> list[int]:
        return [units] * (self.depth * (3 if self.coupled else 4) - 1)

    def step(
        self, x: list[Tensor], states: list[Tensor], product: Callable[[int, Tensor], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        (state,), kept = states, []
        for index in range(self.depth):
            gates = product(index, state)
            gates = [of_x + gate for of_x, gate in zip(x, gates, strict=True)] if index == 0 else gates
            h, gates = self.activate(gates[0]), [self.gate(gate) for gate in gates[1:]]
            kept += [state] * (index > 0) + [h, *gates]
            state = state + gates[0] * (h - state) if self.coupled else h * gates[0] + state * gates[1]
        return [state], kept

    def _by_depth(self, before, kept):
        """For each depth the state before it, and its gates."""
        tensors = [before[0], *kept]
        count = len(tensors) // self.depth
        return [tensors[first : first + count] for first in range(0, len(tensors), count)]

    def inputs(self, before: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        return [state for state, *_ in self._by_depth(before, kept)]

    def factors(self, before: list[Tensor], after: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        factors = []
        for state, h, t, *c in self._by_depth(before, kept):
            of_t = of_sigmoid(t, h - state if self.coupled else h)
            factors += [of_tanh(h, t), of_t, *(of_sigmoid(gate, state) for gate in c), *(c or [1 - t])]
        return factors

    def back(
        self, d: list[Tensor], factors: list[Tensor], transposed: Callable[[int, list[Tensor]], Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        (ds,), count = d, len(factors) // self.depth
        for index in reversed(range(self.depth)):
            *of_gates, carry = factors[index * count : (index + 1) * count]
            ds = ds * carry + transposed(index, [ds * factor for factor in of_gates])
        return [ds], []


@dataclasses.dataclass(frozen=True)
class ONLSTM(Cell):
    """LSTM with ordered neurons: the master gates of input and forget gate, then o, c, i and f.

    Args:
        chunk_size: How many units share an entry of the master gates.

    Reference: Shen et al. 2019, "Ordered Neurons", arXiv 1810.09536, equations 9 to 14.
    """

    chunk_size: int = 1

    wide_states = (True, True)
    layer = "ONLSTM"

    @property
    def unit_step(self) -> int:
        return self.chunk_size

    def padding_values(self) -> list[float]:
        return [-1e9] * 2 + [0.0] * 4  # nothing of the softmax

    def widths(self, units: int) -> list[list[int]]:
        return [[units // self.chunk_size] * 2 + [units] * 4]

    def kept(self, units: int) -> list[int]:
        return self.widths(units)[0]

    def step(
        self, x: list[Tensor], states: list[Tensor], product: Callable[[int, Tensor], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        h, c = states
        *masters, o, g, i, f = (of_x + of_h for of_x, of_h in zip(x, product(0, h), strict=True))
        shares = ops.softmax(ops.stack(masters, axis=-2), axis=-1)
        g, (o, i, f) = self.activate(g), (self.gate(gate) for gate in (o, i, f))
        _, _, written, held = self._gates(shares, i, f)
        c = held * c + written * g
        return [o * self.activate(c), c], [shares[:, 0], shares[:, 1], o, g, i, f]

    def _gates(self, shares, i, f):
        """Both master gates for each unit, and what the input and forget gates become by them."""
        masters = ops.repeat(ops.cumsum(shares, axis=-1), self.chunk_size, axis=-1)
        master_i, master_f = 1 - masters[..., 0, :], masters[..., 1, :]
        # Where both master gates are open the gates decide, elsewhere the one that is open.
        written = master_i * (1 + master_f * (i - 1))
        return master_i, master_f, written, master_f * (1 + master_i * (f - 1))

    def factors(self, before: list[Tensor], after: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        *masters, o, g, i, f = kept
        c, tanh_c, shares = before[1], tanh(after[1]), ops.stack(masters, axis=-2)
        master_i, master_f, written, held = self._gates(shares, i, f)
        overlap, i_off, f_off = master_i * master_f, i - 1, f - 1
        of_master_i = g * (1 + master_f * i_off) + c * master_f * f_off
        of_master_f = c * (1 + master_i * f_off) + g * master_i * i_off
        of_gates = [of_sigmoid(o, tanh_c), of_tanh(g, written), of_sigmoid(i, g * overlap)]
        of_masters = ops.stack([-of_master_i, of_master_f], axis=-2)
        return [of_masters, shares, *of_gates, of_sigmoid(f, c * overlap), of_tanh(tanh_c, o), held]

    def back(
        self, d: list[Tensor], factors: list[Tensor], transposed: Callable[[int, list[Tensor]], Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        (dh, dc), (of_masters, shares, of_o, of_g, of_i, of_f, from_h, held) = d, factors
        dc = dc + dh * from_h
        of_units = ops.reshape(dc[:, None] * of_masters, (-1, *shares.shape[1:], self.chunk_size))
        d_masters = ops.sum(of_units, axis=-1)
        # Through the cumulative sum, but for a constant, to which the gradient of a softmax is blind.
        d_shares = d_masters - ops.cumsum(d_masters, axis=-1)
        d_masters = shares * (d_shares - ops.sum(shares * d_shares, axis=-1, keepdims=True))
        dz = [d_masters[:, 0], d_masters[:, 1], dh * of_o, dc * of_g, dc * of_i, dc * of_f]
        return [transposed(0, dz), dc * held], []
