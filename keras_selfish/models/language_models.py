"""Recurrent language models whose every weight matrix is sparse."""

import keras
from keras import ops

from keras_selfish import masks
from keras_selfish.layers import (
    CarriedState,
    SparseDense,
    SparseEmbedding,
    SparseLSTM,
    SparseONLSTM,
    SparseReversibleEmbedding,
    SparseRHN,
)
from keras_selfish.models import presets

# The recurrent layers by name, and what they are given to begin as published.
CELLS = {
    "lstm": (SparseLSTM, {"unit_forget_bias": False}),
    "rhn": (SparseRHN, {}),
    "on_lstm": (SparseONLSTM, {}),
}


@keras.saving.register_keras_serializable(package="keras_selfish")
class LanguageModel(keras.Model):
    """A stack of sparse recurrent layers between a sparse embedding and a sparse decoder.

    The state of each layer is carried from window to window (see `CarriedState`). Initial weights are the
    published ones: embedding and decoder uniform in ±0.1, kernels and biases of the recurrent layers uniform
    in ±1/sqrt(units), decoder bias zero. Dropout stands after the embedding and after each recurrent layer.

    Args:
        vocabulary_size: Number of tokens in the vocabulary.
        units: Units of each recurrent layer. Default 256.
        layers: Number of recurrent layers. Default 2.
        embedding_units: Features of a token; None (default) for `units`.
        dropout: Fraction of inputs of each layer dropped in training. Default 0.25.
        sparsity: Fraction of zeros in every weight matrix, in [0, 1); 0 makes no masks. Default 0.67.
        distribution: How the matrices share the connections: `"uniform"` (default) gives all the same
            density, `"erdos_renyi"` and `"erk"` divide one budget over the whole model.
        block_shape: (input weights, units) of the blocks in which connections come and go. Default (1, 1).
        n_of_m: `(n, m)` for exactly n of each m consecutive input weights of a unit, such as (2, 4), in the
            LSTM kernels and the decoder; the embedding, which no product reads, has single weights at the
            same density. It fixes the sparsity. Default None.
        tied: Whether the decoder is the transposed embedding; then `embedding_units` must be `units`.
        batch_size: Largest number of batch columns per replica, for the carried states. Default 20.
        seed: Integer seed of initial weights, masks and dropout. Default 0.
        cell: Kind of the recurrent layers: `"lstm"` (default), `"rhn"` or `"on_lstm"`.
        cell_options: Dict of further arguments of each recurrent layer, such as `{"depth": 10}` of a
            `SparseRHN`. Default None.
        **kwargs: As in `keras.Model`, and `dtype`: a dtype or policy such as `"mixed_bfloat16"`.

    Call arguments:
        inputs: Dict of `"tokens"`, integers (batch, time steps), and `"first"`, integers (batch,): 1
            where the column starts from a zero state, else 0.

    Returns:
        Logits (batch, time steps, vocabulary).

    Raises:
        ValueError: for an argument out of range.

    Reference: Liu et al. 2021, arXiv 2101.09048; Zaremba et al. 2014, arXiv 1409.2329 (the stacked LSTM).
    """

    def __init__(
        self,
        vocabulary_size,
        units=256,
        layers=2,
        embedding_units=None,
        dropout=0.25,
        sparsity=0.67,
        distribution="uniform",
        block_shape=(1, 1),
        n_of_m=None,
        tied=False,
        batch_size=20,
        seed=0,
        cell="lstm",
        cell_options=None,
        dtype=None,
        **kwargs,
    ):
        embedding_units = embedding_units or units
        _check(vocabulary_size, units, layers, embedding_units, dropout, tied)
        if n_of_m is not None and sparsity:
            sparsity = _sparsity_of_pattern(n_of_m, tied)
        if cell not in CELLS:
            raise ValueError(f"`cell` must be one of {', '.join(CELLS)}. Received: cell={cell!r}")
        layer_class, cell_defaults = CELLS[cell]
        masks.check_sparsity(sparsity)
        masks.check_distribution(distribution)
        block_shape = masks.check_block_shape(block_shape)
        seeds = iter(range(1000 * seed, 1000 * seed + 1000))

        def sparse():
            return {"sparsity": sparsity, "mask_seed": next(seeds), "dtype": dtype}

        def of_cell():
            # Without options no seed is taken, so that those of all else stay as they are.
            drawn = {"seed": next(seeds)} if cell_options else {}
            return {**cell_defaults, **drawn, **(cell_options or {})}

        def uniform(limit):
            return keras.initializers.RandomUniform(-limit, limit, seed=next(seeds))

        # Layers
        embedding_class = SparseReversibleEmbedding if tied else SparseEmbedding
        embedding = embedding_class(
            vocabulary_size,
            embedding_units,
            embeddings_initializer=uniform(0.1),
            # A block groups features of one token: in the decoder these are input weights of one unit.
            block_shape=block_shape[::-1],
            name="embedding",
            **sparse(),
        )
        recurrent = [
            layer_class(
                units,
                kernel_initializer=uniform(units**-0.5),
                recurrent_initializer=uniform(units**-0.5),
                bias_initializer=uniform(units**-0.5),
                block_shape=block_shape,
                n_of_m=n_of_m,
                return_sequences=True,
                return_state=True,
                name=f"{cell}_{index}",
                **sparse(),
                **of_cell(),
            )
            for index in range(layers)
        ]
        decoder = None
        if not tied:
            decoder = SparseDense(
                vocabulary_size,
                kernel_initializer=uniform(0.1),
                block_shape=block_shape,
                n_of_m=n_of_m,
                name="decoder",
                **sparse(),
            )
        dropouts = [
            keras.layers.Dropout(dropout, seed=next(seeds), name=f"dropout_{index}", dtype=dtype)
            for index in range(layers + 1)
        ]

        # Functional
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        # Not boolean: Keras 3.15 adds up the first batch over replicas to learn its shape.
        first = keras.Input((), dtype="int32", name="first")
        features = dropouts[0](embedding(tokens))
        for layer, after in zip(recurrent, dropouts[1:], strict=True):
            carried = CarriedState(layer, batch_size, name=f"{layer.name}_carried", dtype=dtype)
            features = after(carried(features, first))
        logits = embedding(features, reverse=True) if tied else decoder(features)
        super().__init__({"tokens": tokens, "first": first}, logits, **kwargs)

        # Config
        self.vocabulary_size = vocabulary_size
        self.units = units
        self.num_layers = layers
        self.embedding_units = embedding_units
        self.dropout = dropout
        self.sparsity = sparsity
        self.distribution = distribution
        self.block_shape = block_shape
        self.n_of_m = n_of_m
        self.tied = tied
        self.batch_size = batch_size
        self.seed = seed
        self.cell = cell
        self.cell_options = cell_options and dict(cell_options)
        self._policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        self.embedding, self.recurrent, self.dropouts, self.decoder = embedding, recurrent, dropouts, decoder
        if sparsity and distribution != "uniform":
            masks.distribute(self, sparsity, distribution, seed)

    def get_metrics_result(self):
        """As in `keras.Model`; the loss is that of the mean token.

        Keras averages the loss over windows, and a short last window would count as much as a full one.
        Penalties that layers add, such as `ActivationRegularization`, are trained on but not reported.
        """
        results = super().get_metrics_result()
        if "perplexity" in results:
            results["loss"] = ops.log(results["perplexity"])
        return results

    def stepwise(self):
        """The same layers as a Functional model with explicit states, for generation and serving.

        Returns:
            A `keras.Model` from `[tokens (batch, time), h_0, c_0, h_1, c_1, ...]`, states (batch, units), to
            `[logits (batch, time, vocabulary), h_0, c_0, ...]`, which shares this model's weights. The layers
            of a recurrent highway network have one state, h.
        """
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        states, finals = [], []
        features = self.embedding(tokens)
        for index, layer in enumerate(self.recurrent):
            initial = [
                keras.Input((size,), dtype=layer.compute_dtype, name=f"{name}_{index}")
                for name, size in zip("hc", layer.state_size, strict=False)
            ]
            features, *final = layer(features, initial_state=initial)
            states += initial
            finals += final
        logits = self.embedding(features, reverse=True) if self.tied else self.decoder(features)
        return keras.Model([tokens, *states], [logits, *finals], name=f"{self.name}_stepwise")

    def get_config(self):
        return {
            "vocabulary_size": self.vocabulary_size,
            "units": self.units,
            "layers": self.num_layers,
            "embedding_units": self.embedding_units,
            "dropout": self.dropout,
            "sparsity": self.sparsity,
            "distribution": self.distribution,
            "block_shape": list(self.block_shape),
            "n_of_m": self.n_of_m and list(self.n_of_m),
            "tied": self.tied,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "cell": self.cell,
            "cell_options": self.cell_options,
            "dtype": keras.dtype_policies.serialize(self._policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def language_model(preset=None, vocabulary_size=10_000, **overrides):
    """A `LanguageModel` with the settings of a preset, any of which can be overridden.

    Args:
        preset: Name of a preset, such as `"ptb_lstm"` or `"quick"`; None (default) for the defaults of
            `LanguageModel`.
        vocabulary_size: Number of tokens in the vocabulary. Default 10,000, that of the Penn Treebank.
        **overrides: Arguments of `LanguageModel`.

    Returns:
        A built, uncompiled `LanguageModel`.

    Raises:
        ValueError: for an unknown preset or an argument out of range.

    Example:

    >>> model = language_model("quick", vocabulary_size=1000, units=32)
    >>> model.units, model.sparsity
    (32, 0.67)
    """
    settings = presets.preset(preset)["model"] if preset is not None else {}
    return LanguageModel(vocabulary_size, **{**settings, **overrides})


def _sparsity_of_pattern(n_of_m, tied):
    if tied:
        raise ValueError(
            "`n_of_m` needs a decoder of its own: a tied one is read along the other axis of the embedding. "
            f"Received: n_of_m={n_of_m}, tied=True"
        )
    n, m = masks.check_n_of_m(n_of_m)
    return 1.0 - n / m


def _check(vocabulary_size, units, layers, embedding_units, dropout, tied):
    sizes = {
        "vocabulary_size": vocabulary_size,
        "units": units,
        "layers": layers,
        "embedding_units": embedding_units,
    }
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={dropout!r}")
    if tied and embedding_units != units:
        raise ValueError(
            "`embedding_units` must equal `units` in a tied model. Received: "
            f"embedding_units={embedding_units}, units={units}"
        )
