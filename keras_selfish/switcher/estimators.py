"""Binary switches with a gradient.

The forward pass sees 0 or 1; the gradient that reaches the logit is that of a smooth stand-in.
"""

import keras
from keras import ops

ESTIMATORS = ("straight_through", "hard_concrete")

# Temperature and stretch of the hard concrete distribution, as published.
TEMPERATURE = 2.0 / 3.0
STRETCH = (-0.1, 1.1)


def binary(logits, noise=None):
    """Binary switches, 1 where a logit is positive, with the gradient of an estimator.

    Args:
        logits: Float tensor.
        noise: None for the straight-through estimator, whose gradient is the logistic function's. For the
            hard concrete one, a tensor of the same shape, uniform in (0, 1): the switches are drawn, 1 where
            the gate is over one half, and the gradient is the gate's.

    Returns:
        A tensor of zeros and ones.

    Reference: Bengio et al. 2013, arXiv 1308.3432 (straight-through); Louizos et al. 2018, arXiv 1712.01312
    (hard concrete).
    """
    if noise is None:
        return _with_gradient_of(ops.sigmoid(logits), ops.greater(logits, 0))
    noise = ops.clip(noise, 1e-3, 1 - 1e-3)
    drawn = ops.sigmoid((ops.log(noise) - ops.log(1 - noise) + logits) / TEMPERATURE)
    gates = ops.clip(drawn * (STRETCH[1] - STRETCH[0]) + STRETCH[0], 0.0, 1.0)
    return _with_gradient_of(gates, ops.greater(gates, 0.5))


def _with_gradient_of(smooth, condition):
    hard = ops.cast(condition, smooth.dtype)
    # Exactly 0 or 1: x - x is zero, and the sum is the hard value itself.
    return hard + (smooth - ops.stop_gradient(smooth))


def uniform_noise(shape, seed_generator):
    """Noise for `binary`, in half precision: it is the one array of the matrix's size that it adds."""
    return keras.random.uniform(shape, dtype="float16", seed=seed_generator)
