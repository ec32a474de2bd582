"""An LSTM over a whole sequence for TensorFlow, with a hand-written gradient."""

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

    The numbers are those of `keras.layers.LSTM`; the gradient is written by hand and costs about as much
    as two forward passes. In a half-precision dtype the matrix products take and give that dtype, while
    gates, cell state and their gradients are kept in float32: the cell state is a sum over time and would
    lose small terms.

    Args:
        sequences: `(batch, time, features)`, at least one time step; batch and time may be dynamic. All
            other tensors have its dtype. Or a list of four, one for each gate, which differ in their
            dropout.
        initial_h: `(batch, units)`, the output before the first step.
        initial_c: `(batch, units)`, the cell state before the first step.
        kernel: `(features, 4 * units)`, gates in Keras's order i, f, c, o. A tensor or variable;
            a mask of its connections, if any, has been applied.
        recurrent_kernel: `(units, 4 * units)`, likewise.
        bias: `(4 * units,)`, or None.
        go_backwards: If True, runs from the last time step to the first; the outputs are in the
            order in which they were computed.
        mask: Boolean `(batch, time)`, False at padded steps, which repeat the states of the step before,
            and its output (zeros, if there is none); or None.
        recurrent_dropout_mask: `(batch, units)`, by which the output of the step before is multiplied
            before the recurrent product, the same at all steps; or a list of four, one for each gate; or
            None. It gets no gradient.

    Returns:
        `(outputs, last_h, last_c)`: `(batch, time, units)` and twice `(batch, units)`.

    Raises:
        LookupError: if a gradient of the gradient is asked for.

    Example:

    >>> kernel, recurrent_kernel = tf.ones((3, 16)), tf.ones((4, 16))
    >>> state = tf.zeros((2, 4))
    >>> outputs, h, c = lstm(tf.ones((2, 5, 3)), state, state, kernel, recurrent_kernel, None)
    >>> outputs.shape
    TensorShape([2, 5, 4])

    Reference:
        Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997; the
        forget gate is that of Gers, Schmidhuber and Cummins, "Learning to Forget", 2000.
    """
    sequences, h, c, kernel, recurrent_kernel, bias, dropout_mask = as_tensors(
        sequences, initial_h, initial_c, kernel, recurrent_kernel, bias, recurrent_dropout_mask
    )
    mask = time_major_mask(mask, go_backwards)

    @tf.custom_gradient
    def run(projected, initial_h, initial_c, recurrent_kernel):
        products = RecurrentProducts(recurrent_kernel, 4, dropout_mask)
        hs, cs, gates, h, c = _forward_loop(projected, initial_h, wide(initial_c), products, mask)

        def backward(d_outputs, d_h, d_c):
            return _backward(products, mask, initial_h, initial_c, hs, cs, *gates, d_outputs, d_h, d_c)

        def gradient(*gradients):
            sources = [projected, initial_h, initial_c, recurrent_kernel]
            return first_order("LSTM", backward, gradients, sources)

        outputs = outputs_of(hs, mask, projected, initial_h.dtype)
        return (outputs, h, tf.cast(c, initial_c.dtype)), gradient

    return run(project(sequences, kernel, bias, go_backwards), h, c, recurrent_kernel)


def _forward_loop(projected, h, c, products, mask):
    """Returns outputs, cell states and the four gates of all steps, and the last h and c."""
    projections = tf.split(projected, products.groups, axis=2)

    def step(t, h, c):
        z = [p[t] + product for p, product in zip(projections, products(h), strict=True)]
        i, f, g, o = z if products.groups == 4 else tf.split(z[0], 4, axis=1)
        i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        new_c = f * c + i * g
        new_h = tf.cast(o * tf.tanh(new_c), h.dtype)
        states = repeat_where_padded(mask, t, [new_h, new_c], [h, c])
        return states, [*states, i, f, g, o]

    (h, c), (hs, cs, *gates) = run_steps(step, [h, c], [h, c, c, c, c, c], tf.shape(projected)[0])
    return hs, cs, gates, h, c


def _backward(products, mask, initial_h, initial_c, hs, cs, i, f, g, o, d_outputs, d_h, d_c):
    """Returns the gradients of the projections, the initial states and the recurrent kernel."""
    tanh_c = tf.tanh(cs)
    previous_c = previous_states(wide(initial_c), cs)
    if mask is not None:
        # A padded step is one that keeps its cell state, and takes nothing in.
        i, f, o = tf.where(mask, i, 0.0), tf.where(mask, f, 1.0), tf.where(mask, o, 0.0)
    # What the gradient of c (of h, for the output gate) is multiplied by to give that of each gate's z.
    factors = [
        tf.raw_ops.SigmoidGrad(y=i, dy=g),
        tf.raw_ops.SigmoidGrad(y=f, dy=previous_c),
        tf.raw_ops.TanhGrad(y=g, dy=i),
        tf.raw_ops.SigmoidGrad(y=o, dy=tanh_c),
    ]
    from_h_to_c = tf.raw_ops.TanhGrad(y=tanh_c, dy=o)
    d_outputs = gradient_of_outputs(d_outputs, mask)
    dz, dh, dc = _backward_loop(products, mask, d_outputs, wide(d_h), wide(d_c), factors, from_h_to_c, f)
    d_recurrent_kernel = products.kernel_gradient(previous_states(initial_h, hs), dz)
    return dz, tf.cast(dh, initial_h.dtype), tf.cast(dc, initial_c.dtype), d_recurrent_kernel


def _backward_loop(products, mask, d_outputs, dh, dc, factors, from_h_to_c, forget):
    """Returns the gradients of z (time, batch, 4 * units) and of the initial states."""
    factors = joined(factors, products.groups, axis=2)
    state_gradient = products.transposed()
    padded = None if mask is None else tf.cast(~mask, dh.dtype)

    def step(t, dh, dc):
        dh = dh + d_outputs[t]
        dc = dc + dh * from_h_to_c[t]
        sources = joined([dc, dc, dc, dh], products.groups, axis=1)
        dz = [source * factor[t] for source, factor in zip(sources, factors, strict=True)]
        previous_dh = state_gradient(dz)
        if padded is not None:
            previous_dh += dh * padded[t]
        return [previous_dh, dc * forget[t]], dz

    kept_like = [factor[0] for factor in factors]
    (dh, dc), dz = run_steps(step, [dh, dc], kept_like, tf.shape(forget)[0], reverse=True)
    return tf.concat(dz, axis=2), dh, dc
