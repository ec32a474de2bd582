"""Large products are padded on a GPU, and their numbers are the same. No GPU is needed for it."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import recurrence
from keras_selfish.layers import MixtureOfSoftmaxes, SparseDense, SparseReversibleEmbedding, products

pytestmark = pytest.mark.backends("tensorflow", "jax")


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Has the layers pad all products; a list that gets the shape of each matrix that was padded."""
    padded = []

    def pad(matrix, *arguments, original=ops.pad):
        padded.append(tuple(matrix.shape))
        return original(matrix, *arguments)

    monkeypatch.setattr(recurrence, "on_gpu", lambda: True)
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(ops, "pad", pad)
    return padded


def value_and_gradients(layer, inputs, **arguments):
    """What a layer gives, and the gradients of its sum of squares by the inputs and the weights."""
    inputs = ops.convert_to_tensor(inputs)
    weights = [variable.value for variable in layer.trainable_variables]
    if keras.backend.backend() == "jax":
        import jax

        def loss(inputs, weights):
            mapping = list(zip(layer.trainable_variables, weights, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                outputs = layer(inputs, **arguments)
            return ops.sum(ops.square(ops.cast(outputs, "float32") - 0.3)), outputs

        (_, outputs), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(inputs, weights)
        gradients = [gradients[0], *gradients[1]]
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, **arguments)
            loss = ops.sum(ops.square(ops.cast(outputs, "float32") - 0.3))
        gradients = tape.gradient(loss, [inputs, *weights])
    found = [each for each in (outputs, *gradients) if each is not None]  # an embedding may be unread
    return [ops.convert_to_numpy(ops.cast(each, "float32")) for each in found]


MADE = {
    "dense": (lambda **o: SparseDense(11, sparsity=0.5, activation="tanh", **o), {}),
    "no bias": (lambda **o: SparseDense(16, sparsity=0.5, use_bias=False, **o), {}),
    "no masks": (lambda **o: SparseDense(11, **o), {}),
    "tied": (lambda **o: SparseReversibleEmbedding(11, 21, sparsity=0.5, **o), {"reverse": True}),
    "not tied": (
        lambda **o: SparseReversibleEmbedding(11, 21, tie_weights=False, logit_soft_cap=2.0, **o),
        {"reverse": True},
    ),
    "mixture": (lambda **o: MixtureOfSoftmaxes(11, 2, 13, sparsity=0.5, **o), {}),
}


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", MADE)
def test_padded_products_have_the_same_numbers(name, dtype, as_on_gpu, monkeypatch):
    make, arguments = MADE[name]
    layer = make(dtype=dtype)
    inputs = np.random.default_rng(0).normal(size=(2, 3, 21)).astype("float32")
    layer.build(inputs.shape)
    for index, variable in enumerate(layer.trainable_variables):
        variable.assign(np.random.default_rng(index).normal(size=variable.shape))
    found = value_and_gradients(layer, inputs, **arguments)
    rows = {"mixture": 13, "tied": 11}.get(name, 21)
    assert rows in {shape[0] for shape in as_on_gpu if len(shape) == 2}
    monkeypatch.setattr(recurrence, "on_gpu", lambda: False)
    as_on_gpu.clear()
    expected = value_and_gradients(layer, inputs, **arguments)
    assert not as_on_gpu
    tolerance = 1e-5 if dtype == "float32" else 0.05
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * max(1, np.abs(other).max()))


@pytest.mark.parametrize(
    ("shape", "axis", "padded"),
    [
        ((1500, 10_000), 0, True),
        ((1536, 10_000), 0, False),
        ((1536, 33_278), 0, True),  # the vocabulary of WikiText-2, no multiple of 8
        ((10_000, 830), 1, True),
        ((10_000, 832), 1, False),
        ((300, 100), 0, False),  # small
    ],
)
def test_which_products_are_padded(shape, axis, padded, monkeypatch):
    matrix = ops.zeros(shape)
    assert not products.is_padded(matrix, axis)  # on a CPU
    monkeypatch.setattr(recurrence, "on_gpu", lambda: True)
    assert products.is_padded(matrix, axis) is padded
