"""Gradients of connections that do not exist: against formulas, on every backend, leaving no trace."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish.layers import SparseDense, SparseEmbedding, SparseLSTM
from keras_selfish.masks import masked_weights
from keras_selfish.models import language_model
from keras_selfish.rewiring import RigL
from keras_selfish.rewiring.gradients import DenseGradients

pytestmark = pytest.mark.backends("tensorflow", "jax", "torch")

# On JAX it costs more than compiling.
EAGERLY = keras.backend.backend() == "tensorflow"

GENERATOR = np.random.default_rng(0)
INPUTS, TARGETS = GENERATOR.normal(size=(4, 6)), GENERATOR.normal(size=(4, 8))


def dense_model(**compile_arguments):
    model = keras.Sequential([keras.Input((6,)), SparseDense(8, sparsity=0.6, mask_seed=0)])
    model.compile("sgd", "mse", **compile_arguments)
    return model


def expected(model, inputs, targets, weights=None):
    """The gradient of the mean squared error of a linear model."""
    kernel, bias = (ops.convert_to_numpy(v) for v in model.trainable_variables)
    error = 2 * (inputs @ kernel + bias - targets) / targets.size
    if weights is not None:
        error *= weights[:, None]
    return inputs.T @ error


def test_of_a_linear_model():
    model = dense_model()
    (gradient,) = DenseGradients((INPUTS, TARGETS))(model, masked_weights(model), step=0, batches=1)
    (masked_weight,) = masked_weights(model)
    assert np.count_nonzero(gradient) == 48 > masked_weight.active
    np.testing.assert_allclose(gradient, expected(model, INPUTS, TARGETS), rtol=1e-5, atol=1e-7)
    assert not masked_weight.gradient_is_dense()


def test_sample_weights_count():
    model = dense_model()
    weights = np.array([0.0, 1.0, 2.0, 3.0])
    batch = (INPUTS, TARGETS, weights)
    (gradient,) = DenseGradients(batch)(model, masked_weights(model), step=0, batches=1)
    np.testing.assert_allclose(gradient, expected(model, INPUTS, TARGETS, weights), rtol=1e-5, atol=1e-7)


def test_in_inference_there_is_no_dropout():
    layers = [keras.Input((6,)), keras.layers.Dropout(0.9), SparseDense(8, sparsity=0.6, mask_seed=0)]
    model = keras.Sequential(layers)
    model.compile("sgd", "mse")
    found = [
        DenseGradients((INPUTS, TARGETS), training)(model, masked_weights(model), step=0, batches=1)[0]
        for training in (False, True)
    ]
    np.testing.assert_allclose(found[0], expected(model, INPUTS, TARGETS), rtol=1e-5, atol=1e-7)
    assert np.abs(ops.convert_to_numpy(found[1]) - ops.convert_to_numpy(found[0])).max() > 1e-3


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return INPUTS[2 * index : 2 * index + 2], TARGETS[2 * index : 2 * index + 2]


def test_where_the_batches_come_from():
    model = dense_model()
    weights = masked_weights(model)
    batches = Batches()
    halves = [expected(model, *batches[index]) for index in range(2)]
    whole = expected(model, INPUTS, TARGETS)
    cases = [
        (batches, 4, 1, halves[0]),
        (batches, 5, 1, halves[1]),
        (batches, 5, 2, whole),
        (batches, 5, 10, whole),  # as many as there are
        ([batches[0], batches[1]], 7, 1, halves[1]),
        (lambda step: batches[step % 2], 3, 1, halves[1]),
        (lambda step: batches[step % 2], 3, 4, whole),
    ]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((np.float32(INPUTS), np.float32(TARGETS))).batch(2)
        cases += [(dataset, 5, 1, halves[0]), (dataset, 5, 10, whole)]
    for data, step, count, gradient in cases:
        (found,) = DenseGradients(data)(model, weights, step, count)
        np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-7)


def test_no_batch():
    model = dense_model()
    with pytest.raises(ValueError, match="`gradient_data` must hold at least one batch"):
        DenseGradients(iter(()))(model, masked_weights(model), step=0, batches=1)


def test_of_a_recurrent_model_against_the_same_model_without_masks():
    def make(sparsity):
        layers = [
            SparseEmbedding(12, 6, sparsity=sparsity, mask_seed=1),
            SparseLSTM(5, sparsity=sparsity, mask_seed=2),
            SparseDense(4, sparsity=sparsity, mask_seed=3),
        ]
        model = keras.Sequential([keras.Input((7,), dtype="int32"), *layers])
        model.compile("sgd", "mse", run_eagerly=EAGERLY)
        return model

    sparse, dense = make(0.6), make(0.0)
    for source, target in zip(sparse.trainable_variables, dense.trainable_variables, strict=True):
        target.assign(ops.convert_to_tensor(source))
    batch = GENERATOR.integers(0, 12, (3, 7)), GENERATOR.normal(size=(3, 4))
    found = DenseGradients(batch)(sparse, masked_weights(sparse), step=0, batches=1)
    # SGD with the learning rate 1 moves a weight by its gradient.
    before = [ops.convert_to_numpy(v).copy() for v in dense.trainable_variables]
    dense.optimizer.learning_rate = 1.0
    dense.train_on_batch(*batch)
    steps = [old - ops.convert_to_numpy(v) for old, v in zip(before, dense.trainable_variables, strict=True)]
    matrices = [step for step, v in zip(steps, before, strict=True) if v.ndim == 2]
    for gradient, step in zip(found, matrices, strict=True):
        np.testing.assert_allclose(gradient, step, atol=2e-6)


def test_carried_states_seeds_and_metrics_stay():
    model = language_model(vocabulary_size=20, units=8, batch_size=2, dropout=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"], run_eagerly=EAGERLY)
    tokens = GENERATOR.integers(0, 20, (2, 6)).astype("int32")
    batch = {"tokens": tokens[:, :5], "first": np.zeros(2, "int32")}, tokens[:, 1:]
    model.train_on_batch(*batch)
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    before = [ops.convert_to_numpy(v).copy() for v in variables]
    gradients = DenseGradients(lambda step: batch)(model, masked_weights(model), step=3, batches=2)
    assert all(np.count_nonzero(gradient) for gradient in gradients)
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)


@pytest.mark.backends("tensorflow")
def test_with_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = dense_model()
        (gradient,) = DenseGradients((INPUTS, TARGETS))(model, masked_weights(model), step=0, batches=1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, expected(model, INPUTS, TARGETS), atol=0.02)


@pytest.mark.backends("tensorflow")
def test_replicas_add_up_to_one_device(two_replicas):
    with two_replicas.scope():
        model = dense_model()
    (gradient,) = DenseGradients((INPUTS, TARGETS))(model, masked_weights(model), step=0, batches=1)
    np.testing.assert_allclose(gradient, expected(model, INPUTS, TARGETS), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "data",
    [
        [INPUTS, TARGETS],
        {"x": INPUTS, "y": TARGETS},
        INPUTS,
        "data",
    ],
    ids=["list of arrays", "dict", "array", "string"],
)
def test_what_is_no_data_is_refused_at_once(data):
    with pytest.raises(ValueError, match=r"`gradient_data` must be a batch, which is a tuple \(x, y\)"):
        DenseGradients(data)


@pytest.mark.parametrize(
    "data", [(INPUTS,), lambda step: INPUTS, [(INPUTS,)]], ids=["one", "function", "list"]
)
def test_what_is_no_batch_is_refused_before_the_first_step(data):
    model = dense_model()
    before = ops.convert_to_numpy(masked_weights(model)[0].weight).copy()
    with pytest.raises(ValueError, match="`gradient_data` must be a batch"):
        model.fit(INPUTS, TARGETS, verbose=0, callbacks=[RigL(gradient_data=data)])
    np.testing.assert_array_equal(ops.convert_to_numpy(masked_weights(model)[0].weight), before)
