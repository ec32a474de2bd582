"""An LSTM over a whole sequence for TensorFlow, with a hand-written gradient.

Imported only where Keras runs on TensorFlow. What makes it fast where there is no cuDNN:

- one matrix product projects the inputs of all time steps, so the loop does only `h @ U` and the
  gates, and stores what the gradient needs once;
- the derivatives of the gates do not depend on the incoming gradient, so they are computed for all
  time steps at once; the backward loop is left with `dz @ U^T` and a few elementwise operations;
- the gradients of the kernels, the bias and the inputs are one product (or sum) each after the
  backward loop, where automatic differentiation adds up one product for each time step.
"""

import tensorflow as tf


def on_gpu():
    """Whether a GPU is visible, where cuDNN is faster."""
    return bool(tf.config.list_physical_devices("GPU"))


@tf.autograph.experimental.do_not_convert
def lstm(
    sequences,
    initial_h,
    initial_c,
    kernel,
    recurrent_kernel,
    bias,
    go_backwards=False,
):
    """Runs an LSTM with tanh and sigmoid activations over whole sequences.

    The numbers are those of `keras.layers.LSTM`; the gradient is written by hand, with respect to
    all six tensors, and costs about as much as two forward passes. In a half-precision dtype the
    matrix products take and give that dtype, while gates, cell state and their gradients are kept
    in float32: the cell state is a sum over time and would lose small terms.

    Args:
        sequences: `(batch, time, features)`, at least one time step; batch and time may be
            dynamic. All other tensors have its dtype.
        initial_h: `(batch, units)`, the output before the first step.
        initial_c: `(batch, units)`, the cell state before the first step.
        kernel: `(features, 4 * units)`, gates in Keras's order i, f, c, o. A tensor or variable;
            a mask, if any, has been applied.
        recurrent_kernel: `(units, 4 * units)`, likewise.
        bias: `(4 * units,)`, or None.
        go_backwards: If True, runs from the last time step to the first; the outputs are in the
            order in which they were computed.

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
    arguments = [sequences, initial_h, initial_c, kernel, recurrent_kernel]
    if bias is not None:
        arguments.append(bias)
    arguments = [tf.convert_to_tensor(argument) for argument in arguments]

    @tf.custom_gradient
    def forward(sequences, initial_h, initial_c, kernel, recurrent_kernel, *bias):
        inputs = _time_major(sequences, go_backwards)
        projected = _wide(_over_time(inputs, kernel))
        if bias:
            projected += _wide(bias[0])
        hs, cs, gates, h, c = _forward_loop(projected, initial_h, _wide(initial_c), recurrent_kernel)
        saved = (inputs, initial_h, initial_c, kernel, recurrent_kernel, hs, cs, *gates)

        def gradient(d_outputs, d_h, d_c):
            d_inputs, *others = _first_order(_backward)(*saved, d_outputs, d_h, d_c)
            d_sequences = _time_major(d_inputs, go_backwards, inverse=True)
            return [d_sequences, *others][: len(arguments)]

        outputs = tf.transpose(hs, (1, 0, 2))
        outputs.set_shape((*sequences.shape[:2], recurrent_kernel.shape[0]))
        return (outputs, h, tf.cast(c, sequences.dtype)), gradient

    return forward(*arguments)


def _forward_loop(projected, h, c, recurrent_kernel):
    """Returns outputs, cell states and the four gates of all steps (time-major), and the last h and c."""
    time = tf.shape(projected)[0]
    dtype, wide = h.dtype, c.dtype
    groups = _groups(recurrent_kernel)
    kernels = tf.split(recurrent_kernel, groups, axis=1)
    projections = tf.split(projected, groups, axis=2)

    def step(t, h, c, hs, cs, *gates):
        z = [p[t] + tf.cast(tf.matmul(h, k), wide) for p, k in zip(projections, kernels, strict=True)]
        i, f, g, o = z if groups == 4 else tf.split(z[0], 4, axis=1)
        i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        c = f * c + i * g
        h = tf.cast(o * tf.tanh(c), dtype)
        gates = [array.write(t, gate) for array, gate in zip(gates, (i, f, g, o), strict=True)]
        return t + 1, h, c, hs.write(t, h), cs.write(t, c), *gates

    arrays = [tf.TensorArray(dtype, time, element_shape=h.shape)]
    arrays += [tf.TensorArray(wide, time, element_shape=c.shape) for _ in range(5)]
    _, h, c, *arrays = tf.while_loop(lambda t, *_: t < time, step, [0, h, c, *arrays])
    hs, cs, *gates = (array.stack() for array in arrays)
    return hs, cs, gates, h, c


def _backward(
    inputs, initial_h, initial_c, kernel, recurrent_kernel, hs, cs, i, f, g, o, d_outputs, d_h, d_c
):
    """Returns the gradients of inputs (time-major), initial states, both kernels and the bias."""
    dtype = inputs.dtype
    tanh_c = tf.tanh(cs)
    previous_h = tf.concat([initial_h[None], hs[:-1]], axis=0)
    previous_c = tf.concat([_wide(initial_c)[None], cs[:-1]], axis=0)
    # What the gradient of c (of h, for the output gate) is multiplied by to give that of each gate's z.
    factors = [
        tf.raw_ops.SigmoidGrad(y=i, dy=g),
        tf.raw_ops.SigmoidGrad(y=f, dy=previous_c),
        tf.raw_ops.TanhGrad(y=g, dy=i),
        tf.raw_ops.SigmoidGrad(y=o, dy=tanh_c),
    ]
    from_h_to_c = tf.raw_ops.TanhGrad(y=tanh_c, dy=o)
    d_outputs = _wide(tf.transpose(d_outputs, (1, 0, 2)))
    dz, d_initial_h, d_initial_c = _backward_loop(
        d_outputs, _wide(d_h), _wide(d_c), factors, from_h_to_c, f, recurrent_kernel
    )
    d_bias = tf.reduce_sum(dz, axis=(0, 1))
    dz = tf.cast(dz, dtype)
    return (
        _over_time(dz, kernel, transpose=True),
        tf.cast(d_initial_h, dtype),
        tf.cast(d_initial_c, dtype),
        _sum_over_time(inputs, dz),
        _sum_over_time(previous_h, dz),
        tf.cast(d_bias, dtype),
    )


def _backward_loop(d_outputs, dh, dc, factors, from_h_to_c, forget, recurrent_kernel):
    """Returns the gradients of z (time, batch, 4 * units) and of the initial states."""
    dtype, wide = recurrent_kernel.dtype, dc.dtype
    groups = _groups(recurrent_kernel)
    # On a CPU a float32 product with a transposed right factor takes 2 to 2.6 times as long, so it is
    # transposed once; a bfloat16 one takes two thirds of the time.
    transpose = dtype == wide
    if transpose:
        recurrent_kernel = tf.transpose(recurrent_kernel)
    kernels = tf.split(recurrent_kernel, groups, axis=0 if transpose else 1)
    factors = _joined(factors, groups, axis=2)

    def step(t, dh, dc, *dzs):
        dh = dh + d_outputs[t]
        dc = dc + dh * from_h_to_c[t]
        sources = _joined([dc, dc, dc, dh], groups, axis=1)
        dz = [source * factor[t] for source, factor in zip(sources, factors, strict=True)]
        products = [
            tf.matmul(tf.cast(z, dtype), k, transpose_b=not transpose)
            for z, k in zip(dz, kernels, strict=True)
        ]
        dzs = [array.write(t, z) for array, z in zip(dzs, dz, strict=True)]
        return t - 1, tf.cast(tf.add_n(products), wide), dc * forget[t], *dzs

    time = tf.shape(forget)[0]
    dzs = [tf.TensorArray(wide, time, element_shape=factor.shape[1:]) for factor in factors]
    _, dh, dc, *dzs = tf.while_loop(lambda t, *_: t >= 0, step, [time - 1, dh, dc, *dzs])
    return tf.concat([array.stack() for array in dzs], axis=2), dh, dc


def _groups(recurrent_kernel):
    """Returns the number of products that a time step is made of: one, or one for each gate.

    A small product does not keep all threads busy; four of them, independent of each other, do. Measured
    with 2 threads in float32, forward and backward, in relation to one product: 0.75 of the time at 256
    units, 0.85 at 384, the same at 512, 1.05 and more above. In half precision the casts outweigh the gain.
    """
    small = recurrent_kernel.shape[0] <= 512 and recurrent_kernel.dtype.size >= 4
    return 4 if small else 1


def _joined(gates, groups, axis):
    """Joins the tensors of four gates to those of `groups` groups."""
    return gates if groups == 4 else [tf.concat(gates, axis)]


def _first_order(function):
    """Makes `function` refuse to be differentiated, instead of being so at a great price."""

    @tf.custom_gradient
    def guarded(*arguments):
        def gradient(*_):
            raise LookupError(
                "`lstm` has a first-order gradient only: its gradient cannot be differentiated "
                "again. For second-order gradients use `keras.layers.LSTM`."
            )

        return function(*arguments), gradient

    return guarded


def _wide(tensor):
    """Casts half precision to float32, in which sums over time are kept."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor


def _time_major(tensor, go_backwards, inverse=False):
    """(batch, time, ...) to (time, batch, ...) in the order of computation, or back."""
    if inverse and go_backwards:
        tensor = tf.reverse(tensor, axis=[0])
    tensor = tf.transpose(tensor, (1, 0, 2))
    if go_backwards and not inverse:
        tensor = tf.reverse(tensor, axis=[0])
    return tensor


def _over_time(tensor, matrix, transpose=False):
    """Multiplies all time steps by one matrix, as one product of two matrices."""
    time, batch = tf.unstack(tf.shape(tensor)[:2])
    rows = tf.reshape(tensor, (-1, tensor.shape[2]))
    product = tf.matmul(rows, matrix, transpose_b=transpose)
    result = tf.reshape(product, (time, batch, product.shape[1]))
    result.set_shape((*tensor.shape[:2], None))
    return result


def _sum_over_time(left, right):
    """Sums left_t^T right_t over the time steps, as one product of two matrices."""
    left = tf.reshape(left, (-1, left.shape[2]))
    return tf.matmul(left, tf.reshape(right, (-1, right.shape[2])), transpose_a=True)
