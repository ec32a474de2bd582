"""Models that the real TensorFlow Model Optimization has pruned, in Keras 3."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import SelfishRewiring, from_tfmot
from keras_selfish.layers import SparseLayer, sparse_form_of
from keras_selfish.layers.forms import SPARSE_FORMS
from keras_selfish.masks import masked_weights

tf_keras = pytest.importorskip("tf_keras")
old = tf_keras.layers


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


TOKENS = np.random.default_rng(1).integers(1, 10, (8, 5))


def pruned(tfmot, model, inputs, sparsity=0.6, epochs=2, **options):
    """The model with all its layers pruned by a few steps of training with masks that change."""
    schedule = tfmot.PolynomialDecay(0.2, sparsity, begin_step=0, end_step=3, frequency=1)
    model = tfmot.prune_low_magnitude(model, pruning_schedule=schedule, **options)
    trained(tfmot, model, inputs, epochs)
    return model


def trained(tfmot, model, inputs, epochs=2):
    model.compile("adam", "mse", run_eagerly=True)
    outputs = model(inputs).numpy()
    model.fit(
        inputs,
        data(*outputs.shape, seed=5),
        batch_size=4,
        epochs=epochs,
        verbose=0,
        callbacks=[tfmot.UpdatePruningStep()],
    )


def masks_of(model):
    """What the wrappers of a model hold: a dict from the name of a layer to its masks."""
    wrappers = [layer for layer in model.layers if hasattr(layer, "pruning_vars")]
    return {
        wrapper.layer.name: [mask.numpy() != 0 for _, mask, _ in wrapper.pruning_vars]
        for wrapper in wrappers
        if wrapper.pruning_vars
    }


def numpy_of(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def assert_same(tfmot, model, twin, inputs, tolerance=1e-5):
    expected = tfmot.strip_pruning(model)(inputs).numpy()
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(numpy_of(twin(inputs)), expected, rtol=tolerance, atol=tolerance)


def assert_masks(model, twin):
    for name, masks in masks_of(model).items():
        weights = masked_weights(twin.get_layer(name))
        assert len(weights) == len(masks)
        for masked_weight, mask in zip(weights, masks, strict=True):
            assert 0.3 < mask.mean() < 0.8
            np.testing.assert_array_equal(numpy_of(masked_weight.mask), mask)
            assert (numpy_of(masked_weight.weight)[~mask] == 0).all()


@pytest.mark.parametrize(
    "recurrent",
    [
        lambda: old.LSTM(6, recurrent_regularizer="l2"),
        lambda: old.GRU(6),
        lambda: old.GRU(6, reset_after=False, go_backwards=True),
        lambda: old.SimpleRNN(6, dropout=0.1),
        lambda: old.RNN([old.LSTMCell(6), old.GRUCell(4)]),
    ],
    ids=["lstm", "gru", "gru_reset_before", "simple_rnn", "stack"],
)
def test_recurrent_models(tfmot, recurrent):
    model = tf_keras.Sequential(
        [old.Embedding(10, 8, input_length=5), recurrent(), old.Dropout(0.2), old.Dense(3, activation="tanh")]
    )
    model.build((None, 5))
    model = pruned(tfmot, model, TOKENS)
    before = [weight.numpy() for weight in model.weights]
    twin = from_tfmot(model)
    assert isinstance(twin, keras.Sequential)
    assert not twin.compiled
    assert all(type(layer).__module__.startswith("keras") for layer in twin.layers)
    assert_masks(model, twin)
    assert_same(tfmot, model, twin, TOKENS)
    np.testing.assert_allclose(numpy_of(twin(TOKENS)), model(TOKENS).numpy(), rtol=1e-5, atol=1e-5)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_a_convolutional_model(tfmot):
    x = tf_keras.Input((9, 8, 3))
    y = old.Conv2D(4, 3, activation="relu", groups=1, name="first")(x)
    y = old.BatchNormalization()(y)
    y = old.LeakyReLU(alpha=0.1)(old.ZeroPadding2D(1)(y))
    y = old.ReLU(6.0)(old.DepthwiseConv2D(3, depth_multiplier=2)(y))
    y = old.Concatenate()([old.MaxPooling2D(2)(y), old.AveragePooling2D(2)(y)])
    y = old.Conv1D(6, 2, padding="causal", name="steps")(old.Reshape((-1, 16))(y))
    model = tf_keras.Model(x, old.Dense(3)(old.GlobalMaxPooling1D()(old.LayerNormalization()(y))))
    images = data(8, 9, 8, 3)
    model = pruned(tfmot, model, images, epochs=3)
    twin = from_tfmot(model)
    kinds = {layer.name: type(layer).__name__ for layer in twin.layers}
    assert (kinds["first"], kinds["steps"]) == ("SparseConv2D", "SparseConv1D")
    assert twin.get_layer("first").sparsity == pytest.approx(1 - masks_of(model)["first"][0].mean())
    assert_masks(model, twin)
    assert_same(tfmot, model, twin, images)


def test_some_layers_of_a_graph(tfmot):
    """Two inputs, an initial state, wrappers of Keras's, shared and nested models; two layers are pruned."""
    schedule = tfmot.ConstantSparsity(0.5, 0, frequency=1)
    x, h = tf_keras.Input((5, 6), name="x"), tf_keras.Input((4,), name="h")
    prune = tfmot.prune_low_magnitude
    inner = tf_keras.Sequential(
        [tf_keras.Input((6,)), prune(old.Dense(6, name="inside"), pruning_schedule=schedule)], name="inner"
    )
    y = old.Bidirectional(old.GRU(3, return_sequences=True))(x)
    last = prune(old.GRU(4, name="gru"), pruning_schedule=schedule)(y)
    z = old.LSTM(4, name="lstm")(old.TimeDistributed(old.Dense(4))(y), initial_state=[h, h])
    averaged = old.GlobalAveragePooling1D()(x)
    w = old.Subtract()([inner(averaged), inner(inner(averaged))])
    model = tf_keras.Model([x, h], old.Concatenate(name="all")([last, z, w]), name="graph")
    inputs = [data(8, 5, 6), data(8, 4, seed=1)]
    trained(tfmot, model, inputs)
    twin = from_tfmot(model)
    assert twin.name == "graph"
    assert type(twin.get_layer("lstm")) is keras.layers.LSTM
    assert type(twin.get_layer("gru")) is not keras.layers.GRU
    counts = {weight.shape: weight.active for weight in masked_weights(twin)}
    assert counts == {(6, 12): 36, (4, 12): 24, (6, 6): 18}
    np.testing.assert_allclose(numpy_of(twin(inputs)), model(inputs).numpy(), rtol=1e-5, atol=1e-5)


def test_padding_is_that_of_the_stripped_model(tfmot):
    """The wrapper of an embedding keeps its padding mask from the layers after it; stripped, it passes on."""
    model = tf_keras.Sequential([old.Embedding(10, 4, mask_zero=True), old.SimpleRNN(3)])
    model.build((None, 5))
    tokens = TOKENS * np.array([1, 1, 1, 0, 0])
    model = pruned(tfmot, model, tokens)
    twin = from_tfmot(model)
    assert_same(tfmot, model, twin, tokens)
    assert np.abs(numpy_of(twin(tokens)) - model(tokens).numpy()).max() > 1e-4


def test_blocks(tfmot):
    model = tf_keras.Sequential([tf_keras.Input((8,)), old.Dense(6, name="blocks")])
    model = pruned(tfmot, model, data(8, 8), block_size=(4, 1), block_pooling_type="MAX", sparsity=0.5)
    twin = from_tfmot(model)
    (masked_weight,) = masked_weights(twin)
    assert masked_weight.block_shape == (4, 1)
    assert masked_weight.active == 24
    assert_masks(model, twin)
    assert_same(tfmot, model, twin, data(8, 8))


def test_two_of_four(tfmot):
    model = tf_keras.Sequential([tf_keras.Input((8,)), old.Dense(6, name="dense")])
    model = pruned(tfmot, model, data(8, 8), sparsity_m_by_n=(2, 4), sparsity=0.5)
    twin = from_tfmot(model)
    assert_masks(model, twin)
    mask = numpy_of(masked_weights(twin)[0].mask)
    np.testing.assert_array_equal(mask.reshape(2, 4, 6).sum(1), np.full((2, 6), 2))
    assert masked_weights(twin)[0].n_of_m == (2, 4)
    assert_same(tfmot, model, twin, data(8, 8))


def test_a_pattern_with_a_rest_is_a_mask(tfmot):
    """Six inputs are a group of four and a rest, which the wrapper fills up with zeros."""
    model = tf_keras.Sequential([tf_keras.Input((6,)), old.Dense(6, name="dense")])
    twin = from_tfmot(pruned(tfmot, model, data(8, 6), sparsity_m_by_n=(2, 4), sparsity=0.5))
    assert_masks(model, twin)
    assert masked_weights(twin)[0].n_of_m is None


def test_one_zero_of_four_channels(tfmot):
    model = tf_keras.Sequential([tf_keras.Input((5, 5, 4)), old.Conv2D(3, 2, name="conv")])
    model = pruned(tfmot, model, data(8, 5, 5, 4), sparsity_m_by_n=(1, 4), sparsity=0.25)
    twin = from_tfmot(model)
    assert_masks(model, twin)
    assert masked_weights(twin)[0].n_of_m == (3, 4)


def test_a_stripped_model_is_sparse_where_it_has_zeros(tfmot):
    model = tf_keras.Sequential([tf_keras.Input((8,)), old.Dense(6, name="one"), old.Dense(2, name="two")])
    model = pruned(tfmot, model, data(8, 8))
    twin = from_tfmot(tfmot.strip_pruning(model))
    assert_masks(model, twin)
    assert_same(tfmot, model, twin, data(8, 8))


def test_training_goes_on_in_keras_3(tfmot):
    model = tf_keras.Sequential([old.Embedding(10, 8), old.SimpleRNN(6), old.Dense(1)])
    model.build((None, 5))
    twin = from_tfmot(pruned(tfmot, model, TOKENS))
    before = [numpy_of(weight.mask) for weight in masked_weights(twin)]
    twin.compile(keras.optimizers.Adam(0.05), "mse", run_eagerly=True)
    targets = (TOKENS[:, 0] > 4).astype("float32")
    history = twin.fit(
        TOKENS, targets, epochs=8, batch_size=4, verbose=0, callbacks=[SelfishRewiring(pruning_rate=0.5)]
    )
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    for masked_weight, mask in zip(masked_weights(twin), before, strict=True):
        after = numpy_of(masked_weight.mask)
        assert after.sum() == mask.sum()
        assert (after != mask).any() or mask.size == 6  # of which three may well come back
        assert (numpy_of(masked_weight.weight)[after == 0] == 0).all()


def test_half_precision(tfmot):
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = tf_keras.Sequential(
            [tf_keras.Input((8,)), old.Dense(6, name="one"), old.Dense(2, name="two")]
        )
        model = pruned(tfmot, model, data(8, 8))
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    twin = from_tfmot(model)
    assert twin.layers[0].dtype_policy.name == "mixed_bfloat16"
    assert_masks(model, twin)
    np.testing.assert_allclose(
        numpy_of(twin(data(8, 8))), model(data(8, 8)).numpy().astype("float32"), atol=0.02
    )


class Custom(tf_keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2


class Subclassed(tf_keras.Model):
    def call(self, inputs):
        return inputs


def model_of(*layers, shape=(4, 6)):
    return tf_keras.Sequential([tf_keras.Input(shape), *layers])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]),
            r"must be a .* tf_keras\.Model",
        ),
        (lambda: tf_keras.Sequential([old.Dense(2)]), r"that is built\. .*; call it on data first"),
        (Subclassed, r"`model` must be a Functional or Sequential tf_keras\.Model"),
        (lambda: model_of(Custom(name="custom")), r"Received: layer 'custom' of class Custom"),
        (
            lambda: model_of(old.Lambda(lambda x: x, name="function")),
            r"layer 'function' of class Lambda; those that are converted are Activation",
        ),
        (
            lambda: model_of(old.Bidirectional(old.LSTM(2, name="inside", time_major=True))),
            r"layer 'inside' of class LSTM with time_major=True",
        ),
        (
            lambda: model_of(old.Dense(2, activation=tf_keras.activations.tanh), old.Dense(3, name="last")),
            r"`model` must have zeros",
        ),
    ],
)
def test_what_cannot_be_converted(make, message):
    with pytest.raises(ValueError, match=message):
        from_tfmot(make())


def test_transposed_separable_and_attention_layers(tfmot):
    x = tf_keras.Input((6, 6, 4))
    y = old.Conv2DTranspose(6, 3, name="transposed")(x)
    y = old.SeparableConv2D(8, 3, name="separable")(y)
    y = old.Conv3D(3, 2, name="volume")(old.Reshape((6, 6, 8, 1))(y))
    y = old.Reshape((25, 21))(y)
    y = old.Add()([old.MultiHeadAttention(2, 4, name="attention")(y, y), y])
    model = tf_keras.Model(x, old.Dense(3)(old.GlobalMaxPooling1D()(y)))
    images = data(8, 6, 6, 4)
    model = pruned(tfmot, model, images, epochs=3)
    twin = from_tfmot(model)
    assert_masks_by_kernel = [
        ("transposed", "kernel"),
        ("separable", "pointwise_kernel"),
        ("volume", "kernel"),
    ]
    for name, kernel in assert_masks_by_kernel:
        (mask,) = masks_of(model)[name]
        found = {w.weight.name: w for w in masked_weights(twin.get_layer(name))}
        np.testing.assert_array_equal(numpy_of(found[kernel].mask), mask)
    # TFMOT leaves the depthwise kernel dense.
    depthwise = masked_weights(twin.get_layer("separable"))[0]
    assert depthwise.active == np.prod(depthwise.shape)
    assert_same(tfmot, model, twin, images, tolerance=1e-4)


def test_pruned_layers_without_a_sparse_form_are_refused(tfmot, monkeypatch):
    monkeypatch.delitem(SPARSE_FORMS, keras.layers.Conv3D)
    model = pruned(tfmot, model_of(old.Conv3D(2, 2, name="volume"), shape=(3, 3, 3, 2)), data(8, 3, 3, 3, 2))
    with pytest.raises(ValueError, match=r"Received: zeros in .*volume/kernel"):
        from_tfmot(model)


# A layer of a user's own, in both, and its sparse form.


class Doubled(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")
        self.shift = self.add_weight(shape=(self.units,), name="shift")

    def call(self, inputs):
        return 2 * ops.matmul(inputs, self.kernel) + self.shift

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@sparse_form_of(Doubled)
class SparseDoubled(SparseLayer, Doubled):
    masked_names = ("kernel",)


def old_doubled(tfmot):
    class OldDoubled(old.Layer, tfmot.PrunableLayer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units

        def build(self, input_shape):
            self.kernel = self.add_weight("kernel", (input_shape[-1], self.units))
            self.shift = self.add_weight("shift", (self.units,))

        def call(self, inputs):
            return 2 * (inputs @ self.kernel) + self.shift

        def get_config(self):
            return {**super().get_config(), "units": self.units}

        def get_prunable_weights(self):
            return [self.kernel]

    return OldDoubled


def test_layers_of_ones_own_are_converted(tfmot):
    old_class = old_doubled(tfmot)
    model = model_of(old_class(8, name="own"), old.Dense(3, name="dense"), shape=(6,))
    inputs = data(8, 6)
    with pytest.raises(ValueError, match=r"Received: layer 'own' of class OldDoubled; .* in `custom_layers`"):
        from_tfmot(model)
    with pytest.raises(ValueError, match=r"`custom_layers` must give the class of a Keras 3 layer"):
        from_tfmot(model, {"OldDoubled": old_class})
    with tf_keras.utils.custom_object_scope({"OldDoubled": old_class}):
        model = pruned(tfmot, model, inputs)
        twin = from_tfmot(model, {"OldDoubled": Doubled})
        assert isinstance(twin.get_layer("own"), SparseDoubled)
        assert_masks(model, twin)
        assert_same(tfmot, model, twin, inputs)
