import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_selfish import CarriedState, language_model, sparsify, strip
from keras_selfish.export.strip import strip_for_graph
from keras_selfish.layers import (
    SparseDense,
    SparseEmbedding,
    SparseGRU,
    SparseGRUCell,
    SparseLSTM,
    SparseReversibleEmbedding,
    SparseSimpleRNN,
    SparseSimpleRNNCell,
)
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.masks import masked_weights

pytestmark = pytest.mark.filterwarnings("ignore:Layer 'outer'")  # that it ends the padding mask


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


TOKENS = np.array([[1, 2, 3, 4, 5], [9, 8, 0, 0, 0]], "int32")
X = data(2, 5, 6)


def all_layers(model):
    """The model and every layer in it, however deep: Keras 3.15 lists them in private only."""
    return list(model._flatten_layers())


def test_everything_at_once(everything):
    model = everything()
    model.compile("adam", "mse")
    before = model.get_weights()
    stripped = strip(model)

    inputs = {"tokens": TOKENS, "x": X}
    outputs, expected = stripped(inputs), model(inputs)
    assert set(outputs) == {"sequence", "last"}
    for name, output in outputs.items():
        np.testing.assert_array_equal(output, expected[name])
    assert np.abs(outputs["last"]).max() > 0.1

    assert not any(isinstance(layer, SparseLayer) for layer in all_layers(stripped))
    assert not any(type(layer).__module__.startswith("keras_selfish") for layer in all_layers(stripped))
    assert masked_weights(stripped) == []
    assert [layer.name for layer in stripped.layers] == [layer.name for layer in model.layers]
    assert stripped.name == model.name
    assert [tensor.name for tensor in stripped.inputs] == [tensor.name for tensor in model.inputs]
    kinds = {layer.name: type(layer) for layer in stripped.layers}
    assert kinds["embedding"] is layers.Embedding
    assert kinds["gru"] is layers.GRU
    assert type(stripped.get_layer("outer").get_layer("inner")) is keras.Sequential
    assert type(stripped.get_layer("both").forward_layer) is layers.LSTM
    assert type(stripped.get_layer("each").layer) is layers.Dense
    assert [type(cell) for cell in stripped.get_layer("stack").cell.cells] == [
        layers.LSTMCell,
        layers.GRUCell,
    ]
    assert not stripped.compiled

    # The model itself is as it was, and no weight is in both.
    np.testing.assert_equal(model.get_weights(), before)
    assert model.get_layer("gru").output is not None  # the layer still has one output, that of the model
    assert not {id(weight) for weight in model.weights} & {id(weight) for weight in stripped.weights}


def test_shared_layers_and_nested_models_stay_shared(everything):
    stripped = strip(everything())
    inner = stripped.get_layer("outer").get_layer("inner")
    assert inner.get_layer("shared") is stripped.get_layer("shared")
    assert len({id(layer) for layer in all_layers(stripped) if layer.name == "shared"}) == 1


def test_zeros_are_baked_in():
    model = keras.Sequential([keras.Input((6,)), SparseDense(5, sparsity=0.8)])
    layer = model.layers[0]
    (masked_weight,) = masked_weights(model)
    layer.kernel.assign(data(6, 5))  # as if something had written outside the mask
    stripped = strip(model)
    np.testing.assert_array_equal(stripped.layers[0].kernel, data(6, 5) * np.asarray(masked_weight.mask))
    assert np.count_nonzero(stripped.layers[0].kernel) == masked_weight.active == 6


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (SparseLSTM(4, return_sequences=True, return_state=True, go_backwards=True), X),
        (SparseLSTM(4, unroll=True, use_bias=False, activation="relu"), X),
        (SparseGRU(4, reset_after=False, recurrent_dropout=0.2, kernel_regularizer="l2"), X),
        (SparseSimpleRNN(4, dropout=0.3, zero_output_for_mask=True), X),
        (SparseGRU(4, sparsity=0.0), X),
        (SparseDense(4, kernel_constraint="max_norm", use_bias=False), X),
        (SparseEmbedding(10, 4, mask_zero=True), TOKENS),
        (SparseReversibleEmbedding(10, 4, logit_soft_cap=3.0), TOKENS),
        (layers.RNN(SparseSimpleRNNCell(4), go_backwards=True), X),
        (layers.RNN(layers.StackedRNNCells([SparseGRUCell(4), layers.LSTMCell(3)])), X),
        (layers.Bidirectional(SparseGRU(4), backward_layer=layers.GRU(4, go_backwards=True)), X),
        (layers.TimeDistributed(keras.Sequential([keras.Input((6,)), SparseDense(4), SparseDense(3)])), X),
        (layers.TimeDistributed(layers.TimeDistributed(SparseDense(4))), X[..., None]),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else "",
)
def test_single_layers(layer, inputs):
    model = keras.Sequential([keras.Input(inputs.shape[1:], dtype=inputs.dtype), layer])
    stripped = strip(model)
    assert type(stripped) is keras.Sequential
    for output, expected in zip(
        keras.tree.flatten(stripped(inputs)), keras.tree.flatten(model(inputs)), strict=True
    ):
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    assert not any(isinstance(layer, SparseLayer) for layer in all_layers(stripped))
    config = stripped.layers[0].get_config()
    for name, value in layer.get_config().items():
        if name in config and name not in ("layer", "backward_layer", "cell"):
            assert config[name] == value, name


def test_arguments_of_calls_are_kept():
    tokens = keras.Input((5,), dtype="int32")
    tied = SparseReversibleEmbedding(10, 4, name="tied")
    model = keras.Model(tokens, tied(keras.ops.tanh(tied(tokens)), reverse=True))
    stripped = strip(model)
    np.testing.assert_array_equal(stripped(TOKENS), model(TOKENS))
    assert len(stripped.weights) == 1


def test_policies_and_frozen_layers_are_kept():
    model = keras.Sequential(
        [
            keras.Input((5, 6)),
            SparseLSTM(4, dtype="mixed_bfloat16", return_sequences=True),
            SparseDense(4, dtype="float32", trainable=False),
            SparseDense(4, dtype="float64"),
        ]
    )
    stripped = strip(model)
    assert [layer.dtype_policy.name for layer in stripped.layers] == ["mixed_bfloat16", "float32", "float64"]
    assert [layer.trainable for layer in stripped.layers] == [True, False, True]
    # Our LSTM keeps its cell state in float32, Keras's in bfloat16.
    np.testing.assert_allclose(stripped(X), model(X), atol=0.01)
    model.trainable = False
    assert strip(model).trainable_weights == []


def test_optional_and_batched_inputs_are_kept(since_keras):
    since_keras("3.14")  # earlier ones refuse inputs that nothing uses
    x = keras.Input(batch_shape=(2, 5, 6), name="x")
    extra = keras.Input((6,), optional=True, name="extra")
    hidden = SparseLSTM(4, stateful=True, name="lstm")(x)
    model = keras.Model([x, extra], SparseDense(3)(hidden))
    stripped = strip(model)
    assert stripped.input_shape == model.input_shape
    for _ in range(2):  # the state is carried
        np.testing.assert_allclose(stripped([X, None]), model([X, None]), rtol=1e-5, atol=1e-6)


def test_a_model_that_was_built_by_calling_it():
    model = keras.Sequential([SparseLSTM(4), SparseDense(2)])
    with pytest.raises(
        ValueError, match=r"`model` must be built\. Received: model='.*'; call it on data first"
    ):
        strip(model)
    expected = model(X)
    np.testing.assert_allclose(strip(model)(X), expected, rtol=1e-5, atol=1e-6)


def test_the_copy_trains_by_itself():
    model = keras.Sequential([keras.Input((6,)), SparseDense(5)])
    before = model.get_weights()
    stripped = strip(model)
    stripped.compile("sgd", "mse", run_eagerly=True)
    stripped.fit(np.ones((2, 6)), np.ones((2, 5)), verbose=0)
    np.testing.assert_equal(model.get_weights(), before)
    assert np.count_nonzero(stripped.layers[0].kernel) == 30


@pytest.mark.parametrize("tied", [False, True])
def test_language_models(tied):
    model = language_model(vocabulary_size=12, units=6, layers=2, batch_size=2, tied=tied)
    inputs = {"tokens": TOKENS, "first": np.array([True, True])}
    model(inputs)
    stripped = strip(model)
    inputs["first"][0] = False  # one text goes on: the carried states are copied as well
    np.testing.assert_allclose(stripped(inputs), model(inputs), rtol=1e-5, atol=1e-6)
    carried = [layer for layer in stripped.layers if isinstance(layer, CarriedState)]
    assert [type(layer.layer) for layer in carried] == [layers.LSTM, layers.LSTM]
    assert masked_weights(stripped) == []


def test_what_layers_keep_beside_their_variables_is_copied():
    """Constants that an adapted layer has made, and tables, in a layer of its own and within another."""
    numbers = np.random.default_rng(0).normal(50, 20, (16, 3)).astype("float32")
    normalization = keras.layers.Normalization()
    normalization.adapt(numbers)
    buckets = keras.layers.Discretization(num_bins=4)
    buckets.adapt(numbers)
    inputs = keras.Input((3,))
    x = keras.layers.Concatenate()([normalization(inputs), keras.ops.cast(buckets(inputs), "float32")])
    model = keras.Model(inputs, SparseDense(4, sparsity=0.5)(x))
    np.testing.assert_allclose(strip(model)(numbers), model(numbers), rtol=1e-5)

    words = keras.layers.TextVectorization(output_sequence_length=4)
    words.adapt(["the cat sat on the mat"])
    names = keras.layers.StringLookup()
    names.adapt(["a", "b"])
    text, name = keras.Input((1,), dtype="string"), keras.Input((1,), dtype="string")
    x = SparseEmbedding(12, 8, sparsity=0.5)(words(text)), SparseEmbedding(12, 8)(names(name))
    model = keras.Model([text, name], keras.layers.Concatenate(axis=1)(x))
    given = [tf.constant([["the cat"]]), tf.constant([["b"]])]
    np.testing.assert_array_equal(strip(model)(given), model(given))
    plain = strip(model)
    twin = sparsify(plain, 0.2)  # more than half of the weights are zero already
    np.testing.assert_array_equal(twin(given), plain(given))


def test_a_subclassed_model_is_refused():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = SparseDense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Subclassed()
    model(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"`model` must be a Functional or Sequential keras\.Model"):
        strip(model)
    with pytest.raises(ValueError, match=r"`model` must be a Functional .* Received: model=<Dense"):
        strip(layers.Dense(2))


class Block(layers.Layer):
    """Keeps its sparse layer to itself."""

    def __init__(self, units=2, **kwargs):
        super().__init__(**kwargs)
        self.dense = SparseDense(units)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.backends("tensorflow", "jax")
def test_layers_of_ones_own_are_plain_inside_where_a_graph_is_written(layers_within):
    model = layers_within()
    masks = masked_weights(model)
    before = [np.array(weight.weight) for weight in masks]
    plain = strip_for_graph(model)
    assert masked_weights(plain) == []
    assert not any(isinstance(layer, SparseLayer) for layer in all_layers(plain))
    assert len(plain.weights) == len(model.weights) - len(masks)
    blocks = plain.get_layer("blocks")
    assert blocks.named["again"] is blocks.first
    assert {type(layer) for layer in (*blocks.pair, blocks.late)} == {layers.Dense}
    assert isinstance(blocks.parts[2], tuple)
    assert type(blocks.parts[2][0]) is layers.LSTM
    assert blocks.pair.first.kernel.path == model.get_layer("blocks").pair.first.kernel.path
    np.testing.assert_allclose(plain(X), model(X), rtol=1e-5, atol=1e-6)
    assert masked_weights(model) == masks
    assert all(np.array_equal(old, weight.weight) for old, weight in zip(before, masks, strict=True))
    with pytest.raises(ValueError, match="'blocks' of class Blocks; strip the models"):
        strip(model)


class OpenBlock(Block):
    """Shows its layer in the config."""

    def __init__(self, dense, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense

    def get_config(self):
        return {**super().get_config(), "dense": keras.saving.serialize_keras_object(self.dense)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("dense")), **config)


class Squared(SparseDense):
    """Computes something else than the layer that it derives from."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=training) ** 2


@pytest.mark.parametrize(
    "layer", [Block(name="block"), Squared(2, name="squared")], ids=["hidden", "derived"]
)
def test_sparse_layers_that_cannot_be_replaced_are_refused(layer):
    model = keras.Sequential([keras.Input((3,)), layer])
    with pytest.raises(
        ValueError, match=rf"'{layer.name}' of class {type(layer).__name__}; strip the models"
    ):
        strip(model)


def test_custom_layers_that_show_their_layers():
    model = keras.Sequential([keras.Input((3,)), OpenBlock(SparseDense(2))])
    stripped = strip(model)
    assert type(stripped.layers[0].dense) is layers.Dense
    np.testing.assert_array_equal(stripped(np.ones((2, 3))), model(np.ones((2, 3))))


def test_a_config_that_does_not_say_it_all_is_refused():
    class Forgetful(layers.Layer):
        def __init__(self, units=2, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(units)

        def get_config(self):
            return {"name": self.name}

        def call(self, inputs):
            return self.dense(inputs)

    model = keras.Sequential([keras.Input((3,)), Forgetful(5, name="forgetful")])
    with pytest.raises(ValueError, match="'forgetful' of class Forgetful, whose copy has other weights"):
        strip(model)
