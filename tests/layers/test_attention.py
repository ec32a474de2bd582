"""Sparse attention against Keras's: same numbers at sparsity 0, same masked numbers above."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import SelfishRewiring, sparsify, strip
from keras_selfish.layers import SparseGroupQueryAttention, SparseMultiHeadAttention
from keras_selfish.masks import masked_weights

CASES = {
    "multi_head": (SparseMultiHeadAttention, (2, 4), {"output_shape": 10}),
    "gated": (SparseMultiHeadAttention, (2, 4), {"use_gate": True, "use_bias": False}),
    "group_query": (SparseGroupQueryAttention, (4, 4, 2), {}),
}
case = pytest.mark.parametrize(
    "name", CASES if keras.backend.backend() == "tensorflow" else ["gated", "group_query"]
)
on_jax = pytest.mark.backends("tensorflow", "jax")


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def models(name, sparsity, **options):
    """A model of sparse attention, and one of Keras's with the same weights and zeros."""
    sparse_class, arguments, more = CASES[name]
    made = []
    for layer in (
        sparse_class(*arguments, sparsity=sparsity, mask_seed=3, **more, **options),
        sparse_class.plain_class(*arguments, **more, **options),
    ):
        query, value = keras.Input((5, 8)), keras.Input((3, 8))
        made.append(keras.Model([query, value], layer(query, value)))
    masks = {id(weight.mask) for weight in masked_weights(made[0])}
    weights = [weight for weight in made[0].weights if id(weight) not in masks]
    for index, (weight, its) in enumerate(zip(weights, made[1].weights, strict=True)):
        weight.assign(data(*its.shape, seed=index))
        its.assign(numpy_of(weight))
    return made


INPUTS = [data(2, 5, 8, seed=11), data(2, 3, 8, seed=12)]


@pytest.fixture(autouse=True)
def gates_of_keras(request, since_keras):
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("name") == "gated":
        since_keras("3.14")


@on_jax
@case
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_it_is_the_keras_layer_with_zeros(name, sparsity):
    sparse, dense = models(name, sparsity)
    np.testing.assert_allclose(numpy_of(sparse(INPUTS)), numpy_of(dense(INPUTS)), rtol=1e-5, atol=1e-5)
    kernels = [weight for weight in dense.weights if weight.name == "kernel"]
    assert len(masked_weights(sparse)) == (len(kernels) if sparsity else 0)
    for weight, kernel in zip(masked_weights(sparse), kernels, strict=False):
        assert weight.active == (1 - sparsity) * np.prod(kernel.shape)
        assert np.count_nonzero(numpy_of(kernel)) == weight.active


@on_jax
@case
def test_a_training_moves_what_exists_only(name, tmp_path):
    sparse, _ = models(name, 0.5)
    sparse.compile("adam", "mse")
    before = [numpy_of(weight.mask) for weight in masked_weights(sparse)]
    y = data(*sparse(INPUTS).shape, seed=1)
    sparse.fit(INPUTS, y, epochs=3, verbose=0, callbacks=[SelfishRewiring(0.5)])
    for weight, mask in zip(masked_weights(sparse), before, strict=True):
        after = numpy_of(weight.mask)
        assert after.sum() == mask.sum()
        assert (numpy_of(weight.weight)[~after] == 0).all()
    assert any((numpy_of(w.mask) != m).any() for w, m in zip(masked_weights(sparse), before, strict=True))

    sparse.save(tmp_path / "model.keras")
    loaded, stripped = keras.models.load_model(tmp_path / "model.keras"), strip(sparse)
    assert type(stripped.layers[-1]) is CASES[name][0].plain_class
    for other in (loaded, stripped):
        np.testing.assert_allclose(numpy_of(other(INPUTS)), numpy_of(sparse(INPUTS)), rtol=1e-5, atol=1e-6)


@case
def test_a_dense_model_becomes_sparse(name):
    _, dense = models(name, 0.0)
    sparse, report = sparsify(dense, 0.75, return_report=True)
    assert type(sparse.layers[-1]) is CASES[name][0]
    assert report.dense == ()
    for weight, kernel in zip(
        masked_weights(sparse), (w for w in dense.weights if w.name == "kernel"), strict=True
    ):
        kept = np.sort(np.abs(numpy_of(kernel)), axis=None)[-weight.active :]
        values = numpy_of(weight.weight)
        np.testing.assert_array_equal(np.sort(np.abs(values[values != 0])), kept)


def test_seeds_and_configs():
    first, same, other = (SparseMultiHeadAttention(2, 4, mask_seed=seed) for seed in (1, 1, 2))
    for layer in (first, same, other):
        layer.build((1, 5, 8), (1, 5, 8))
    masks = [[numpy_of(weight.mask) for weight in masked_weights(layer)] for layer in (first, same, other)]
    for mine, its in zip(masks[0], masks[1], strict=True):
        np.testing.assert_array_equal(mine, its)
    alike = [
        (mine == its).all() for mine in masks[0][:3] for its in masks[2][:3] + masks[0][:3] if mine is not its
    ]
    assert not any(alike)
    copy = SparseMultiHeadAttention.from_config(first.get_config())
    assert copy.get_config() == first.get_config()
    pattern = SparseMultiHeadAttention(4, 4, n_of_m=(2, 4))
    assert pattern.sparsity == 0.5
    assert SparseMultiHeadAttention.from_config(pattern.get_config()).n_of_m == (2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseMultiHeadAttention(2, 4, sparsity=1.0), r"`sparsity` .* Received: sparsity=1\.0"),
        (lambda: SparseMultiHeadAttention(2, 4, mask_seed=-1), r"Received: mask_seed=-1"),
        (
            lambda: SparseMultiHeadAttention(2, 4, block_shape=(4, 1)).build((1, 5, 8), (1, 5, 8)),
            r"query/kernel has shape \(8, 2, 4\)\. Received: block_shape=\(4, 1\)",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
