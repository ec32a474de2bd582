"""Functions applied part by part on TensorFlow, whose own gradient of a loop would keep every part."""

import tensorflow as tf


def map_parts(function, starts, parameters):
    """Calls function(start, parameters) for each start and stacks the results. See `tiling.py`."""

    @tf.custom_gradient
    def run(*parameters):
        parameters = list(parameters)

        def gradient(*upstream):
            sums = tuple(tf.zeros_like(parameter) for parameter in parameters)
            _, sums = tf.while_loop(
                lambda index, _: index < tf.size(starts),
                lambda index, sums: (index + 1, add(index, sums, upstream)),
                (0, sums),
                parallel_iterations=1,
            )
            return sums

        def add(index, sums, upstream):
            with tf.GradientTape() as tape:
                tape.watch(parameters)
                results = function(starts[index], parameters)
            pairs = [
                (one, u[index]) for one, u in zip(results, upstream, strict=True) if one.dtype.is_floating
            ]
            targets, gradients = zip(*pairs, strict=True)
            gradients = tape.gradient(targets, parameters, gradients, tf.UnconnectedGradients.ZERO)
            return tuple(a + b for a, b in zip(sums, gradients, strict=True))

        return _stacked(function, starts, parameters), gradient

    # Outside of a function Keras hands out variables as they are, which a custom gradient would not take.
    return run(*map(tf.identity, parameters))


def _stacked(function, starts, parameters):
    first = function(starts[0], parameters)
    if starts.shape[0] == 1:
        return tuple(one[None] for one in first)
    return tf.map_fn(
        lambda start: function(start, parameters),
        starts,
        fn_output_signature=tuple(tf.TensorSpec(one.shape, one.dtype) for one in first),
        parallel_iterations=1,
    )
