"""The gradient of a masked weight, on JAX.

`keras.ops.custom_gradient` traces the gradient during the forward pass there, before the optimizer has
had a chance to ask for the dense gradient; `jax.custom_vjp` traces it when it is taken.
"""

import jax
import jax.numpy as jnp


def mask_gradient(weight, mask, masked_weight):
    """Returns `weight`; its gradient is zero where `mask` is False. See `mask_gradient.py`."""

    @jax.custom_vjp
    def identity(weight, mask):
        return weight

    def forward(weight, mask):
        return weight, mask

    def backward(mask, upstream):
        return upstream if masked_weight.dense_gradient else jnp.where(mask, upstream, 0), None

    identity.defvjp(forward, backward)
    return identity(weight, mask)
