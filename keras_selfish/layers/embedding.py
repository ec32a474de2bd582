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
        n_of_m=None,
        mask_seed=None,
        weights=None,
        **kwargs,
    ):
        super().__init__(input_dim, output_dim, *args, **kwargs)
        self._init_masks(sparsity, distribution, block_shape, mask_seed, n_of_m)
        if weights is not None:  # Keras would assign them before there is a mask
            self.build()
            self._embeddings.assign(
                weights[0] if isinstance(weights, list) and len(weights) == 1 else weights
            )
            for masked_weight in self._masked.values():
                masked_weight.project()

    def masked_shapes(self, input_shape):
        return {"embeddings": (self.input_dim, self.output_dim)}

    @property
    def embeddings(self):
        return self.weight_to_use("embeddings", super().embeddings)

    def _look_up(self, inputs):
        """Embeds tokens; masks the gathered rows only, so that the gradient stays one of rows."""
        masked_weight = self._masked["embeddings"]
        inputs = ops.cast(inputs, "int32")
        rows = ops.cast(ops.take(masked_weight.weight, inputs, axis=0), self.compute_dtype)
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
        n_of_m: `(n, m)` for exactly n of each m consecutive input weights of a unit, such as `(2, 4)`; it
            fixes the sparsity. Default None.
        mask_seed: Integer seed of the initial mask; None (default) draws one.
        *args: As in `keras.layers.Embedding`.
        **kwargs: As in `keras.layers.Embedding`.

    Raises:
        ValueError: for an argument out of range, or a block shape that does not divide the matrix.

    Example:

    >>> import numpy as np
    >>> layer = SparseEmbedding(100, 8, sparsity=0.75)
    >>> layer(np.array([[1, 2, 3]])).shape == (1, 3, 8)
    True
    """

    keras_layer = keras.layers.Embedding

    def call(self, inputs):
        return self._look_up(inputs) if self._masked else super().call(inputs)


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparseReversibleEmbedding(_SparseEmbeddingBase, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding` with a sparse matrix: embedding and decoder tied in one.

    Called with `reverse=True` it maps features back to logits over the vocabulary by the same masked
    matrix.

    Args: see `SparseEmbedding`; the others are those of `keras.layers.ReversibleEmbedding`.
        `tie_weights=False` is refused: use a `SparseEmbedding` and a `SparseDense`.

    Raises:
        ValueError: as in `SparseEmbedding`, and for `tie_weights=False`.

    Example:

    >>> import numpy as np
    >>> layer = SparseReversibleEmbedding(100, 8)
    >>> layer(layer(np.array([[1, 2, 3]])), reverse=True).shape == (1, 3, 100)
    True
    """

    keras_layer = keras.layers.ReversibleEmbedding

    def __init__(self, input_dim, output_dim, tie_weights=True, *args, **kwargs):
        if not tie_weights:
            raise ValueError(
                "`tie_weights` must be True. Received: tie_weights=False; for two matrices use "
                "`SparseEmbedding` and `SparseDense`."
            )
        super().__init__(input_dim, output_dim, tie_weights, *args, **kwargs)

    def call(self, inputs, reverse=False):
        if reverse or not self._masked:
            with self.effective_weights():
                return super().call(inputs, reverse=reverse)
        outputs = self._look_up(inputs)
        if self.mask_zero:
            # As in Keras 3.15, which has no public name for it: the call, not `compute_mask`, marks padding.
            keras.src.backend.set_keras_mask(outputs, ops.not_equal(inputs, 0))
        return outputs
