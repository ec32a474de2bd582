import functools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops

import keras_selfish
from keras_selfish import GMP, SNIP, MaskSpec, PolynomialDecay, SelfishRewiring, SparseDense, sparsify, strip
from keras_selfish.layers.forms import SPARSE_FORMS
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.masks import active_counts, masked_weights

on_jax = pytest.mark.backends("tensorflow", "jax")


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


TOKENS = np.array([[1, 2, 3, 4, 5], [9, 8, 7, 0, 0]], "int32")
X = data(2, 5, 6)
IMAGES = data(2, 6, 6, 3)


def everything():
    """A model with two inputs, shared and nested layers, wrappers, states, operations and two outputs."""
    tokens, x = keras.Input((5,), dtype="int32", name="tokens"), keras.Input((5, 6), name="x")
    embedded = layers.Embedding(10, 8, mask_zero=True, name="embedding")(tokens)
    both = layers.Bidirectional(layers.LSTM(4, return_sequences=True, return_state=True), name="both")
    y, h, _, backward_h, _ = both(embedded)
    y = layers.GRU(8, return_sequences=True, name="gru")(
        y, initial_state=layers.Concatenate()([h, backward_h])
    )
    y = layers.TimeDistributed(layers.Dense(6), name="each")(y)
    shared = layers.Dense(6, name="shared")
    inner = keras.Sequential([keras.Input((5, 6)), layers.Dense(6, activation="relu"), shared], name="inner")
    inner_input = keras.Input((5, 6))
    outer = keras.Model(inner_input, inner(inner_input * 0.5), name="outer")
    y = layers.Add()([outer(outer(y)), shared(x)])
    y = layers.Lambda(lambda tensor: tensor * 2, name="double")(y) + 1.0
    z = layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)], return_state=True, name="stack")(y)[0]
    z = layers.EinsumDense("ab,bc->ac", 6, name="einsum")(z)
    z = layers.Dropout(0.5)(layers.LayerNormalization()(z))
    model = keras.Model({"tokens": tokens, "x": x}, {"sequence": y, "last": z}, name="everything")
    for index, weight in enumerate(model.weights):
        weight.assign(data(*weight.shape, seed=index))  # biases and norms that are not what Keras starts from
    return model


def convolutions():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(4, 3, name="first"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(2, name="depthwise"),
            layers.Reshape((9, 4)),
            layers.Conv1D(6, 3, name="steps"),
            layers.Flatten(),
            layers.Dense(5, name="classifier"),
        ]
    )
    for index, weight in enumerate(model.weights):
        weight.assign(np.abs(data(*weight.shape, seed=index)))
    return model


def all_layers(model):
    """The model and every layer in it, however deep: Keras 3.15 lists them in private only."""
    return list(model._flatten_layers())


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def bake(model, sparse):
    """Puts the zeros of a sparse twin into the dense model."""
    masks = {id(weight.mask) for weight in masked_weights(sparse)}
    weights = [weight for weight in sparse.weights if id(weight) not in masks]
    for weight, dense in zip(weights, model.weights, strict=True):
        dense.assign(weight)


@on_jax
def test_everything_at_once():
    model = everything()
    model.compile("adam", "mse")
    before = [numpy_of(weight) for weight in model.weights]
    sparse = sparsify(model, 0.5, mask_seed=1)
    assert not sparse.compiled
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)

    left = [type(layer) for layer in all_layers(sparse) if type(layer) in SPARSE_FORMS]
    assert left == []
    assert [layer.name for layer in sparse.layers] == [layer.name for layer in model.layers]
    kinds = {layer.name: type(layer).__name__ for layer in sparse.layers}
    assert (kinds["embedding"], kinds["gru"], kinds["einsum"]) == (
        "SparseEmbedding",
        "SparseGRU",
        "SparseEinsumDense",
    )
    assert type(sparse.get_layer("both").forward_layer).__name__ == "SparseLSTM"
    assert type(sparse.get_layer("each").layer) is SparseDense
    cells = sparse.get_layer("stack").cell.cells
    assert [type(cell).__name__ for cell in cells] == ["SparseLSTMCell", "SparseGRUCell"]
    assert sparse.get_layer("outer").get_layer("inner").get_layer("shared") is sparse.get_layer("shared")

    # `embedding`, 4 of `both`, 2 of `gru`, 4 of `stack`, `each`, `shared`, one more of `inner`, `einsum`.
    weights = masked_weights(sparse)
    assert len(weights) == 15
    assert [w.active for w in weights] == active_counts([w.shape for w in weights], 0.5)
    bake(model, sparse)
    inputs = {"tokens": TOKENS, "x": X}
    outputs, expected = sparse(inputs), model(inputs)
    for name, output in outputs.items():
        np.testing.assert_allclose(numpy_of(output), numpy_of(expected[name]), rtol=1e-4, atol=1e-5)


def test_strip_gives_the_model_back_with_zeros_and_nonzero_its_masks():
    sparse = sparsify(everything(), 0.5, mask_seed=1)
    stripped = strip(sparse)
    assert not any(isinstance(layer, SparseLayer) for layer in all_layers(stripped))
    again = sparsify(stripped, initial="nonzero")
    inputs = {"tokens": TOKENS, "x": X}
    for mine, its in zip(masked_weights(sparse), masked_weights(again), strict=True):
        np.testing.assert_array_equal(numpy_of(mine.mask), numpy_of(its.mask))
        np.testing.assert_array_equal(numpy_of(mine.weight), numpy_of(its.weight))
    for model in (stripped, again):
        for name, output in model(inputs).items():
            np.testing.assert_allclose(numpy_of(output), numpy_of(sparse(inputs)[name]), rtol=1e-5, atol=1e-6)
    assert again.get_layer("gru").sparsity == 0.5


def test_at_sparsity_zero_nothing_changes(caplog):
    model = everything()
    sparse = sparsify(model, 0.0)
    assert masked_weights(sparse) == []
    assert caplog.records == []
    inputs = {"tokens": TOKENS, "x": X}
    for name, output in sparse(inputs).items():
        np.testing.assert_allclose(numpy_of(output), numpy_of(model(inputs)[name]), rtol=1e-4, atol=1e-5)


def test_convolutions_share_the_connections_of_the_model():
    model = convolutions()
    sparse = sparsify(model, 0.7, distribution="erk")
    weights = masked_weights(sparse)
    shapes = [(3, 3, 3, 4), (2, 2, 4, 1), (3, 4, 6), (42, 5)]
    assert [weight.shape for weight in weights] == shapes
    counts = active_counts(shapes, 0.7, "erk")
    assert [weight.active for weight in weights] == counts
    assert sum(counts) == round(0.3 * sum(np.prod(shape) for shape in shapes))
    assert counts[1] / 16 > counts[3] / 210
    bake(model, sparse)
    np.testing.assert_allclose(numpy_of(sparse(IMAGES)), numpy_of(model(IMAGES)), rtol=1e-5, atol=1e-5)


def dense_model(units=6, seed=0):
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(units, name="one"), layers.Dense(4, name="two")]
    )
    for index, weight in enumerate(model.weights):
        weight.assign(data(*weight.shape, seed=seed + index))
    return model


one_dense_model = functools.cache(dense_model)


@given(sparsity=st.floats(0.01, 0.95), block_shape=st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]))
def test_the_largest_blocks_are_kept(sparsity, block_shape):
    """Golden: the norms sorted in Python, block by block."""
    model = one_dense_model()
    sparse = sparsify(model, sparsity, block_shape=block_shape)
    counts = active_counts([(8, 6), (6, 4)], sparsity, "uniform", [block_shape] * 2)
    for name, masked_weight, count in zip(("one", "two"), masked_weights(sparse), counts, strict=True):
        kernel = numpy_of(model.get_layer(name).kernel)
        height, width = block_shape
        norms = {}
        for row, column in np.ndindex(kernel.shape):
            block = (row // height, column // width)
            norms[block] = norms.get(block, 0.0) + float(kernel[row, column]) ** 2
        kept = sorted(norms, key=norms.get, reverse=True)[:count]
        expected = np.zeros(kernel.shape, bool)
        for row, column in kept:
            expected[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
        np.testing.assert_array_equal(numpy_of(masked_weight.mask), expected)
        np.testing.assert_array_equal(numpy_of(masked_weight.weight), kernel * expected)


def test_random_masks_keep_the_weights_and_follow_their_seed():
    model = dense_model()
    one, same, other = (sparsify(model, 0.5, initial="random", mask_seed=seed) for seed in (1, 1, 2))
    for mine, its, others in zip(*map(masked_weights, (one, same, other)), strict=True):
        np.testing.assert_array_equal(numpy_of(mine.mask), numpy_of(its.mask))
        assert (numpy_of(mine.mask) != numpy_of(others.mask)).any()
    (mine, _) = masked_weights(one)
    np.testing.assert_array_equal(
        numpy_of(mine.weight), numpy_of(model.get_layer("one").kernel) * numpy_of(mine.mask)
    )
    magnitude = masked_weights(sparsify(model, 0.5))[0]
    assert (numpy_of(magnitude.mask) != numpy_of(mine.mask)).any()


@pytest.mark.parametrize("initial", ["magnitude", "random"])
def test_a_pattern(initial):
    model = keras.Sequential(
        [keras.Input((None, 8)), keras.layers.LSTM(4), keras.layers.Dense(3, name="head")]
    )
    sparse = sparsify(model, n_of_m=(1, 4), initial=initial, mask_seed=3)
    for weight, source in zip(masked_weights(sparse), (w for w in model.weights if w.ndim == 2), strict=True):
        assert weight.n_of_m == (1, 4)
        mask, values = (ops.convert_to_numpy(v) for v in (weight.mask, source))
        groups = mask.reshape(-1, 4, mask.shape[1])
        assert (groups.sum(axis=1) == 1).all()
        np.testing.assert_array_equal(ops.convert_to_numpy(weight.weight), np.where(mask, values, 0))
        if initial == "magnitude":
            sizes = np.abs(values).reshape(groups.shape)
            np.testing.assert_array_equal(groups, sizes == sizes.max(axis=1, keepdims=True))
    with pytest.raises(ValueError, match=r"`n_of_m` fixes .* sparsity=0\.5"):
        sparsify(model, 0.5, n_of_m=(1, 4))


def test_weights_of_one_value_get_no_pattern():
    model = dense_model()
    model.get_layer("one").kernel.assign(np.ones((8, 6)))
    first = numpy_of(masked_weights(sparsify(model, 0.5, mask_seed=1))[0].mask)
    second = numpy_of(masked_weights(sparsify(model, 0.5, mask_seed=2))[0].mask)
    assert first.sum() == second.sum() == 24
    assert (first != second).any()


def test_layers_are_chosen_by_a_function():
    model = everything()
    seen = []

    def chosen(layer):
        seen.append(layer.name)
        return layer.name in ("both", "shared")

    sparse = sparsify(model, 0.5, layers=chosen)
    assert len(seen) == len(set(seen))
    assert {"both", "shared", "each", "stack"} < set(seen)
    assert type(sparse.get_layer("each").layer) is layers.Dense
    assert len(masked_weights(sparse)) == 5
    assert type(sparse.get_layer("shared")) is SparseDense


def test_layers_without_zeros_stay_plain():
    model = dense_model()
    kernel = numpy_of(model.get_layer("two").kernel)
    kernel[:2] = 0
    model.get_layer("two").kernel.assign(kernel)
    sparse, report = sparsify(model, initial="nonzero", block_shape=(2, 1), return_report=True)
    assert type(sparse.get_layer("one")) is layers.Dense
    assert [(matrix.layer, matrix.reason) for matrix in report.dense] == [("one", "has no zeros")]
    assert sparse.get_layer("two").sparsity == pytest.approx(1 / 3)
    assert masked_weights(sparse)[0].block_shape == (2, 1)
    assert masked_weights(sparse)[0].active == 16
    with pytest.raises(ValueError, match=r"`model` must have zeros with initial='nonzero'"):
        sparsify(dense_model(), initial="nonzero")


def test_layers_that_are_sparse_already_keep_their_masks():
    model = keras.Sequential([keras.Input((8,)), SparseDense(6, sparsity=0.9), layers.Dense(4)])
    sparse = sparsify(model, 0.5)
    mine, its = masked_weights(model)[0], masked_weights(sparse)[0]
    np.testing.assert_array_equal(numpy_of(mine.mask), numpy_of(its.mask))
    np.testing.assert_array_equal(numpy_of(mine.weight), numpy_of(its.weight))
    assert [weight.active for weight in masked_weights(sparse)] == [5, 12]


def test_models_within_wrappers_and_policies():
    x = keras.Input((6,))
    functional = keras.Model(x, layers.Dense(3, name="b")(layers.Dense(4, name="a")(x)), name="within")
    model = keras.Sequential(
        [
            keras.Input((5, 6)),
            layers.TimeDistributed(functional),
            layers.LSTM(4, dtype="mixed_bfloat16", trainable=False),
        ]
    )
    sparse = sparsify(model, 0.5)
    assert len(masked_weights(sparse)) == 4
    assert sparse.layers[1].dtype_policy.name == "mixed_bfloat16"
    assert not sparse.layers[1].trainable
    stripped = strip(sparse)
    np.testing.assert_allclose(
        *(numpy_of(ops.cast(one(X), "float32")) for one in (stripped, sparse)), atol=0.01
    )


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("method", ["gmp", "snip"])
def test_methods_that_begin_dense_lose_nothing_of_a_trained_model(method):
    """As users of TensorFlow Model Optimization prune: until the first pruning it is the trained model."""
    trained = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(4)])
    x, y = np.random.default_rng(0).normal(size=(8, 6)), np.ones((8, 4))
    sparse = sparsify(trained, 0.75)
    assert np.abs(ops.convert_to_numpy(sparse(x)) - ops.convert_to_numpy(trained(x))).max() > 0.01
    sparse.compile(keras.optimizers.SGD(0.0), "mse")
    if method == "gmp":
        sparse.fit(x, y, verbose=0, callbacks=[GMP(PolynomialDecay(0.0, 0.75, begin_step=9, end_step=99))])
        np.testing.assert_allclose(sparse(x), trained(x), rtol=1e-4, atol=1e-5)
        return
    sparse.fit(x, y, verbose=0, callbacks=[SNIP((x, y))])
    for masked_weight, layer in zip(masked_weights(sparse), trained.layers, strict=True):
        weight, mask = ops.convert_to_numpy(masked_weight.weight), ops.convert_to_numpy(masked_weight.mask)
        np.testing.assert_allclose(weight, ops.convert_to_numpy(layer.kernel) * mask, rtol=1e-6)


@on_jax
def test_training_rewiring_and_saving(tmp_path):
    sparse = sparsify(convolutions(), 0.6, mask_seed=3)
    before = [numpy_of(weight.mask) for weight in masked_weights(sparse)]
    eagerly = keras.backend.backend() == "tensorflow"  # where a few steps cost less than a graph of them
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sparse.compile("adam", loss, run_eagerly=eagerly)
    sparse.fit(
        data(8, 6, 6, 3), np.arange(8) % 5, epochs=2, verbose=0, callbacks=[SelfishRewiring(pruning_rate=0.8)]
    )
    for weight, mask in zip(masked_weights(sparse), before, strict=True):
        assert weight.active == mask.sum()
        assert (numpy_of(weight.weight)[~numpy_of(weight.mask)] == 0).all()
    assert any((numpy_of(w.mask) != m).any() for w, m in zip(masked_weights(sparse), before, strict=True))
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for mine, its in zip(sparse.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(numpy_of(mine), numpy_of(its))


def test_weights_of_a_model_that_shares_layers_with_one_within_it(tmp_path):
    """Keras saves such a model as a whole, too, but cannot load it."""
    sparse, again = (sparsify(everything(), 0.5, mask_seed=seed) for seed in (1, 2))
    for index, weight in enumerate(masked_weights(sparse)):
        weight.weight.assign(data(*weight.shape, seed=index))
    sparse.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")
    inputs = {"tokens": TOKENS, "x": X}
    for output, expected in zip(*(keras.tree.flatten(one(inputs)) for one in (again, sparse)), strict=True):
        np.testing.assert_array_equal(numpy_of(output), numpy_of(expected))


def test_a_mask_spec_stands_for_the_mask_arguments():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="first"), keras.layers.Dense(4)])
    for options in ({"sparsity": 0.75, "block_shape": (4, 1), "mask_seed": 3}, {"n_of_m": (2, 4)}):
        one, other = sparsify(model, MaskSpec(**options)), sparsify(model, **options)
        assert one.layers[0].mask_spec == other.layers[0].mask_spec == MaskSpec(**options)
        for mine, its in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(numpy_of(mine), numpy_of(its))
    for arguments in ({"block_shape": (4, 1)}, {"n_of_m": (2, 4)}, {"mask_seed": 1}, {"initial": "nonzero"}):
        with pytest.raises(ValueError, match=r"Received: .*MaskSpec\(sparsity=0.5"):
            sparsify(model, MaskSpec(0.5), **arguments)


def test_every_sparse_class_has_its_place():
    exported = (getattr(keras_selfish, name) for name in keras_selfish.__all__)
    classes = {value for value in exported if isinstance(value, type) and issubclass(value, SparseLayer)}
    classes = {sparse_class for sparse_class in classes if sparse_class.plain_class is not None}
    of_keras = {
        plain: sparse for plain, sparse in SPARSE_FORMS.items() if plain.__module__.startswith("keras.")
    }
    assert classes == set(of_keras.values())


@on_jax
def test_a_layer_keeps_its_largest_weights_and_an_unbuilt_one_draws_its_mask_later():
    layer = layers.Dense(6, activation="tanh", name="alone")
    layer.build((None, 8))
    sparse = sparsify(layer, 0.5)
    assert type(sparse) is SparseDense
    assert sparse.name == "alone"
    kernel = numpy_of(layer.kernel)
    mask = np.abs(kernel) >= np.sort(np.abs(kernel), axis=None)[24]
    np.testing.assert_array_equal(numpy_of(sparse.kernel), kernel * mask)

    unbuilt = sparsify(layers.LSTM(4, name="later"), 0.75, mask_seed=1)
    assert not unbuilt.built
    unbuilt.build((None, 5, 8))
    assert [weight.active for weight in masked_weights(unbuilt)] == [32, 16]
    wrapped = sparsify(layers.Bidirectional(layers.GRU(4)), 0.5)
    wrapped.build((None, 5, 8))
    assert len(masked_weights(wrapped)) == 4


@on_jax
def test_a_list_of_layers_as_its_parts():
    first, norm, second = layers.Dense(6), layers.LayerNormalization(), layers.Dense(4)
    shapes = [(None, 8), (None, 6), (None, 6)]
    copies = sparsify([first, norm, second], 0.5, mask_seed=3)
    assert [type(copy).__name__ for copy in copies] == ["SparseDense", "LayerNormalization", "SparseDense"]
    assert copies[1] is not norm
    assert copies[0].mask_seed != copies[2].mask_seed
    again = sparsify([layers.Dense(6), layers.Dense(4)], 0.5, mask_seed=3)
    assert again[0].mask_seed == copies[0].mask_seed

    for layer, shape in zip((first, norm, second), shapes, strict=True):
        layer.build(shape)
    copies = sparsify((first, norm, second), 0.8, distribution="erk")
    counts = active_counts([(8, 6), (6, 4)], 0.8, "erk")
    assert [weight.active for copy in copies for weight in masked_weights(copy)] == counts
    x = data(3, 8)
    expected = x
    for copy in copies:
        x = copy(x)
    for layer, copy in zip((first, norm, second), copies, strict=True):
        for weight in layer.trainable_weights:
            if weight.name == "kernel":
                weight.assign(numpy_of(copy.kernel))
        expected = layer(expected)
    np.testing.assert_allclose(numpy_of(x), numpy_of(expected), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"must be built for a `distribution` .*'erk'.* late not built"):
        sparsify([first, layers.Dense(2, name="late")], 0.5, distribution="erk")


@on_jax
def test_an_unbuilt_sequential_model():
    model = keras.Sequential(
        [layers.Dense(6), keras.Sequential([layers.Dense(4)], name="inner")], name="outer"
    )
    sparse, report = sparsify(model, 0.5, return_report=True)
    assert not sparse.built
    assert sparse.name == "outer"
    assert report.matrices == ()
    sparse.build((None, 8))
    assert [weight.active for weight in masked_weights(sparse)] == [24, 12]
    sparse.compile("adam", "mse")
    sparse.fit(data(8, 8), data(8, 4), verbose=0, callbacks=[SelfishRewiring(0.5)])
    assert [weight.active for weight in masked_weights(sparse)] == [24, 12]


class Linear(layers.Layer):
    """A layer of one's own, with a matrix of its own."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4))

    def call(self, inputs):
        return inputs @ self.kernel


def test_what_stays_dense_is_said_in_one_line_and_in_the_report(caplog):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(4, 3, name="colours"),
            layers.Conv2D(8, 3, name="second"),
            layers.BatchNormalization(),
            layers.Flatten(),
            Linear(name="linear"),
            layers.Dense(4, name="classifier"),
        ]
    )
    with caplog.at_level("WARNING"):
        sparse, report = sparsify(model, 0.5, block_shape=(4, 1), return_report=True)
    (record,) = caplog.records
    assert record.getMessage() == (
        "`sparsify` leaves dense: colours: blocks (4, 1) do not divide kernel (3 × 3 × 3 × 4); "
        "linear: Linear has no sparse form."
    )
    assert [type(layer).__name__ for layer in sparse.layers[:2]] == ["Conv2D", "SparseConv2D"]
    assert [matrix.layer for matrix in report.matrices] == ["colours", "second", "linear", "classifier"]
    assert [matrix.layer for matrix in report.dense] == ["colours", "linear"]
    shapes = [weight.shape for weight in masked_weights(sparse)]
    assert shapes == [(3, 3, 4, 8), (4, 4)]
    assert [weight.active for weight in masked_weights(sparse)] == [144, 8]
    lines = str(report).splitlines()
    assert lines[0].split() == ["weight", "shape", "becomes"]
    assert lines[1].endswith("3 × 3 × 3 × 4  dense: blocks (4, 1) do not divide kernel (3 × 3 × 3 × 4)")
    assert lines[2].endswith("3 × 3 × 4 × 8  sparse")
    assert lines[3].endswith("dense: Linear has no sparse form")

    pattern, report = sparsify(model, n_of_m=(2, 4), return_report=True)
    assert report.dense[0].reason == "2 of 4 do not divide kernel (3 × 3 × 3 × 4)"
    assert [weight.n_of_m for weight in masked_weights(pattern)] == [(2, 4)] * 2
    caplog.clear()
    _, report = sparsify(model, 0.5, layers=lambda one: one.name == "second", return_report=True)
    assert caplog.records == []
    assert report.dense[0].reason == "left out by `layers`"


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sparsify(Subclassed(), 0.5),
            r"Functional or Sequential .*; call it on a `keras\.Input`",
        ),
        (lambda: sparsify(keras.Sequential([layers.Dense(2)]), 0.5, "erk"), r"must be built for .*'erk'"),
        (
            lambda: sparsify([layers.Dense(2)], initial="nonzero"),
            r"must be built for .*'nonzero'.* dense.* not",
        ),
        (lambda: sparsify([], 0.5), r"`model` must hold a layer\. Received: model=\[\]"),
        (lambda: sparsify([layers.Dense], 0.5), r"must be a keras\.Model, a keras layer, or a list"),
        (lambda: sparsify(layers.ReLU(name="r"), 0.5), r"that has a sparse form\. Received: layer 'r'"),
        (lambda: sparsify(dense_model()), r"`sparsity` is the fraction .* Received: sparsity=None"),
        (lambda: sparsify(dense_model(), 1.5), r"Received: sparsity=1\.5"),
        (lambda: sparsify(dense_model(), 0.5, "ERK"), r"Received: distribution='ERK'"),
        (
            lambda: sparsify(dense_model(), 0.5, block_shape=(5, 1)),
            r"one: blocks \(5, 1\) do not divide kernel",
        ),
        (
            lambda: sparsify(dense_model(), 0.5, block_shape=(3, 1), layers=lambda layer: True),
            r"one/kernel has shape \(8, 6\)",
        ),
        (lambda: sparsify(dense_model(), 0.5, mask_seed=-1), r"Received: mask_seed=-1"),
        (lambda: sparsify(dense_model(), 0.5, initial="best"), r"Received: initial='best'"),
        (lambda: sparsify(dense_model(), 0.5, initial="nonzero"), r"`sparsity` must be None"),
        (lambda: sparsify(dense_model(), 0.5, layers=["one"]), r"`layers` must be a function of a layer"),
        (lambda: sparsify(dense_model(), 0.5, layers=lambda layer: False), r"that `layers` admits"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
