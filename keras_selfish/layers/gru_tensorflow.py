"""A GRU over a whole sequence for TensorFlow, with a hand-written gradient."""

import tensorflow as tf

from keras_selfish.layers.recurrence_tensorflow import (
    RecurrentProducts,
    as_tensors,
    first_order,
    gradient_of_outputs,
    joined,
    outputs_of,
    previous_states,
    project,
    repeat_where_padded,
    run_steps,
    time_major_mask,
    wide,
)


@tf.autograph.experimental.do_not_convert
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
        sequences: `(batch, time, features)`, or a list of three; see `lstm`.
        initial_h: `(batch, units)`, the output before the first step.
        kernel: `(features, 3 * units)`, gates in Keras's order z, r, h; see `lstm`.
        recurrent_kernel: `(units, 3 * units)`, likewise.
        bias: `(2, 3 * units)` with `reset_after`, that of the inputs first, else `(3 * units,)`; or None.
        reset_after: Whether the reset gate multiplies the recurrent product of the candidate (one product
            a step, as in cuDNN) rather than the output that goes into it (two products, as published).
        go_backwards: See `lstm`.
        mask: See `lstm`.
        recurrent_dropout_mask: `(batch, units)`, or a list of three; see `lstm`. The update gate keeps the
            output as it is without dropout.

    Returns:
        `(outputs, last_h)`: `(batch, time, units)` and `(batch, units)`.

    Raises:
        LookupError: if a gradient of the gradient is asked for.

    Example:

    >>> kernel, recurrent_kernel = tf.ones((3, 12)), tf.ones((4, 12))
    >>> outputs, h = gru(tf.ones((2, 5, 3)), tf.zeros((2, 4)), kernel, recurrent_kernel, None)
    >>> outputs.shape
    TensorShape([2, 5, 4])

    Reference:
        Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
        Translation", 2014, arXiv 1406.1078, where the reset gate comes before the product.
    """
    sequences, h, kernel, recurrent_kernel, bias, dropout_mask = as_tensors(
        sequences, initial_h, kernel, recurrent_kernel, bias, recurrent_dropout_mask
    )
    mask = time_major_mask(mask, go_backwards)
    if not reset_after:
        projected = project(sequences, kernel, bias, go_backwards)
        return _reset_before(projected, h, recurrent_kernel, mask, dropout_mask)
    candidate_bias = []
    if bias is not None:
        # Outside of the loop all biases can be added but the one that the reset gate multiplies.
        bias, recurrent_bias = tf.unstack(wide(bias))
        gates, candidate = tf.split(recurrent_bias, [2 * h.shape[1], h.shape[1]])
        bias += tf.concat([gates, tf.zeros_like(candidate)], axis=0)
        candidate_bias = [candidate]
    projected = project(sequences, kernel, bias, go_backwards)
    return _reset_after(projected, h, recurrent_kernel, candidate_bias, mask, dropout_mask)


def _reset_after(projected, initial_h, recurrent_kernel, candidate_bias, mask, dropout_mask):
    @tf.custom_gradient
    def run(projected, initial_h, recurrent_kernel, *candidate_bias):
        products = RecurrentProducts(recurrent_kernel, 3, dropout_mask)
        projections = tf.split(projected, 3, axis=2)

        def step(t, h):
            of_z, of_r, candidate = _of_gates(products(h), 3)
            if candidate_bias:
                candidate += candidate_bias[0]
            z, r, g = (projection[t] for projection in projections)
            z, r = tf.sigmoid(z + of_z), tf.sigmoid(r + of_r)
            g = tf.tanh(g + r * candidate)
            states = repeat_where_padded(mask, t, [g + z * (h - g)], [h])
            return states, [*states, z, r, g, candidate]

        h = wide(initial_h)
        (h,), (hs, *gates) = run_steps(step, [h], [h] * 5, tf.shape(projected)[0])

        def backward(d_outputs, d_h):
            d_projected, dh, d_products = _reset_after_backward(
                products, mask, wide(initial_h), hs, *gates, d_outputs, d_h
            )
            d_bias = [tf.reduce_sum(d_products[:, :, -h.shape[1] :], axis=(0, 1))] if candidate_bias else []
            d_recurrent_kernel = products.kernel_gradient(previous_states(wide(initial_h), hs), d_products)
            return d_projected, tf.cast(dh, initial_h.dtype), d_recurrent_kernel, *d_bias

        def gradient(*gradients):
            sources = [projected, initial_h, recurrent_kernel, *candidate_bias]
            return first_order("GRU", backward, gradients, sources)

        return (outputs_of(hs, mask, projected, initial_h.dtype), tf.cast(h, initial_h.dtype)), gradient

    return run(projected, initial_h, recurrent_kernel, *candidate_bias)


def _reset_after_backward(products, mask, initial_h, hs, z, r, g, candidate, d_outputs, d_h):
    """Returns the gradients of the projections, the initial state and the recurrent products."""
    # All that the gates have a part in is linear in the gradient of the output.
    z, of_z, of_g = _update_factors(mask, previous_states(initial_h, hs), z, g)
    of_candidate = of_g * r
    of_r = tf.raw_ops.SigmoidGrad(y=r, dy=of_g * candidate)
    factors = joined([of_z, of_r, of_candidate], products.groups, axis=2)
    d_outputs = gradient_of_outputs(d_outputs, mask)
    state_gradient = products.transposed()

    def step(t, dh):
        dh = dh + d_outputs[t]
        sources = joined([dh, dh, dh], products.groups, axis=1)
        d_products = [source * factor[t] for source, factor in zip(sources, factors, strict=True)]
        return [state_gradient(d_products) + dh * z[t]], [dh, *d_products]

    kept_like = [initial_h, *(factor[0] for factor in factors)]
    (dh,), (dhs, *d_products) = run_steps(step, [wide(d_h)], kept_like, tf.shape(z)[0], reverse=True)
    d_z, d_r, d_candidate = _of_gates(d_products, 3, axis=2)
    return tf.concat([d_z, d_r, dhs * of_g], axis=2), dh, tf.concat([d_z, d_r, d_candidate], axis=2)


def _reset_before(projected, initial_h, recurrent_kernel, mask, dropout_mask):
    of_gates, of_candidate = dropout_mask, dropout_mask
    if isinstance(dropout_mask, list):
        of_gates, of_candidate = dropout_mask[:2], dropout_mask[2:]

    @tf.custom_gradient
    def run(projected, initial_h, recurrent_kernel):
        units = initial_h.shape[1]
        kernels = tf.split(recurrent_kernel, [2 * units, units], axis=1)
        gates_products = RecurrentProducts(kernels[0], 2, of_gates)
        candidate_products = RecurrentProducts(kernels[1], 1, of_candidate)
        projections = tf.split(projected, 3, axis=2)

        def step(t, h):
            of_z, of_r = _of_gates(gates_products(h), 2)
            z, r, g = (projection[t] for projection in projections)
            z, r = tf.sigmoid(z + of_z), tf.sigmoid(r + of_r)
            g = tf.tanh(g + candidate_products(r * h)[0])
            states = repeat_where_padded(mask, t, [g + z * (h - g)], [h])
            return states, [*states, z, r, g]

        h = wide(initial_h)
        (h,), (hs, z, r, g) = run_steps(step, [h], [h] * 4, tf.shape(projected)[0])

        def backward(d_outputs, d_h):
            previous_h = previous_states(wide(initial_h), hs)
            d_gates, d_candidate, dh = _reset_before_backward(
                gates_products, candidate_products, mask, previous_h, z, r, g, d_outputs, d_h
            )
            d_kernels = [
                gates_products.kernel_gradient(previous_h, d_gates),
                candidate_products.kernel_gradient(r * previous_h, d_candidate),
            ]
            d_projected = tf.concat([d_gates, d_candidate], axis=2)
            return d_projected, tf.cast(dh, initial_h.dtype), tf.concat(d_kernels, axis=1)

        def gradient(*gradients):
            return first_order("GRU", backward, gradients, [projected, initial_h, recurrent_kernel])

        return (outputs_of(hs, mask, projected, initial_h.dtype), tf.cast(h, initial_h.dtype)), gradient

    return run(projected, initial_h, recurrent_kernel)


def _reset_before_backward(gates_products, candidate_products, mask, previous_h, z, r, g, d_outputs, d_h):
    """Returns the gradients of the projections of both gates, of the candidate, and the initial state."""
    z, of_z, of_g = _update_factors(mask, previous_h, z, g)
    of_r = tf.raw_ops.SigmoidGrad(y=r, dy=previous_h)
    d_outputs = gradient_of_outputs(d_outputs, mask)
    through_gates, through_candidate = gates_products.transposed(), candidate_products.transposed()

    def step(t, dh):
        dh = dh + d_outputs[t]
        dg = dh * of_g[t]
        d_reset_h = through_candidate([dg])
        d_gates = joined([dh * of_z[t], d_reset_h * of_r[t]], gates_products.groups, axis=1)
        return [through_gates(d_gates) + d_reset_h * r[t] + dh * z[t]], [dg, *d_gates]

    dh = wide(d_h)
    kept_like = [dh, *joined([dh, dh], gates_products.groups, axis=1)]
    (dh,), (dg, *d_gates) = run_steps(step, [dh], kept_like, tf.shape(z)[0], reverse=True)
    return tf.concat(d_gates, axis=2), dg, dh


def _update_factors(mask, previous_h, z, g):
    """Returns z, and what the gradient of h is multiplied by to give those of z and of the candidate.

    A padded step is one whose update gate keeps everything.
    """
    if mask is not None:
        z = tf.where(mask, z, 1.0)
    of_z = tf.raw_ops.SigmoidGrad(y=z, dy=previous_h - g)
    return z, of_z, tf.raw_ops.TanhGrad(y=g, dy=1 - z)


def _of_gates(groups, gates, axis=1):
    return groups if len(groups) == gates else tf.split(groups[0], gates, axis=axis)
