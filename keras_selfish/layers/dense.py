"""Sparse fully connected layer."""

import keras

from keras_selfish.layers.masked import MaskedLayer


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseDense(MaskedLayer, keras.layers.Dense):
    """`keras.layers.Dense` whose kernel (inputs, units) is sparse from the first step on; the bias is dense.

    Args:
        units: Number of units.
        sparsity: Fraction of zeros in the kernel, in [0, 1). Default 0.67.
        distribution: `"uniform"` (default), `"erdos_renyi"` or `"erk"`; with one kernel they agree.
        block_shape: (input weights, units) of the blocks in which connections come and go; it must divide
            the kernel. Default `(1, 1)`.
        mask_seed: Integer seed of the initial mask; None (default) draws one.
        *args: As in `keras.layers.Dense`.
        **kwargs: As in `keras.layers.Dense`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide the kernel.

    Example:

    >>> import numpy as np
    >>> layer = SparseDense(8, sparsity=0.75, block_shape=(4, 1))
    >>> layer(np.ones((2, 16), "float32")).shape == (2, 8)
    True
    >>> int(np.count_nonzero(layer.kernel))
    32
    """

    keras_layer = keras.layers.Dense
    masked_names = {"kernel": ()}
    saves_named_weights_only = True

    def __init__(
        self,
        units,
        *args,
        sparsity=0.67,
        distribution="uniform",
        block_shape=(1, 1),
        mask_seed=None,
        **kwargs,
    ):
        super().__init__(units, *args, **kwargs)
        self._init_masks(sparsity, distribution, block_shape, mask_seed)

    def masked_shapes(self, input_shape):
        return {"kernel": (input_shape[-1], self.units)}

    @property
    def kernel(self):
        return self.weight_to_use("kernel", super().kernel)

    def call(self, inputs, training=None):
        with self.effective_weights():
            return super().call(inputs, training=training)
