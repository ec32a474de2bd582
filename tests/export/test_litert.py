import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from keras_selfish import (
    LanguageModel,
    Perplexity,
    SparseConv1D,
    SparseConv2D,
    SparseConv3D,
    SparseConv3DTranspose,
    SparseDense,
    SparseEinsumDense,
    SparseEmbedding,
    SparseGRU,
    SparseGRUCell,
    SparseLSTM,
    SparseLSTMCell,
    SparseONLSTM,
    SparseRHN,
    SparseSimpleRNN,
    TokenCrossEntropy,
    masked_weights,
    sparsify,
)
from keras_selfish.data import Windows
from keras_selfish.export import litert

pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")

from keras_selfish.litert.runner import run

ON_JAX = pytest.mark.backends("tensorflow", "jax")


def sequential(*chosen, shape=(5, 6), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype, name="x"), *chosen])


def two_inputs():
    x, image = keras.Input((5, 6), name="x"), keras.Input((8, 8, 1), name="image")
    summary, h, c = layers.LSTM(4, return_state=True)(x)
    features = layers.Flatten()(SparseConv2D(2, 3, activation="relu")(image))
    features = SparseDense(4, activation="gelu")(features) * 0.5 - summary
    shared = layers.Dense(4, activation="silu")
    features = keras.ops.concatenate([shared(features), shared(c), h[:, ::-1]], axis=-1)
    return keras.Model(
        [x, image], {"label": layers.Dense(3, activation="softmax")(features), "h": h, "again": h}
    )


def attention_free_block():
    x = keras.Input((5, 6), name="x")
    y = layers.LayerNormalization()(x + SparseEinsumDense("abc,cd->abd", (5, 6), bias_axes="d")(x))
    y = layers.RMSNormalization()(layers.BatchNormalization()(y))
    y = keras.ops.where(y > 0.1, keras.ops.exp(-y), keras.ops.log_softmax(y, axis=1))
    y = keras.ops.stack([keras.ops.max(y, axis=2), keras.ops.logsumexp(y, axis=-1)], axis=1)
    return keras.Model(x, keras.ops.clip(keras.ops.transpose(y, (0, 2, 1)), -1.0, 1.0)[:, 1:, None])


class Scaled(layers.Layer):
    """Computes with its weights on the left of operators."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=input_shape[-1:], initializer="uniform")
        self.built = True

    def call(self, inputs):
        return (self.scale - inputs) / (self.scale + self.scale * inputs**2 + 2)


def masked(*chosen):
    """Layers after an embedding that takes zeros for padding."""
    return sequential(SparseEmbedding(20, 6, mask_zero=True), *chosen, shape=(5,), dtype="int32")


def attention():
    """Between all pairs of steps, before a step only, and by an einsum of computed tensors."""
    x, ids = keras.Input((5, 6), name="x"), keras.Input((5,), dtype="int32", name="ids")
    y = layers.MultiHeadAttention(2, 4)(x, x)
    y = layers.MultiHeadAttention(2, 4)(y, x, use_causal_mask=True)
    y = layers.GroupQueryAttention(4, 2, 2)(y, x)
    keys = layers.Embedding(20, 6, mask_zero=True)
    y = layers.MultiHeadAttention(2, 4)(y, keys(ids))  # which takes the mask from the tensor that it gets
    y = layers.MultiHeadAttention(2, 4, dropout=0.1)(y, keys(ids))
    y = layers.Attention()([y, keys(ids)]) + layers.MultiHeadAttention(2, 4)(keys(ids), x)
    return keras.Model([x, ids], keras.ops.einsum("bte,bse->bst", y, x))


def choices():
    x = keras.Input((5, 6), name="x")
    largest, places = keras.ops.top_k(x, 2)
    classes = keras.ops.one_hot(keras.ops.argmax(x, axis=1), 5)
    mean, variance = keras.ops.moments(x, axes=[1])
    spread = keras.ops.std(x, axis=1) + keras.ops.var(x, axis=1)
    at_least = keras.ops.cast(keras.ops.any(x > 1, axis=-1) | keras.ops.all(x < 1, axis=-1), "float32")
    least = keras.ops.argmin(x, axis=-1)
    others = [mean + variance + spread, at_least, least, keras.ops.prod(x, axis=1)]
    return named_outputs(x, [largest, places, classes, *others])


def activations():
    """Each of its own, since one after another would end in a narrow range."""
    x = keras.Input((5, 6), name="x")
    names = ("selu", "celu", "elu", "glu", "hard_shrink", "soft_shrink", "tanh_shrink", "squareplus")
    names += ("sparse_plus", "sparse_sigmoid", "log_sigmoid", "softsign", "softplus", "hard_sigmoid", "silu")
    others = [keras.ops.threshold(x, 0.1, 2.0), keras.ops.log1p(keras.ops.expm1(x)), 1 / (x + 9)]
    others += [keras.ops.elu(x, 0.5), keras.ops.reciprocal(x + 9), keras.ops.normalize(x, axis=1)]
    return named_outputs(x, [*(getattr(keras.ops, name)(x) for name in names), *others])


def activations_of_layers():
    """Of which some make tensors of their inputs first."""
    x = keras.Input((5, 6), name="x")
    names = ("mish", "hard_silu", "gelu", "log_softmax", "hard_tanh", "relu6", "exponential")
    relus = [layers.ReLU(2.0, 0.1, 0.3)(x), layers.ReLU(threshold=0.2)(x), layers.LeakyReLU(0.2)(x)]
    return named_outputs(x, [*(SparseDense(4, activation=name)(x) for name in names), *relus])


def operations():
    x, ops = keras.Input((5, 6), name="x"), keras.ops
    roots = ops.sqrt(x)  # of which some are no numbers
    outputs = [roots, ops.cast(ops.isnan(roots), "float32"), ops.nan_to_num(roots, nan=3.0)]
    outputs += [ops.norm(x, axis=-1), ops.norm(x, axis=(1, 2), keepdims=True), ops.norm(x, 2, axis=1)]
    outputs += [
        ops.roll(x, 2, 1),
        ops.roll(x, -1, -1),
        ops.moveaxis(x, 1, 2),
        ops.moveaxis(x, (0, 2), (1, 0)),
    ]
    outputs += [ops.average(x, axis=1), ops.diff(x, axis=1), ops.diff(x, n=2), ops.erf(x), ops.tan(x)]
    outputs += [ops.tril(x), ops.triu(x, 1), ops.full_like(x, 2.0)]
    weight = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    outputs += [ops.tensordot(x, weight, 1), ops.tensordot(x, weight, ((2,), (0,)))]
    return named_outputs(x, outputs)


def orders():
    """Of entries of which some are equal, too."""
    x, ops = keras.Input((5, 6), name="x"), keras.ops
    even = ops.round(x)
    outputs = [
        ops.sort(x, axis=1),
        ops.argsort(x),
        ops.argsort(even, axis=1),
        ops.sort(ops.cast(even, "int32")),
    ]
    outputs += [ops.median(x, axis=1), ops.median(x, axis=-1, keepdims=True), ops.quantile(x, 0.3, axis=2)]
    outputs.append(ops.moveaxis(ops.quantile(x, np.array([0.0, 0.4, 1.0], "float32"), axis=1), 0, 1))
    outputs += [ops.take_along_axis(x, ops.argsort(x, axis=1)[:, -2:], axis=1)]
    outputs += [ops.take_along_axis(x, ops.argmin(x, axis=-1, keepdims=True) - 1, axis=2)]
    outputs += [ops.rot90(x, turns, axes=(1, 2)) for turns in (1, 3, 4)]
    outputs += [ops.roll(x, (1, -2), (1, 2)), ops.cumprod(x, axis=1), ops.count_nonzero(even, axis=-1)]
    outputs += [ops.diagonal(x, offset, 1, 2) for offset in (-2, 0, 3)] + [ops.trace(x, 1, 2, 1)]
    outputs.append(ops.digitize(x, np.array([-1.0, 0.0, 1.0], "float32")))
    outputs += [ops.select([x > 1, x > 0], [x, 2 * x], 5.0), ops.append(x, x, axis=2), ops.hstack([x, x])]
    outputs += [ops.multi_hot(ops.cast(even[:, :, 0], "int32"), 3), ops.fliplr(x), ops.dstack([x, even])]
    return named_outputs(x, outputs)


def functions():
    """Each with a part of the numbers that it is defined for."""
    x, ops = keras.Input((5, 6), name="x"), keras.ops
    small, large = ops.tanh(x) * 0.9, ops.abs(x) + 1.1
    names = ("sinh", "cosh", "arcsinh", "arctan", "exp2", "cbrt", "trunc", "deg2rad", "rad2deg", "erfc")
    outputs = [getattr(ops, name)(x) for name in names]
    outputs += [getattr(ops, name)(small) for name in ("arcsin", "arccos", "arctanh")]
    outputs += [getattr(ops, name)(large) for name in ("arccosh", "log2", "log10")]
    outputs += [getattr(ops, name)(x, x[:, :1]) for name in ("logaddexp", "hypot", "arctan2")]
    outputs += [ops.logaddexp2(30 * x, -30 * x), ops.divide_no_nan(x, ops.relu(x)), ops.ptp(x, axis=1)]
    huge = ops.exp(60 * x)  # of which some are infinite
    outputs += [ops.cast(is_so(huge), "float32") for is_so in (ops.isinf, ops.isfinite)]
    outputs += [ops.norm(x, order, axis=1) for order in (1, np.inf, -np.inf)] + [ops.normalize(x, order=1)]
    weights = np.arange(1, 7, dtype="float32")
    outputs += [ops.average(x, axis=2, weights=weights), ops.average(x, axis=1, weights=large)]
    return named_outputs(x, [*outputs, ops.convert_to_tensor(x, dtype="float32") + 1])


def patches():
    """As in a vision transformer, overlapping, with gaps, and beyond the edge."""
    x, image = keras.Input((9, 12, 3), name="x"), keras.ops.image
    settings = [((3, 4),), (4,), (3, 2), ((2, 3), 1, 2)]
    outputs = [image.extract_patches(x, *setting) for setting in settings]
    outputs += [image.extract_patches(x, size, padding="same") for size in (3, 4)]
    outputs += [keras.ops.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0)), mode) for mode in ("reflect", "symmetric")]
    outputs += [keras.ops.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0)), constant_values=2.5)]
    outputs += [image.rgb_to_grayscale(x), image.crop_images(x, 1, 2, target_height=5, target_width=6)]
    outputs += [keras.ops.flip(x, (1, 3)), image.pad_images(x, 1, 2, bottom_padding=0, target_width=15)]
    return named_outputs(x, outputs)


def pixels_and_channels():
    x = keras.Input((4, 6, 8), name="x")
    return named_outputs(x, [keras.ops.depth_to_space(x, 2), keras.ops.space_to_depth(x, 2)])


def resized_smoothly():
    x, resize = keras.Input((7, 8, 3), name="x"), layers.Resizing
    outputs = [resize(*size, interpolation="bicubic")(x) for size in ((9, 5), (14, 16))]
    return named_outputs(x, [*outputs, resize(5, 10, "lanczos3", antialias=True)(x)])


def integers():
    """Which Keras computes with as with other numbers."""
    x, ops = keras.Input((6,), dtype="int32", name="x"), keras.ops
    large, wide, ones = x > 3, ops.cast(x, "float32"), np.ones((6, 2), "float32")
    outputs = [x * 0.5, x / 2, x / (x + 100), x // 3, x % 3, x**2, 1.5 - x, ops.maximum(x, 4.5), x // 2.5]
    outputs += [ops.mean(x, 1), ops.sum(large, axis=1), ops.mean(large, axis=1), ops.prod(x % 2 + 1, 1)]
    outputs += [ops.cumsum(x, 1), ops.cumsum(large, 1), ops.std(x, 1), ops.var(x, 1), ops.average(x, 1)]
    outputs += [ops.exp(x / 50), ops.exp(ops.minimum(x, 3)), ops.sqrt(x), ops.log(x + 1), ops.tanh(x)]
    outputs += [
        ops.round(x),
        ops.floor(x),
        ops.relu(x - 5),
        ops.square(x),
        ops.cos(x),
        large * 2.0,
        large * x,
    ]
    outputs += [large * x, ops.where(large, x, 0.5), ops.matmul(x, ones), ops.einsum("ab,bc->ac", x, ones)]
    outputs += [ops.matmul(x[:, None, :], x[:, :, None]), ops.stack([wide, x], 1), ops.argmax(x, 1) * 2.5]
    outputs += [ops.concatenate([wide, x], 1), ops.concatenate([large, x], 1), ops.median(x, 1)]
    outputs += [ops.cast(truth, "int32") for truth in (ops.any(x, 1), ops.logical_and(x, large), x > 2.5)]
    return named_outputs(x, outputs)


class Batched(layers.Layer):
    """Makes tensors of as many rows as there are in the batch."""

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, 1, input_shape[-1]), initializer="uniform")
        self.cell = layers.LSTMCell(4)
        self.cell.build((None, input_shape[-1]))
        self.built = True

    def call(self, x):
        ops, batch, width = keras.ops, keras.ops.shape(x)[0], x.shape[-1]
        tokens = [ops.broadcast_to(self.token, (batch, 1, width)), ops.repeat(self.token, batch, axis=0)]
        tokens += [ops.tile(self.token, [batch, 2, 1]), ops.full((batch, 1, width), 2.5)]
        tokens.append(ops.cast(ops.ones(shape=(batch, 1, width), dtype="int32"), "float32"))
        x = ops.reshape(ops.concatenate([*tokens, x], axis=1), (batch, -1, width, 1))[..., 0]
        states = [ops.zeros((batch, 4)), ops.zeros((batch, 4))]
        for step in range(11):
            output, states = self.cell(x[:, step], states)
        return ops.concatenate([output, -output], axis=0)


def signals():
    """Spectra, also of parts, and a place that is computed, as in a cache of keys."""
    x, ops = keras.Input((24,), name="x"), keras.ops
    wide = ops.reshape(x, (-1, 2, 12))
    outputs = [
        *ops.rfft(x),
        *ops.rfft(wide, 16),
        *ops.fft((wide, wide[:, ::-1])),
        *ops.fft2((wide, wide[:, ::-1])),
        *ops.ifft2((wide[..., :5], wide[..., 5:10])),
        ops.irfft((wide, wide[:, ::-1])),
        ops.irfft((wide, wide[:, ::-1]), 9),
        ops.extract_sequences(x, 5, 3),
    ]
    outputs += [*ops.stft(x, 6, 4, 8), *ops.stft(wide, 4, 2, 4, "hamming", center=False)]
    mel = {"num_mel_bins": 4, "sampling_rate": 400, "sequence_stride": 8, "fft_length": 16, "min_freq": 20.0}
    outputs += [layers.MelSpectrogram(**mel, power_to_db=decibels)(x) for decibels in (True, False)]
    place = ops.argmax(ops.max(wide, axis=(0, 2)))
    at = ops.stack([0 * place, place, 0 * place])
    outputs += [
        ops.slice_update(wide, at, ops.zeros_like(wide[:, :1])),
        ops.slice(wide, (0, 1, 2), (-1, 1, 4)),
    ]
    return named_outputs(x, outputs)


class Embeds(layers.Layer):
    """Marks padding."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.places = layers.Embedding(20, 6, mask_zero=True), layers.Embedding(5, 6)

    def call(self, ids):
        return self.tokens(ids) + self.places(keras.ops.arange(5))

    def compute_mask(self, ids, previous_mask=None):
        return self.tokens.compute_mask(ids)


class Cached(layers.MultiHeadAttention):
    """Takes more than the attention that it derives from."""

    def call(self, query, value, key=None, cache=None):
        return super().call(query, value, key) if cache is None else cache


class WithoutState(layers.Layer):
    """Returns what is no tensor beside one that is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(6)

    def call(self, x):
        return self.dense(x), None


class Transformer(layers.Layer):
    """Says nothing of padding, which the layers within it look for; its projection leaves the steps open."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention, self.cached = layers.MultiHeadAttention(2, 3), Cached(2, 3)
        self.lstm, self.dense = layers.LSTM(6, return_sequences=True), WithoutState()
        self.heads = layers.EinsumDense("btd,dnh->btnh", output_shape=(None, 2, 4))

    def call(self, x):
        x = x + self.lstm(x) + self.attention(x, x)  # which takes the mask off
        y, state = self.dense(x + self.cached(x, x, cache=None))
        heads = self.heads(y if state is None else x)
        turned = keras.ops.reshape(keras.ops.swapaxes(heads, 2, 3), keras.ops.shape(heads))
        by_batch = keras.ops.reshape(turned, (keras.ops.shape(turned)[0], -1, 2, 4))
        return (
            by_batch
            + keras.ops.cast(keras.ops.arange(keras.ops.shape(by_batch)[1]), "float32")[:, None, None]
        )


def blocks_that_see_padding():
    return sequential(Embeds(), Transformer(), layers.Flatten(), shape=(5,), dtype="int32")


def categories():
    x, encoding = keras.Input((4,), name="x"), layers.CategoryEncoding
    places = layers.Discretization(bin_boundaries=[-0.5, 0.5])(x)
    outputs = [places, *(encoding(3, output_mode=mode)(places) for mode in ("multi_hot", "count"))]
    outputs.append(layers.Discretization(bin_boundaries=[0.0], output_mode="one_hot")(x[:, :1]))
    return named_outputs(x, [*outputs, encoding(3, output_mode="one_hot")(places)])


class Noisy(layers.Layer):
    """At work unless it is told not to be."""

    def call(self, inputs, training=True):
        return inputs + 100.0 if training else 2 * inputs


def named_outputs(x, outputs):
    return keras.Model(x, {f"output {index:02}": output for index, output in enumerate(outputs)})


# Those that take a number.
AUGMENTATIONS = (
    "RandomBrightness",
    "RandomContrast",
    "RandomRotation",
    "RandomHue",
    "RandomErasing",
)

MODELS = {
    "dense": lambda: sequential(
        SparseDense(32, sparsity=0.9, activation="relu"), layers.Dropout(0.5), SparseDense(4), shape=(16,)
    ),
    "blocks": lambda: sequential(SparseDense(32, sparsity=0.9, block_shape=(4, 1)), shape=(16,)),
    "lstm": lambda: sequential(SparseLSTM(16, sparsity=0.9), layers.Dense(3)),
    "lstm, all steps": lambda: sequential(SparseLSTM(8, return_sequences=True), layers.Dense(3)),
    "lstm, one step": lambda: sequential(SparseLSTM(8, return_sequences=True), shape=(1, 6)),
    "gru": lambda: sequential(SparseGRU(8, return_sequences=True), SparseGRU(8, reset_after=False)),
    "backwards": lambda: sequential(SparseSimpleRNN(8, go_backwards=True, return_sequences=True)),
    "bidirectional": lambda: sequential(
        layers.Bidirectional(SparseLSTM(4, return_sequences=True)),
        layers.Bidirectional(SparseGRU(4), merge_mode="ave"),
    ),
    "cells": lambda: sequential(layers.RNN([SparseLSTMCell(8), SparseGRUCell(4)], return_sequences=True)),
    "dropout within cells": lambda: sequential(
        layers.RNN([layers.SimpleRNNCell(4, dropout=0.2), layers.GRUCell(3, recurrent_dropout=0.2)]),
        layers.Reshape((3, 1)),
        SparseSimpleRNN(4, dropout=0.3, recurrent_dropout=0.3),
    ),
    "rhn": lambda: sequential(SparseRHN(8, depth=3)),
    "on_lstm": lambda: sequential(SparseONLSTM(8, chunk_size=4, return_sequences=True)),
    "embedding": lambda: sequential(
        SparseEmbedding(20, 8, sparsity=0.8), SparseLSTM(8), layers.Dense(1), shape=(5,), dtype="int32"
    ),
    "masked": lambda: masked(
        layers.Dropout(0.5),
        layers.TimeDistributed(SparseDense(4)),
        layers.Bidirectional(SparseLSTM(4, return_sequences=True)),
        SparseGRU(4, return_sequences=True, go_backwards=True),
        SparseLSTM(4),
    ),
    "masked, all steps": lambda: masked(
        layers.GRU(4, return_sequences=True, zero_output_for_mask=True), SparseRHN(4, return_sequences=True)
    ),
    "masked, cells": lambda: masked(layers.RNN(SparseLSTMCell(4)), layers.Dense(2)),
    "masked, models within": lambda: sequential(
        masked(layers.Dropout(0.5)),
        sequential(SparseLSTM(4), shape=(5, 6)),
        layers.Dense(2),
        shape=(5,),
        dtype="int32",
    ),
    "ids as floats": lambda: keras.Sequential(
        [keras.Input((5,), name="ids"), SparseEmbedding(20, 6, mask_zero=True), SparseLSTM(4)]
    ),
    "masked, one step": lambda: sequential(
        SparseEmbedding(20, 6, mask_zero=True),
        SparseLSTM(4, return_sequences=True),
        shape=(1,),
        dtype="int32",
    ),
    "masked, blocks that see it": blocks_that_see_padding,
    "masking": lambda: sequential(
        layers.Lambda(lambda x: keras.ops.where(x[:, :, :1] > 0, x, 0.0)),
        layers.Masking(),
        SparseLSTM(4, return_sequences=True),
        layers.GlobalAveragePooling1D(),
    ),
    "sequences": lambda: sequential(
        layers.Conv1D(6, 3, padding="causal", activation="relu"),
        layers.MaxPooling1D(2),
        layers.SeparableConv1D(4, 2, dilation_rate=2),
        layers.Conv1D(4, 3, strides=2, padding="same"),
        layers.AveragePooling1D(2),
        SparseLSTM(4),
        shape=(12, 4),
    ),
    "channels apart": lambda: sequential(
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        layers.SeparableConv2D(4, 3),
        layers.GroupNormalization(2),
        layers.GlobalMaxPooling2D(),
        layers.UnitNormalization(),
        shape=(8, 8, 2),
    ),
    "transposed convolutions": lambda: sequential(
        layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2DTranspose(3, (2, 1), strides=(1, 3)),
        layers.Reshape((18, 45)),
        layers.Conv1DTranspose(4, 5, strides=3, padding="same", output_padding=2),
        layers.Conv1DTranspose(2, 3, dilation_rate=2, padding="same"),
        layers.Conv1DTranspose(2, 2, strides=4),
        shape=(4, 5, 2),
    ),
    "volumes": lambda: sequential(
        SparseConv3D(4, (3, 2, 3), strides=(1, 2, 1), activation="relu"),
        layers.Conv3D(2, 2, padding="same", dilation_rate=2),
        SparseConv3DTranspose(3, (2, 3, 2), strides=2, padding="same"),
        layers.Conv3D(3, 2, groups=3),
        layers.Flatten(),
        shape=(4, 5, 6, 2),
    ),
    "pooled volumes": lambda: sequential(
        layers.MaxPooling3D((2, 1, 3), strides=(1, 2, 2)),
        layers.AveragePooling3D(2, padding="same"),
        layers.Flatten(),
        shape=(5, 6, 7, 2),
    ),
    "groups": lambda: sequential(
        layers.Conv2D(6, 3, groups=2, activation="relu"),
        layers.Conv2D(3, 2, strides=2, padding="same", groups=3, use_bias=False),
        layers.Reshape((9, 3)),
        layers.Conv1D(6, 3, groups=3, padding="causal", dilation_rate=2),
        shape=(7, 8, 4),
    ),
    "resized": lambda: sequential(
        layers.Resizing(9, 6),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.CenterCrop(7, 8),
        layers.Resizing(10, 4, interpolation="nearest"),
        shape=(8, 8, 3),
    ),
    "augmented": lambda: sequential(
        layers.RandomFlip(),
        *(getattr(layers, name)(0.2) for name in AUGMENTATIONS),
        layers.RandomZoom(0.1, 0.2),
        Noisy(),
        shape=(8, 8, 3),
    ),
    "activations of layers": activations_of_layers,
    "operations": operations,
    "orders": orders,
    "functions": functions,
    "patches": patches,
    "pixels and channels": pixels_and_channels,
    "resized smoothly": resized_smoothly,
    "integers": integers,
    "signals": signals,
    "rows of a batch": lambda: sequential(Batched()),
    "categories": categories,
    "attention": attention,
    "choices": choices,
    "activations": activations,
    "weights first": lambda: sequential(Scaled(), layers.PReLU(alpha_initializer="uniform")),
    "wrappers": lambda: sequential(
        layers.TimeDistributed(SparseDense(4, activation="hard_sigmoid")),
        layers.GlobalAveragePooling1D(),
        layers.Rescaling(2.0, offset=1.0),
        layers.Activation("softplus"),
        layers.Reshape((2, 2)),
    ),
    "convolutions": lambda: sequential(
        SparseConv2D(4, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(4, 3, strides=2, padding="same"),
        layers.AveragePooling2D(2),
        layers.Flatten(),
        shape=(12, 12, 2),
    ),
    "adaptive poolings": lambda: sequential(
        layers.AdaptiveMaxPooling2D((3, 4)), layers.AdaptiveAveragePooling2D(2), shape=(7, 5, 2)
    ),
    "places kept": lambda: sequential(layers.Lambda(lambda x: keras.ops.argmin(x, axis=-1, keepdims=True))),
    "settings": lambda: sequential(
        layers.BatchNormalization(scale=False, beta_initializer="normal"),
        layers.EinsumDense("...x,xy->...y", output_shape=7, bias_axes="y"),
        layers.Softmax(axis=(1, 2)),
    ),
    "model within": lambda: sequential(sequential(SparseLSTM(4)), layers.Dense(2, activation="elu")),
    "input as output": lambda: sequential(layers.Dropout(0.5)),
    "lambda": lambda: sequential(layers.Lambda(lambda x: x[:, -1] * 2)),
    "two_inputs": two_inputs,
    "elementwise": attention_free_block,
}
SINCE = {
    "adaptive poolings": "3.13",
    "places kept": "3.14",
    **dict.fromkeys(
        ("orders", "functions", "patches", "pixels and channels", "signals", "split of the batch"), "3.15"
    ),
}


SHOWN_ON_JAX = (
    "patches",
    "resized smoothly",
    "pooled volumes",
    "integers",
    "rows of a batch",
    "settings",
    "masked",
    "masked, models within",
    "attention",
    "cells",
    "weights first",
    "transposed convolutions",
    "groups",
    "resized",
    "augmented",
    "activations of layers",
    "dense",
    "lstm",
    "lstm, one step",
    "gru",
    "rhn",
    "on_lstm",
    "two_inputs",
)


def example(tensor, batch=3):
    generator = np.random.default_rng(5)
    shape = (batch, *tensor.shape[1:])
    if tensor.dtype == "int32" or tensor.name == "ids":
        ids = generator.integers(1, 20, shape)
        ids[0, :2] = ids[1, -2:] = 0  # padding where it is masked
        return ids.astype(tensor.dtype)
    return generator.normal(size=shape).astype("float32")


def outputs_of(model, inputs):
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    outputs = model(keras.tree.pack_sequence_as(structure, list(inputs.values())), training=False)
    outputs = outputs if isinstance(outputs, dict) else dict(enumerate(keras.tree.flatten(outputs)))
    return {name: keras.ops.convert_to_numpy(value) for name, value in sorted(outputs.items())}


@ON_JAX
def test_sparse_layers_within_layers_of_ones_own(layers_within, tmp_path):
    model = layers_within()
    inputs = {"x": example(model.inputs[0])}
    (received,) = run(litert(model, tmp_path / "model.tflite"), [inputs])
    np.testing.assert_allclose(received["last"], outputs_of(model, inputs)[0], atol=2e-6, rtol=1e-5)


@ON_JAX
def test_models_whose_blocks_were_made_sparse(tmp_path):
    model = sparsify(blocks_that_see_padding(), 0.5)
    assert len(masked_weights(model)) == 2 + 2 * 4 + 2 + 1 + 1
    inputs = {model.inputs[0].name: example(model.inputs[0])}
    (received,) = run(litert(model, tmp_path / "model.tflite"), [inputs])
    (output,) = received.values()
    np.testing.assert_allclose(output, outputs_of(model, inputs)[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("quantize", ["int8", "float16"])
def test_matrices_of_operations_stay_as_they_are(quantize, tmp_path):
    """Those of weights alone are stored in fewer bits."""
    x = keras.Input((8, 8, 3), name="x")
    spectrum = keras.ops.rfft(
        keras.ops.transpose(layers.Resizing(5, 6, interpolation="bicubic")(x), (0, 3, 1, 2))
    )
    model = keras.Model(x, {"gray": keras.ops.image.rgb_to_grayscale(x), "spectrum": spectrum[0]})
    path = litert(model, tmp_path / "model.tflite", quantize)
    inputs = {"x": example(model.input)}
    (received,) = run(path, [inputs])
    for name, expected in outputs_of(model, inputs).items():
        np.testing.assert_allclose(received[name], expected, atol=1e-5)


def about(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("model.json"))


def sparse_layer(sparsity, block, units=64, width=96):
    """A dense layer whose blocks of that many inputs are zero at random."""
    layer = (
        SparseDense(units, sparsity=sparsity, block_shape=(block, 1), mask_seed=1)
        if sparsity
        else layers.Dense(units)
    )
    return sequential(layer, shape=(width,))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=ON_JAX if name in SHOWN_ON_JAX else ()) for name in MODELS]
)
def test_the_file_computes_what_keras_does(name, tmp_path, since_keras):
    """For a batch of another size than the one that is stored, too."""
    if name in SINCE:
        since_keras(SINCE[name])
    model = MODELS[name]()
    path = litert(model, tmp_path / "model.tflite")
    inputs = {tensor.name: example(tensor) for tensor in model.inputs}
    (received,) = run(path, [inputs])
    expected = outputs_of(model, inputs)
    assert len(received) == len(expected)
    for ours, keras_s in zip((received[name] for name in sorted(received)), expected.values(), strict=True):
        np.testing.assert_allclose(ours, keras_s, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True, "sparsity": 0.9},
        {"cell": "rhn", "cell_options": {"depth": 2}},
        {"cell": "on_lstm", "cell_options": {"chunk_size": 4}, "block_shape": (4, 1)},
        {"experts": 3, "embedding_units": 8},
        {"dtype": "mixed_bfloat16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("quantize", [None, "int8", "float16"])
def test_a_language_model_is_one_step(settings, quantize, tmp_path):
    model = LanguageModel(40, units=16, seed=2, **settings)
    path = litert(model, tmp_path / "model.tflite", quantize, vocabulary=[f"wörd{i}" for i in range(40)])
    tokens = np.random.default_rng(1).integers(0, 40, (2, 6)).astype("int32")
    stepwise = model.stepwise()
    states = {tensor.name: np.zeros((2, tensor.shape[-1]), "float32") for tensor in stepwise.inputs[1:]}
    calls = [{"tokens": tokens[:, step : step + 1]} for step in range(6)]
    outputs = run(path, [calls[0] | states, *calls[1:]])
    logits, *finals = stepwise([tokens, *states.values()], training=False)
    tolerance = {None: 1e-5, "float16": 2e-2, "int8": 0.1}[quantize]
    if "dtype" in settings:
        tolerance = max(tolerance, 3e-2)
    pairs = [(np.stack([output["logits"] for output in outputs], 1), logits)]
    pairs += [(outputs[-1][name], final) for name, final in zip(states, finals, strict=True)]
    for ours, keras_s in pairs:
        keras_s = keras.ops.convert_to_numpy(keras.ops.cast(keras_s, "float32"))
        assert ours.shape == keras_s.shape
        assert np.abs(ours - keras_s).max() <= tolerance * np.abs(keras_s).max()
    with zipfile.ZipFile(path) as archive:
        assert archive.read("vocabulary.txt").decode().splitlines()[3] == "wörd3"
    assert about(path)["inputs"]["h_0"] == {"shape": ["batch", 16], "dtype": "float32"}


@ON_JAX
def test_the_perplexity_is_that_of_keras(tmp_path):
    """After training, in float32 and in int8."""
    model = LanguageModel(30, units=32, sparsity=0.8, block_shape=(16, 1), dropout=0.0, batch_size=4, seed=1)
    model.compile(keras.optimizers.Adam(0.03), TokenCrossEntropy(), metrics=[Perplexity()])
    data = Windows(np.tile(np.arange(30), 12) % 29, 4, 8)
    model.fit(data.batches(), epochs=10, verbose=0, shuffle=False)
    expected = model.evaluate(data.batches(), verbose=0, return_dict=True)["perplexity"]
    columns = data.columns
    for quantize, tolerance in ((None, 1e-5), ("int8", 1e-2)):
        path = litert(model, tmp_path / "model.tflite", quantize)
        states = {f"{name}_{i}": np.zeros((4, 32), "float32") for i in range(2) for name in "hc"}
        calls = [{"tokens": columns[:, step : step + 1]} for step in range(columns.shape[1] - 1)]
        logits = np.stack([output["logits"] for output in run(path, [calls[0] | states, *calls[1:]])], 1)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = -np.take_along_axis(logits, columns[:, 1:, None].astype(int), -1)
        assert np.exp(losses.mean()) == pytest.approx(expected, rel=tolerance)
    assert expected < 20  # of 29 words


@pytest.mark.parametrize(
    ("sparsity", "block", "quantize", "kernel"),
    [
        (0.0, 1, None, "dense"),
        (0.67, 1, None, "dense"),
        (0.9, 1, None, "sparse1"),
        (0.67, 4, None, "sparse4"),
        (0.9, 16, None, "sparse4"),
        (0.0, 1, "int8", "int8"),
        (0.67, 4, "int8", "int8"),
        (0.67, 16, "int8", "int8_sparse16"),
        (0.95, 16, "int8", "int8_sparse16"),
        (0.95, 16, "float16", "dense"),
    ],
)
def test_kernels(sparsity, block, quantize, kernel, tmp_path):
    """Each matrix is multiplied by the fastest kernel, and computes what it should with it."""
    model = sparse_layer(sparsity, block)
    path = litert(model, tmp_path / "model.tflite", quantize)
    (matrix,) = about(path)["matrices"]
    assert matrix["kernel"] == kernel
    assert matrix["sparsity"] == pytest.approx(sparsity, abs=0.01)
    inputs = {"x": example(model.inputs[0])}
    (received,) = run(path, [inputs])
    (expected,) = outputs_of(model, inputs).values()
    tolerance = {None: 1e-6, "int8": 0.03, "float16": 2e-3}[quantize]
    assert np.abs(next(iter(received.values())) - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("quantize", [None, "float16", "int8"])
def test_convolutions_are_as_small_as_the_zeros_allow(quantize, tmp_path):
    """With 0.9 of zeros, and with none, for which they need no indices."""

    def model_of(sparsity):
        return sequential(
            SparseConv2D(64, 3, padding="same", sparsity=sparsity, activation="relu"),
            layers.Reshape((36, 64)),
            SparseConv1D(64, 5, strides=2, sparsity=sparsity, name="last"),
            layers.GlobalAveragePooling1D(),
            shape=(6, 6, 32),
        )

    bytes_of_a_weight = {None: 4, "float16": 2, "int8": 1}[quantize]
    weights, counts = 9 * 32 * 64 + 5 * 64 * 64, []
    for sparsity in (0.0, 0.9):
        model = model_of(sparsity)
        path = litert(model, tmp_path / "model.tflite", quantize)
        matrices = about(path)["matrices"]
        assert [matrix["kernel"] for matrix in matrices] == ["convolution"] * 2
        assert matrices[1]["shape"] == [64, 1, 5, 64]
        assert [matrix["sparsity"] for matrix in matrices] == pytest.approx([sparsity] * 2, abs=1e-3)
        counts.append(sum(matrix["bytes"] for matrix in matrices))
        inputs = {"x": example(model.inputs[0])}
        (received,) = run(path, [inputs])
        (ours,), (keras_s,) = received.values(), outputs_of(model, inputs).values()
        difference = np.linalg.norm(ours - keras_s) / np.linalg.norm(keras_s)
        assert difference < {None: 1e-5, "float16": 1e-3, "int8": 2e-2}[quantize]
    indices = 0.1 * weights + 4 * weights / 32  # a byte each, and where rows of 32 or more begin
    assert counts[0] == bytes_of_a_weight * weights
    assert counts[1] <= min(0.1 * bytes_of_a_weight * weights + indices, counts[0])
    assert path.stat().st_size < counts[1] + 8000


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_any_width(quantize, tmp_path):
    """Widths that blocks of 16 do not divide are padded, those that a kernel cannot count are split."""
    for width, block in ((5, 1), (18, 1), (1500, 4), (4100, 4)):
        model = sequential(SparseDense(8, sparsity=0.98, block_shape=(block, 1), mask_seed=3), shape=(width,))
        path = litert(model, tmp_path / "model.tflite", quantize)
        inputs = {"x": example(model.inputs[0], 2)}
        (received,) = run(path, [inputs])
        (expected,) = outputs_of(model, inputs).values()
        tolerance = 0.05 if quantize else 1e-5
        assert (
            np.abs(next(iter(received.values())) - expected).max()
            <= tolerance * np.abs(expected).max() + 1e-6
        )


@pytest.mark.parametrize("quantize", [None, "int8", "float16"])
@pytest.mark.parametrize("features", [256, 263, 600])
def test_tables_of_any_width(features, quantize, tmp_path):
    """Rows are stored in parts whose columns a byte can number, if they can be cut into equal ones."""
    embedding = SparseEmbedding(20, features, sparsity=0.9, mask_seed=1)
    model = sequential(embedding, shape=(5,), dtype="int32")
    path = litert(model, tmp_path / "model.tflite", quantize)
    inputs = {"x": example(model.inputs[0])}
    (received,) = run(path, [inputs])
    (expected,) = outputs_of(model, inputs).values()
    tolerance = {None: 0, "int8": 1 / 250, "float16": 1e-3}[quantize]
    assert np.abs(next(iter(received.values())) - expected).max() <= tolerance * np.abs(expected).max()
    place = 2 if features == 263 else 1
    assert (
        about(path)["matrices"][0]["bytes"]
        < 20 * features * 0.1 * ({None: 4, "int8": 1}.get(quantize, 2) + place) + 300
    )


def test_quantized_by_hand():
    from keras_selfish.litert.matrices import quantized

    values, scales = quantized(np.array([[0.5, -1.0, 0.0], [0.0, 0.0, 0.0], [254.0, 127.0, 3.0]], "float32"))
    np.testing.assert_array_equal(values, [[64, -127, 0], [0, 0, 0], [127, 64, 2]])
    np.testing.assert_allclose(scales, [1 / 127, 1.0, 2.0], rtol=1e-6)


def test_files_are_as_small_as_the_zeros_allow(tmp_path):
    def size(sparsity, block, quantize=None, **settings):
        model = LanguageModel(1000, units=192, sparsity=sparsity, block_shape=(block, 1), **settings)
        return litert(model, tmp_path / "model.tflite", quantize).stat().st_size

    dense = size(0.0, 1)
    assert size(0.67, 4) <= 0.38 * dense
    assert size(0.9, 4) <= 0.13 * dense
    assert size(0.9, 16, "int8") <= 0.06 * dense
    assert size(0.0, 1, "float16") <= 0.51 * dense
    assert size(0.9, 4, tied=True) <= size(0.9, 4) - 4 * 0.1 * 1000 * 192  # one matrix for both ends


@ON_JAX
def test_the_same_model_gives_the_same_file(tmp_path):
    model = MODELS["lstm"]()
    first = litert(model, tmp_path / "first.tflite").read_bytes()
    assert litert(model, tmp_path / "second.tflite").read_bytes() == first


def test_files_run_without_this_package(tmp_path):
    model = LanguageModel(40, units=16, seed=2)
    litert(model, tmp_path / "model.tflite", "int8")
    code = """
import sys
for name in ("keras_selfish", "keras", "tensorflow", "jax"):
    sys.modules[name] = None
import numpy as np
from ai_edge_litert.interpreter import Interpreter
step = Interpreter(model_path=sys.argv[1]).get_signature_runner("step")
states = {f"{name}_{index}": np.zeros((1, 16), "float32") for index in range(2) for name in "hc"}
print(step(tokens=np.array([[3]], "int32"), **states)["logits"].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model.tflite"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("(1, 40)")


def test_a_file_that_ends_the_runtime_is_not_handed_out(tmp_path):
    """Here one whose indices point far outside of a matrix."""
    from keras_selfish.litert import matrices
    from keras_selfish.litert.graph import File

    file = File("broken")
    graph = file.graph("main")
    x = graph.tensor((None, 64), name="x")
    stored = matrices._sparse(graph, np.ones((64, 64), np.float32), 4, "weight")
    indices = graph.subgraph.tensors[stored.index].sparsity.dimMetadata[1]
    indices.arrayIndicesType, indices.arrayIndices = matrices._indices(np.full(1024, 2**28))
    dense = graph.apply("DENSIFY", [stored], (64, 64))
    file.sign("serve", graph, {"x": x}, {"y": graph.apply("MUL", [x, dense], (64, 64))})
    path = tmp_path / "broken.tflite"
    path.write_bytes(file.to_bytes())
    with pytest.raises(RuntimeError, match=r"LiteRT must run the file.* the process ended by SIG"):
        run(path, [{"x": np.ones((1, 64), "float32")}])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RuntimeError, match="LiteRT must run the file"):
        run(path, [{"x": np.ones((1, 64), "float32")}])


class Repeated(layers.Layer):
    def call(self, x):
        rows = keras.ops.ones((2, 6))
        return keras.ops.matmul(x, keras.ops.transpose(keras.ops.repeat(rows, keras.ops.shape(x)[0], axis=0)))


def functional(model):
    """The same layers, without the methods of the class."""
    return keras.Model(model.input, model.output)


BAD = {
    "quantization": (
        lambda: sparse_layer(0.9, 4),
        {"quantize": "int4"},
        "`quantize` must be None, 'int8' or 'float16'",
    ),
    "time steps": (
        lambda: sparse_layer(0.9, 4),
        {"time_steps": 0},
        "`time_steps` must be None or a positive integer",
    ),
    "open length": (
        lambda: sequential(layers.LSTM(4), shape=(None, 3)),
        {},
        "as `time_steps`",
    ),
    "masked steps within": (
        lambda: masked(layers.TimeDistributed(layers.Softmax())),
        {},
        "masked time steps in a layer that `TimeDistributed` hands them to",
    ),
    "images": (
        lambda: sequential(layers.ConvLSTM2D(2, 3), shape=(2, 5, 5, 1)),
        {},
        "a recurrent layer over images",
    ),
    "channels first": (
        lambda: sequential(layers.Conv2D(6, 3, groups=3, data_format="channels_first"), shape=(3, 6, 6)),
        {},
        "a convolution in groups with channels first",
    ),
    "stateful": (
        lambda: keras.Sequential([keras.Input(batch_shape=(2, 5, 6)), layers.LSTM(4, stateful=True)]),
        {},
        "keeps its state",
    ),
    "operation": (
        lambda: keras.Model(x := keras.Input((5,)), keras.ops.erfinv(x)),
        {},
        "the operation Erfinv",
    ),
    "along the batch": (
        lambda: keras.Model(x := keras.Input((5,)), keras.ops.sort(x, axis=0)),
        {},
        "the operation Sort along the batch",
    ),
    "split of the batch": (
        lambda: keras.Model(x := keras.Input((5,)), keras.ops.split(x, [1], axis=0)[0]),
        {},
        "a `split` of the batch",
    ),
    "rows for each of a batch": (
        lambda: sequential(Repeated()),
        {},
        "2 rows, each as often as a batch has rows",
    ),
    "vocabulary": (
        lambda: LanguageModel(40, units=8),
        {"vocabulary": ["a"]},
        "of the model's 40 ids",
    ),
    "no vocabulary": (lambda: sparse_layer(0.9, 4), {"vocabulary": ["a"]}, "goes with a language model"),
    "carried state": (
        lambda: functional(LanguageModel(40, units=8)),
        {},
        "must not carry hidden state",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path, since_keras):
    """One sentence, and what was there stays."""
    if name in SINCE:
        since_keras(SINCE[name])
    make, settings, message = BAD[name]
    path = litert(sparse_layer(0.9, 4), tmp_path / "model.tflite")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        litert(make(), path, **settings)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tflite"]


def test_bad_paths(tmp_path):
    model = sparse_layer(0.9, 4)
    with pytest.raises(ValueError, match=r"`path` must end in \.tflite"):
        litert(model, tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match="`path` must be in a folder that exists"):
        litert(model, tmp_path / "no" / "model.tflite")
    other = tmp_path / "notes.tflite"
    other.write_text("mine")
    with pytest.raises(FileExistsError, match="`path` must be free or a file of LiteRT"):
        litert(model, other)
    assert other.read_text() == "mine"


def test_a_difference_is_found(tmp_path, monkeypatch):
    """A file that computes something else than Keras is not handed out."""
    from keras_selfish.litert import matrices

    def ones(weight):
        return np.ones(weight.shape, np.int8), np.ones(len(weight), np.float32)

    monkeypatch.setattr(matrices, "quantized", ones)
    with pytest.raises(RuntimeError, match="The file must compute what Keras does"):
        litert(sparse_layer(0.0, 1), tmp_path / "model.tflite", "int8")
    assert not list(tmp_path.iterdir())
