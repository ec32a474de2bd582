"""The gradient of a masked weight, on TensorFlow and PyTorch."""

from keras import ops

from keras_selfish.backend import BACKEND, of_backend

if BACKEND == "tensorflow":
    import tensorflow as tf


@of_backend
def mask_gradient(weight, mask, masked_weight, number):
    """Returns `weight`, zero where `mask` is False; so is its gradient.

    Whether a dense gradient is asked for is looked up when the gradient is taken, after the forward pass:
    then it passes unmasked to the optimizer that asked for it.

    Args:
        weight: Tensor that is already zero where `mask` is False, if the masked weight is settled.
        mask: Boolean tensor of the same shape.
        masked_weight: The `MaskedWeight` that the two come from.
        number: The number of the forward pass.
    """

    # The mask is an argument, not captured: where it is still a variable, as in the loop of a plain
    # `keras.layers.RNN`, TensorFlow would otherwise read it anew in the gradient's loop, and cannot.
    def identity(weight, mask):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            if masked_weight.gradient_is_dense(number):
                return upstream, None
            return ops.where(mask, upstream, ops.zeros((), upstream.dtype)), None

        return _zero_outside(weight, mask, masked_weight), gradient

    return ops.custom_gradient(identity)(weight, mask)


def _zero_outside(weight, mask, masked_weight):
    def masked():
        return ops.where(mask, weight, ops.zeros((), weight.dtype))

    if BACKEND == "tensorflow" and tf.inside_function():
        return tf.cond(masked_weight.unsettled_flag, masked, lambda: weight)
    return weight if masked_weight.is_settled else masked()
