"""The gradient of a masked weight, on JAX.

`keras.ops.custom_gradient` traces the gradient during the forward pass there, before the optimizer has
had a chance to ask for the dense gradient; `jax.custom_vjp` traces it when it is taken.
"""

import jax
import jax.numpy as jnp


def mask_gradient(weight, mask, masked_weight, number):
    """Returns `weight`, zero where `mask` is False; so is its gradient. See `mask_gradient.py`."""
    # A constant of what is compiled, which is compiled anew when it changes.
    is_settled = masked_weight.is_settled

    @jax.custom_vjp
    def masked(weight, mask):
        return weight if is_settled else jnp.where(mask, weight, 0)

    def forward(weight, mask):
        return masked(weight, mask), mask

    def backward(mask, upstream):
        dense = masked_weight.gradient_is_dense(number)
        return upstream if dense else jnp.where(mask, upstream, 0), None

    masked.defvjp(forward, backward)
    return masked(weight, mask)
