"""Recurrent layers over a whole sequence for JAX, with hand-written gradients.

Imported only where Keras runs on JAX. What makes them fast where there is no cuDNN:

- one matrix product projects the inputs of all time steps, so the loop does only `h @ U` and the
  gates, and stores what the gradient needs once;
- the derivatives of the gates do not depend on the incoming gradient, so they are computed for all
  time steps at once; the backward loop is left with `dz @ U^T` and a few elementwise operations;
- the gradients of the kernels, the bias and the inputs are one product (or sum) each after the
  backward loop, where automatic differentiation adds up one product for each time step.

Only the loops need a hand-written gradient: that of the projection, which stands outside of them, is
one product for each of its factors already.

Every loop takes the same tensors, time first: `projected` (time, batch, gates * units), what the inputs
and the biases add to each step; the initial state; the recurrent kernel; `mask` (time, batch, 1), False
at padded steps, or None; `dropout` (batch, units), or None. They are compiled, or else JAX would compile
their `lax.scan` anew each time that a layer is called eagerly.
"""

import jax
import jax.numpy as jnp
from jax import lax


def on_gpu():
    """Whether JAX computes on a GPU, where Keras calls cuDNN for the LSTM.

    Keras 3.15 does so (`jax.experimental.rnn.lstm`) with tanh and sigmoid, a bias, and without padded
    steps, recurrent dropout or unrolling; JAX has that call for float32 and float64 only. For the GRU Keras
    has none: its `backend.gru` is a `lax.scan` over projected inputs with an automatic gradient, on every
    device. For the simple recurrent network it has neither.
    """
    return jax.default_backend() == "gpu"


def lstm(
    sequences,
    initial_h,
    initial_c,
    kernel,
    recurrent_kernel,
    bias,
    go_backwards=False,
    mask=None,
    recurrent_dropout_mask=None,
):
    """Runs an LSTM with tanh and sigmoid activations over whole sequences.

    The numbers are those of `keras.layers.LSTM`. The gradient is written by hand, with respect to all
    tensors; it can itself be differentiated in either mode, the function only in reverse mode. In a
    half-precision dtype the matrix products take and give that dtype, while gates, cell state and their
    gradients are kept in float32: the cell state is a sum over time and would lose small terms.

    Args:
        sequences: `(batch, time, features)`. All other tensors are cast to its dtype.
        initial_h: `(batch, units)`, the output before the first step.
        initial_c: `(batch, units)`, the cell state before the first step.
        kernel: `(features, 4 * units)`, gates in Keras's order i, f, c, o. A tensor or variable;
            a mask of its connections, if any, has been applied.
        recurrent_kernel: `(units, 4 * units)`, likewise.
        bias: `(4 * units,)`, or None.
        go_backwards: If True, runs from the last time step to the first; the outputs are in the
            order in which they were computed.
        mask: Boolean `(batch, time)`, False at padded steps, which repeat the output and the states of
            the step before (the initial ones, if there is none); or None.
        recurrent_dropout_mask: `(batch, units)`, by which the output of the step before is multiplied
            before the recurrent product, the same at all steps; or None.

    Returns:
        `(outputs, last_h, last_c)`: `(batch, time, units)` and twice `(batch, units)`.

    Raises:
        TypeError: by JAX, if a derivative is asked for in forward mode (`jax.jvp`).

    Example:

    >>> kernel, recurrent_kernel = jnp.ones((3, 16)), jnp.ones((4, 16))
    >>> state = jnp.zeros((2, 4))
    >>> outputs, h, c = lstm(jnp.ones((2, 5, 3)), state, state, kernel, recurrent_kernel, None)
    >>> outputs.shape
    (2, 5, 4)

    Reference:
        Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997; the
        forget gate is that of Gers, Schmidhuber and Cummins, "Learning to Forget", 2000.
    """
    sequences = jnp.asarray(sequences)
    h, c, kernel, recurrent_kernel, bias, dropout = _in_dtype(
        sequences.dtype, initial_h, initial_c, kernel, recurrent_kernel, bias, recurrent_dropout_mask
    )
    projected, mask = _projected(sequences, kernel, bias, mask, go_backwards)
    hs, h, c = _lstm_loop(projected, h, _wide(c), recurrent_kernel, mask, dropout)
    return jnp.swapaxes(hs, 0, 1), h, c.astype(sequences.dtype)


def gru(
    sequences,
    initial_h,
    kernel,
    recurrent_kernel,
    bias,
    reset_after=True,
    go_backwards=False,
    mask=None,
    recurrent_dropout_mask=None,
):
    """Runs a GRU with tanh and sigmoid activations over whole sequences.

    The numbers are those of `keras.layers.GRU`; for gradients and half precision see `lstm`. The output
    is itself a sum over time here, and so kept in float32 between the steps.

    Args:
        sequences: `(batch, time, features)`. All other tensors are cast to its dtype.
        initial_h: `(batch, units)`, the output before the first step.
        kernel: `(features, 3 * units)`, gates in Keras's order z, r, h; see `lstm`.
        recurrent_kernel: `(units, 3 * units)`, likewise.
        bias: `(2, 3 * units)` with `reset_after`, that of the inputs first, else `(3 * units,)`; or None.
        reset_after: Whether the reset gate multiplies the recurrent product of the candidate (one product
            a step, as in cuDNN) rather than the output that goes into it (two products, as published).
        go_backwards: See `lstm`.
        mask: See `lstm`.
        recurrent_dropout_mask: See `lstm`; the update gate keeps the output as it is without dropout.

    Returns:
        `(outputs, last_h)`: `(batch, time, units)` and `(batch, units)`.

    Raises:
        TypeError: by JAX, if a derivative is asked for in forward mode (`jax.jvp`).

    Example:

    >>> kernel, recurrent_kernel = jnp.ones((3, 12)), jnp.ones((4, 12))
    >>> outputs, h = gru(jnp.ones((2, 5, 3)), jnp.zeros((2, 4)), kernel, recurrent_kernel, None)
    >>> outputs.shape
    (2, 5, 4)

    Reference:
        Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
        Translation", 2014, arXiv 1406.1078, where the reset gate comes before the product.
    """
    sequences = jnp.asarray(sequences)
    h, kernel, recurrent_kernel, bias, dropout = _in_dtype(
        sequences.dtype, initial_h, kernel, recurrent_kernel, bias, recurrent_dropout_mask
    )
    candidate_bias = None
    if reset_after and bias is not None:
        # Outside of the loop all biases can be added but the one that the reset gate multiplies.
        gates, candidate_bias = jnp.split(_wide(bias[1]), [2 * h.shape[1]])
        bias = _wide(bias[0]) + jnp.pad(gates, (0, candidate_bias.size))
    projected, mask = _projected(sequences, kernel, bias, mask, go_backwards)
    if reset_after:
        hs, h = _gru_loop(projected, _wide(h), recurrent_kernel, candidate_bias, mask, dropout)
    else:
        hs, h = _gru_reset_before_loop(projected, _wide(h), recurrent_kernel, mask, dropout)
    return jnp.swapaxes(hs, 0, 1).astype(sequences.dtype), h.astype(sequences.dtype)


def simple_rnn(
    sequences,
    initial_h,
    kernel,
    recurrent_kernel,
    bias,
    go_backwards=False,
    mask=None,
    recurrent_dropout_mask=None,
):
    """Runs a simple recurrent network with tanh activation over whole sequences.

    The numbers are those of `keras.layers.SimpleRNN`; for gradients and half precision see `lstm`.

    Args:
        sequences: `(batch, time, features)`. All other tensors are cast to its dtype.
        initial_h: `(batch, units)`, the output before the first step.
        kernel: `(features, units)`; see `lstm`.
        recurrent_kernel: `(units, units)`, likewise.
        bias: `(units,)`, or None.
        go_backwards: See `lstm`.
        mask: See `lstm`.
        recurrent_dropout_mask: See `lstm`.

    Returns:
        `(outputs, last_h)`: `(batch, time, units)` and `(batch, units)`.

    Raises:
        TypeError: by JAX, if a derivative is asked for in forward mode (`jax.jvp`).

    Example:

    >>> kernel, recurrent_kernel = jnp.ones((3, 4)), jnp.ones((4, 4))
    >>> outputs, h = simple_rnn(jnp.ones((2, 5, 3)), jnp.zeros((2, 4)), kernel, recurrent_kernel, None)
    >>> outputs.shape
    (2, 5, 4)

    Reference: Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.
    """
    sequences = jnp.asarray(sequences)
    h, kernel, recurrent_kernel, bias, dropout = _in_dtype(
        sequences.dtype, initial_h, kernel, recurrent_kernel, bias, recurrent_dropout_mask
    )
    projected, mask = _projected(sequences, kernel, bias, mask, go_backwards)
    hs, h = _simple_rnn_loop(projected, h, recurrent_kernel, mask, dropout)
    return jnp.swapaxes(hs, 0, 1), h


# The loops: outputs of all steps (time, batch, units) and the last states


@jax.custom_vjp
def _lstm_loop(projected, h, c, recurrent_kernel, mask, dropout):
    return _lstm_forward(projected, h, c, recurrent_kernel, mask, dropout)[0]


@jax.jit
def _lstm_forward(projected, initial_h, initial_c, recurrent_kernel, mask, dropout):
    def step(states, at_step):
        h, c = states
        z, real = at_step
        z = z + _recurrent(h, recurrent_kernel, dropout)
        i, f, g, o = jnp.split(z, 4, axis=1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        new_c = f * c + i * g
        new_h = (o * jnp.tanh(new_c)).astype(h.dtype)
        h, c = _where_real(real, new_h, h), _where_real(real, new_c, c)
        return (h, c), (h, c, i, f, g, o)

    (h, c), (hs, cs, *gates) = lax.scan(step, (initial_h, initial_c), (projected, mask))
    return (hs, h, c), (initial_h, initial_c, recurrent_kernel, mask, dropout, hs, cs, gates)


@jax.jit
def _lstm_backward(saved, gradients):
    initial_h, initial_c, recurrent_kernel, mask, dropout, hs, cs, (i, f, g, o) = saved
    d_outputs, d_h, d_c = gradients
    tanh_c = jnp.tanh(cs)
    previous_c = _previous(initial_c, cs)
    # What the gradient of c (of h, for the output gate) is multiplied by to give that of each gate's z.
    factors = [g * i * (1 - i), previous_c * f * (1 - f), i * (1 - g**2), tanh_c * o * (1 - o)]
    factors = _where_real(mask, jnp.concatenate(factors, axis=2), 0)
    from_h_to_c = o * (1 - tanh_c**2)
    transposed = recurrent_kernel.T

    def step(gradients, at_step):
        dh, old_dc = gradients
        d_output, factor, from_h_to_c, forget, real = at_step
        dh = dh + d_output
        dc = old_dc + dh * from_h_to_c
        dz = jnp.concatenate([dc, dc, dc, dh], axis=1) * factor
        previous_dh = _dropped(_product(dz, transposed), dropout)
        return (_where_real(real, previous_dh, dh), _where_real(real, dc * forget, old_dc)), dz

    at_steps = (_wide(d_outputs), factors, from_h_to_c, f, mask)
    (dh, dc), dz = lax.scan(step, (_wide(d_h), d_c), at_steps, reverse=True)
    previous_h = _previous(initial_h, hs)
    return (
        dz,
        dh.astype(initial_h.dtype),
        dc,
        _sum_over_time(_dropped(previous_h, dropout), dz),
        None,
        _of_dropout(dropout, previous_h, lambda: _over_time(dz, transposed)),
    )


_lstm_loop.defvjp(_lstm_forward, _lstm_backward)


@jax.custom_vjp
def _gru_loop(projected, h, recurrent_kernel, candidate_bias, mask, dropout):
    return _gru_forward(projected, h, recurrent_kernel, candidate_bias, mask, dropout)[0]


@jax.jit
def _gru_forward(projected, initial_h, recurrent_kernel, candidate_bias, mask, dropout):
    units = initial_h.shape[1]

    def step(h, at_step):
        x, real = at_step
        gates, candidate = jnp.split(_recurrent(h, recurrent_kernel, dropout), [2 * units], axis=1)
        if candidate_bias is not None:
            candidate = candidate + candidate_bias
        z, r = jnp.split(jax.nn.sigmoid(x[:, : 2 * units] + gates), 2, axis=1)
        g = jnp.tanh(x[:, 2 * units :] + r * candidate)
        h = _where_real(real, z * h + (1 - z) * g, h)
        return h, (h, z, r, g, candidate)

    h, (hs, *gates) = lax.scan(step, initial_h, (projected, mask))
    return (hs, h), (initial_h, recurrent_kernel, candidate_bias, mask, dropout, hs, gates)


@jax.jit
def _gru_backward(saved, gradients):
    initial_h, recurrent_kernel, candidate_bias, mask, dropout, hs, (z, r, g, candidate) = saved
    d_outputs, d_h = gradients
    units = initial_h.shape[1]
    previous_h = _previous(initial_h, hs)
    # What the gradient of h is multiplied by to give that of each part of the recurrent product.
    of_g = _where_real(mask, (1 - z) * (1 - g**2), 0)
    of_z = _where_real(mask, (previous_h - g) * z * (1 - z), 0)
    factors = jnp.concatenate([of_z, of_g * candidate * r * (1 - r), of_g * r], axis=2)
    transposed = recurrent_kernel.T

    def step(dh, at_step):
        d_output, factor, z, real = at_step
        dh = dh + d_output
        d_product = jnp.concatenate([dh, dh, dh], axis=1) * factor
        previous_dh = dh * z + _dropped(_product(d_product, transposed), dropout)
        return _where_real(real, previous_dh, dh), (d_product, dh)

    at_steps = (d_outputs, factors, z, mask)
    d_initial_h, (d_product, dh) = lax.scan(step, d_h, at_steps, reverse=True)
    d_candidate = d_product[..., 2 * units :]
    return (
        # Of the candidate the reset gate multiplies the recurrent part alone.
        jnp.concatenate([d_product[..., : 2 * units], dh * of_g], axis=2),
        d_initial_h,
        _sum_over_time(_dropped(previous_h.astype(recurrent_kernel.dtype), dropout), d_product),
        None if candidate_bias is None else d_candidate.sum((0, 1)),
        None,
        _of_dropout(dropout, previous_h, lambda: _over_time(d_product, transposed)),
    )


_gru_loop.defvjp(_gru_forward, _gru_backward)


@jax.custom_vjp
def _gru_reset_before_loop(projected, h, recurrent_kernel, mask, dropout):
    return _gru_reset_before_forward(projected, h, recurrent_kernel, mask, dropout)[0]


@jax.jit
def _gru_reset_before_forward(projected, initial_h, recurrent_kernel, mask, dropout):
    units = initial_h.shape[1]
    gates_kernel, candidate_kernel = jnp.split(recurrent_kernel, [2 * units], axis=1)

    def step(h, at_step):
        x, real = at_step
        gates = _recurrent(h, gates_kernel, dropout)
        z, r = jnp.split(jax.nn.sigmoid(x[:, : 2 * units] + gates), 2, axis=1)
        g = jnp.tanh(x[:, 2 * units :] + _recurrent(r * h, candidate_kernel, dropout))
        h = _where_real(real, z * h + (1 - z) * g, h)
        return h, (h, z, r, g)

    h, (hs, *gates) = lax.scan(step, initial_h, (projected, mask))
    return (hs, h), (initial_h, recurrent_kernel, mask, dropout, hs, gates)


@jax.jit
def _gru_reset_before_backward(saved, gradients):
    initial_h, recurrent_kernel, mask, dropout, hs, (z, r, g) = saved
    d_outputs, d_h = gradients
    units = initial_h.shape[1]
    previous_h = _previous(initial_h, hs)
    of_g = _where_real(mask, (1 - z) * (1 - g**2), 0)
    of_z = _where_real(mask, (previous_h - g) * z * (1 - z), 0)
    of_r = _dropped(previous_h, dropout) * r * (1 - r)  # of what is 0 at padded steps already
    gates_kernel, candidate_kernel = jnp.split(recurrent_kernel.T, [2 * units])

    def step(dh, at_step):
        d_output, of_z, of_r, of_g, z, r, real = at_step
        dh = dh + d_output
        dg = dh * of_g
        d_reset_h = _product(dg, candidate_kernel)  # of r * dropout * h
        d_gates = jnp.concatenate([dh * of_z, d_reset_h * of_r], axis=1)
        previous_dh = dh * z + _dropped(d_reset_h * r + _product(d_gates, gates_kernel), dropout)
        return _where_real(real, previous_dh, dh), (d_gates, dg)

    at_steps = (d_outputs, of_z, of_r, of_g, z, r, mask)
    d_initial_h, (d_gates, dg) = lax.scan(step, d_h, at_steps, reverse=True)
    gates_in = _dropped(previous_h.astype(recurrent_kernel.dtype), dropout)
    candidate_in = _dropped((r * previous_h).astype(recurrent_kernel.dtype), dropout)
    d_kernels = [_sum_over_time(gates_in, d_gates), _sum_over_time(candidate_in, dg)]
    return (
        jnp.concatenate([d_gates, dg], axis=2),
        d_initial_h,
        jnp.concatenate(d_kernels, axis=1),
        None,
        _of_dropout(
            dropout,
            previous_h,
            lambda: r * _over_time(dg, candidate_kernel) + _over_time(d_gates, gates_kernel),
        ),
    )


_gru_reset_before_loop.defvjp(_gru_reset_before_forward, _gru_reset_before_backward)


@jax.custom_vjp
def _simple_rnn_loop(projected, h, recurrent_kernel, mask, dropout):
    return _simple_rnn_forward(projected, h, recurrent_kernel, mask, dropout)[0]


@jax.jit
def _simple_rnn_forward(projected, initial_h, recurrent_kernel, mask, dropout):
    def step(h, at_step):
        z, real = at_step
        new_h = jnp.tanh(z + _recurrent(h, recurrent_kernel, dropout)).astype(h.dtype)
        h = _where_real(real, new_h, h)
        return h, h

    h, hs = lax.scan(step, initial_h, (projected, mask))
    return (hs, h), (initial_h, recurrent_kernel, mask, dropout, hs)


@jax.jit
def _simple_rnn_backward(saved, gradients):
    initial_h, recurrent_kernel, mask, dropout, hs = saved
    d_outputs, d_h = gradients
    factors = _where_real(mask, 1 - _wide(hs) ** 2, 0)
    transposed = recurrent_kernel.T

    def step(dh, at_step):
        d_output, factor, real = at_step
        dh = dh + d_output
        dz = dh * factor
        previous_dh = _dropped(_product(dz, transposed), dropout)
        return _where_real(real, previous_dh, dh), dz

    dh, dz = lax.scan(step, _wide(d_h), (_wide(d_outputs), factors, mask), reverse=True)
    previous_h = _previous(initial_h, hs)
    return (
        dz,
        dh.astype(initial_h.dtype),
        _sum_over_time(_dropped(previous_h, dropout), dz),
        None,
        _of_dropout(dropout, previous_h, lambda: _over_time(dz, transposed)),
    )


_simple_rnn_loop.defvjp(_simple_rnn_forward, _simple_rnn_backward)


# What the loops are made of


def _in_dtype(dtype, *tensors):
    """The tensors or variables as tensors of one dtype; None stays None."""
    return [None if tensor is None else jnp.asarray(tensor, dtype) for tensor in tensors]


def _projected(sequences, kernel, bias, mask, go_backwards):
    """Returns the projection of all time steps and the mask as the loops take them."""
    inputs = jnp.swapaxes(sequences, 0, 1)
    mask = None if mask is None else jnp.asarray(mask, bool).T[:, :, None]
    if go_backwards:
        inputs = inputs[::-1]
        mask = None if mask is None else mask[::-1]
    projected = _over_time(inputs, kernel)
    return (projected if bias is None else projected + _wide(bias)), mask


def _wide(tensor):
    """Casts half precision to float32, in which sums over time are kept."""
    return tensor.astype(jnp.float32) if tensor.dtype.itemsize < 4 else tensor


def _product(tensor, matrix):
    """Multiplies in the dtype of the matrix; what comes of half precision is cast to float32."""
    return _wide(tensor.astype(matrix.dtype) @ matrix)


def _recurrent(h, recurrent_kernel, dropout):
    return _product(_dropped(h.astype(recurrent_kernel.dtype), dropout), recurrent_kernel)


def _dropped(tensor, dropout):
    return tensor if dropout is None else tensor * dropout


def _where_real(real, value, padded):
    """`value` at the steps that are not padded, `padded` at the others."""
    return value if real is None else jnp.where(real, value, padded)


def _previous(initial, states):
    """What the state (time, batch, units) was before each step."""
    return jnp.concatenate([initial[None], states])[:-1]


def _over_time(tensor, matrix):
    """Multiplies all time steps by one matrix, as one product of two matrices."""
    time, batch, width = tensor.shape
    return _product(tensor.reshape(time * batch, width), matrix).reshape(time, batch, matrix.shape[1])


def _sum_over_time(left, right):
    """Sums left_t^T right_t over the time steps, as one product of two matrices."""
    time, batch, _ = left.shape
    rows = right.astype(left.dtype).reshape(time * batch, right.shape[2])
    return left.reshape(time * batch, left.shape[2]).T @ rows


def _of_dropout(dropout, previous_h, d_dropped):
    """The gradient of the recurrent dropout mask; `d_dropped` returns that of the outputs it gives."""
    # Hardly ever used, and then not computed where the caller is compiled.
    return None if dropout is None else (previous_h * d_dropped()).sum(0).astype(dropout.dtype)
