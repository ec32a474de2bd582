"""What a language model is made of, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from keras_selfish import checks, masks
from keras_selfish.mask_spec import MaskSpec
from keras_selfish.models.recurrent_layers import RECURRENT_LAYERS, RecurrentLayer
from keras_selfish.settings import check_settings, json_object, setting, whole_numbers
from keras_selfish.typing import BlockShape, Config, Distribution, Pattern

# Where dropout stands.
PLACES = ("input", "hidden", "output")
# So that the seeds of a model, a thousand, are enough.
MOST_LAYERS = 150
RATES = "[0, 1)"


def _one_or_several(name, words):
    units = whole_numbers("a whole number or several, such as 256,200")(name, words)
    return units[0] if len(units) == 1 else units


def _checked_units(units):
    if not isinstance(units, Iterable):
        return checks.integer("units", units, at_least=1)
    several = tuple(checks.integers("units", units))
    return several or checks.refuse("units", "must be a positive integer or a list of them", units)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The settings of a `LanguageModel`.

    Args:
        vocabulary_size: Number of tokens in the vocabulary.
        units: Units of each recurrent layer, a number or a list with one for each. Default 256.
        layers: Number of recurrent layers, at most 150; None (default) for the length of the list `units`, or
            2.
        embedding_units: Features of a token; None (default) for the units of the last layer.
        dropout: Fraction of features dropped in training after the embedding, between recurrent layers and
            before the decoder. Default 0.25.
        input_dropout: Fraction dropped after the embedding; None (default) for `dropout`.
        hidden_dropout: Fraction dropped between recurrent layers; None (default) for `dropout`.
        output_dropout: Fraction dropped before the decoder; None (default) for `dropout`.
        locked: Whether the same features are dropped at all time steps (`LockedDropout`). Default False.
        embedding_dropout: Fraction of the vocabulary dropped in each training step. Default 0.
        ar: Factor of the penalty of large activations (`ActivationRegularization`). Default 0.
        ar_before_dropout: Whether that is of the activations before the dropout in front of the decoder, as
            in the published ON-LSTM, or after it (default), as in the AWD-LSTM.
        tar: Factor of the penalty of changing activations. Default 0.
        sparsity: Fraction of zeros in every weight matrix, in [0, 1); 0 makes no masks. Default 0.67.
        distribution: How the matrices share the connections: `"uniform"` (default) gives all the same
            density, `"erdos_renyi"` and `"erk"` divide one budget over the whole model.
        block_shape: (input weights, units) of the blocks that are dropped and grown as one. Default (1, 1).
            An embedding that is not tied, which no product reads, has single weights.
        n_of_m: `(n, m)` for exactly n of each m consecutive input weights of a unit, such as (2, 4), in the
            recurrent kernels and the decoder; the embedding, which no product reads, has single weights at
            the same density. It fixes the sparsity. Default None.
        tied: Whether the decoder is the transposed embedding; the units of the last layer (with several
            experts: nothing) must then be the features of a token. Default False.
        decoder_bias: Whether the decoder, tied or not, adds a bias to the logits, zero at first. Default
            True.
        bias_vectors: 1 (default); or 2, and a recurrent layer's bias is trained by `SNTASGD` as the sum of
            two vectors, which PyTorch's layers have: it moves at twice the rate, counts twice in the norm
            that is clipped, and begins with twice the variance. Of an RHN only the first depth has two.
        kernel_limit: Number n that bounds the initial input kernels, uniform in ±1/sqrt(n): `"units"`
            (default), or `"inputs"`, as in the published ON-LSTM.
        cell: Kind of the recurrent layers: `"lstm"` (default), `"gru"`, `"simple_rnn"`, `"rhn"`, `"on_lstm"`,
            or one of your own (`register_recurrent_layer`).
        cell_options: Dict of further arguments of each recurrent layer, such as `{"depth": 10}` of a
            `SparseRHN`, or `{"weight_drop": 0.5}`. Default None.
        experts: Number of softmaxes that are mixed (`MixtureOfSoftmaxes`), each over as many features as a
            token has. Default 1.
        latent_dropout: Fraction of the experts' features dropped in training. Default 0.
        reference_length: Number of time steps that the learning rate is meant for: a step of `SNTASGD` on
            windows of another length is scaled by length / reference_length. Default None: none is.

    Raises:
        ValueError: for an argument out of range.
    """

    vocabulary_size: int = dataclasses.field(metadata={"at_least": 1})
    units: int | Sequence[int] = setting(
        256,
        "Units of each recurrent layer, one number or one for each, such as 256,200.",
        words=_one_or_several,
    )
    layers: int | None = setting(None, "Number of recurrent layers.", at_least=1)
    embedding_units: int | None = setting(None, "Features of a token; --units by default.", at_least=1)
    dropout: float = setting(
        0.25, "Fraction of inputs of each layer dropped in training, in [0, 1).", within=RATES
    )
    input_dropout: float | None = setting(None, "--dropout after the embedding.", within=RATES)
    hidden_dropout: float | None = setting(None, "--dropout between recurrent layers.", within=RATES)
    output_dropout: float | None = setting(None, "--dropout before the decoder.", within=RATES)
    locked: bool = setting(False, "Whether dropout takes the same features at all time steps.")
    embedding_dropout: float = setting(
        0.0, "Fraction of the words that a step does without, in [0, 1).", within=RATES
    )
    ar: float = setting(0.0, "Penalty of large activations.", at_least=0.0)
    ar_before_dropout: bool = setting(False, "Whether --ar is of the activations before --output_dropout.")
    tar: float = setting(0.0, "Penalty of changing activations.", at_least=0.0)
    sparsity: float = setting(
        0.67, "Fraction of zeros in every weight matrix, in [0, 1).", check=masks.check_sparsity
    )
    distribution: Distribution = setting("uniform", "How the matrices share the connections.")
    block_shape: BlockShape = setting(
        (1, 1),
        "Input weights and units of a block of connections, such as 4,1.",
        words=whole_numbers("two whole numbers, such as 4,1", 2),
    )
    n_of_m: Pattern | None = setting(
        None,
        "Connections among consecutive input weights, such as 2,4: two of each four.",
        words=whole_numbers("two whole numbers, such as 2,4", 2),
    )
    tied: bool = setting(False, "Whether the decoder is the transposed embedding.")
    decoder_bias: bool = setting(True, "Whether the decoder, tied or not, adds a bias.")
    bias_vectors: Literal[1, 2] = setting(
        1, "2: biases of recurrent layers train as PyTorch's two vectors do."
    )
    kernel_limit: Literal["units", "inputs"] = setting(
        "units", "What bounds the initial input kernels, uniform in ±1/sqrt of it."
    )
    cell: str = setting("lstm", "Kind of the recurrent layers.", choices=RECURRENT_LAYERS)
    cell_options: Mapping[str, Any] | None = setting(
        None,
        'Further arguments of the recurrent layers, as JSON: {"depth": 10}, {"weight_drop": 0.5}.',
        text=json_object,
    )
    experts: int = setting(1, "Number of softmaxes that are mixed.", at_least=1)
    latent_dropout: float = setting(
        0.0, "Fraction of the experts' features dropped, in [0, 1).", within=RATES
    )
    reference_length: int | None = setting(None, at_least=1)

    def __post_init__(self):
        self._set("block_shape", masks.check_block_shape(self.block_shape))
        self._set("units", _checked_units(self.units))
        check_settings(self)
        self._check_sizes()
        if self.bias_vectors not in self.recurrent_layer.bias_vectors:
            raise ValueError(
                f"`bias_vectors` must be 1 with cell={self.cell!r}, which has two of its own. "
                f"Received: bias_vectors={self.bias_vectors}"
            )
        if self.experts > 1 and not self.decoder_bias:
            raise ValueError(
                "`decoder_bias` must be True with several experts, whose decoder has one. "
                f"Received: decoder_bias=False, experts={self.experts}"
            )
        self._settle_masks()
        if self.sparsity:
            self._check_blocks()

    def _set(self, name, value):
        object.__setattr__(self, name, value)  # a frozen dataclass settles its own fields

    def _check_sizes(self):
        layers = self.layers or 0 if isinstance(self.units, int) else len(self.units)
        if layers > MOST_LAYERS:
            checks.refuse("layers", f"must be at most {MOST_LAYERS}", layers)
        if not isinstance(self.units, int) and self.layers not in (None, len(self.units)):
            raise ValueError(
                "`layers` must be the length of the list `units`, or left out. "
                f"Received: layers={self.layers}, units={list(self.units)}"
            )
        if self.tied and self.experts == 1 and self.token_units != self.layer_units[-1]:
            raise ValueError(
                "`embedding_units` must equal `units` (of the last layer) in a tied model. Received: "
                f"embedding_units={self.embedding_units}, units={self.units}"
            )

    def _check_blocks(self):
        rows, columns = self.block_shape
        sizes = [("units", units, rows) for units in self.layer_units]
        sizes.append(("embedding_units", self.token_units, rows))
        if not self.tied:  # the decoder's columns
            sizes.append(("vocabulary_size", self.vocabulary_size, columns))
        for name, size, step in sizes:
            if size % step:
                raise ValueError(
                    f"`{name}` must be a multiple of {step}, for blocks of {self.block_shape} connections. "
                    f"Received: {name}={size}; take {masks.nearest_multiples(size, step)}"
                )

    def _settle_masks(self):
        sparsity = self.sparsity
        if self.n_of_m is not None and self.sparsity:
            self._check_pattern()
            sparsity = None  # the pattern fixes it
        spec = MaskSpec(sparsity, self.distribution, self.block_shape, self.n_of_m)
        for name in ("sparsity", "block_shape", "n_of_m"):
            self._set(name, getattr(spec, name))

    @property
    def mask_spec(self) -> MaskSpec:
        """The mask arguments of a layer; the `distribution` is of the whole model's connections."""
        return MaskSpec(self.sparsity, block_shape=self.block_shape, n_of_m=self.n_of_m)

    def _check_pattern(self):
        if self.tied:
            raise ValueError(
                "`n_of_m` needs a decoder of its own: a tied one is read along the other axis of the "
                f"embedding. Received: n_of_m={self.n_of_m}, tied=True"
            )
        if self.experts > 1:
            raise ValueError(
                "`n_of_m` needs a single softmax, whose kernel has one pattern. "
                f"Received: n_of_m={self.n_of_m}, experts={self.experts}"
            )

    @property
    def recurrent_layer(self) -> RecurrentLayer:
        """What `cell` names."""
        return RECURRENT_LAYERS[self.cell]

    @property
    def layer_units(self) -> tuple[int, ...]:
        """Units of each recurrent layer, a tuple."""
        if not isinstance(self.units, int):
            return tuple(self.units)
        return (self.units,) * (2 if self.layers is None else self.layers)

    @property
    def token_units(self) -> int:
        """Features of a token."""
        return self.embedding_units or self.layer_units[-1]

    def dropout_rates(self) -> list[float]:
        """The rates after the embedding, after each recurrent layer but the last, and after the last."""
        rates = {place: getattr(self, f"{place}_dropout") for place in PLACES}
        rates = {place: self.dropout if rate is None else rate for place, rate in rates.items()}
        hidden = [rates["hidden"]] * (len(self.layer_units) - 1)
        return [rates["input"], *hidden, rates["output"]]

    def get_config(self) -> Config:
        """The settings as a dict of JSON values."""
        config = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
