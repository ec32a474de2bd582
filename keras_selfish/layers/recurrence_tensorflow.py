"""What the recurrent layers over a sequence share for TensorFlow: projections, products and loops.

Tensors in a loop have the time first, `(time, batch, ...)`, in the order of computation. Padded steps are
told by a boolean mask `(time, batch, 1)`, or None where there are none.
"""

import tensorflow as tf


def as_tensors(*arguments):
    """Converts variables and arrays to tensors, also those in lists; None stays None."""
    return [
        [tf.convert_to_tensor(part) for part in argument]
        if isinstance(argument, (list, tuple))
        else None
        if argument is None
        else tf.convert_to_tensor(argument)
        for argument in arguments
    ]


def wide(tensor):
    """Casts half precision to float32, in which sums over time are kept."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor


def project(sequences, kernel, bias, go_backwards):
    """What inputs and bias add to each step: `(time, batch, width)`, in float32 at least.

    Only the loops need a hand-written gradient: that of this product of all time steps is one product for
    each of its factors already.

    Args:
        sequences: `(batch, time, features)`, or a list of these, one for each gate.
        kernel: `(features, width)`.
        bias: `(width,)`, or None.
        go_backwards: Whether the last time step comes first.
    """
    if not isinstance(sequences, list):
        return _project(sequences, kernel, bias, go_backwards)
    kernels = tf.split(kernel, len(sequences), axis=1)
    biases = [None] * len(sequences) if bias is None else tf.split(bias, len(sequences))
    of_gates = zip(sequences, kernels, biases, strict=True)
    return tf.concat([_project(*of_gate, go_backwards) for of_gate in of_gates], axis=2)


def _project(sequences, kernel, bias, go_backwards):
    inputs = _time_major(sequences, go_backwards)
    time, batch = tf.unstack(tf.shape(inputs)[:2])
    product = wide(tf.matmul(tf.reshape(inputs, (-1, inputs.shape[2])), kernel))
    if bias is not None:
        # TensorFlow joins this addition to the product, where the two stand side by side.
        product = tf.nn.bias_add(product, wide(bias))
    projected = tf.reshape(product, (time, batch, kernel.shape[1]))
    projected.set_shape((*inputs.shape[:2], None))
    return projected


def _time_major(tensor, go_backwards):
    tensor = tf.transpose(tensor, (1, 0, 2))
    return tf.reverse(tensor, axis=[0]) if go_backwards else tensor


def time_major_mask(mask, go_backwards):
    """`(batch, time)` to a boolean `(time, batch, 1)` in the order of computation; None stays None."""
    return None if mask is None else _time_major(tf.cast(mask, tf.bool)[:, :, None], go_backwards)


def outputs_of(hs, mask, like, dtype):
    """Outputs `(batch, time, units)` of a dtype, of those of the loop, with the sizes known of `like`."""
    outputs = tf.transpose(_zero_before_first(tf.cast(hs, dtype), mask), (1, 0, 2))
    outputs.set_shape((like.shape[1], like.shape[0], None))
    return outputs


def gradient_of_outputs(d_outputs, mask):
    """The gradient of the outputs of the loop, `(time, batch, units)`, of that of `outputs_of`."""
    return _zero_before_first(wide(tf.transpose(d_outputs, (1, 0, 2))), mask)


def _zero_before_first(outputs, mask):
    # Keras repeats the last output at a padded step, not the state, which need not be zero at first.
    if mask is None:
        return outputs
    return tf.where(tf.cumsum(tf.cast(mask, tf.int32), axis=0) > 0, outputs, tf.zeros((), outputs.dtype))


def previous_states(initial, states):
    """The states before each step, of the initial state and those after each step."""
    return tf.concat([initial[None], states[:-1]], axis=0)


def repeat_where_padded(mask, t, new, old):
    """The new states at a step, but the old ones in the rows that are padded there."""
    return new if mask is None else [tf.where(mask[t], *pair) for pair in zip(new, old, strict=True)]


def run_steps(step, states, kept_like, time, reverse=False):
    """Runs `step` for each time step.

    Args:
        step: Function of a time step and the states that returns a list of new states, and a list of
            tensors to keep.
        states: The initial states.
        kept_like: For each tensor to keep one of its dtype and shape.
        time: Number of time steps, an integer or a scalar tensor.
        reverse: Whether to run from the last step to the first.

    Returns:
        The last states, and for each kept tensor those of all steps, time first.
    """
    count = len(states)

    def body(t, *loop):
        new_states, kept = step(t, *loop[:count])
        arrays = [array.write(t, tensor) for array, tensor in zip(loop[count:], kept, strict=True)]
        return t - 1 if reverse else t + 1, *new_states, *arrays

    arrays = [tf.TensorArray(like.dtype, time, element_shape=like.shape) for like in kept_like]
    start = time - 1 if reverse else 0
    _, *loop = tf.while_loop(lambda t, *_: t >= 0 if reverse else t < time, body, [start, *states, *arrays])
    return loop[:count], [array.stack() for array in loop[count:]]


def groups_of(recurrent_kernel, gates):
    """The number of products that a time step is made of: one, or one for each gate.

    A small product does not keep all threads busy; several, independent of each other, do. Measured for
    four gates with 2 threads in float32, forward and backward, in relation to one product: 0.75 of the time
    at 256 units, 0.85 at 384, the same at 512, 1.05 and more above. In half precision the casts outweigh
    the gain.
    """
    small = recurrent_kernel.shape[0] <= 512 and recurrent_kernel.dtype.size >= 4
    return gates if small else 1


def joined(gates, groups, axis):
    """Joins the tensors of the gates to those of `groups` groups."""
    return gates if groups == len(gates) else [tf.concat(gates, axis)]


class RecurrentProducts:
    """The products of a state with a recurrent kernel at a time step, and their gradients.

    Args:
        recurrent_kernel: `(units, gates * units)`.
        gates: Number of gates.
        dropout_mask: `(batch, units)`, which multiplies the state; or a list of these, one for each gate;
            or None. It is taken to be constant.

    Attributes:
        groups: Number of products: 1, or that of the gates.
    """

    def __init__(self, recurrent_kernel, gates, dropout_mask=None):
        masks = dropout_mask if isinstance(dropout_mask, list) else []
        self.groups = gates if masks else groups_of(recurrent_kernel, gates)
        self._masks = masks  # one for each gate
        self._mask = None if masks else dropout_mask
        self._kernel = recurrent_kernel
        self._kernels = tf.split(recurrent_kernel, self.groups, axis=1)

    def __call__(self, state):
        """A list of the products of each group, in float32 at least."""
        states = self._dropped(tf.cast(state, self._kernel.dtype))
        return [wide(tf.matmul(*factors)) for factors in zip(states, self._kernels, strict=True)]

    def transposed(self):
        """A function that returns the gradient of the state at a step, of those of the groups."""
        # On a CPU a float32 product with a transposed right factor takes 2 to 2.6 times as long, so it is
        # transposed once; a bfloat16 one takes two thirds of the time.
        dtype = self._kernel.dtype
        transpose = dtype.size >= 4
        kernels = tf.split(tf.transpose(self._kernel), self.groups) if transpose else self._kernels

        def state_gradient(gradients):
            products = [
                tf.matmul(tf.cast(gradient, dtype), kernel, transpose_b=not transpose)
                for gradient, kernel in zip(gradients, kernels, strict=True)
            ]
            if self._masks:
                products = [product * mask for product, mask in zip(products, self._masks, strict=True)]
            product = tf.add_n(products)
            return wide(product if self._mask is None else product * self._mask)

        return state_gradient

    def kernel_gradient(self, states, gradients):
        """The gradient of the kernel, of the states and the gradients `(time, batch, ...)` of all steps."""
        states = tf.cast(states, self._kernel.dtype)
        gradients = tf.cast(gradients, self._kernel.dtype)
        if not self._masks:
            return _sum_over_time(self._dropped(states)[0], gradients)
        of_gates = zip(self._dropped(states), tf.split(gradients, self.groups, axis=2), strict=True)
        return tf.concat([_sum_over_time(*of_gate) for of_gate in of_gates], axis=1)

    def _dropped(self, state):
        if self._masks:
            return [state * mask for mask in self._masks]
        return [state if self._mask is None else state * self._mask] * self.groups


def _sum_over_time(left, right):
    """Sums left_t^T right_t over the time steps, as one product of two matrices."""
    left = tf.reshape(left, (-1, left.shape[2]))
    return tf.matmul(left, tf.reshape(right, (-1, right.shape[2])), transpose_a=True)


def first_order(layer, function, gradients, sources):
    """Calls a gradient's function in such a way that to differentiate it again is an error.

    Automatic differentiation could do it, at a great price: unasked-for, it would hide a mistake.

    Args:
        layer: Name of the Keras layer, such as "LSTM".
        function: Function of the incoming gradients.
        gradients: The incoming gradients.
        sources: All tensors with respect to which the result could be differentiated.
    """
    count = len(gradients)

    @tf.custom_gradient
    def guarded(*arguments):
        def refuse(*_):
            raise LookupError(
                "The hand-written gradient of a sequence is of first order only: it cannot be differentiated "
                "again. For second-order gradients give the layer `unroll=True`, or run its cell in Keras's "
                f"own loop, `keras.layers.RNN(Sparse{layer}Cell(units))`."
            )

        return function(*arguments[:count]), refuse

    return guarded(*gradients, *sources)
