"""A mixture of softmaxes as the decoder of a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, Unpack

import keras
from keras import ops

from keras_selfish import checks
from keras_selfish.layers.dropout import check_rate
from keras_selfish.layers.log_mixture import log_mixture
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.layers.products import pad_features
from keras_selfish.typing import Config, Initializer, OpenShape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import MixtureOptions


@keras.saving.register_keras_serializable(package="keras_selfish")
class MixtureOfSoftmaxes(SparseLayer, keras.layers.Layer):
    """A decoder whose output is a weighted mean of several softmaxes, with sparse matrices.

    The logarithms of the probabilities that one softmax gives over a vocabulary are a matrix of a rank that
    the number of features limits; those of a mixture are not. With features h, for each expert k:

        latent_k = tanh(h @ latent_kernel_k + latent_bias_k)
        probabilities = sum_k softmax(h @ prior_kernel)_k * softmax(latent_k @ decoder + bias)

    It returns *logarithms* of the probabilities, float32 under any policy. They are logits as well: their
    softmax is the probabilities, so any loss or metric with `from_logits=True` takes them as they are.
    For how it saves memory see `log_mixture`.

    Keras has no such layer: `strip` leaves it as it is but without masks, at sparsity 0 with zeros in its
    matrices, and such a model needs this package where it is loaded; a SavedModel does not.

    Args:
        units: Size of the vocabulary.
        experts: Number of softmaxes.
        latent_units: Number of features that the decoder sees of each expert.
        embedding: None (default) for a decoder of its own; or a layer such as `SparseReversibleEmbedding`
            whose matrix `embeddings` (units, latent_units), transposed, is the decoder. They stay tied in a
            `.keras` file of the model that holds both layers, and when it is stripped.
        latent_dropout: Fraction of the features of the experts that is dropped in training, the same ones at
            all time steps (see `LockedDropout`). Default 0.
        seed: Integer seed of the dropout; None (default) draws one.
        latent_bias_initializer: Of `latent_bias`. Default `"zeros"`.
        kernel_initializer: Of the kernels `prior_kernel` and `latent_kernel`. Default `"glorot_uniform"`.
        decoder_initializer: Of the decoder's kernel, where it has its own. Default `"glorot_uniform"`.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of `keras.layers.Layer`. The
            mask of a tied decoder is that of its embedding.

    Call arguments:
        inputs: Tensor (batch, time steps, features).
        training: Whether to drop.

    Returns:
        Log-probabilities (batch, time steps, units).

    Raises:
        ValueError: for an argument out of range, or an embedding of another shape.

    Example:

    >>> import numpy as np
    >>> layer = MixtureOfSoftmaxes(10, experts=3, latent_units=4)
    >>> outputs = layer(np.ones((2, 5, 6), "float32"))
    >>> outputs.shape == (2, 5, 10)
    True
    >>> bool(np.allclose(ops.sum(ops.exp(outputs), axis=-1), 1.0, atol=1e-5))
    True

    Reference: Yang et al. 2018, "Breaking the Softmax Bottleneck", arXiv 1711.03953, section 2.4.
    """

    masked_names = ("prior_kernel", "latent_kernel", "decoder_kernel")
    strips_to_itself = True
    # Layers in the config that belong to the model, not to this layer.
    shared_layers = ("embedding",)

    def __init__(
        self,
        units: int,
        experts: int,
        latent_units: int,
        embedding: keras.layers.ReversibleEmbedding | None = None,
        latent_dropout: float = 0.0,
        seed: int | keras.random.SeedGenerator | None = None,
        kernel_initializer: Initializer = "glorot_uniform",
        decoder_initializer: Initializer = "glorot_uniform",
        latent_bias_initializer: Initializer = "zeros",
        **kwargs: Unpack[MixtureOptions],
    ) -> None:
        self._take_mask_arguments(kwargs)
        keras.layers.Layer.__init__(self, **kwargs)
        sizes = {"units": units, "experts": experts, "latent_units": latent_units}
        found = (checks.integer(name, size, at_least=1) for name, size in sizes.items())
        self.units, self.experts, self.latent_units = found
        _check_embedding(embedding, (self.units, self.latent_units))
        self.embedding = embedding
        self.latent_dropout = check_rate(latent_dropout, "latent_dropout")
        self.seed = seed
        if self.latent_dropout:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.decoder_initializer = keras.initializers.get(decoder_initializer)
        self.latent_bias_initializer = keras.initializers.get(latent_bias_initializer)
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.supports_masking = True
        self._seed_masks()

    def build(self, input_shape: OpenShape) -> None:
        inputs: Any = input_shape[-1]
        shapes = {
            "prior_kernel": (inputs, self.experts),
            "latent_kernel": (inputs, self.experts * self.latent_units),
        }
        if self.embedding is None:
            shapes["decoder_kernel"] = (self.latent_units, self.units)
        self.plan_masks(shapes)
        for name, shape in shapes.items():
            own = self.decoder_initializer if name == "decoder_kernel" else self.kernel_initializer
            setattr(self, name, self.add_weight(shape=shape, initializer=own, name=name))
        if self.embedding is not None and not self.embedding.built:
            self.embedding.build(None)
        latent_width = (self.experts * self.latent_units,)
        self.latent_bias = self.add_weight(
            shape=latent_width, initializer=self.latent_bias_initializer, name="latent_bias"
        )
        # What is added to logits is float32, as the logits are.
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias", autocast=False)

    def call(self, inputs: TensorLike, training: bool = False) -> Tensor:
        with self.effective_weights():
            log_priors = ops.log_softmax(ops.cast(self._product(inputs, self.prior_kernel), "float32"))
            latents = self._product(inputs, self.latent_kernel) + self._cast(self.latent_bias)
            latents = ops.tanh(latents)
            if training and self.latent_dropout:
                batch, _, features = ops.shape(latents)
                ones = ops.ones((batch, 1, features), "float32")
                kept = keras.random.dropout(ones, self.latent_dropout, seed=self.seed_generator)
                latents = latents * self._cast(kept)
            latents = ops.reshape(latents, (-1, self.experts, self.latent_units))
            latents, decoder = pad_features(latents, self._decoder())
            outputs = log_mixture(
                latents,
                ops.reshape(log_priors, (-1, self.experts)),
                decoder,
                ops.cast(ops.convert_to_tensor(self.bias), "float32"),
            )
            return ops.reshape(outputs, (*ops.shape(inputs)[:-1], self.units))

    def _product(self, inputs, kernel):
        return ops.matmul(inputs, self._cast(kernel))

    def _decoder(self):
        if self.embedding is None:
            return self._cast(self.decoder_kernel)
        return ops.transpose(self._cast(self.embedding.embeddings))

    def _cast(self, tensor):
        return ops.cast(ops.convert_to_tensor(tensor), self.compute_dtype)

    @property
    def repeated_weights(self) -> list[tuple[keras.Variable, int]]:
        """Weights that each token is multiplied by several times: pairs (variable, times)."""
        decoder = self.decoder_kernel if self.embedding is None else self.embedding.embeddings
        return [(decoder, self.experts)]

    def compute_output_spec(self, inputs: TensorLike, training: bool = False) -> keras.KerasTensor:
        return keras.KerasTensor((*inputs.shape[:-1], self.units), dtype="float32")

    def compute_output_shape(self, input_shape: OpenShape) -> OpenShape:
        return (*input_shape[:-1], self.units)

    def get_config(self) -> Config:
        embedding = self.embedding
        return {
            **super().get_config(),
            "units": self.units,
            "experts": self.experts,
            "latent_units": self.latent_units,
            "embedding": None if embedding is None else keras.saving.serialize_keras_object(embedding),
            "latent_dropout": self.latent_dropout,
            "seed": self.seed,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "decoder_initializer": keras.initializers.serialize(self.decoder_initializer),
            "latent_bias_initializer": keras.initializers.serialize(self.latent_bias_initializer),
        }

    @classmethod
    def from_config(cls, config: Config) -> Self:
        if isinstance(config.get("embedding"), dict):
            config = {**config, "embedding": keras.saving.deserialize_keras_object(config["embedding"])}
        return super().from_config(config)


def _check_embedding(embedding, shape):
    if embedding is None:
        return
    if not isinstance(embedding, keras.layers.Embedding):
        raise ValueError(
            "`embedding` must be None or an embedding layer, whose matrix is then the decoder. "
            f"Received: embedding={embedding!r}"
        )
    if (embedding.input_dim, embedding.output_dim) != shape:
        raise ValueError(
            f"`embedding` must have a matrix of shape (units, latent_units), which is {shape}. "
            f"Received: a matrix of shape {(embedding.input_dim, embedding.output_dim)}"
        )
