"""`WeightDrop` and `EmbeddingDropout`: layers with these arguments, from sparse ones and Keras's own."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import EmbeddingDropout, WeightDrop, masked_weights
from keras_selfish.layers import (
    SparseEmbedding,
    SparseGRU,
    SparseLSTM,
    SparseONLSTM,
    SparseReversibleEmbedding,
    SparseRHN,
    SparseSimpleRNN,
)

RNG = np.random.default_rng(0)
SEQUENCES = RNG.normal(size=(3, 4, 5)).astype("float32")
TOKENS = RNG.integers(0, 9, (3, 4))
SPARSE = {"sparsity": 0.5, "mask_seed": 2, "seed": 3, "name": "this_one"}


@pytest.mark.parametrize(
    ("function", "argument", "make"),
    [
        (WeightDrop, "weight_drop", lambda **options: SparseLSTM(6, go_backwards=True, **options)),
        (WeightDrop, "weight_drop", lambda **options: SparseGRU(6, reset_after=False, **options)),
        (WeightDrop, "weight_drop", lambda **options: SparseSimpleRNN(6, use_bias=False, **options)),
        (WeightDrop, "weight_drop", lambda **options: SparseRHN(6, depth=2, **options)),
        (WeightDrop, "weight_drop", lambda **options: SparseONLSTM(6, chunk_size=2, **options)),
        (EmbeddingDropout, "embedding_dropout", lambda **options: SparseEmbedding(9, 4, **options)),
        (EmbeddingDropout, "embedding_dropout", lambda **options: SparseReversibleEmbedding(9, 4, **options)),
    ],
)
def test_a_sparse_layer_gets_the_argument(function, argument, make):
    layer = make(**SPARSE)
    made = function(layer, 0.4)
    assert type(made) is type(layer)
    assert made.get_config() == make(**SPARSE, **{argument: 0.4}).get_config()
    assert getattr(layer, argument) == 0


@pytest.mark.parametrize(
    ("function", "layer", "inputs"),
    [
        (WeightDrop, keras.layers.LSTM(6, return_sequences=True), SEQUENCES),
        (WeightDrop, keras.layers.GRU(6, return_sequences=True), SEQUENCES),
        (WeightDrop, keras.layers.SimpleRNN(6, return_sequences=True), SEQUENCES),
        (EmbeddingDropout, keras.layers.Embedding(9, 4), TOKENS),
        (EmbeddingDropout, keras.layers.ReversibleEmbedding(9, 4), TOKENS),
    ],
)
def test_a_layer_of_keras_drops_in_training_only(function, layer, inputs):
    made = function(layer, 0.5)
    assert made.name == layer.name
    outputs = layer(inputs)
    made.build(inputs.shape)
    made.set_weights(layer.get_weights())
    assert masked_weights(made) == []
    np.testing.assert_allclose(made(inputs), outputs, rtol=1e-5, atol=1e-6)
    first, second = (ops.convert_to_numpy(made(inputs, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


def test_a_bidirectional_layer_of_it_trains_and_returns(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((9,)),
            EmbeddingDropout(keras.layers.Embedding(9, 4), 0.2),
            keras.layers.Bidirectional(WeightDrop(keras.layers.LSTM(6), 0.5)),
            keras.layers.Dense(2),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tokens = RNG.integers(0, 9, (8, 9))
    model.fit(tokens, tokens[:, 0] % 2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(tokens), model(tokens))
    assert loaded.layers[0].embedding_dropout == 0.2
    both = loaded.layers[1]
    assert both.forward_layer.weight_drop == both.backward_layer.weight_drop == 0.5


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`rate` .* must be a number in \[0, 1\). Received: rate=1"):
        WeightDrop(SparseLSTM(6), 1)
    with pytest.raises(ValueError, match=r"argument `weight_drop`, or be one of .*LSTM.* Received: .*Dense"):
        WeightDrop(keras.layers.Dense(6), 0.5)
    with pytest.raises(ValueError, match="argument `embedding_dropout`"):
        EmbeddingDropout(SparseLSTM(6), 0.5)
    layer = SparseEmbedding(9, 4)
    layer.build()
    with pytest.raises(ValueError, match="must not have weights yet"):
        EmbeddingDropout(layer, 0.5)
