import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_selfish import SelfishRewiring, strip
from keras_selfish.layers import SparseEinsumDense
from keras_selfish.masks import masked_weights

# Equation, output shape, options, shape of the kernel.
CASES = {
    "features": ("abc,cd->abd", (None, 8), {"bias_axes": "d", "activation": "tanh"}, (4, 8)),
    "to_heads": ("abc,cde->abde", (None, 2, 4), {"bias_axes": "de"}, (4, 2, 4)),
    "time": ("abc,bd->adc", (8, 4), {}, (6, 8)),
    "any_axes": ("...c,cd->...d", 8, {"bias_axes": "d"}, (4, 8)),
    "scale": ("abc,c->abc", (None, 4), {"bias_axes": "c"}, (4,)),
}
case = pytest.mark.parametrize("name", CASES)
on_all_backends = pytest.mark.backends("tensorflow", "jax", "torch")
INPUTS = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def model_of(name, sparsity, layer_class=SparseEinsumDense, **options):
    equation, output_shape, more, _ = CASES[name]
    if layer_class is SparseEinsumDense:
        options |= {"sparsity": sparsity, "mask_seed": 2}
    layer = layer_class(equation, output_shape, **more, **options)
    model = keras.Sequential([keras.Input(INPUTS.shape[1:]), layer])
    kernel = data(*layer.kernel.shape, seed=1)
    for masked_weight in masked_weights(layer):
        kernel = kernel * ops.convert_to_numpy(masked_weight.mask)
    layer.kernel.assign(kernel)
    if layer.bias is not None:
        layer.bias.assign(data(*layer.bias.shape, seed=2))
    return model


def numpy_of(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def kernel_after_a_step(model):
    weights = data(*numpy_of(model(INPUTS)).shape, seed=4)
    model.compile(
        keras.optimizers.SGD(1.0),
        loss=lambda y, outputs: ops.sum(ops.multiply(outputs, weights)),
        run_eagerly=True,
    )
    model.train_on_batch(INPUTS, np.zeros(len(INPUTS)))
    return numpy_of(model.layers[0].kernel)


@on_all_backends
@case
def test_without_sparsity_it_is_the_keras_layer(name):
    sparse, dense = model_of(name, 0.0), model_of(name, 0.0, keras.layers.EinsumDense)
    np.testing.assert_array_equal(numpy_of(sparse(INPUTS)), numpy_of(dense(INPUTS)))
    assert masked_weights(sparse) == []
    np.testing.assert_array_equal(kernel_after_a_step(sparse), kernel_after_a_step(dense))


@on_all_backends
@case
def test_outputs_and_gradients_are_those_of_the_masked_kernel(name):
    model = model_of(name, 0.5)
    layer = model.layers[0]
    (masked_weight,) = masked_weights(model)
    mask = ops.convert_to_numpy(masked_weight.mask)
    assert mask.shape == CASES[name][3]
    assert mask.mean() == 0.5
    expected = np.einsum(layer.equation, INPUTS, numpy_of(layer.kernel))
    expected = expected + (0 if layer.bias is None else numpy_of(layer.bias))
    expected = np.tanh(expected) if name == "features" else expected
    np.testing.assert_allclose(numpy_of(model(INPUTS)), expected, rtol=1e-5, atol=1e-5)

    dense = model_of(name, 0.0, keras.layers.EinsumDense)
    dense.layers[0].kernel.assign(numpy_of(layer.kernel))
    after, expected = kernel_after_a_step(model), kernel_after_a_step(dense)
    assert np.abs(expected[~mask]).max() > 0  # it was the mask, not chance
    np.testing.assert_allclose(after, expected * mask, rtol=1e-5, atol=1e-5)


@given(sparsity=st.floats(0.01, 0.95), block_shape=st.sampled_from([(1, 1), (2, 1), (1, 4), (2, 2)]))
def test_counts_are_exact_in_whole_blocks(sparsity, block_shape):
    layer = SparseEinsumDense("abc,cde->abde", (None, 2, 4), sparsity=sparsity, block_shape=block_shape)
    layer.build((None, 6, 5))
    mask = ops.convert_to_numpy(masked_weights(layer)[0].mask)
    height, width = block_shape
    blocks = mask.reshape(5, 2 // height, height, 4 // width, width)
    np.testing.assert_array_equal(blocks.all((2, 4)), blocks.any((2, 4)))
    exact = (1 - sparsity) * mask.size / (height * width)
    assert abs(blocks.all((2, 4)).sum() - max(exact, 1)) <= 0.5 + 1e-6


@case
def test_half_precision(name):
    sparse = model_of(name, 0.5, dtype="mixed_bfloat16")
    dense = model_of(name, 0.5, keras.layers.EinsumDense, dtype="mixed_bfloat16")
    dense.layers[0].kernel.assign(numpy_of(sparse.layers[0].kernel))
    outputs = sparse(INPUTS)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    np.testing.assert_allclose(numpy_of(outputs), numpy_of(dense(INPUTS)), rtol=0.02, atol=0.02)


@case
def test_configs_files_and_strip_keep_everything(name, tmp_path):
    model = model_of(name, 0.5)
    layer = model.layers[0]
    assert SparseEinsumDense.from_config(layer.get_config()).get_config() == layer.get_config()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for mine, its in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(mine), ops.convert_to_numpy(its))
    stripped = strip(model)
    assert type(stripped.layers[0]) is keras.layers.EinsumDense
    np.testing.assert_allclose(numpy_of(stripped(INPUTS)), numpy_of(model(INPUTS)), rtol=1e-6, atol=1e-6)


@on_all_backends
@case
def test_rewiring_in_fit(name):
    model = model_of(name, 0.5)
    (masked_weight,) = masked_weights(model)
    before = ops.convert_to_numpy(masked_weight.mask)
    model.compile("adam", "mse", run_eagerly=name != "to_heads")
    targets = data(*numpy_of(model(INPUTS)).shape)
    model.fit(INPUTS, targets, epochs=3, verbose=0, callbacks=[SelfishRewiring(pruning_rate=0.8)])
    after = ops.convert_to_numpy(masked_weight.mask)
    assert after.sum() == before.sum()
    assert (after != before).any() or before.size == 4  # of which two may well come back
    assert (ops.convert_to_numpy(masked_weight.weight)[~after] == 0).all()


def test_bad_block_shapes():
    layer = SparseEinsumDense("abc,cde->abde", (None, 3, 4), block_shape=(2, 1), name="heads")
    with pytest.raises(
        ValueError, match=r"heads/kernel has shape \(5, 3, 4\)\. Received: block_shape=\(2, 1\)"
    ):
        layer.build((None, 6, 5))
    layer = SparseEinsumDense("abc,c->abc", (None, 4), block_shape=(4, 1), name="scale")
    with pytest.raises(ValueError, match=r"must be \(1, 1\) for a vector.*: scale/kernel has shape \(4,\)"):
        layer.build((None, 6, 4))


def test_two_of_four():
    layer = SparseEinsumDense("abc,cd->abd", (None, 3), n_of_m=(2, 4))
    layer.build((None, 6, 8))
    mask = ops.convert_to_numpy(masked_weights(layer)[0].mask)
    np.testing.assert_array_equal(mask.reshape(2, 4, 3).sum(1), np.full((2, 3), 2))
    layer = SparseEinsumDense("abc,c->abc", (None, 4), n_of_m=(2, 4), name="scale")
    with pytest.raises(ValueError, match=r"`n_of_m` must divide the input weights: scale/kernel"):
        layer.build((None, 6, 4))


def test_quantized_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"`dtype` must not be a quantized one .* dtype='int8_from_float32'"):
        SparseEinsumDense("ab,bc->ac", 4, dtype="int8_from_float32")
