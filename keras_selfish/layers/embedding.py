"""Sparse token embeddings, also tied to the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import keras
from keras import ops

from keras_selfish.keras_internals import set_padding_mask
from keras_selfish.layers.dropout import check_rate, drop_words
from keras_selfish.layers.forms import sparse_form_of
from keras_selfish.layers.masked import SparseLayer, with_masked_gradient
from keras_selfish.layers.products import cut, is_padded, pad_factors
from keras_selfish.typing import Config, OpenShape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import EmbeddingOptions, ReversibleEmbeddingOptions


class _SparseEmbeddingBase(SparseLayer):
    masked_names: Sequence[str] = ("embeddings",)

    @property
    def looked_up_names(self) -> Sequence[str]:
        """The embeddings, unless a decoder reads them, too."""
        return () if getattr(self, "tie_weights", False) else ("embeddings",)

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *args: Any,
        embedding_dropout: float = 0.0,
        seed: int | keras.random.SeedGenerator | None = None,
        weights: TensorLike | list[TensorLike] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_dim, output_dim, *args, **kwargs)
        self.embedding_dropout = check_rate(embedding_dropout, "embedding_dropout")
        self.seed = seed
        if self.embedding_dropout:
            self.seed_generator = keras.random.SeedGenerator(seed)
        if weights is not None:  # Keras would assign them before there is a mask
            self.build()
            self.weights[0].assign(weights[0] if isinstance(weights, list) and len(weights) == 1 else weights)

    def get_config(self) -> Config:
        own = {"embedding_dropout": self.embedding_dropout, "seed": self.seed}
        return {**super().get_config(), **own}

    def quantized_call(self, *args: Any, training: bool = False, **kwargs: Any) -> Tensor:
        """As in Keras, whose layer is not told of training."""
        return super().quantized_call(*args, **kwargs)

    def compute_output_spec(
        self, inputs: TensorLike, *args: Any, training: bool = False, **kwargs: Any
    ) -> keras.KerasTensor:
        return super().compute_output_spec(inputs, *args, **kwargs)

    def _look_up(self, inputs, training):
        """Embeds tokens; masks the gathered rows only, so that the gradient stays one of rows."""
        inputs = ops.cast(inputs, "int32")
        rows = self._rows(inputs)
        if training and self.embedding_dropout:
            rows = drop_words(rows, inputs, self.input_dim, self.embedding_dropout, self.seed_generator)
        return rows

    def _rows(self, inputs):
        masked_weight = self._masked.get("embeddings")
        if masked_weight is None:
            return ops.cast(ops.take(self.embeddings, inputs, axis=0), self.compute_dtype)
        rows = ops.cast(ops.take(masked_weight.weight, inputs, axis=0), self.compute_dtype)
        mask = ops.take(ops.convert_to_tensor(masked_weight.mask), inputs, axis=0)
        return with_masked_gradient(rows, mask, masked_weight)


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.Embedding, without=("embedding_dropout", "seed"))
class SparseEmbedding(_SparseEmbeddingBase, keras.layers.Embedding):
    """`keras.layers.Embedding` whose matrix (tokens, features) is sparse from the first step on.

    Blocks are of (tokens, features): one of (1, 4) groups four features of a token.

    Args:
        input_dim: Size of the vocabulary.
        output_dim: Number of features of a token.
        embedding_dropout: Fraction of the vocabulary that each call in training does without, in [0, 1): a
            word that is dropped is zero wherever it occurs in the batch, the others are scaled by
            1 / (1 - embedding_dropout). Default 0. It is an argument and not a layer because the layer that
            looks up has both the words and their rows: it draws one number a word and never passes over the
            matrix, a decoder tied to the matrix sees all of it, and nothing is left of it to strip.
        seed: Integer seed of the words to drop; None (default) draws one.
        *args: As in `keras.layers.Embedding`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.Embedding`.

    Call arguments:
        inputs: Integer tensor (...,).
        training: Whether to drop words.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide the matrix.

    Example:

    >>> import numpy as np
    >>> layer = SparseEmbedding(100, 8, sparsity=0.75)
    >>> layer(np.array([[1, 2, 3]])).shape == (1, 3, 8)
    True

    Reference: Gal and Ghahramani 2016, arXiv 1512.05287 (`embedding_dropout`).
    """

    if TYPE_CHECKING:

        def __init__(
            self, input_dim: int, output_dim: int, *args: Any, **kwargs: Unpack[EmbeddingOptions]
        ) -> None: ...

    def call(self, inputs: TensorLike, training: bool = False) -> Tensor:
        drops = training and self.embedding_dropout
        return self._look_up(inputs, training) if self._masked or drops else super().call(inputs)


@keras.saving.register_keras_serializable(package="keras_selfish")
@sparse_form_of(keras.layers.ReversibleEmbedding, without=("embedding_dropout", "seed"))
class SparseReversibleEmbedding(_SparseEmbeddingBase, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding` with a sparse matrix: embedding and decoder tied in one.

    Called with `reverse=True` it maps features back to logits over the vocabulary by the same masked
    matrix, with `tie_weights=False` by a second one (features, tokens), which is sparse as well.

    Args: `sparsity` and the other arguments of `MaskSpec`, `embedding_dropout` and `seed` (see
        `SparseEmbedding`), and those of `keras.layers.ReversibleEmbedding`.

    Raises:
        ValueError: as in `SparseEmbedding`.

    Example:

    >>> import numpy as np
    >>> layer = SparseReversibleEmbedding(100, 8)
    >>> layer(layer(np.array([[1, 2, 3]])), reverse=True).shape == (1, 3, 100)
    True
    """

    masked_names = ("embeddings", "reverse_embeddings")

    if TYPE_CHECKING:

        def __init__(
            self, input_dim: int, output_dim: int, *args: Any, **kwargs: Unpack[ReversibleEmbeddingOptions]
        ) -> None: ...

    def build(self, inputs_shape: OpenShape | None = None) -> None:
        shapes = {"embeddings": (self.input_dim, self.output_dim)}
        if not self.tie_weights:
            shapes["reverse_embeddings"] = (self.output_dim, self.input_dim)
        self.plan_masks(shapes)
        super().build(inputs_shape)

    def call(self, inputs: TensorLike, reverse: bool = False, training: bool = False) -> Tensor:
        drops = training and self.embedding_dropout
        if reverse:
            outputs = self._decode(inputs)
        elif not (self._masked or drops):
            with self.effective_weights():
                outputs = super().call(inputs)
        else:
            outputs = self._look_up(inputs, training)
        if self.mask_zero and not reverse:
            set_padding_mask(outputs, ops.not_equal(inputs, 0))
        return outputs

    def _decode(self, inputs):
        """Keras's logits; where that is faster, it gets padded features and a padded matrix."""
        name, axis = ("embeddings", 1) if self.tie_weights else ("reverse_embeddings", 0)
        with self.effective_weights():
            if not is_padded(matrix := getattr(self, name), axis):
                return super().call(inputs, reverse=True)
            inputs, padded = pad_factors(inputs, matrix, axis)
            with self._computed_weights({**self._effective, name: padded}):
                return cut(super().call(inputs, reverse=True), self.input_dim)

    def compute_mask(self, inputs: TensorLike, mask: Any = None) -> None:
        """None, as in Keras since 3.14: `call` marks padding, which knows tokens from features."""
