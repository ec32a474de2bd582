"""A simple recurrent network over a whole sequence for TensorFlow, with a hand-written gradient."""

import tensorflow as tf

from keras_selfish.layers.recurrence_tensorflow import (
    RecurrentProducts,
    as_tensors,
    first_order,
    gradient_of_outputs,
    outputs_of,
    previous_states,
    project,
    repeat_where_padded,
    run_steps,
    time_major_mask,
    wide,
)


@tf.autograph.experimental.do_not_convert
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
        sequences: `(batch, time, features)`; see `lstm`.
        initial_h: `(batch, units)`, the output before the first step.
        kernel: `(features, units)`; see `lstm`.
        recurrent_kernel: `(units, units)`, likewise.
        bias: `(units,)`, or None.
        go_backwards: See `lstm`.
        mask: See `lstm`.
        recurrent_dropout_mask: `(batch, units)`; see `lstm`.

    Returns:
        `(outputs, last_h)`: `(batch, time, units)` and `(batch, units)`.

    Raises:
        LookupError: if a gradient of the gradient is asked for.

    Example:

    >>> kernel, recurrent_kernel = tf.ones((3, 4)), tf.ones((4, 4))
    >>> outputs, h = simple_rnn(tf.ones((2, 5, 3)), tf.zeros((2, 4)), kernel, recurrent_kernel, None)
    >>> outputs.shape
    TensorShape([2, 5, 4])

    Reference: Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.
    """
    sequences, h, kernel, recurrent_kernel, bias, dropout_mask = as_tensors(
        sequences, initial_h, kernel, recurrent_kernel, bias, recurrent_dropout_mask
    )
    mask = time_major_mask(mask, go_backwards)

    @tf.custom_gradient
    def run(projected, initial_h, recurrent_kernel):
        products = RecurrentProducts(recurrent_kernel, 1, dropout_mask)

        def step(t, h):
            new_h = tf.cast(tf.tanh(projected[t] + products(h)[0]), h.dtype)
            states = repeat_where_padded(mask, t, [new_h], [h])
            return states, states

        (h,), (hs,) = run_steps(step, [initial_h], [initial_h], tf.shape(projected)[0])

        def backward(d_outputs, d_h):
            dz, dh = _backward_loop(products, mask, hs, d_outputs, d_h)
            d_recurrent_kernel = products.kernel_gradient(previous_states(initial_h, hs), dz)
            return dz, tf.cast(dh, initial_h.dtype), d_recurrent_kernel

        def gradient(*gradients):
            return first_order("SimpleRNN", backward, gradients, [projected, initial_h, recurrent_kernel])

        return (outputs_of(hs, mask, projected, initial_h.dtype), h), gradient

    return run(project(sequences, kernel, bias, go_backwards), h, recurrent_kernel)


def _backward_loop(products, mask, hs, d_outputs, d_h):
    """Returns the gradients of the projections and of the initial state."""
    d_outputs = gradient_of_outputs(d_outputs, mask)
    hs = wide(hs)
    factor = 1 - hs * hs
    padded = None
    if mask is not None:
        factor = tf.where(mask, factor, 0.0)
        padded = tf.cast(~mask, factor.dtype)
    state_gradient = products.transposed()

    def step(t, dh):
        dh = dh + d_outputs[t]
        dz = dh * factor[t]
        previous_dh = state_gradient([dz])
        if padded is not None:
            previous_dh += dh * padded[t]
        return [previous_dh], [dz]

    dh = wide(d_h)
    (dh,), (dz,) = run_steps(step, [dh], [dh], tf.shape(hs)[0], reverse=True)
    return dz, dh
