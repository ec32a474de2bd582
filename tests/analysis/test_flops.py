import keras
import numpy as np
import pytest

from keras_selfish import (
    LanguageModel,
    SparseDense,
    SparseEmbedding,
    SparseGRU,
    SparseLSTM,
    SparseSimpleRNN,
    masked_weights,
)
from keras_selfish.analysis import Comparison, inference_flops, training_flops


def test_language_model_by_hand():
    model = LanguageModel(10, units=4, layers=2, embedding_units=6, sparsity=0.5)
    kernels = 6 * 16 + 4 * 16 + 4 * 16 + 4 * 16  # kernel and recurrent kernel of two layers
    decoder = 4 * 10
    assert inference_flops(model) == Comparison(2 * (kernels + decoder), kernels + decoder)
    assert training_flops(model) == Comparison(6 * (kernels + decoder), 3 * (kernels + decoder))


def test_dense_model_has_two_equal_figures():
    model = LanguageModel(10, units=4, layers=1, sparsity=0.0)
    flops = 2 * (4 * 16 + 4 * 16 + 4 * 10)
    assert inference_flops(model) == Comparison(flops, flops)
    assert inference_flops(model).ratio == 1.0


def test_only_the_reverse_use_of_an_embedding_costs():
    flops = {}
    for tied in (False, True):
        tokens = keras.Input((None,), dtype="int32")
        embedding = keras.layers.ReversibleEmbedding(10, 4, tie_weights=tied)
        flops[tied] = inference_flops(keras.Model(tokens, embedding(embedding(tokens), reverse=True))).dense
    assert flops == {False: 2 * 40, True: 2 * 40}
    model = keras.Sequential([keras.Input((None,)), SparseEmbedding(10, 4)])
    assert inference_flops(model) == Comparison(0, 0)
    assert inference_flops(model).ratio == 1.0
    tied = LanguageModel(10, units=4, layers=1, sparsity=0.5, tied=True)
    assert inference_flops(tied) == Comparison(2 * (2 * 64 + 40), 2 * 64 + 40)


@pytest.mark.parametrize(
    ("layer", "gates"),
    [(SparseSimpleRNN, 1), (SparseGRU, 3), (SparseLSTM, 4)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_recurrent_layers_and_both_directions(layer, gates):
    dense = 2 * gates * (8 * 4 + 4 * 4)
    single = keras.Sequential([keras.Input((None, 8)), layer(4, sparsity=0.75)])
    assert inference_flops(single) == Comparison(dense, dense // 4)
    both = keras.Sequential([keras.Input((None, 8)), keras.layers.Bidirectional(layer(4, sparsity=0.75))])
    assert inference_flops(both) == Comparison(2 * dense, dense // 2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (keras.layers.Dense(5), (7,)),
        (keras.layers.EinsumDense("ab,bcd->acd", (2, 3), bias_axes="cd"), (7,)),
        (keras.layers.Conv1D(4, 3, strides=2), (9, 2)),
        (keras.layers.Conv2D(4, (3, 2)), (8, 7, 3)),
        (keras.layers.Conv2D(4, 3, groups=2, strides=2), (8, 7, 6)),
        (keras.layers.Conv2D(4, 3, dilation_rate=2), (8, 7, 2)),
        (keras.layers.Conv3D(2, 2), (3, 4, 5, 2)),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 7, 3)),
        (keras.layers.Conv2DTranspose(4, 3, strides=2), (5, 4, 3)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_products_are_as_many_as_ones_that_add_up(layer, shape):
    """With all inputs and weights one and no bias, every product adds one to the sum of the outputs."""
    model = keras.Sequential([keras.Input(shape), layer])
    for weight in layer.weights:
        weight.assign(np.full(weight.shape, float(weight.name != "bias")))
    products = np.sum(keras.ops.convert_to_numpy(model(np.ones((1, *shape), "float32"))))
    assert inference_flops(model).dense == 2 * products


def test_separable_convolution_by_hand():
    model = keras.Sequential([keras.Input((8, 7, 3)), keras.layers.SeparableConv2D(5, 3)])
    assert inference_flops(model).dense == 2 * 6 * 5 * (3 * 3 * 3 + 3 * 5)


def test_channels_may_come_first():
    layer = keras.layers.Conv2D(4, 3, data_format="channels_first")
    model = keras.Sequential([keras.Input((3, 8, 7)), layer])
    assert inference_flops(model).dense == 2 * 6 * 5 * (3 * 3 * 3 * 4)


def test_zeros_of_pruned_weights_count_as_zeros():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    kernel, bias = model.layers[0].get_weights()
    kernel[:3] = 0.0
    model.layers[0].set_weights([kernel, bias])
    assert inference_flops(model) == Comparison(2 * (32 + 16), 2 * (20 + 16))


def test_a_connection_that_is_still_zero_counts():
    model = keras.Sequential([keras.Input((8,)), SparseDense(4, sparsity=0.5)])
    (masked_weight,) = masked_weights(model)
    masked_weight.weight.assign(np.zeros((8, 4)))
    assert inference_flops(model) == Comparison(64, 32)


def test_frozen_and_shared_layers_count_once():
    layer = SparseDense(8, sparsity=0.5)
    layer.trainable = False
    inputs = keras.Input((8,))
    assert inference_flops(keras.Model(inputs, layer(layer(inputs)))) == Comparison(128, 64)


def test_models_that_cannot_be_counted():
    with pytest.raises(ValueError, match="`model` must be built"):
        inference_flops(keras.Sequential([SparseDense(4)]))
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match=r"`model` must tell the size.*Received: axes \(None, None\)"):
        training_flops(model)
    layer = keras.layers.Conv2D(4, 3)
    layer.build((None, 8, 8, 3))
    with pytest.raises(ValueError, match="`model` must tell the size"):
        inference_flops(layer)
