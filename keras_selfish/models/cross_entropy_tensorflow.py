"""The cross-entropy of tokens on TensorFlow.

On a CPU, TensorFlow's own operation computes exponentials one by one, three times, and its softmax passes
over memory many times. Here XLA compiles what is needed into few passes over the logits, and keeps no
probabilities.
"""

import tensorflow as tf

# Fewer logits of a token are not worth XLA's time, a fraction of a second for each number of tokens.
SMALLEST_COMPILED = 1000


def cross_entropy(targets, logits):
    """The cross-entropy of each token, with a hand-written gradient.

    Args:
        targets: Integer tensor (...,).
        logits: Tensor (..., vocabulary).

    Returns:
        Tensor (...,) of the type of the logits.
    """
    if tf.config.list_physical_devices("GPU"):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    logits = tf.convert_to_tensor(logits)
    shape = tf.shape(targets)
    rows = tf.reshape(logits, (-1, tf.shape(logits)[-1]))
    rows.set_shape((None, logits.shape[-1]))
    return tf.reshape(_of_rows(rows, tf.reshape(targets, (-1,))), shape)


def _of_rows(logits, targets):
    places = tf.stack([tf.range(tf.size(targets)), targets], axis=1)

    @tf.custom_gradient
    def losses(logits):
        largest, sums = _few_passes(_largest_and_sums, logits)(logits)

        def gradient(upstream):
            return _few_passes(_gradient, logits)(logits, places, largest, sums, upstream)

        below = largest - _wide(tf.gather_nd(logits, places))
        return tf.cast(below + tf.math.log(sums), logits.dtype), gradient

    return losses(logits)


def _largest_and_sums(logits):
    """The largest logit of each row, and the sum of the exponentials of all less the largest."""
    largest = tf.reduce_max(_wide(logits), -1)
    return largest, tf.reduce_sum(tf.exp(_wide(logits) - largest[:, tf.newaxis]), -1)


def _gradient(logits, places, largest, sums, upstream):
    """The probabilities, less 1 at the targets, times the upstream gradient of each row."""
    upstream = _wide(upstream)
    scales = upstream / sums
    gradient = tf.exp(_wide(logits) - largest[:, tf.newaxis]) * scales[:, tf.newaxis]
    # These few are written over the others: to ask of each entry whether it is a target would take as long as
    # all else.
    at_targets = tf.exp(_wide(tf.gather_nd(logits, places)) - largest) * scales - upstream
    gradient = tf.cast(gradient, logits.dtype)
    return tf.tensor_scatter_nd_update(gradient, places, tf.cast(at_targets, logits.dtype))


def _wide(values):
    """Values in float32 at least."""
    return tf.cast(values, tf.float32) if values.dtype.size < 4 else values


def _few_passes(function, logits):
    size = logits.shape[-1]
    if tf.inside_function() and size is not None and size >= SMALLEST_COMPILED:
        return tf.function(function, jit_compile=True, autograph=False)
    return function
