"""Biases of the published language models that Keras's layers lack."""

import random

import keras
from keras import ops

from keras_selfish.layers.dense import add_bias
from keras_selfish.layers.forms import strips_to

OTHER = 0x5BD1E995  # makes another seed of a seed


@keras.saving.register_keras_serializable(package="keras_selfish")
@strips_to(keras.layers.Normalization)
class LogitsBias(keras.layers.Layer):
    """A bias on the logits that a tied embedding gives, zero at first.

    `strip` replaces it by a `keras.layers.Normalization` whose mean is the negative bias and whose variance
    is 1: the one layer of Keras that adds a vector.

    Args:
        **kwargs: As in `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor (..., vocabulary).

    Example:

    >>> import numpy as np
    >>> layer = LogitsBias()
    >>> layer(np.ones((2, 3), "float32")).shape == (2, 3)
    True
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="bias")

    def call(self, inputs):
        return add_bias(inputs, ops.cast(self.bias, inputs.dtype))

    def compute_output_shape(self, input_shape):
        return input_shape

    def plain_weights(self):
        """Mean, variance and count of the layer that takes this one's place."""
        bias = ops.convert_to_tensor(self.bias)
        return [ops.negative(bias), ops.ones_like(bias), ops.zeros((), "int32")]


@keras.saving.register_keras_serializable(package="keras_selfish")
class BiasVectors(keras.initializers.Initializer):
    """The sum of two vectors, each uniform: that of the recurrent and that of the input kernel.

    Args:
        recurrent_limit: The first one is uniform in ±recurrent_limit.
        input_limit: The second one is uniform in ±input_limit.
        rows: Of a matrix of biases, how many rows have a second vector; None (default) for all.
        seed: Integer seed; None (default) draws one.

    Example:

    >>> BiasVectors(0.1, 0.1, seed=1)((4,)).shape == (4,)
    True
    """

    def __init__(self, recurrent_limit, input_limit, rows=None, seed=None):
        self.recurrent_limit = recurrent_limit
        self.input_limit = input_limit
        self.rows = rows
        self.seed = random.randint(0, 2**31 - 1) if seed is None else seed

    def __call__(self, shape, dtype=None):
        limits = {self.seed: self.recurrent_limit, self.seed ^ OTHER: self.input_limit}
        first, second = (
            keras.random.uniform(shape, -limit, limit, dtype=dtype, seed=seed)
            for seed, limit in limits.items()
        )
        if self.rows is None:
            return first + second
        has_two = ops.cast(ops.arange(shape[0]) < self.rows, second.dtype)
        return first + second * ops.expand_dims(has_two, 1)

    def get_config(self):
        names = ("recurrent_limit", "input_limit", "rows", "seed")
        return {name: getattr(self, name) for name in names}
