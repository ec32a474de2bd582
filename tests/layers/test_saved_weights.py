"""Files of sparse layers: bits of each mask, the values inside it, and all of it back bit for bit."""

import h5py
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import given
from keras import ops

from keras_selfish import masked_weights
from keras_selfish.layers import (
    MixtureOfSoftmaxes,
    SparseConv2D,
    SparseConv2DTranspose,
    SparseDense,
    SparseDepthwiseConv2D,
    SparseEinsumDense,
    SparseEmbedding,
    SparseGRU,
    SparseGRUCell,
    SparseLSTM,
    SparseLSTMCell,
    SparseMultiHeadAttention,
    SparseONLSTM,
    SparseReversibleEmbedding,
    SparseRHN,
    SparseSeparableConv2D,
    SparseSimpleRNN,
    SwitchedDense,
)

on_jax_too = pytest.mark.backends("tensorflow", "jax")

SEQUENCE, IMAGE = (5, 8), (6, 6, 4)


def tied(seed):
    layer = SparseReversibleEmbedding(20, 8, sparsity=0.5, mask_seed=seed)
    return lambda tokens: layer(layer(tokens), reverse=True)


def untied(seed):
    layer = SparseReversibleEmbedding(20, 8, sparsity=0.5, mask_seed=seed, tie_weights=False)
    return lambda tokens: layer(layer(tokens), reverse=True)


def mixture_of_tied(seed):
    embedding = SparseReversibleEmbedding(20, 8, sparsity=0.5, mask_seed=seed)
    mixture = MixtureOfSoftmaxes(20, 3, 8, embedding=embedding, sparsity=0.5, mask_seed=seed)
    return lambda tokens: mixture(embedding(tokens))


def shared_in_nested(seed):
    # Keras 3.15 saves a layer that two models share, but cannot load it.
    shared, own = (SparseDense(8, sparsity=0.5, mask_seed=mask_seed) for mask_seed in (seed, seed + 1))
    inner = keras.Sequential([keras.Input(SEQUENCE), own])
    return lambda x: shared(inner(inner(shared(x))))


def attention(seed):
    layer = SparseMultiHeadAttention(2, 4, sparsity=0.5, mask_seed=seed)
    return lambda x: layer(x, x)


def stack_of_cells(seed):
    cells = [SparseLSTMCell(4, sparsity=0.5, mask_seed=seed), SparseGRUCell(3, sparsity=0.5, mask_seed=seed)]
    return keras.layers.RNN(cells)


# The shape of the inputs and a function from the seed of the masks to a layer.
KINDS = {
    "dense": (SEQUENCE, lambda seed: SparseDense(6, mask_seed=seed)),
    "blocks": (SEQUENCE, lambda seed: SparseDense(6, block_shape=(4, 1), mask_seed=seed)),
    "n of m": (SEQUENCE, lambda seed: SparseDense(6, n_of_m=(2, 4), mask_seed=seed)),
    "bfloat16": (SEQUENCE, lambda seed: SparseDense(6, dtype="bfloat16", mask_seed=seed)),
    "mixed": (SEQUENCE, lambda seed: SparseLSTM(6, dtype="mixed_bfloat16", mask_seed=seed)),
    "einsum": (SEQUENCE, lambda seed: SparseEinsumDense("abc,cde->abde", (None, 2, 4), mask_seed=seed)),
    "vector": (
        SEQUENCE,
        lambda seed: SparseEinsumDense("abc,c->abc", (None, 8), sparsity=0.5, mask_seed=seed),
    ),
    "attention": (SEQUENCE, attention),
    "lstm": (SEQUENCE, lambda seed: SparseLSTM(6, mask_seed=seed)),
    "lstm without bias": (SEQUENCE, lambda seed: SparseLSTM(6, use_bias=False, mask_seed=seed)),
    "gru": (SEQUENCE, lambda seed: SparseGRU(6, mask_seed=seed)),
    "simple rnn": (SEQUENCE, lambda seed: SparseSimpleRNN(6, weight_drop=0.2, mask_seed=seed)),
    "rhn": (SEQUENCE, lambda seed: SparseRHN(6, depth=2, mask_seed=seed)),
    "on lstm": (SEQUENCE, lambda seed: SparseONLSTM(8, chunk_size=4, mask_seed=seed)),
    "bidirectional": (SEQUENCE, lambda seed: keras.layers.Bidirectional(SparseGRU(4, mask_seed=seed))),
    "time distributed": (
        SEQUENCE,
        lambda seed: keras.layers.TimeDistributed(SparseDense(6, mask_seed=seed)),
    ),
    "cells": (SEQUENCE, stack_of_cells),
    "shared in nested": (SEQUENCE, shared_in_nested),
    "convolution": (IMAGE, lambda seed: SparseConv2D(6, 3, mask_seed=seed)),
    "transposed": (IMAGE, lambda seed: SparseConv2DTranspose(6, 3, mask_seed=seed)),
    "separable": (IMAGE, lambda seed: SparseSeparableConv2D(6, 3, mask_seed=seed)),
    "depthwise": (IMAGE, lambda seed: SparseDepthwiseConv2D(3, sparsity=0.5, mask_seed=seed)),
    "embedding": ((5,), lambda seed: SparseEmbedding(20, 8, embedding_dropout=0.1, mask_seed=seed)),
    "tied": ((5,), tied),
    "untied": ((5,), untied),
    "mixture": (SEQUENCE, lambda seed: MixtureOfSoftmaxes(20, 3, 4, mask_seed=seed)),
    "mixture of tied": ((5,), mixture_of_tied),
    "dense at sparsity 0": (SEQUENCE, lambda seed: SparseDense(6, sparsity=0)),
    "lstm at sparsity 0": (SEQUENCE, lambda seed: SparseLSTM(6, sparsity=0)),
}


def model_of(kind, seed=0):
    shape, make = KINDS[kind]
    inputs = keras.Input(shape, dtype="int32" if shape == (5,) else "float32")
    model = keras.Model(inputs, make(seed)(inputs))
    generator = np.random.default_rng(seed)
    for weight in model.weights:  # some of them -0.0, which is a value like others
        if weight.trainable:
            value = generator.normal(size=weight.shape) * (generator.random(weight.shape) < 0.9)
            weight.assign(np.where(value == 0, -0.0, value).astype("float32"))
    for masked_weight in masked_weights(model):
        masked_weight.project()
    return model


def bits(model):
    arrays = [(variable.path, ops.convert_to_numpy(variable)) for variable in model.weights]
    return [array.tobytes() for path, array in arrays if "seed" not in path]


@on_jax_too
@pytest.mark.parametrize("kind", KINDS)
def test_everything_comes_back_bit_for_bit(kind, tmp_path):
    model, other = model_of(kind), model_of(kind, seed=1)
    assert bits(other) != bits(model)
    model.save(tmp_path / "model.keras")
    assert bits(keras.models.load_model(tmp_path / "model.keras")) == bits(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert bits(other) == bits(model)


@on_jax_too
def test_files_hold_the_values_that_exist_and_a_bit_a_weight(tmp_path):
    inputs = keras.Input((100,), name="x")
    model = keras.Model(inputs, SparseDense(300, name="layer")(inputs))
    model.save_weights(tmp_path / "model.weights.h5")
    kernel, mask = (ops.convert_to_numpy(model.weights[index]) for index in (0, 2))
    with h5py.File(tmp_path / "model.weights.h5") as file:
        stored = {key: np.array(value) for key, value in file["layers/sparse_dense/vars"].items()}
    assert set(stored) == {"0", "1", "kernel_mask", "kernel_mask_shape"}
    np.testing.assert_array_equal(stored["0"], kernel[mask])
    np.testing.assert_array_equal(stored["kernel_mask"], np.packbits(mask))
    np.testing.assert_array_equal(stored["kernel_mask_shape"], (100, 300))
    assert (tmp_path / "model.weights.h5").stat().st_size < 0.45 * (4 + 1) * kernel.size


def test_weights_in_several_files(tmp_path):
    """Keras begins a new file within a layer, and looks for its arrays in all of them."""
    model, other = (
        keras.Sequential(
            [keras.Input((64,)), SparseDense(96, mask_seed=seed), SparseDense(64, mask_seed=seed)]
        )
        for seed in (0, 1)
    )
    model.save_weights(tmp_path / "model.weights.json", max_shard_size=9e-6)
    assert len(list(tmp_path.glob("*.h5"))) > 1
    other.load_weights(tmp_path / "model.weights.json")
    assert bits(other) == bits(model)


@on_jax_too
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("granularity", ["connection", "neuron"])
def test_switched_layers_keep_what_is_off_until_they_are_frozen(granularity, frozen, tmp_path):
    generator = np.random.default_rng(0)
    model, other = (
        keras.Sequential(
            [keras.Input((8,)), SwitchedDense(6, granularity=granularity, bias_initializer="ones")]
        )
        for _ in range(2)
    )
    layer = model.layers[0]
    layer.set_switches(generator.random((8, 6) if granularity == "connection" else 6) < 0.4)
    if frozen:
        layer.freeze()
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert bits(other) == bits(model)
    with h5py.File(tmp_path / "model.weights.h5") as file:
        kernel = file["layers/switched_dense/vars/0"]
        assert kernel.shape == ((layer.masked_weight.active,) if frozen else (8, 6))


def file_of_before(path, model):
    """Writes the weights of a dense layer and an LSTM as earlier versions did: whole, with boolean masks."""
    dense, lstm = model.layers[1:]
    kernel, bias, mask = map(ops.convert_to_numpy, dense.weights)
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/sparse_dense/vars")
        group["0"], group["1"], group["kernel_mask"] = kernel, bias, mask
        group = file.create_group("layers/sparse_lstm/cell/vars")
        cell = lstm.cell
        variables = [cell.kernel, cell.recurrent_kernel, cell.bias]
        for index, variable in enumerate([*variables, cell.kernel_mask, cell.recurrent_kernel_mask]):
            group[str(index)] = ops.convert_to_numpy(variable)


def two_layers(seed, units=6):
    inputs = keras.Input(SEQUENCE)
    outputs = SparseLSTM(4, mask_seed=seed)(SparseDense(units, mask_seed=seed)(inputs))
    return keras.Model(inputs, outputs)


@on_jax_too
def test_files_of_earlier_versions_load(tmp_path):
    model, other = two_layers(0), two_layers(1)
    file_of_before(tmp_path / "before.weights.h5", model)
    other.load_weights(tmp_path / "before.weights.h5")
    assert bits(other) == bits(model)


def changed(path, key, change):
    with h5py.File(path, "a") as file:
        group = file["layers/sparse_dense/vars"]
        array = np.array(group[key])
        del group[key]
        if change is not None:
            group[key] = change(array)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("0", lambda values: values[:-1], "values of 'sparse_dense.*/0' must be as many .* 16"),
        ("0", None, "must hold a mask for each sparse weight. Received: nothing under 0;"),
        ("kernel_mask", lambda stored: stored[:-1], "bits of 'sparse_dense.*/kernel_mask' must be 6 bytes"),
        ("kernel_mask", None, "Received: nothing under kernel_mask; load them into a layer with sparsity=0"),
        (
            "kernel_mask_shape",
            lambda shape: shape[::-1],
            r"must be booleans .*\(8, 6\).*bool of shape \(6, 8\)",
        ),
        ("kernel_mask_shape", None, r"must be booleans .* \(8, 6\)\. Received: uint8 of shape \(6,\)"),
    ],
)
def test_parts_that_do_not_fit_are_named_and_nothing_of_the_layer_is_changed(key, change, message, tmp_path):
    path = tmp_path / "model.weights.h5"
    two_layers(0).save_weights(path)
    changed(path, key, change)
    layer = two_layers(1).layers[1]
    before = [ops.convert_to_numpy(weight).tobytes() for weight in layer.weights]
    with h5py.File(path) as file, pytest.raises(ValueError, match=message) as caught:
        layer.load_own_variables(file["layers/sparse_dense/vars"])
    assert "\n" not in str(caught.value)
    assert [ops.convert_to_numpy(weight).tobytes() for weight in layer.weights] == before
    model = two_layers(1)
    with pytest.raises(ValueError, match=message):
        model.load_weights(path)


def test_a_file_of_another_size_is_refused(tmp_path):
    two_layers(0, units=12).save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"of the shape of its weight, \(8, 6\).*\(8, 12\)"):
        two_layers(0).load_weights(tmp_path / "model.weights.h5")


@given(
    inputs=st.integers(1, 12),
    units=st.integers(1, 12),
    sparsity=st.floats(0.0, 0.99),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
)
def test_any_size_and_sparsity(inputs, units, sparsity, dtype):
    layer, other = (SparseDense(units, sparsity=sparsity, mask_seed=seed, dtype=dtype) for seed in (0, 1))
    store = {}
    for one in (layer, other):
        one.build((None, inputs))
    layer.save_own_variables(store)
    other.load_own_variables({key: ops.convert_to_numpy(value) for key, value in store.items()})
    for weight, expected in zip(other.weights, layer.weights, strict=True):
        assert ops.convert_to_numpy(weight).tobytes() == ops.convert_to_numpy(expected).tobytes()
