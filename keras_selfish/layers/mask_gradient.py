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

    def identity(weight):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            if masked_weight.dense_gradient:
                return upstream
            return ops.where(mask, upstream, ops.zeros((), upstream.dtype))

        return weight, gradient

    return ops.custom_gradient(identity)(weight)
