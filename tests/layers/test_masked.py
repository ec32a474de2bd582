"""What masking adds to a layer: in training, on disk, in clones, inside other layers, on other backends."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish.layers import (
    SparseDense,
    SparseEmbedding,
    SparseGRU,
    SparseGRUCell,
    SparseLSTM,
    SparseLSTMCell,
    SparseReversibleEmbedding,
    SparseSimpleRNN,
)
from keras_selfish.layers.forms import plain_form
from keras_selfish.layers.masked import MaskedAttribute, SparseLayer
from keras_selfish.masks import masked_weights

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

# Orthogonal matrices, with which Keras's recurrent layers start, take longer than most of these tests.
QUICK = {"recurrent_initializer": "glorot_uniform"}


def every_layer(seed=None, sparsity=0.5):
    """A model in which each sparse layer occurs, by itself or in one of Keras's wrappers."""
    options = {"sparsity": sparsity, "mask_seed": seed}
    inputs = keras.Input((4,), dtype="int32")
    tied = SparseReversibleEmbedding(12, 6, **options, name="tied")
    x = SparseEmbedding(12, 6, **options, mask_zero=True)(inputs) + tied(inputs)
    x = keras.layers.Bidirectional(SparseLSTM(4, return_sequences=True, **options, **QUICK))(x)
    x = SparseGRU(6, return_sequences=True, **options, **QUICK)(x)
    x = keras.layers.RNN(SparseLSTMCell(6, **options, **QUICK), return_sequences=True)(x)
    x = SparseSimpleRNN(6, return_sequences=True, **options, **QUICK)(x)
    x = keras.layers.TimeDistributed(SparseDense(6, **options))(x)
    return keras.Model(inputs, tied(x, reverse=True))


TOKENS = np.array([[1, 2, 3, 4], [11, 5, 0, 0]], "int32")
ALL_MASKED = 2 + 4 + 2 + 2 + 2 + 1


def masks_of(model):
    return [np.asarray(masked_weight.mask) for masked_weight in masked_weights(model)]


def assert_zero_outside(model):
    for masked_weight in masked_weights(model):
        weight, mask = np.asarray(masked_weight.weight), np.asarray(masked_weight.mask)
        assert (weight[~mask] == 0).all(), masked_weight.name
        assert (weight[mask] != 0).all(), masked_weight.name


def assert_same_weights(model, other):
    assert len(masks_of(model)) == len(masks_of(other)) > 0
    for weight, value in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, value)
    np.testing.assert_array_equal(model(TOKENS), other(TOKENS))


# Training


def test_fit_moves_connections_only():
    """All layers step by step; some of each sort, embeddings, a loop of ours and one of Keras, as a graph."""
    model = every_layer()
    assert len(masked_weights(model)) == ALL_MASKED
    assert_fit_moves_connections_only(model, run_eagerly=True)

    tied = SparseReversibleEmbedding(12, 6, sparsity=0.5, mask_zero=True)
    inputs = keras.Input((4,), dtype="int32")
    x = SparseLSTM(6, return_sequences=True, sparsity=0.5, **QUICK)(tied(inputs))
    x = keras.layers.RNN(SparseGRUCell(6, sparsity=0.5, **QUICK), return_sequences=True)(x)
    model = keras.Model(inputs, tied(SparseDense(6, sparsity=0.5)(x), reverse=True))
    assert_fit_moves_connections_only(model, run_eagerly=False)


def assert_fit_moves_connections_only(model, run_eagerly):
    assert_zero_outside(model)
    before = model.get_weights()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=run_eagerly)
    model.fit(TOKENS, TOKENS, epochs=2, verbose=0)
    assert_zero_outside(model)
    after = model.get_weights()
    for masked_weight in masked_weights(model):
        index = [weight is masked_weight.weight for weight in model.weights].index(True)
        moved = before[index] != after[index]
        # Adam moves whatever has a gradient: all of a kernel, of an embedding the rows that occurred.
        assert moved.sum() > (0.2 if "embedding" in masked_weight.name else 0.8) * masked_weight.active


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        keras.optimizers.SGD(0.1, global_clipnorm=0.1, use_ema=True, ema_overwrite_frequency=2),
        keras.optimizers.Adam(amsgrad=True, gradient_accumulation_steps=2),
        keras.optimizers.AdamW(),
        keras.optimizers.RMSprop(momentum=0.9, centered=True),
        keras.optimizers.Adagrad(),
        keras.optimizers.Adadelta(),
        keras.optimizers.Adamax(),
        keras.optimizers.Nadam(),
        keras.optimizers.Lion(),
        keras.optimizers.Lamb(),
        keras.optimizers.Ftrl(l1_regularization_strength=0.001, beta=0.1),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_optimizers_leave_zeros_alone(optimizer):
    layer = SparseDense(5, sparsity=0.5, kernel_regularizer=keras.regularizers.L1L2(0.01, 0.01))
    model = keras.Sequential([keras.Input((6,)), layer])
    before = layer.kernel.numpy()
    model.compile(optimizer, "mse", run_eagerly=True)
    data = np.random.default_rng(1).normal(size=(8, 6)), np.ones((8, 5))
    for start in range(0, 8, 2):
        model.train_on_batch(*(part[start : start + 2] for part in data))
    mask = masks_of(model)[0]
    assert (layer.kernel.numpy()[~mask] == 0).all()
    assert (layer.kernel.numpy()[mask] != before[mask]).sum() > 3  # steps of Lion can cancel exactly


@pytest.mark.parametrize("regularizer", ["orthogonal_regularizer", "l1", "l2"])
def test_regularizers_see_connections_only(regularizer):
    layer = SparseDense(5, sparsity=0.5, kernel_regularizer=regularizer)
    layer.build((None, 6))
    with tf.GradientTape() as tape:
        (loss,) = layer.losses
    gradient = tape.gradient(loss, layer.kernel.value).numpy()
    parent = keras.regularizers.get(regularizer)
    with tf.GradientTape() as tape:
        expected = parent(layer.kernel.value)
    np.testing.assert_array_equal(loss, expected)
    mask = masks_of(layer)[0]
    np.testing.assert_array_equal(gradient, np.where(mask, tape.gradient(expected, layer.kernel.value), 0))
    assert (gradient[mask] != 0).all()


@pytest.mark.parametrize(
    "constraint",
    [keras.constraints.MaxNorm(0.5), keras.constraints.UnitNorm(), keras.constraints.MinMaxNorm(0.1, 0.2)],
    ids=lambda constraint: type(constraint).__name__,
)
def test_constraints_keep_zeros(constraint):
    constraints = {"kernel_constraint": constraint, "recurrent_constraint": constraint}
    layer = SparseLSTM(4, sparsity=0.5, **constraints, **QUICK)
    model = keras.Sequential([keras.Input((3, 4)), layer])
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(np.ones((2, 3, 4)), np.ones((2, 4)), verbose=0)
    assert_zero_outside(model)
    kernel = layer.cell.kernel.numpy()
    np.testing.assert_allclose(kernel, constraint(kernel), rtol=1e-5, atol=1e-6)


def test_frozen_layers_keep_weights_and_masks():
    layer = SparseDense(5, trainable=False)
    model = keras.Sequential([keras.Input((6,)), layer, SparseDense(2)])
    before = layer.get_weights()
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(np.ones((2, 6)), np.ones((2, 2)), verbose=0)
    np.testing.assert_equal(layer.get_weights(), before)
    assert len(masked_weights(model)) == 2
    assert [weight.path for weight in model.trainable_weights] == [
        weight.path for weight in model.layers[1].weights[:2]
    ]


def test_replicas_share_masks_and_weights(two_replicas):
    with two_replicas.scope():
        embedding = SparseEmbedding(9, 4, sparsity=0.5, embedding_dropout=0.5)
        model = keras.Sequential([keras.Input((3,)), embedding, SparseDense(2)])
        model.compile("sgd", "mse")
    before = model.get_weights()
    model.fit(np.ones((4, 3)), np.ones((4, 3, 2)), verbose=0)
    assert_zero_outside(model)
    assert any((weight != start).any() for weight, start in zip(model.get_weights(), before, strict=True))
    for weight in model.weights:
        first, second = (replica.numpy() for replica in weight.value.values)
        np.testing.assert_array_equal(first, second)


def test_the_dense_gradient_can_be_asked_for():
    """An optimizer that clips by the dense norm masks the gradient itself."""
    layer = SparseDense(5, sparsity=0.5)
    layer.build((None, 6))
    inputs = np.ones((2, 6), "float32")

    def gradient(dense):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(inputs))
        if dense:  # after the forward pass, before the gradient
            masked_weights(layer)[0].ask_for_dense_gradient()
        return tape.gradient(loss, layer.kernel.value).numpy()

    np.testing.assert_array_equal(gradient(dense=True), np.full((6, 5), 2.0))
    np.testing.assert_array_equal(gradient(dense=False), 2.0 * masks_of(layer)[0])  # of another pass


# On disk, in configs, in clones


def test_keras_file_round_trip(tmp_path):
    model = every_layer()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    model.fit(TOKENS, TOKENS, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert_same_weights(restored, model)
    assert_zero_outside(restored)
    restored.fit(TOKENS, TOKENS, verbose=0)
    assert_zero_outside(restored)


def test_weights_file_round_trip(tmp_path):
    model, other = every_layer(seed=1), every_layer(seed=2)
    assert all((a != b).any() for a, b in zip(masks_of(model), masks_of(other), strict=True))
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_weights(other, model)
    assert_zero_outside(other)


def test_tensorflow_checkpoint_round_trip(tmp_path):
    model, other = every_layer(seed=1), every_layer(seed=2)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(model=other).restore(path)
    assert_same_weights(other, model)


def test_get_and_set_weights():
    model, other = every_layer(seed=1), every_layer(seed=2)
    other.set_weights(model.get_weights())
    assert_same_weights(other, model)


def test_weights_without_masks_are_refused(tmp_path):
    dense = keras.Sequential([keras.Input((6,)), SparseDense(5, sparsity=0, name="a")])
    dense.save_weights(tmp_path / "dense.weights.h5")
    sparse = keras.Sequential([keras.Input((6,)), SparseDense(5, name="a")])
    before = sparse.get_weights()
    with pytest.raises(
        ValueError, match=r"must hold a mask for each sparse weight\. Received: nothing under kernel_mask"
    ):
        sparse.load_weights(tmp_path / "dense.weights.h5")
    np.testing.assert_equal(sparse.get_weights(), before)


def test_loaded_weights_are_zero_outside_the_mask(tmp_path):
    model = keras.Sequential([keras.Input((6,)), SparseDense(5, sparsity=0.5)])
    model.layers[0].kernel.assign(np.ones((6, 5)))
    model.save_weights(tmp_path / "model.weights.h5")
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(model.layers[0].kernel, masks_of(model)[0])


def test_clone_model():
    model = every_layer(seed=1)
    clone = keras.models.clone_model(model)
    np.testing.assert_equal(masks_of(clone), masks_of(model))
    assert all(weight is not other for weight, other in zip(clone.weights, model.weights, strict=True))
    clone.set_weights(model.get_weights())
    assert_same_weights(clone, model)
    assert_zero_outside(clone)


# What other code sees of a weight


def test_weights_are_variables_outside_calls():
    lstm, dense, embedding = SparseLSTM(4), SparseDense(4), SparseEmbedding(6, 4)
    for layer in (lstm, dense, embedding):
        with pytest.raises(AttributeError):
            _ = getattr(getattr(layer, "cell", layer), "embeddings" if layer is embedding else "kernel")
    lstm(np.ones((2, 3, 4)))
    dense(np.ones((2, 4)))
    embedding(np.ones((2, 3), "int32"))
    assert lstm.cell.kernel is lstm.weights[0]
    assert lstm.cell.recurrent_kernel is lstm.weights[1]
    assert dense.kernel is dense.weights[0]
    assert embedding.embeddings is embedding.weights[0]
    assert isinstance(SparseLSTMCell.kernel, MaskedAttribute)


def test_weights_are_variables_again_after_a_call_that_failed():
    layer = SparseLSTM(4)
    layer.build((None, 3, 4))
    with pytest.raises(Exception, match=r"[Ss]hape|[Dd]imension"):
        layer(np.ones((2, 3, 4)), initial_state=[np.ones((2, 5)), np.ones((2, 5))])
    assert isinstance(layer.cell.kernel, keras.Variable)
    assert isinstance(layer.cell.recurrent_kernel, keras.Variable)


class Tied(keras.layers.Layer):
    """Computes with the weights of other layers, as `Bidirectional` does where cuDNN runs both directions."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def call(self, inputs):
        lstm, dense, embedding = self.layers
        outputs = ops.matmul(inputs, lstm.cell.kernel) @ ops.transpose(lstm.cell.recurrent_kernel)
        return ops.matmul(ops.matmul(outputs, dense.kernel), ops.transpose(embedding.embeddings))


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_are_masked_inside_the_call_of_any_layer(compiled):
    layers = [SparseLSTM(4), SparseDense(4), SparseEmbedding(6, 4)]
    for layer in layers:
        layer.build((2, 3, 4))
    tied = Tied(layers)

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tied(tf.ones((2, 4))))
        return tape.gradient(loss, [masked_weight.weight.value for masked_weight in masked_weights(tied)])

    gradients = tf.function(gradients)() if compiled else gradients()
    assert len(gradients) == 4
    for gradient, mask in zip(gradients, masks_of(tied), strict=True):
        assert (gradient.numpy()[~mask] == 0).all()
        assert (gradient.numpy()[mask] != 0).any()


@keras.saving.register_keras_serializable(package="test_masked")
class SparseScale(SparseLayer, keras.layers.Layer):
    """The least that a masked layer of one's own has to say."""

    masked_names = ("scale",)
    gates = ("low", "high")

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(2, input_shape[-1]), initializer="ones", name="scale")
        self.shift = self.add_weight(shape=(), name="shift")

    def call(self, inputs):
        with self.effective_weights():
            return inputs * self.scale[0] + self.scale[1] + self.shift


def test_a_masked_layer_of_ones_own(tmp_path):
    model = keras.Sequential([keras.Input((8,)), SparseScale(sparsity=0.5, mask_seed=3)])
    (masked_weight,) = masked_weights(model)
    assert masked_weight.active == 8
    assert masked_weight.gates == ("low", "high")
    np.testing.assert_array_equal(masked_weight.weight, masked_weight.mask)
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(np.ones((2, 8)), np.zeros((2, 8)), verbose=0)
    assert_zero_outside(model)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_equal(restored.get_weights(), model.get_weights())


def test_a_layer_must_tell_the_shapes_of_several_masked_weights():
    class Hasty(SparseScale):
        masked_names = ("scale", "shift")

    with pytest.raises(ValueError, match=r"Hasty must call `plan_masks`.*Received: .*'scale'"):
        Hasty().build((None, 8))


def test_mistakes_in_the_definition_of_a_layer():
    with pytest.raises(ValueError, match=r"`masked_names` must be a tuple of names. Received: 'scale'"):

        class Careless(SparseLayer, keras.layers.Layer):
            masked_names = "scale"

    with pytest.raises(ValueError, match=r"must stand before .* Received: Reversed\(Dense, SparseLayer\)"):

        class Reversed(keras.layers.Dense, SparseLayer):
            masked_names = ("kernel",)

    class Misspelt(SparseScale):
        masked_names = ("scales",)

    with pytest.raises(ValueError, match=r"Received: \('scales',\) of Misspelt, which has added none"):
        Misspelt()(np.ones((2, 8)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseDense(4, lora_rank=2), r"`lora_rank` must be None .* lora_rank=2, sparsity=0\.67"),
        (lambda: SparseEmbedding(4, 4, lora_rank=2), r"`lora_rank` must be None"),
        (lambda: built(SparseDense(4)).enable_lora(3), r"`rank` must be None .* Received: rank=3"),
    ],
)
def test_low_rank_adaptation_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def built(layer):
    layer.build((None, 4))
    return layer


def test_low_rank_adaptation_of_a_dense_layer():
    layer = built(SparseDense(4, sparsity=0))
    layer.enable_lora(2)
    assert layer.lora_enabled


def test_every_sparse_layer_names_its_keras_layer():
    for layer in (
        SparseDense,
        SparseEmbedding,
        SparseReversibleEmbedding,
        SparseGRU,
        SparseLSTM,
        SparseLSTMCell,
    ):
        assert issubclass(layer, layer.plain_class)
        assert layer.plain_class.__name__ == layer.__name__.removeprefix("Sparse")
    config = SparseDense(4, mask_seed=2, activation="relu").get_config()
    plain_class, plain = plain_form(SparseDense, config)
    assert plain_class is keras.layers.Dense
    assert set(config) - set(plain) == {"sparsity", "distribution", "block_shape", "mask_seed"}
    assert plain_class.from_config(plain).get_config() == plain

    class Derived(SparseDense):
        pass

    assert plain_form(Derived, config) is None
    assert SparseLayer.plain_class is None


# Other backends


@pytest.mark.backends("jax", "torch")
def test_layers_train_and_are_restored(tmp_path):
    tied = SparseReversibleEmbedding(12, 6, sparsity=0.5)
    inputs = keras.Input((4,), dtype="int32")
    x = SparseEmbedding(12, 6, mask_zero=True, embeddings_regularizer="l1")(inputs) + tied(inputs)
    regularized = {"kernel_regularizer": "orthogonal_regularizer"}
    x = SparseLSTM(6, return_sequences=True, dropout=0.1, **regularized, **QUICK)(x)
    x = keras.layers.RNN(SparseGRUCell(6, recurrent_dropout=0.1, **QUICK), return_sequences=True)(x)
    x = keras.layers.TimeDistributed(SparseDense(6, dtype="mixed_bfloat16"))(x)
    model = keras.Model(inputs, tied(x, reverse=True))
    weights = masked_weights(model)
    assert len(weights) == 7

    def values():
        arrays = [np.array(ops.convert_to_numpy(weight.weight)) for weight in weights]
        for array, weight in zip(arrays, weights, strict=True):
            assert (array[~ops.convert_to_numpy(weight.mask)] == 0).all(), weight.name
        return arrays

    before = values()
    # Steps that are large enough to show in every weight.
    model.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(TOKENS, TOKENS, verbose=0)
    for weight, start, value in zip(weights, before, values(), strict=True):
        assert (value != start).any(), weight.name
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert len(masked_weights(restored)) == 7
    for weight, other in zip(model.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)
