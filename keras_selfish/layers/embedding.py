"""Sparse token embeddings, also tied to the decoder."""

import keras
from keras import ops

from keras_selfish.layers.masked import MaskedLayer, mask_gradient


class _SparseEmbeddingBase(MaskedLayer):
    masked_names = {"embeddings": ()}
    saves_named_weights_only = True

    def __init__(
        self,
        input_dim,
        output_dim,
        *args,
        sparsity=0.67,
        distribution="uniform",
        block_shape=(1, 1),
        mask_seed=None,
        **kwargs,
    ):
        if kwargs.get("weights") is not None:
            raise ValueError(
                "`weights` is not supported by a sparse embedding: build the layer, then assign "
                "`layer.embeddings` and call `masked_weights(layer)[0].project()`."
            )
        super().__init__(input_dim, output_dim, *args, **kwargs)
        self._init_masks(sparsity, distribution, block_shape, mask_seed)

    def masked_shapes(self, input_shape):
        return {"embeddings": (self.input_dim, self.output_dim)}

    @property
    def embeddings(self):
        return self._effective.get("embeddings", super().embeddings)

    def _look_up(self, inputs):
        """Embeds tokens; masks the gathered rows only, so that the gradient stays one of rows."""
        masked_weight = self._masked.get("embeddings")
        inputs = ops.cast(inputs, "int32")
        rows = ops.cast(ops.take(self.embeddings, inputs, axis=0), self.compute_dtype)
        if masked_weight is None:
            return rows
        mask = ops.take(ops.convert_to_tensor(masked_weight.mask), inputs, axis=0)
        return mask_gradient(rows, mask, masked_weight)


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseEmbedding(_SparseEmbeddingBase, keras.layers.Embedding):
    """`keras.layers.Embedding` whose matrix (tokens, features) is sparse from the first step on.

    Args:
        input_dim: Size of the vocabulary.
        output_dim: Number of features of a token.
        sparsity: Fraction of zeros in the matrix, in [0, 1). Default 0.67.
        distribution: `"uniform"` (default), `"erdos_renyi"` or `"erk"`; with one matrix they agree.
        block_shape: (tokens, features) of the blocks in which connections come and go; it must divide the
            matrix. Default `(1, 1)`.
        mask_seed: Integer seed of the initial mask; None (default) draws one.
        *args: As in `keras.layers.Embedding`.
        **kwargs: As in `keras.layers.Embedding`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide the matrix.
    """

    def call(self, inputs):
        return self._look_up(inputs)


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseReversibleEmbedding(_SparseEmbeddingBase, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding` with a sparse matrix: embedding and decoder tied in one.

    Called with `reverse=True` it maps features back to logits over the vocabulary by the same masked
    matrix.

    Args: see `SparseEmbedding`; the others are those of `keras.layers.ReversibleEmbedding`.
        `tie_weights=False` is refused: use a `SparseEmbedding` and a `SparseDense`.
    """

    def __init__(self, input_dim, output_dim, tie_weights=True, *args, **kwargs):
        if not tie_weights:
            raise ValueError(
                "`tie_weights` must be True. Received: tie_weights=False; for two matrices use "
                "`SparseEmbedding` and `SparseDense`."
            )
        super().__init__(input_dim, output_dim, tie_weights, *args, **kwargs)

    def call(self, inputs, reverse=False):
        if reverse:
            with self.effective_weights():
                return super().call(inputs, reverse=True)
        outputs = self._look_up(inputs)
        if self.mask_zero:
            # As in Keras: here the layer, not `compute_mask`, marks padded steps.
            keras.src.backend.set_keras_mask(outputs, ops.not_equal(inputs, 0))
        return outputs
