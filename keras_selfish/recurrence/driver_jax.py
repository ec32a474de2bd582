"""The time loops of recurrent cells on JAX, forward and backward."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from keras_selfish.recurrence.cells import split_last


def on_gpu() -> bool:
    """Whether JAX computes on a GPU, where Keras calls cuDNN for the LSTM.

    Keras 3.15 does so (`jax.experimental.rnn.lstm`) with tanh and sigmoid, a bias, and without padded
    steps, recurrent dropout or unrolling; JAX has that call for float32 and float64 only. For the GRU Keras
    has none: its `backend.gru` is a `lax.scan` over projected inputs with an automatic gradient, on every
    device. For the simple recurrent network it has neither.
    """
    return jax.default_backend() == "gpu"


def wide(tensor):
    """Casts half precision to float32, in which sums over time are kept."""
    return tensor.astype(jnp.float32) if tensor.dtype.itemsize < 4 else tensor


def project(inputs, kernel, bias):
    """As in `driver.py`."""
    projected = _over_time(inputs, kernel)
    return projected if bias is None else projected + wide(bias)


def run_loops(cell, x, states, kernels, biases, mask=None, dropout=None):
    """As in `driver.py`; outputs at padded steps before all others are the initial state.

    The gradient can itself be differentiated, in either mode, where the function has reverse mode only.
    """
    initial = [wide(s) if w else s for s, w in zip(states, cell.wide_states, strict=True)]
    outputs, last = _loops(cell, x, initial, list(kernels), list(biases), mask, dropout)
    return outputs, [new.astype(old.dtype) for new, old in zip(last, states, strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loops(cell, x, states, kernels, biases, mask, dropout):
    return _forward(cell, x, states, kernels, biases, mask, dropout)[0]


# Compiled, or else JAX would compile the loops anew each time that a layer is called eagerly.
@functools.partial(jax.jit, static_argnums=0)
def _forward(cell, x, states, kernels, biases, mask, dropout):
    units = kernels[0].shape[0]

    def product(index, state):
        gates = _product(_dropped(state.astype(kernels[index].dtype), dropout), kernels[index])
        gates = zip(split_last(gates, cell.widths(units)[index]), biases[index], strict=True)
        return [gate if bias is None else gate + wide(bias) for gate, bias in gates]

    def step(states, at_step):
        x, real = at_step
        new, kept = cell.step(split_last(x, cell.input_widths(units)), states, product)
        new = [tensor.astype(state.dtype) for tensor, state in zip(new, states, strict=True)]
        new = _where_real(real, new, states)
        return new, (new, kept)

    last, (after, kept) = lax.scan(step, states, (x, mask))
    return (after[0], last), (states, kernels, biases, mask, dropout, after, kept)


@functools.partial(jax.jit, static_argnums=0)
def _backward(cell, saved, gradients):
    states, kernels, biases, mask, dropout, after, kept = saved
    d_outputs, d_last = gradients
    before = [jnp.concatenate([s[None], a])[:-1] for s, a in zip(states, after, strict=True)]
    transposed = [kernel.T for kernel in kernels]

    def step(d, at_step):
        d_output, factors, real = at_step
        d, joined = [d[0] + d_output, *d[1:]], {}

        def of_product(index, d_gates):
            joined[index] = jnp.concatenate(d_gates, axis=1)
            return _dropped(_product(joined[index], transposed[index]), dropout)

        new, apart = cell.back(d, factors, of_product)
        return _where_real(real, new, d), ([joined[index] for index in range(len(kernels))], apart)

    factors = cell.factors(before, after, kept)
    at_steps = (wide(d_outputs), factors, mask)
    d, gates = lax.scan(step, [wide(gradient) for gradient in d_last], at_steps, reverse=True)
    d_products, apart = jax.tree.map(lambda gate: gate if mask is None else jnp.where(mask, gate, 0), gates)
    inputs = [tensor.astype(kernels[0].dtype) for tensor in cell.inputs(before, kept)]
    return (
        cell.of_inputs(d_products, apart, kernels[0].shape[0]),
        [gradient.astype(state.dtype) for gradient, state in zip(d, states, strict=True)],
        [_sum_over_time(_dropped(i, dropout), d) for i, d in zip(inputs, d_products, strict=True)],
        _of_biases(biases, d_products, cell.widths(kernels[0].shape[0])),
        None,
        _of_dropout(dropout, inputs, d_products, transposed),
    )


_loops.defvjp(_forward, _backward)


def _product(tensor, matrix):
    """Multiplies in the dtype of the matrix; what comes of half precision is cast to float32."""
    return wide(tensor.astype(matrix.dtype) @ matrix)


def _dropped(tensor, dropout):
    return tensor if dropout is None else tensor * dropout


def _where_real(real, new, old):
    """The new states, but the old ones in the rows that are padded."""
    return new if real is None else [jnp.where(real, *pair) for pair in zip(new, old, strict=True)]


def _over_time(tensor, matrix):
    """Multiplies all time steps by one matrix, as one product of two matrices."""
    time, batch, width = tensor.shape
    return _product(tensor.reshape(time * batch, width), matrix).reshape(time, batch, matrix.shape[1])


def _sum_over_time(left, right):
    """Sums left_t^T right_t over the time steps, as one product of two matrices."""
    time, batch, _ = left.shape
    rows = right.astype(left.dtype).reshape(time * batch, right.shape[2])
    return left.reshape(time * batch, left.shape[2]).T @ rows


def _of_biases(biases, d_products, widths):
    """The gradient of each bias that there is, in the same lists."""
    gates = [split_last(*pair) for pair in zip(d_products, widths, strict=True)]
    return [
        [None if b is None else gate.sum((0, 1)).astype(b.dtype) for b, gate in zip(*of_product, strict=True)]
        for of_product in zip(biases, gates, strict=True)
    ]


def _of_dropout(dropout, inputs, d_products, transposed):
    """The gradient of the dropout mask, of which there hardly ever is any use."""
    if dropout is None:
        return None
    of_products = zip(inputs, d_products, transposed, strict=True)
    return sum((i * _over_time(d, matrix)).sum(0) for i, d, matrix in of_products).astype(dropout.dtype)
