"""Perplexity, weighted by tokens."""

from __future__ import annotations

import keras
from keras import ops

from keras_selfish.models.cross_entropy import cross_entropy
from keras_selfish.typing import Config, Tensor, TensorLike


@keras.saving.register_keras_serializable(package="keras_selfish")
class Perplexity(keras.metrics.Metric):
    """exp of the mean cross-entropy per token, over all tokens seen since the last reset.

    Keras averages a loss over windows; a shorter last window then counts as much as a full one. This
    metric sums the cross-entropies and the tokens instead, so that the number does not depend on how a
    text is cut into windows.

    Args:
        from_logits: Whether predictions are logits (default) or probabilities.
        name: Name of the metric; `val_perplexity` in validation. Default `"perplexity"`.
        dtype: As in `keras.metrics.Metric`.

    Example:

    >>> import numpy as np
    >>> metric = Perplexity()
    >>> metric.update_state(np.array([[1, 2]]), np.zeros((1, 2, 10), "float32"))
    >>> round(float(metric.result()), 4)
    10.0
    """

    def __init__(
        self, from_logits: bool = True, name: str = "perplexity", dtype: str | keras.DTypePolicy | None = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = from_logits
        self.cross_entropy = self.add_variable(shape=(), initializer="zeros", name="cross_entropy")
        self.tokens = self.add_variable(shape=(), initializer="zeros", name="tokens")

    def update_state(
        self, y_true: TensorLike, y_pred: TensorLike, sample_weight: TensorLike | None = None
    ) -> None:
        """Adds the tokens `y_true` (batch, time) under predictions `y_pred` (batch, time, vocabulary)."""
        y_true, y_pred = ops.cast(y_true, "int32"), ops.cast(y_pred, self.dtype)
        if self.from_logits:
            losses = cross_entropy(y_true, y_pred)
        else:
            losses = keras.losses.sparse_categorical_crossentropy(y_true, y_pred)
        weights = ops.ones_like(losses)
        if sample_weight is not None:
            weights = ops.broadcast_to(ops.cast(sample_weight, self.dtype), ops.shape(losses))
        self.cross_entropy.assign_add(ops.sum(losses * weights))
        self.tokens.assign_add(ops.sum(weights))

    def result(self) -> Tensor:
        return ops.exp(ops.divide_no_nan(self.cross_entropy, self.tokens))

    def get_config(self) -> Config:
        return {**super().get_config(), "from_logits": self.from_logits}
