"""The cross-entropy of tokens on TensorFlow.

On a CPU, TensorFlow's own operation computes exponentials one by one, three times; its softmax is
vectorised. Everything here follows from one softmax and two row maxima.
"""

import tensorflow as tf


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
    shape = tf.shape(targets)
    rows = tf.reshape(logits, (-1, tf.shape(logits)[-1]))
    return tf.reshape(_of_rows(rows, tf.reshape(targets, (-1,))), shape)


def _of_rows(logits, targets):
    places = tf.stack([tf.range(tf.size(targets)), targets], axis=1)

    @tf.custom_gradient
    def losses(logits):
        probabilities = tf.nn.softmax(logits)
        # The largest probability is at least 1 / vocabulary, so its logarithm is safe.
        log_sums = tf.reduce_max(logits, -1) - tf.math.log(tf.reduce_max(probabilities, -1))

        def gradient(upstream):
            scaled = probabilities * upstream[:, tf.newaxis]
            return tf.tensor_scatter_nd_sub(scaled, places, upstream)

        return log_sums - tf.gather_nd(logits, places), gradient

    return losses(logits)
