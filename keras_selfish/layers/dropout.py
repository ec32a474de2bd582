"""Dropout and activation regularisation of the AWD-LSTM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import keras
from keras import ops

from keras_selfish import checks
from keras_selfish.layers.forms import strips_to
from keras_selfish.typing import Config, OpenShape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import LayerOptions


NOISE_SHAPE = (None, 1, None)  # the same at all time steps


@keras.saving.register_keras_serializable(package="keras_selfish")
@strips_to(keras.layers.Dropout, noise_shape=NOISE_SHAPE)
class LockedDropout(keras.layers.Dropout):
    """Variational dropout: drops the same features at all time steps of a sequence.

    A mask drawn anew at each time step destroys what a recurrent layer is to remember; one that is drawn
    once per sequence does not. What is left is scaled by 1 / (1 - rate). In inference it is the identity.
    `strip` replaces it by a `keras.layers.Dropout` that does the same.

    Args:
        rate: Fraction of features to drop, in [0, 1).
        seed: Integer seed of the random numbers; None (default) draws one.
        **kwargs: As in `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor (batch, time steps, features).
        training: Whether to drop.

    Raises:
        ValueError: for a rate out of range.

    Example:

    >>> import numpy as np
    >>> outputs = LockedDropout(0.5, seed=1)(np.ones((1, 3, 6), "float32"), training=True)
    >>> bool(ops.all(outputs[:, 0] == outputs[:, 2]))
    True

    Reference: Gal and Ghahramani 2016, arXiv 1512.05287; Merity et al. 2018, arXiv 1708.02182, section 4.2.
    """

    def __init__(
        self,
        rate: float,
        seed: int | keras.random.SeedGenerator | None = None,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        super().__init__(check_rate(rate), noise_shape=NOISE_SHAPE, seed=seed, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def get_config(self) -> Config:
        config = super().get_config()
        del config["noise_shape"]
        return config


@keras.saving.register_keras_serializable(package="keras_selfish")
@strips_to(keras.layers.Identity, without=("ar", "tar"))
class ActivationRegularization(keras.layers.Layer):
    """Returns its inputs; in training it adds penalties for large (AR) and for changing (TAR) activations.

        ar * mean(h_t ** 2) + tar * mean((h_{t+1} - h_t) ** 2)

    The means are over batch, time steps and features, in float32. The AWD-LSTM penalises the activations of
    its last recurrent layer, the large ones after dropout and the changing ones before:

        x = ActivationRegularization(tar=1.0)(x)
        x = LockedDropout(0.4)(x)
        x = ActivationRegularization(ar=2.0)(x)

    `strip` replaces it by `keras.layers.Identity`.

    Args:
        ar: Factor of the penalty of large activations, not negative. Default 0.
        tar: Factor of the penalty of changes from one time step to the next, not negative. Default 0.
        **kwargs: As in `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor (batch, time steps, features). Padded steps count like all others.
        training: Whether to add the penalties.

    Raises:
        ValueError: for a negative factor.

    Example:

    >>> import numpy as np
    >>> layer = ActivationRegularization(ar=2.0, tar=1.0)
    >>> outputs = layer(np.array([[[1.0], [3.0]]], "float32"), training=True)
    >>> [float(loss) for loss in layer.losses]  # 2 * (1 + 9) / 2, and (3 - 1) ** 2
    [10.0, 4.0]

    Reference: Merity et al. 2017, arXiv 1708.01009; Merity et al. 2018, arXiv 1708.02182, section 4.6.
    """

    def __init__(self, ar: float = 0.0, tar: float = 0.0, **kwargs: Unpack[LayerOptions]) -> None:
        super().__init__(**kwargs)
        self.ar = float(checks.number("ar", ar, "[0, inf)"))
        self.tar = float(checks.number("tar", tar, "[0, inf)"))
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def call(self, inputs: TensorLike, training: bool = False) -> Tensor:
        if training and self.ar:
            self.add_loss(self.ar * ops.mean(ops.square(ops.cast(inputs, "float32"))))
        if training and self.tar and inputs.shape[1] != 1:
            changes = ops.cast(inputs[:, 1:], "float32") - ops.cast(inputs[:, :-1], "float32")
            # In a window of one step nothing changes, and the mean of nothing would be NaN.
            count = ops.maximum(ops.size(changes), 1)
            self.add_loss(self.tar * ops.sum(ops.square(changes)) / ops.cast(count, "float32"))
        return inputs

    def compute_output_shape(self, input_shape: OpenShape) -> OpenShape:
        return input_shape

    def get_config(self) -> Config:
        return {**super().get_config(), "ar": self.ar, "tar": self.tar}


def drop_connections(weight, rate, seed):
    """DropConnect: zeroes single connections of a weight and scales the others by 1 / (1 - rate).

    Args:
        weight: Tensor.
        rate: Fraction of connections to drop, in [0, 1).
        seed: A `keras.random.SeedGenerator`.

    Returns:
        A tensor of the same shape and dtype.

    Reference: Wan et al. 2013, "Regularization of Neural Networks using DropConnect".
    """
    return ops.where(_kept(ops.shape(weight), rate, seed), weight / (1 - rate), ops.zeros((), weight.dtype))


def drop_words(embedded, words, vocabulary_size, rate, seed):
    """Zeroes the embeddings of words that are dropped everywhere in a batch; the others are scaled.

    The words are drawn, one random number each, and looked up; the matrix of embeddings is never touched.

    Args:
        embedded: Tensor (..., features).
        words: Integer tensor (...,), the words that were embedded.
        vocabulary_size: Number of words.
        rate: Fraction of words to drop, in [0, 1).
        seed: A `keras.random.SeedGenerator`.

    Returns:
        A tensor of the same shape and dtype.
    """
    kept = ops.expand_dims(ops.take(_kept((vocabulary_size,), rate, seed), words, axis=0), -1)
    return ops.where(kept, embedded / (1 - rate), ops.zeros((), embedded.dtype))


def _kept(shape, rate, seed):
    # In half precision uniform numbers are so coarse that the rate would be another one.
    return keras.random.uniform(shape, dtype="float32", seed=seed) >= rate


def check_rate(rate, name="rate"):
    """Returns a rate of dropout as a float; raises `ValueError` unless it is a number in [0, 1)."""
    return float(checks.number(name, rate, "[0, 1)", meaning="is the fraction to drop and"))
