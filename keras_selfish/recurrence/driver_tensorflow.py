"""The time loops of recurrent cells on TensorFlow, forward and backward."""

from __future__ import annotations

import tensorflow as tf

from keras_selfish.recurrence.cells import split_last

# A product of at most so many units does not keep all threads busy; several, independent of each other, do.
# Measured for four gates with 2 threads in float32, forward and backward, in relation to one product: 0.75
# of the time at 256 units, 0.85 at 384, the same at 512, 1.05 and more above. In half precision the casts
# outweigh the gain.
SEPARATE_UP_TO = 512


def on_gpu() -> bool:
    """Whether a GPU is visible."""
    return bool(tf.config.list_physical_devices("GPU"))


def wide(tensor):
    """Casts half precision to float32, in which sums over time are kept."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor


def project(inputs, kernel, bias):
    """As in `driver.py`."""
    time, batch = tf.unstack(tf.shape(inputs)[:2])
    product = wide(tf.matmul(tf.reshape(inputs, (-1, inputs.shape[2])), kernel))
    if bias is not None:
        # TensorFlow joins this addition to the product, where the two stand side by side.
        product = tf.nn.bias_add(product, wide(bias))
    projected = tf.reshape(product, (time, batch, kernel.shape[1]))
    projected.set_shape((*inputs.shape[:2], None))
    return projected


@tf.autograph.experimental.do_not_convert
def run_loops(cell, x, states, kernels, biases, mask=None, dropout=None):
    """As in `driver.py`, of first order; outputs at padded steps before all others are zero, as in Keras."""
    count, units = len(states), states[0].shape[1]
    given_biases = [bias for of_gates in biases for bias in of_gates if bias is not None]

    @tf.custom_gradient
    def loops(x, *tensors):
        states, kernels = tensors[:count], tensors[count : count + len(biases)]
        rest = iter(tensors[count + len(biases) :])
        initial = [wide(s) if w else s for s, w in zip(states, cell.wide_states, strict=True)]
        of_products = [[b if b is None else next(rest) for b in of_gates] for of_gates in biases]
        products = _Products(cell, kernels, of_products, dropout)
        x_gates = tf.split(x, cell.input_widths(units), axis=2)

        def forward_step(t, states):
            new, kept = cell.step([gate[t] for gate in x_gates], states, products)
            new = [tf.cast(tensor, state.dtype) for tensor, state in zip(new, states, strict=True)]
            new = _where_real(mask, t, new, states)
            return new, [*new, *kept]

        kept = [(x.dtype, width) for width in cell.kept(units)]
        kept = [(state.dtype, state.shape[1]) for state in initial] + kept
        last, arrays = _loop(forward_step, initial, kept, tf.shape(x)[0])

        def gradient(d_outputs, *d_last):
            after, kept = arrays[:count], arrays[count:]
            before = [tf.concat([s[None], a[:-1]], axis=0) for s, a in zip(initial, after, strict=True)]
            factors = cell.factors(before, after, kept)
            d_outputs = wide(_zero_before_first(d_outputs, mask))
            transpose = products.transposed()

            def backward_step(t, d):
                joined, d = {}, [d[0] + d_outputs[t], *d[1:]]

                def transposed(index, d_gates):
                    joined[index] = products.join(index, d_gates)
                    return transpose(index, joined[index])

                new, apart = cell.back(d, [factor[t] for factor in factors], transposed)
                of_products = [gate for index in range(len(kernels)) for gate in joined[index]]
                return _where_real(mask, t, new, d), [*of_products, *apart]

            widths = [width for groups in products.joined_widths for width in groups]
            widths = [(x.dtype, width) for width in widths + [units] * cell.input_gates().count(None)]
            d, d_gates = _loop(backward_step, [wide(g) for g in d_last], widths, tf.shape(x)[0], reverse=True)
            if mask is not None:
                d_gates = [tf.where(mask, tensor, tf.zeros((), tensor.dtype)) for tensor in d_gates]
            d_gates = iter(d_gates)
            d_products = [_concat([next(d_gates) for _ in groups], 2) for groups in products.joined_widths]
            of_kernels = zip(range(len(kernels)), cell.inputs(before, kept), d_products, strict=True)
            return (
                cell.of_inputs(d_products, list(d_gates), units),
                *(tf.cast(g, state.dtype) for g, state in zip(d, states, strict=True)),
                *(products.kernel_gradient(*of_kernel) for of_kernel in of_kernels),
                *products.bias_gradients(d_products),
            )

        def first_order(*gradients):
            return _not_differentiable(cell.layer, gradient, gradients, [x, *tensors])

        last = [tf.cast(s, state.dtype) for s, state in zip(last, states, strict=True)]
        return (_zero_before_first(arrays[0], mask), *last), first_order

    outputs, *last = loops(x, *states, *kernels, *given_biases)
    # The loop forgets how many steps there are; Keras's `TimeDistributed` counts on it.
    outputs.set_shape((x.shape[0], *outputs.shape[1:]))
    return outputs, last


class _Products:
    """The products of a time step and their gradients; see `run_loops`."""

    def __init__(self, cell, kernels, biases, dropout):
        units = kernels[0].shape[0]
        self._widths = cell.widths(units)
        self._kernels, self._dtype = kernels, kernels[0].dtype
        of_gates = isinstance(dropout, list)
        separate = of_gates or separates(units, self._dtype)
        # A product is made of one for each gate, or of one for all.
        self.joined_widths = [widths if separate else [sum(widths)] for widths in self._widths]
        self._parts = [
            tf.split(k, groups, axis=1) for k, groups in zip(kernels, self.joined_widths, strict=True)
        ]
        self._biases = biases
        masks = iter(dropout if of_gates else ())
        self._masks = [
            [next(masks) if of_gates else dropout for _ in groups] for groups in self.joined_widths
        ]

    def __call__(self, index, state):
        """The gates of a product with a state, in float32 at least."""
        state = tf.cast(state, self._dtype)
        of_parts = zip(self._masks[index], self._parts[index], strict=True)
        gates = [wide(tf.matmul(_dropped(state, mask), kernel)) for mask, kernel in of_parts]
        if len(gates) < len(self._widths[index]):
            gates = split_last(gates[0], self._widths[index])
        biases = self._biases[index]
        return [gate if bias is None else gate + wide(bias) for gate, bias in zip(gates, biases, strict=True)]

    def join(self, index, d_gates):
        """Joins the gradients of gates where they come of one product."""
        return d_gates if len(d_gates) == len(self.joined_widths[index]) else [tf.concat(d_gates, axis=1)]

    def transposed(self):
        """A function of a product's index and its gradients, joined, that returns that of the state."""
        # On a CPU a float32 product with a transposed right factor takes 2 to 2.6 times as long, so it is
        # transposed once; a bfloat16 one takes two thirds of the time.
        transpose = self._dtype.size >= 4
        parts = self._parts
        if transpose:
            groups = zip(self._kernels, self.joined_widths, strict=True)
            parts = [tf.split(tf.transpose(kernel), widths) for kernel, widths in groups]

        def state_gradient(index, gradients):
            products = [
                _dropped(tf.matmul(tf.cast(gradient, self._dtype), kernel, transpose_b=not transpose), mask)
                for gradient, kernel, mask in zip(gradients, parts[index], self._masks[index], strict=True)
            ]
            return wide(products[0] if len(products) == 1 else tf.add_n(products))

        return state_gradient

    def kernel_gradient(self, index, states, gradients):
        """The gradient of a kernel, of the states and the gradients `(time, batch, ...)` of all steps."""
        states, gradients = tf.cast(states, self._dtype), tf.cast(gradients, self._dtype)
        masks = self._masks[index]
        if all(mask is masks[0] for mask in masks):
            return _sum_over_time(_dropped(states, masks[0]), gradients)
        of_gates = zip(masks, tf.split(gradients, self._widths[index], axis=2), strict=True)
        return tf.concat([_sum_over_time(_dropped(states, mask), part) for mask, part in of_gates], axis=1)

    def bias_gradients(self, gradients):
        """The gradients of the biases that there are, of those `(time, batch, ...)` of all products."""
        return [
            tf.cast(tf.reduce_sum(gradient, (0, 1)), bias.dtype)
            for product, widths, biases in zip(gradients, self._widths, self._biases, strict=True)
            if any(bias is not None for bias in biases)
            for gradient, bias in zip(split_last(product, widths), biases, strict=True)
            if bias is not None
        ]


def separates(units, dtype):
    """Whether a time step takes one product for each gate."""
    return units <= SEPARATE_UP_TO and dtype.size >= 4


def _loop(step, states, kept, time, reverse=False):
    """Runs `step`, a function of a time step and the states, for each time step.

    Args:
        step: Returns the new states, and tensors to keep.
        states: The initial states, `(batch, ...)`.
        kept: For each tensor to keep its dtype and width.
        time: Number of time steps, a scalar tensor.
        reverse: Whether to run from the last step to the first.

    Returns:
        The last states, and for each kept tensor those of all steps, time first.
    """
    count, batch = len(states), states[0].shape[0]

    def body(t, *loop):
        new_states, tensors = step(t, list(loop[:count]))
        arrays = [array.write(t, tensor) for array, tensor in zip(loop[count:], tensors, strict=True)]
        return t - 1 if reverse else t + 1, *new_states, *arrays

    arrays = [tf.TensorArray(dtype, time, element_shape=(batch, width)) for dtype, width in kept]
    start = time - 1 if reverse else 0
    _, *loop = tf.while_loop(lambda t, *_: t >= 0 if reverse else t < time, body, [start, *states, *arrays])
    return loop[:count], [array.stack() for array in loop[count:]]


def _where_real(mask, t, new, old):
    """The new states at a step, but the old ones in the rows that are padded there."""
    return new if mask is None else [tf.where(mask[t], *pair) for pair in zip(new, old, strict=True)]


def _zero_before_first(outputs, mask):
    # Keras repeats the last output at a padded step, not the state, which need not be zero at first.
    if mask is None:
        return outputs
    return tf.where(tf.cumsum(tf.cast(mask, tf.int32), axis=0) > 0, outputs, tf.zeros((), outputs.dtype))


def _dropped(tensor, mask):
    return tensor if mask is None else tensor * mask


def _concat(tensors, axis):
    return tensors[0] if len(tensors) == 1 else tf.concat(tensors, axis)


def _sum_over_time(left, right):
    """Sums left_t^T right_t over the time steps, as one product of two matrices."""
    left = tf.reshape(left, (-1, left.shape[2]))
    return tf.matmul(left, tf.reshape(right, (-1, right.shape[2])), transpose_a=True)


def _not_differentiable(layer, function, gradients, sources):
    """Calls a gradient's function in such a way that to differentiate it again is an error.

    Automatic differentiation could do it, at a great price: unasked-for, it would hide a mistake.
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
