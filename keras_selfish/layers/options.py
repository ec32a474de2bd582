"""Further arguments of the layers, by name, for annotations of `**kwargs`.

Those of Keras 3.15's own layers are listed, too, so that editors complete them and type checkers see a
misspelt one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import keras

from keras_selfish.typing import (
    Activation,
    BlockShape,
    Constraint,
    Distribution,
    Initializer,
    Pattern,
    Regularizer,
    TensorLike,
)


class CommonOptions(TypedDict, total=False):
    """Arguments of `keras.layers.Layer` that all layers take."""

    activity_regularizer: Regularizer
    trainable: bool
    dtype: str | keras.DTypePolicy | None
    name: str | None


class LayerOptions(CommonOptions, total=False):
    """Arguments of `keras.layers.Layer`."""

    autocast: bool


class KernelOptions(LayerOptions, total=False):
    """Arguments of layers with a kernel and a bias."""

    kernel_initializer: Initializer
    bias_initializer: Initializer
    kernel_regularizer: Regularizer
    bias_regularizer: Regularizer
    kernel_constraint: Constraint
    bias_constraint: Constraint


class MaskOptions(TypedDict, total=False):
    """Arguments of all sparse layers: the fields of `MaskSpec`."""

    sparsity: float | None
    distribution: Distribution
    block_shape: BlockShape
    n_of_m: Pattern | None
    mask_seed: int | None


class MixtureOptions(MaskOptions, LayerOptions, total=False):
    """Further arguments of `MixtureOfSoftmaxes`."""


class DenseOptions(KernelOptions, total=False):
    """Further arguments of `keras.layers.Dense`."""

    activation: Activation
    use_bias: bool
    lora_rank: int | None
    lora_alpha: float | None
    quantization_config: Any


class SparseDenseOptions(MaskOptions, DenseOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.Dense`."""


class SparseEinsumDenseOptions(MaskOptions, KernelOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.EinsumDense`."""

    activation: Activation
    bias_axes: str | None
    lora_rank: int | None
    lora_alpha: float | None
    gptq_unpacked_column_size: int | None
    quantization_config: Any


class _EmbeddingOptions(MaskOptions, LayerOptions, total=False):
    """Further arguments of sparse embeddings."""

    embeddings_initializer: Initializer
    embeddings_regularizer: Regularizer
    embeddings_constraint: Constraint
    mask_zero: bool
    weights: TensorLike | list[TensorLike] | None
    embedding_dropout: float
    seed: int | keras.random.SeedGenerator | None
    lora_rank: int | None
    lora_alpha: float | None
    quantization_config: Any


class EmbeddingOptions(_EmbeddingOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.Embedding`."""


class ReversibleEmbeddingOptions(_EmbeddingOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.ReversibleEmbedding`."""

    tie_weights: bool
    reverse_dtype: str | None
    logit_soft_cap: float | None


class RecurrentOptions(MaskOptions, CommonOptions, total=False):
    """Further arguments of all sparse recurrent cells and layers."""

    activation: Activation
    use_bias: bool
    kernel_initializer: Initializer
    recurrent_initializer: Initializer
    bias_initializer: Initializer
    kernel_regularizer: Regularizer
    recurrent_regularizer: Regularizer
    bias_regularizer: Regularizer
    kernel_constraint: Constraint
    recurrent_constraint: Constraint
    bias_constraint: Constraint
    dropout: float
    recurrent_dropout: float
    seed: int | keras.random.SeedGenerator | None
    weight_drop: float


class LoopOptions(TypedDict, total=False):
    """Arguments of `keras.layers.RNN` that are about the loop."""

    return_sequences: bool
    return_state: bool
    go_backwards: bool
    stateful: bool
    unroll: bool
    zero_output_for_mask: bool


class RNNOptions(LoopOptions, LayerOptions, total=False):
    """Further arguments of `keras.layers.RNN`."""


class SequenceOptions(RecurrentOptions, LoopOptions, total=False):
    """Further arguments of all sparse recurrent layers."""


class LSTMCellOptions(RecurrentOptions, LayerOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.LSTMCell`."""

    recurrent_activation: Activation
    unit_forget_bias: bool


class GRUCellOptions(RecurrentOptions, LayerOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.GRUCell`."""

    recurrent_activation: Activation
    reset_after: bool


class SimpleRNNCellOptions(RecurrentOptions, LayerOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.SimpleRNNCell`."""


class SimpleRNNOptions(SimpleRNNCellOptions, SequenceOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.SimpleRNN`."""


class LSTMOptions(LSTMCellOptions, SequenceOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.LSTM`."""

    use_cudnn: bool | Literal["auto"]


class GRUOptions(GRUCellOptions, SequenceOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.GRU`."""

    use_cudnn: bool | Literal["auto"]


class HighwayCellOptions(RecurrentOptions, total=False):
    """Further arguments of `SparseRHNCell`."""

    recurrent_activation: Activation


class HighwayOptions(HighwayCellOptions, SequenceOptions, total=False):
    """Further arguments of `SparseRHN`."""

    coupled: bool
    transform_bias: float | None


class OrderedCellOptions(RecurrentOptions, total=False):
    """Further arguments of `SparseONLSTMCell`."""

    recurrent_activation: Activation


class OrderedOptions(OrderedCellOptions, SequenceOptions, total=False):
    """Further arguments of `SparseONLSTM`."""

    chunk_size: int
    weight_drop_scaling: Literal["training", "inference"]


class ConvOptions(MaskOptions, KernelOptions, total=False):
    """Further arguments of sparse convolutions."""

    strides: int | Sequence[int]
    padding: str
    data_format: Literal["channels_last", "channels_first"] | None
    dilation_rate: int | Sequence[int]
    groups: int
    activation: Activation
    use_bias: bool


class ConvTransposeOptions(MaskOptions, KernelOptions, total=False):
    """Further arguments of sparse transposed convolutions."""

    strides: int | Sequence[int]
    padding: str
    output_padding: int | Sequence[int] | None
    data_format: Literal["channels_last", "channels_first"] | None
    dilation_rate: int | Sequence[int]
    activation: Activation
    use_bias: bool


class DepthwiseConvOptions(MaskOptions, LayerOptions, total=False):
    """Further arguments of sparse depthwise convolutions."""

    strides: int | Sequence[int]
    padding: str
    depth_multiplier: int
    data_format: Literal["channels_last", "channels_first"] | None
    dilation_rate: int | Sequence[int]
    activation: Activation
    use_bias: bool
    depthwise_initializer: Initializer
    bias_initializer: Initializer
    depthwise_regularizer: Regularizer
    bias_regularizer: Regularizer
    depthwise_constraint: Constraint
    bias_constraint: Constraint


class SeparableConvOptions(MaskOptions, LayerOptions, total=False):
    """Further arguments of sparse separable convolutions."""

    strides: int | Sequence[int]
    padding: str
    data_format: Literal["channels_last", "channels_first"] | None
    dilation_rate: int | Sequence[int]
    depth_multiplier: int
    activation: Activation
    use_bias: bool
    depthwise_initializer: Initializer
    pointwise_initializer: Initializer
    bias_initializer: Initializer
    depthwise_regularizer: Regularizer
    pointwise_regularizer: Regularizer
    bias_regularizer: Regularizer
    depthwise_constraint: Constraint
    pointwise_constraint: Constraint
    bias_constraint: Constraint


class MultiHeadAttentionOptions(MaskOptions, KernelOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.MultiHeadAttention`."""

    value_dim: int | None
    dropout: float
    use_bias: bool
    output_shape: int | Sequence[int] | None
    attention_axes: int | Sequence[int] | None
    sliding_window: int | None
    flash_attention: bool | None
    use_gate: bool
    seed: int | keras.random.SeedGenerator | None


class GroupQueryAttentionOptions(MaskOptions, KernelOptions, total=False):
    """Further arguments of the sparse form of `keras.layers.GroupQueryAttention`."""

    dropout: float
    use_bias: bool
    sliding_window: int | None
    flash_attention: bool | None
    use_gate: bool
    seed: int | keras.random.SeedGenerator | None
