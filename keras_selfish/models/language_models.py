"""Recurrent language models whose every weight matrix is sparse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack

import keras
import numpy as np
from keras import ops

from keras_selfish import masks
from keras_selfish.layers import (
    ActivationRegularization,
    CarriedState,
    LockedDropout,
    MixtureOfSoftmaxes,
    SparseDense,
    SparseEmbedding,
    SparseReversibleEmbedding,
)
from keras_selfish.models import presets
from keras_selfish.models.architecture import Architecture
from keras_selfish.models.biases import BiasVectors, LogitsBias
from keras_selfish.models.memory import check_memory
from keras_selfish.optimizers import SNTASGD
from keras_selfish.optimizers.wrappers import build_before_trace, innermost
from keras_selfish.typing import Config, Tensor, TensorLike
from keras_selfish.workers import prepare_for_fit

if TYPE_CHECKING:
    from keras_selfish.models.options import ArchitectureOptions, LanguageModelOptions


@keras.saving.register_keras_serializable(package="keras_selfish")
class LanguageModel(keras.Model):
    """A stack of sparse recurrent layers between a sparse embedding and a sparse decoder.

    The state of each layer is carried from window to window (see `CarriedState`). Initial weights are the
    published ones: embedding and decoder uniform in ±0.1, all other kernels and biases uniform in
    ±1/sqrt(units) (see `kernel_limit` and `bias_vectors` of `Architecture`), decoder bias zero.

    Args:
        vocabulary_size: Number of tokens in the vocabulary.
        units: Units of each recurrent layer, a number or a list with one for each. Default 256.
        batch_size: Largest number of batch columns per replica, for the carried states. Default 20.
        seed: Integer seed of initial weights, masks and dropout. Default 0.
        dtype: A dtype or policy such as `"mixed_bfloat16"`.
        name: Name of the model.
        **architecture: Layers, dropout, sparsity and all else: see `Architecture`.

    Call arguments:
        inputs: Dict of `"tokens"`, integers (batch, time steps), and `"first"`, integers (batch,): 1
            where the column starts from a zero state, else 0.

    Returns:
        Logits (batch, time steps, vocabulary).

    Raises:
        ValueError: for an argument out of range, or sizes that do not fit into memory (see `check_memory`).

    Reference: Liu et al. 2021, arXiv 2101.09048; Zaremba et al. 2014, arXiv 1409.2329 (the stacked LSTM);
        Merity et al. 2018, arXiv 1708.02182 (locked and word dropout, AR and TAR, random lengths); Yang et
        al. 2018, arXiv 1711.03953 (experts).
    """

    def __init__(
        self,
        vocabulary_size: int,
        units: int | Sequence[int] = 256,
        *,
        batch_size: int = 20,
        seed: int = 0,
        dtype: str | keras.DTypePolicy | None = None,
        name: str | None = None,
        **architecture: Unpack[ArchitectureOptions],
    ) -> None:
        prepare_for_fit()
        settings = Architecture(vocabulary_size, units, **architecture)
        if keras.distribution.distribution() is None:  # else machines may share the weights
            check_memory(settings, batch_size, held=("weights", "masks", "states"))
        parts = _Parts(settings, seed, dtype)
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        # Not boolean: Keras 3.15 adds up the first batch over replicas to learn its shape.
        first = keras.Input((), dtype="int32", name="first")
        features = parts.dropouts[0](parts.embedding(tokens))
        for layer, after in zip(parts.recurrent, parts.dropouts[1:], strict=True):
            carried = CarriedState(layer, batch_size, name=f"{layer.name}_carried", dtype=dtype)
            features = carried(features, first)
            if layer is parts.recurrent[-1]:
                features = parts.penalize(features, tar=settings.tar)
                if settings.ar_before_dropout:
                    features = parts.penalize(features, ar=settings.ar)
            features = after(features)
        if not settings.ar_before_dropout:
            features = parts.penalize(features, ar=settings.ar)
        super().__init__({"tokens": tokens, "first": first}, parts.decode(features), name=name)
        self.architecture = settings
        self.batch_size = batch_size
        self.seed = seed
        self._policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        self.embedding, self.recurrent, self.dropouts = parts.embedding, parts.recurrent, parts.dropouts
        self.decoder, self.decoder_bias = parts.decoder, parts.decoder_bias
        if settings.bias_vectors == 2:
            for layer in self.recurrent:
                layer.cell.bias.summands = 2.0 if settings.cell != "rhn" else _first_of(layer.cell.depth)
        if settings.sparsity and settings.distribution != "uniform":
            masks.redraw_masks(self, settings.sparsity, settings.distribution, seed)

    def compute_loss(
        self,
        x: Mapping[str, TensorLike] | None = None,
        y: TensorLike | None = None,
        y_pred: TensorLike | None = None,
        sample_weight: TensorLike | None = None,
        training: bool = True,
    ) -> Tensor:
        """As in `keras.Model`; tells the optimizer by how much to scale the step (see `Architecture`)."""
        two = self.architecture.bias_vectors == 2
        if training and two and not isinstance(innermost(self.optimizer), SNTASGD):
            raise ValueError(
                "`bias_vectors` must be 1 with an optimizer other than SNTASGD, which alone trains two as "
                f"one. Received: bias_vectors=2, optimizer={type(self.optimizer).__name__}"
            )
        if training and self.architecture.reference_length:
            optimizer = innermost(self.optimizer)
            if not hasattr(optimizer, "scale_step"):
                raise ValueError(
                    "`reference_length` needs an optimizer that can scale a single step, such as SNTASGD. "
                    f"Received: {type(optimizer).__name__}"
                )
            optimizer.scale_step(ops.shape(y)[1] / self.architecture.reference_length)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def make_train_function(self, force: bool = False) -> Any:
        """As in `keras.Model`; builds the optimizer first, without which a first step takes twice as long."""
        build_before_trace(self)
        return super().make_train_function(force)

    def get_metrics_result(self) -> dict[str, Tensor]:
        """As in `keras.Model`; the loss is that of the mean token.

        Keras averages the loss over windows, and a short last window would count as much as a full one.
        Penalties that layers add, such as `ActivationRegularization`, are trained on but not reported.
        """
        results = super().get_metrics_result()
        if "perplexity" in results:
            perplexity = results["perplexity"]  # before Keras 3.14 a number, where there is a value
            results["loss"] = math.log(perplexity) if isinstance(perplexity, float) else ops.log(perplexity)
        return results

    def stepwise(self) -> keras.Model:
        """The same layers as a Functional model with explicit states, for generation and serving.

        Returns:
            A `keras.Model` from `[tokens (batch, time), h_0, c_0, h_1, c_1, ...]`, states (batch, units), to
            `[logits (batch, time, vocabulary), h_0, c_0, ...]`, which shares this model's weights.
        """
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        states, finals = [], []
        features = self.embedding(tokens)
        for index, layer in enumerate(self.recurrent):
            sizes = layer.state_size if isinstance(layer.state_size, (list, tuple)) else [layer.state_size]
            initial = [
                keras.Input((size,), dtype=layer.compute_dtype, name=f"{name}_{index}")
                for name, size in zip("hc", sizes, strict=False)
            ]
            features, *final = layer(features, initial_state=initial)
            states += initial
            finals += final
        logits = _decode(features, self.embedding, self.decoder, self.decoder_bias)
        return keras.Model([tokens, *states], [logits, *finals], name=f"{self.name}_stepwise")

    def get_config(self) -> Config:
        return {
            **self.architecture.get_config(),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "dtype": keras.dtype_policies.serialize(self._policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Mapping[str, Any] | None = None) -> Self:
        # Files from before there was a choice hold tied models without a bias.
        tied = config.get("tied", False) and config.get("experts", 1) == 1
        return cls(**{"decoder_bias": not tied, **config})


class _Parts:
    """The layers of a language model. Their seeds follow from one, in the order in which they are drawn."""

    def __init__(self, architecture, seed, dtype):
        self.architecture = architecture
        self.dtype = dtype
        self._seeds = iter(range(1000 * seed, 1000 * seed + 1000))
        self.embedding = self._embedding()
        self.recurrent = [
            self._recurrent(index, units) for index, units in enumerate(architecture.layer_units)
        ]
        self.decoder = self._decoder()
        self.decoder_bias = None
        if architecture.decoder_bias and self.decoder is None:
            self.decoder_bias = LogitsBias(name="decoder_bias", dtype=dtype)
        dropout_class = LockedDropout if architecture.locked else keras.layers.Dropout
        self.dropouts = [
            dropout_class(rate, seed=next(self._seeds), name=f"dropout_{index}", dtype=dtype)
            for index, rate in enumerate(architecture.dropout_rates())
        ]

    def penalize(self, features, **factor):
        """The features, with a penalty on their activations or changes if a factor is over 0."""
        ((name, value),) = factor.items()
        if not value:
            return features
        return ActivationRegularization(**factor, name=name, dtype=self.dtype)(features)

    def decode(self, features):
        """The logits of features (batch, time steps, units)."""
        return _decode(features, self.embedding, self.decoder, self.decoder_bias)

    def _uniform(self, limit):
        return keras.initializers.RandomUniform(-limit, limit, seed=next(self._seeds))

    def _sparse(self, **others):
        """Mask arguments of the next layer, those of the architecture but for others."""
        spec = dataclasses.replace(self.architecture.mask_spec, mask_seed=next(self._seeds), **others)
        return {**spec.get_config(), "dtype": self.dtype}

    def _seed_if(self, needed):
        # Where it is not needed no seed is taken, so that those of all else stay as they are.
        return {"seed": next(self._seeds)} if needed else {}

    def _embedding(self):
        settings = self.architecture
        embedding_class = SparseReversibleEmbedding if settings.tied else SparseEmbedding
        return embedding_class(
            settings.vocabulary_size,
            settings.token_units,
            embeddings_initializer=self._uniform(0.1),
            embedding_dropout=settings.embedding_dropout,
            name="embedding",
            # A block of a tied embedding groups features of one token: in the decoder, input weights of one
            # unit. A lookup gains nothing from blocks, so that any other has single weights.
            **self._sparse(block_shape=settings.block_shape[::-1] if settings.tied else (1, 1), n_of_m=None),
            **self._seed_if(settings.embedding_dropout),
        )

    def _recurrent(self, index, units):
        settings = self.architecture
        kind = settings.recurrent_layer
        inputs = (settings.token_units, *settings.layer_units)[index]
        limit = (units if settings.kernel_limit == "units" else inputs) ** -0.5
        return kind.layer(
            units,
            kernel_initializer=self._uniform(limit),
            recurrent_initializer=self._uniform(units**-0.5),
            bias_initializer=self._bias(units**-0.5, limit),
            return_sequences=True,
            return_state=True,
            name=f"{settings.cell}_{index}",
            **self._sparse(),
            **kind.arguments,
            **self._seed_if(settings.cell_options),
            **(settings.cell_options or {}),
        )

    def _bias(self, limit, second):
        settings = self.architecture
        if settings.bias_vectors == 1:
            return self._uniform(limit)
        rows = 1 if settings.cell == "rhn" else None
        return BiasVectors(limit, second, rows, seed=next(self._seeds))

    def _decoder(self):
        """The layer after the last dropout; None where it is the embedding itself."""
        settings = self.architecture
        if settings.experts > 1:
            return self._mixture()
        if settings.tied:
            return None
        return SparseDense(
            settings.vocabulary_size,
            use_bias=settings.decoder_bias,
            kernel_initializer=self._uniform(0.1),
            name="decoder",
            **self._sparse(),
        )

    def _mixture(self):
        settings = self.architecture
        return MixtureOfSoftmaxes(
            settings.vocabulary_size,
            settings.experts,
            settings.token_units,
            embedding=self.embedding if settings.tied else None,
            latent_dropout=settings.latent_dropout,
            kernel_initializer=self._uniform(settings.layer_units[-1] ** -0.5),
            decoder_initializer=self._uniform(0.1),
            latent_bias_initializer=self._uniform(settings.layer_units[-1] ** -0.5),
            name="decoder",
            **self._sparse(),
            **self._seed_if(settings.latent_dropout),
        )


def _decode(features, embedding, decoder, decoder_bias):
    """The logits of features (batch, time steps, units); without a decoder the embedding is it."""
    if decoder:
        return decoder(features)
    logits = embedding(features, reverse=True)
    return decoder_bias(logits) if decoder_bias else logits


def _first_of(depth):
    """Of the biases of an RHN (depth, gates * units) the first depth has two vectors."""
    return np.array([[2.0]] + [[1.0]] * (depth - 1), "float32")


def language_model(
    preset: str | None = None, vocabulary_size: int | None = None, **overrides: Unpack[LanguageModelOptions]
) -> LanguageModel:
    """A `LanguageModel` with the settings of a preset, any of which can be overridden.

    Args:
        preset: Name of a preset, such as `"ptb_lstm"` or `"quick"`; None (default) for the defaults of
            `LanguageModel`.
        vocabulary_size: Number of tokens in the vocabulary. Default 10,000, that of the Penn Treebank; of a
            preset for WikiText-2 33,278.
        **overrides: Arguments of `LanguageModel`.

    Returns:
        A built, uncompiled `LanguageModel`.

    Raises:
        ValueError: for an unknown preset or an argument out of range.

    Example:

    >>> model = language_model("quick", vocabulary_size=1000, units=32)
    >>> model.architecture.units, model.architecture.sparsity
    (32, 0.67)
    """
    if preset is None:
        return LanguageModel(10_000 if vocabulary_size is None else vocabulary_size, **overrides)
    published = presets.preset(preset).architecture.get_config()
    if vocabulary_size is not None:
        published["vocabulary_size"] = vocabulary_size
    return LanguageModel(**{**published, **overrides})
