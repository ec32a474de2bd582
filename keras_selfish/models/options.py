"""Arguments of language models, by name, for annotations of `**kwargs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from keras_selfish.typing import BlockShape, Distribution, Pattern

if TYPE_CHECKING:
    import keras


class ArchitectureOptions(TypedDict, total=False):
    """Arguments of `Architecture` but the size of the vocabulary and the units."""

    layers: int | None
    embedding_units: int | None
    dropout: float
    input_dropout: float | None
    hidden_dropout: float | None
    output_dropout: float | None
    locked: bool
    embedding_dropout: float
    ar: float
    ar_before_dropout: bool
    tar: float
    sparsity: float
    distribution: Distribution
    block_shape: BlockShape
    n_of_m: Pattern | None
    tied: bool
    decoder_bias: bool
    bias_vectors: Literal[1, 2]
    kernel_limit: Literal["units", "inputs"]
    cell: str
    cell_options: Mapping[str, Any] | None
    experts: int
    latent_dropout: float
    reference_length: int | None


class LanguageModelOptions(ArchitectureOptions, total=False):
    """Arguments of `LanguageModel` but the size of the vocabulary."""

    units: int | Sequence[int]
    batch_size: int
    seed: int
    dtype: str | keras.DTypePolicy | None
    name: str | None
