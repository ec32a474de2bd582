"""The gradient of a masked weight, on TensorFlow and PyTorch."""

from keras import ops


def mask_gradient(weight, mask, masked_weight):
    """Returns `weight`; its gradient is zero where `mask` is False.

    `masked_weight.dense_gradient` is read when the gradient is taken, after the forward pass: while it is
    True the gradient passes unmasked to the optimizer that asked for it.

    Args:
        weight: Tensor that is already zero where `mask` is False.
        mask: Boolean tensor of the same shape.
        masked_weight: The `MaskedWeight` that the two come from.
    """

    # The mask is an argument, not captured: where it is still a variable, as in the loop of a plain
    # `keras.layers.RNN`, TensorFlow would otherwise read it anew in the gradient's loop, and cannot.
    def identity(weight, mask):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            if masked_weight.dense_gradient:
                return upstream, None
            return ops.where(mask, upstream, ops.zeros((), upstream.dtype)), None

        return weight, gradient

    return ops.custom_gradient(identity)(weight, mask)
