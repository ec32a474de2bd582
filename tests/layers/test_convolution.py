"""Sparse convolutions against their Keras parents: same numbers at sparsity 0, same masked numbers above."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_selfish import SelfishRewiring, strip
from keras_selfish.layers import (
    SparseConv1D,
    SparseConv1DTranspose,
    SparseConv2D,
    SparseConv2DTranspose,
    SparseConv3D,
    SparseConv3DTranspose,
    SparseDepthwiseConv1D,
    SparseDepthwiseConv2D,
    SparseSeparableConv1D,
    SparseSeparableConv2D,
)
from keras_selfish.masks import active_counts, masked_weights

# Class, arguments, options.
CASES = {
    "conv1d": (SparseConv1D, (6, 3), {"padding": "causal", "dilation_rate": 2}),
    "conv2d": (SparseConv2D, (6, (3, 2)), {"strides": 2, "activation": "relu"}),
    "groups": (SparseConv2D, (6, 3), {"groups": 2, "use_bias": False, "padding": "same"}),
    "conv3d": (SparseConv3D, (6, 2), {"padding": "same"}),
    "transpose1d": (SparseConv1DTranspose, (6, 3), {"strides": 2, "activation": "relu"}),
    "transpose2d": (SparseConv2DTranspose, (6, (3, 2)), {"strides": 2, "padding": "same"}),
    "transpose3d": (SparseConv3DTranspose, (6, 2), {"use_bias": False}),
    "separable1d": (SparseSeparableConv1D, (6, 2), {"strides": 2}),
    "separable2d": (SparseSeparableConv2D, (6, 2), {"depth_multiplier": 2, "activation": "relu"}),
    "depthwise1d": (SparseDepthwiseConv1D, (2,), {"depth_multiplier": 2}),
    "depthwise2d": (SparseDepthwiseConv2D, (3,), {"depth_multiplier": 2, "padding": "same"}),
}
# The others share the code of these, and JAX compiles for seconds.
FEW = ("conv1d", "groups", "transpose2d", "separable2d", "depthwise2d")
case = pytest.mark.parametrize("name", CASES if keras.backend.backend() == "tensorflow" else FEW)
on_all_backends = pytest.mark.backends("tensorflow", "jax", "torch")


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def inputs_of(name):
    return data(3, *(7, 6, 3)[: int(CASES[name][0].__name__.split("Conv")[1][0])], 4)


def kernel_names(layer):
    """The names of the attributes that hold the kernels of a convolution."""
    return ["depthwise_kernel", "pointwise_kernel"] if hasattr(layer, "pointwise_kernel") else ["kernel"]


def models(name, sparsity, **options):
    """A model of one sparse layer, and one of its Keras parent with the same weights and zeros."""
    sparse_class, arguments, more = CASES[name]
    layer = sparse_class(*arguments, sparsity=sparsity, mask_seed=3, **more, **options)
    parent = layer.plain_class(*arguments, **more, **options)
    shape = inputs_of(name).shape[1:]
    sparse, dense = (keras.Sequential([keras.Input(shape), one]) for one in (layer, parent))
    masks = {w.weight.name: ops.convert_to_numpy(w.mask) for w in masked_weights(layer)}
    assert sorted(masks) == (kernel_names(layer) if sparsity else [])
    for one in (layer, parent):
        for kernel in kernel_names(one):
            value = data(*getattr(parent, kernel).shape, seed=1)
            getattr(one, kernel).assign(value * masks.get(kernel, 1))
        if one.use_bias:
            one.bias.assign(data(*one.bias.shape, seed=2))
    return sparse, dense


def numpy_of(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def kernels_after_a_step(model, inputs):
    """The kernels after a step of size 1; the loss weighs every output differently."""
    weights = data(*model.output_shape[1:], seed=4)
    model.compile(
        keras.optimizers.SGD(1.0),
        loss=lambda y, outputs: ops.sum(ops.multiply(ops.cast(outputs, "float32"), weights)),
        run_eagerly=True,
    )
    model.train_on_batch(inputs, np.zeros(len(inputs)))
    return [numpy_of(getattr(model.layers[0], name)) for name in kernel_names(model.layers[0])]


@on_all_backends
@case
def test_without_sparsity_it_is_the_keras_layer(name):
    sparse, dense = models(name, 0.0)
    inputs = inputs_of(name)
    np.testing.assert_array_equal(numpy_of(sparse(inputs)), numpy_of(dense(inputs)))
    assert masked_weights(sparse) == []
    for mine, its in zip(*(kernels_after_a_step(one, inputs) for one in (sparse, dense)), strict=True):
        np.testing.assert_array_equal(mine, its)


@on_all_backends
@case
def test_with_sparsity_it_is_the_keras_layer_with_zeros(name):
    sparse, dense = models(name, 0.75)
    inputs = inputs_of(name)
    np.testing.assert_allclose(numpy_of(sparse(inputs)), numpy_of(dense(inputs)), rtol=1e-6, atol=1e-6)
    masks = [ops.convert_to_numpy(masked_weight.mask) for masked_weight in masked_weights(sparse)]
    after, expected = kernels_after_a_step(sparse, inputs), kernels_after_a_step(dense, inputs)
    for mask, mine, its in zip(masks, after, expected, strict=True):
        assert mask.mean() == 0.25
        assert np.abs(its[~mask]).max() > 0  # it was the mask, not chance
        np.testing.assert_allclose(mine, its * mask, rtol=1e-5, atol=1e-5)
        assert (mine[~mask] == 0).all()


@on_all_backends
@case
def test_half_precision(name):
    sparse, dense = models(name, 0.5, dtype="mixed_bfloat16")
    inputs = inputs_of(name)
    outputs = sparse(inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    np.testing.assert_allclose(numpy_of(outputs), numpy_of(dense(inputs)), rtol=0.02, atol=0.02)
    for kernel, masked_weight in zip(
        kernels_after_a_step(sparse, inputs), masked_weights(sparse), strict=True
    ):
        assert np.count_nonzero(kernel) == masked_weight.active


@on_all_backends
def test_a_convolution_by_hand():
    """Each output adds up, over the window and the channels, what a loop in Python does."""
    sparse, _ = models("conv2d", 0.75)
    layer, inputs = sparse.layers[0], inputs_of("conv2d")
    kernel, bias = numpy_of(layer.kernel), numpy_of(layer.bias)
    expected = np.zeros((3, 3, 3, 6))
    for example, row, column, unit in np.ndindex(expected.shape):
        total = bias[unit]
        for height, width, channel in np.ndindex(3, 2, 4):
            pixel = inputs[example, 2 * row + height, 2 * column + width, channel]
            total += pixel * kernel[height, width, channel, unit]
        expected[example, row, column, unit] = max(total, 0)
    np.testing.assert_allclose(numpy_of(sparse(inputs)), expected, rtol=1e-4, atol=1e-5)


@given(
    sparsity=st.floats(0.01, 0.95),
    channels=st.sampled_from([2, 4, 6]),
    filters=st.sampled_from([3, 6]),
    block_shape=st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 3)]),
    data_format=st.sampled_from(["channels_first", "channels_last"]),
)
def test_counts_are_exact_in_whole_blocks(sparsity, channels, filters, block_shape, data_format):
    layer = SparseConv2D(
        filters, 2, sparsity=sparsity, block_shape=block_shape, mask_seed=1, data_format=data_format
    )
    layer.build((1, channels, 5, 7) if data_format == "channels_first" else (1, 5, 7, channels))
    (masked_weight,) = masked_weights(layer)
    mask = ops.convert_to_numpy(masked_weight.mask)
    assert mask.shape == (2, 2, channels, filters)
    height, width = block_shape
    blocks = mask.reshape(2, 2, channels // height, height, filters // width, width)
    np.testing.assert_array_equal(blocks.all((3, 5)), blocks.any((3, 5)))
    assert blocks.all((3, 5)).sum() == active_counts([mask.shape], sparsity, "uniform", [block_shape])[0]


@case
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_configs_and_files_keep_everything(name, sparsity, tmp_path):
    sparse, _ = models(name, sparsity)
    layer = sparse.layers[0]
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    sparse.save(tmp_path / "model.keras")
    sparse.save_weights(tmp_path / "weights.weights.h5")
    other = models(name, sparsity)[0]
    for masked_weight in masked_weights(other):
        masked_weight.mask.assign(np.zeros(masked_weight.shape, bool))
    other.load_weights(tmp_path / "weights.weights.h5")
    for loaded in (keras.models.load_model(tmp_path / "model.keras"), other):
        assert len(masked_weights(loaded)) == len(masked_weights(sparse))
        for mine, its in zip(sparse.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(mine), ops.convert_to_numpy(its))


@on_all_backends
@case
def test_strip_gives_the_keras_layer(name):
    sparse, _ = models(name, 0.75)
    stripped = strip(sparse)
    layer = sparse.layers[0]
    assert type(stripped.layers[0]) is layer.plain_class
    for kernel in kernel_names(layer):
        np.testing.assert_array_equal(
            numpy_of(getattr(stripped.layers[0], kernel)), numpy_of(getattr(layer, kernel))
        )
    np.testing.assert_allclose(
        numpy_of(stripped(inputs_of(name))), numpy_of(sparse(inputs_of(name))), rtol=1e-6, atol=1e-6
    )


def network(jit_compile="auto"):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            SparseConv2D(8, 3, sparsity=0.8, mask_seed=1, activation="relu", kernel_regularizer="l2"),
            SparseDepthwiseConv2D(3, sparsity=0.3, mask_seed=2),
            keras.layers.Reshape((16, 8)),
            SparseConv1D(4, 3, sparsity=0.5, mask_seed=3, activation="relu"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    return model


@pytest.mark.parametrize(
    "jit_compile", [False, pytest.param(True, marks=pytest.mark.backends("tensorflow", "jax", "torch"))]
)
def test_rewiring_a_network_in_fit(jit_compile):
    model = network(jit_compile)
    before = [ops.convert_to_numpy(masked_weight.mask) for masked_weight in masked_weights(model)]
    labels = np.arange(32) % 2
    images = data(32, 8, 8, 3) + labels[:, None, None, None].astype("float32")
    history = model.fit(
        images, labels, batch_size=8, epochs=4, verbose=0, callbacks=[SelfishRewiring(pruning_rate=0.5)]
    )
    assert history.history["loss"][-1] < history.history["loss"][0]
    for masked_weight, mask in zip(masked_weights(model), before, strict=True):
        after = ops.convert_to_numpy(masked_weight.mask)
        assert after.sum() == mask.sum()
        assert (after != mask).any()
        assert (ops.convert_to_numpy(masked_weight.weight)[~after] == 0).all()


def test_two_of_four_channels():
    layer = SparseConv2D(3, 2, n_of_m=(2, 4))
    layer.build((1, 5, 5, 8))
    mask = ops.convert_to_numpy(masked_weights(layer)[0].mask)
    np.testing.assert_array_equal(mask.reshape(2, 2, 2, 4, 3).sum(3), np.full((2, 2, 2, 3), 2))
    assert SparseConv2D.from_config(layer.get_config()).n_of_m == (2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseConv2D(4, 3, sparsity=1.0), r"`sparsity` .* Received: sparsity=1\.0"),
        (
            lambda: SparseConv2D(4, 3, block_shape=(2, 1), name="first").build((1, 8, 8, 3)),
            r"first/kernel has shape \(3, 3, 3, 4\)\. Received: block_shape=\(2, 1\)",
        ),
        (lambda: SparseConv1D(4, 3, lora_rank=2), r"`lora_rank` must be None at a sparsity over 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
