"""Models of blocks of one's own, whose configs say nothing of the layers that they make."""

import typing

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_selfish import GMP, MaskSpec, PolynomialDecay, SelfishRewiring, sparsify, strip
from keras_selfish.layers import SparseComposite, SparseDense
from keras_selfish.masks import masked_weights

on_jax = pytest.mark.backends("tensorflow", "jax")

X = np.random.default_rng(0).normal(size=(4, 5, 6)).astype("float32")
TOKENS = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 0]], "int32")


class Configured(layers.Layer):
    """A layer that describes itself by the arguments that it was made with, as Keras asks of its users."""

    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable(package="tests.composites")
class Residual(Configured):
    def __init__(self, width=6, **kwargs):
        super().__init__(width, **kwargs)
        self.dense = layers.Dense(width)

    def call(self, x):
        return x + self.dense(x)


class Pair(typing.NamedTuple):
    first: keras.Layer
    second: keras.Layer


@keras.saving.register_keras_serializable(package="tests.composites")
class Blocks(Configured):
    """Keeps many to itself: by name, in lists, dicts, tuples and models, one of them twice, one made late."""

    def __init__(self, width=6, **kwargs):
        super().__init__(width, **kwargs)
        self.first = layers.Dense(width, activation="tanh")
        recurrent = layers.Bidirectional(layers.LSTM(width // 2, return_sequences=True))
        self.parts = [layers.LayerNormalization(), layers.Dense(width), recurrent]
        self.named = {"attention": layers.MultiHeadAttention(2, 3), "again": self.first}
        self.pair = Pair(layers.Dense(width), layers.TimeDistributed(layers.Dense(width)))
        self.within = Residual(width)
        self.sequence = keras.Sequential([layers.Dense(width), layers.ReLU(), Residual(width)])
        self.dropout = layers.Dropout(0.5)

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="uniform")
        self.late = layers.Dense(input_shape[-1])
        self.late.build(input_shape)
        self.late_parts = [self.late, layers.Dense(input_shape[-1])]
        self.late_parts[1].build(input_shape)

    def call(self, x, training=False):
        x = self.first(x) + self.named["again"](x * self.scale)
        for part in self.parts[:2]:
            x = part(x)
        x = self.dropout(self.parts[2](x), training=training)
        x = self.named["attention"](x, x)
        x = self.pair.second(self.pair.first(x))
        x = self.sequence(self.within(x))
        return self.late(x) + self.late_parts[1](x)


# Places of what has a sparse form in `Blocks`.
HELD = {
    "first",
    "parts/1",
    "parts/2/forward_layer",
    "parts/2/backward_layer",
    "named/attention",
    "pair/0",
    "pair/1/layer",
    "within/dense",
    "sequence/0",
    "sequence/2/dense",
    "late",
    "late_parts/1",
}


def filled(model):
    for index, weight in enumerate(model.weights):
        if weight.dtype == "float32":
            weight.assign(np.random.default_rng(index).normal(0, 0.5, size=weight.shape))
    return model


def blocks():
    x = keras.Input((5, 6), name="x")
    shared = Residual(name="shared")
    y = Blocks(name="blocks")(shared(x))
    inner = keras.Sequential([keras.Input((5, 6)), Residual(name="inner")], name="inner_model")
    return filled(keras.Model(x, layers.Dense(2, name="last")(shared(inner(y)))))


def values_without_masks(model):
    masks = {id(weight.mask) for weight in masked_weights(model)}
    return [ops.convert_to_numpy(weight) for weight in model.weights if id(weight) not in masks]


@on_jax
def test_everything_that_a_block_holds_becomes_sparse_and_computes_the_same_without_its_small_weights(
    tmp_path,
):
    """The weights are those of the model, the largest half of each matrix; the block itself says the rest."""
    model = blocks()
    before = model.predict(X, verbose=0)
    sparse = sparsify(model, 0.5, mask_seed=0)
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)
    composites = [layer for layer in sparse.layers if isinstance(layer, SparseComposite)]
    assert [(one.name, one.layer.name) for one in composites] == [("shared",) * 2, ("blocks",) * 2]
    assert set(composites[1].mask_specs) == HELD
    assert composites[1].layer.named["again"] is composites[1].layer.first
    assert composites[1].layer.late_parts[0] is composites[1].layer.late

    weights, kept = values_without_masks(model), values_without_masks(sparse)
    masks = {id(one.weight): ops.convert_to_numpy(one.mask) for one in masked_weights(sparse)}
    assert len(masks) == 2 + 5 + 2 * 2 + 4 + 5
    variables = [weight for weight in sparse.weights if weight.dtype != "bool"]
    for dense, value, variable in zip(model.weights, kept, variables, strict=True):
        mask = masks.get(id(variable))
        if mask is None:
            np.testing.assert_array_equal(value, ops.convert_to_numpy(dense))
            assert len(value.shape) == 1 or "bias" in variable.name, variable.path
            continue
        magnitudes = np.abs(ops.convert_to_numpy(dense))
        assert mask.sum() == mask.size // 2
        assert magnitudes[mask].min() >= magnitudes[~mask].max()
        dense.assign(ops.convert_to_numpy(dense) * mask)
    assert len(weights) == len(kept)
    expected = model.predict(X, verbose=0)
    np.testing.assert_allclose(sparse.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)

    sparse.save(tmp_path / "sparse.keras")
    loaded = keras.models.load_model(tmp_path / "sparse.keras")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(masked_weights(loaded), masked_weights(sparse), strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)

    plain = strip(sparse)
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in model.layers]
    plain.save(tmp_path / "plain.keras")
    assert b"keras_selfish" not in (tmp_path / "plain.keras").read_bytes()
    for one in (plain, keras.models.load_model(tmp_path / "plain.keras")):
        assert not masked_weights(one)
        np.testing.assert_allclose(one.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)
    again = sparsify(plain, initial="nonzero")
    for one, other in zip(masked_weights(again), masked_weights(sparse), strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)


@on_jax
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_training_keeps_the_counts_and_the_zeros(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = sparsify(blocks(), 0.75, mask_seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("blocks").layer.late.dtype_policy.name == policy
    before = [(one.active, ops.convert_to_numpy(one.mask)) for one in masked_weights(model)]
    model.compile("adam", "mse")
    model.fit(X, X[..., :2], batch_size=2, epochs=2, verbose=0, callbacks=[SelfishRewiring()])
    changed = 0
    for (active, mask), one in zip(before, masked_weights(model), strict=True):
        after = ops.convert_to_numpy(one.mask)
        assert one.active == active
        assert not ops.convert_to_numpy(one.weight)[~after].any()
        changed += (after != mask).sum()
    assert changed > 0


def test_methods_that_begin_dense_find_what_is_within_blocks():
    model = sparsify(blocks(), 0.75)
    model.compile("adam", "mse")
    model.fit(X, X[..., :2], verbose=0, callbacks=[GMP(PolynomialDecay(0.0, 0.75, 0, 1))])
    sizes = [(one.active, one.shape) for one in masked_weights(model)]
    assert all(0 < active < np.prod(shape) for active, shape in sizes)


@keras.saving.register_keras_serializable(package="tests.composites")
class Attends(Configured):
    """Takes several tensors, an argument that is no tensor, the phase and masks of padding."""

    def __init__(self, width=6, **kwargs):
        super().__init__(width, **kwargs)
        self.supports_masking = True
        self.attention = layers.MultiHeadAttention(2, 3)
        self.dropout = layers.Dropout(0.5)

    def call(self, x, context, scale=1.0, training=None, mask=None):
        padding = 0.0 if mask is None else ops.cast(mask[0] if isinstance(mask, list) else mask, "float32")
        y = self.dropout(self.attention(x, context), training=training) * scale
        return y + ops.reshape(ops.sum(ops.ones_like(padding) - padding), (1, 1, 1))

    def compute_mask(self, x, previous_mask):
        return previous_mask


@on_jax
def test_a_block_is_called_as_before():
    """With arguments by place and by name, in training and in inference."""
    x = keras.Input((5, 6))
    y = Attends(name="attends")(x, layers.Activation("tanh")(x), scale=0.5)
    model = filled(keras.Model(x, Attends(name="again")(y, context=x)))
    sparse = sparsify(model, 1e-9)
    np.testing.assert_allclose(sparse(X), model(X), rtol=1e-5, atol=1e-6)
    first, second = (np.asarray(sparse(X, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3

    composite, block = sparse.get_layer("attends"), model.get_layer("attends")
    for args, kwargs in (((X, X), {}), ((X,), {"context": X, "scale": 3.0})):
        np.testing.assert_allclose(composite(*args, **kwargs), block(*args, **kwargs), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="context"):
        composite(X)


@keras.saving.register_keras_serializable(package="tests.composites")
class Embeds(Configured):
    def __init__(self, width=6, **kwargs):
        super().__init__(width, **kwargs)
        self.tokens = layers.Embedding(10, width, mask_zero=True)
        self.places = layers.Embedding(5, width)

    def call(self, ids):
        return self.tokens(ids) + self.places(ops.arange(5))

    def compute_mask(self, ids, previous_mask=None):
        return self.tokens.compute_mask(ids)


@on_jax
def test_masks_of_padding_pass_through_blocks(tmp_path):
    """From a block that marks padding, through one that hands the marks on, to a layer that obeys them."""

    @keras.saving.register_keras_serializable(package="tests.composites")
    class Through(Residual):
        def __init__(self, width=6, **kwargs):
            super().__init__(width, **kwargs)
            self.supports_masking = True

    ids = keras.Input((5,), dtype="int32")
    y = layers.LSTM(4, name="last")(Through(name="through")(Embeds(name="embeds")(ids)))
    model = filled(keras.Model(ids, y))
    sparse = sparsify(model, 0.5, mask_seed=0)
    assert [type(layer).__name__ for layer in sparse.layers][1:] == ["SparseComposite"] * 2 + ["SparseLSTM"]
    plain = strip(sparse)
    expected = plain.predict(TOKENS, verbose=0)
    np.testing.assert_allclose(sparse.predict(TOKENS, verbose=0), expected, rtol=1e-5, atol=1e-6)
    unpadded = np.where(TOKENS == 0, 1, TOKENS)
    assert np.abs(plain.predict(unpadded, verbose=0) - expected).max() > 1e-3
    sparse.save(tmp_path / "sparse.keras")
    loaded = keras.models.load_model(tmp_path / "sparse.keras")
    np.testing.assert_allclose(loaded.predict(TOKENS, verbose=0), expected, rtol=1e-5, atol=1e-6)


class Unregistered(Residual):
    def compute_output_shape(self, input_shape):
        return input_shape


@on_jax
def test_blocks_of_unknown_classes_within_wrappers_and_by_themselves():
    model = filled(
        keras.Sequential([keras.Input((5, 6)), layers.TimeDistributed(Unregistered(name="one"), name="each")])
    )
    sparse = sparsify(model, 0.5)
    assert list(sparse.layers[0].mask_specs) == ["layer/dense"]
    np.testing.assert_allclose(sparse(X), strip(sparse)(X), rtol=1e-6)

    block = Blocks()
    block(X)
    alone = sparsify(block, 0.5)
    assert alone.built
    assert len(masked_weights(alone)) == 5 + 2 * 2 + 4 + 5 - 1
    np.testing.assert_array_equal(
        *(ops.convert_to_numpy(one.first.bias) for one in (block, alone.layer)),
    )
    assert alone(X).shape == (4, 5, 6)

    unbuilt = sparsify(Residual(), 0.5, mask_seed=3)
    assert [weight.active for weight in masked_weights(unbuilt)] == []
    unbuilt(X)
    assert [weight.active for weight in masked_weights(unbuilt)] == [18]
    again = sparsify(Residual(), 0.5, mask_seed=3)
    again(X)
    np.testing.assert_array_equal(masked_weights(unbuilt)[0].mask, masked_weights(again)[0].mask)


@keras.saving.register_keras_serializable(package="tests.composites")
class Mixed(Configured):
    """Has a matrix of its own, a layer that blocks do not divide, and one that has no sparse form."""

    def __init__(self, width=6, **kwargs):
        super().__init__(width, **kwargs)
        self.narrow = layers.Dense(3)
        self.wide = layers.Dense(width)
        self.table = layers.ConvLSTM1D(2, 1)

    def build(self, shape):
        self.own = self.add_weight(shape=(shape[-1], shape[-1]), name="own")
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], self.width))

    def call(self, x):
        return self.narrow(self.wide(x @ self.own))


def test_what_stays_dense_in_a_block_is_said_with_the_reason(caplog):
    model = keras.Sequential([keras.Input((4, 8)), Mixed(8, name="mixed"), layers.Dense(4, name="odd")])
    with caplog.at_level("WARNING"):
        sparse, report = sparsify(model, 0.5, block_shape=(1, 4), return_report=True)
    (record,) = caplog.records
    assert record.getMessage() == (
        "`sparsify` leaves dense: mixed: Mixed has no sparse form; "
        "mixed: blocks (1, 4) do not divide kernel (8 × 3)."
    )
    assert [weight.shape for weight in masked_weights(sparse)] == [(8, 8), (3, 4)]
    assert [matrix.reason for matrix in report.matrices] == [
        "Mixed has no sparse form",
        "blocks (1, 4) do not divide kernel (8 × 3)",
        "",
        "",
    ]


def test_layers_within_a_block_are_chosen_by_a_function():
    """It is asked of the block first, then of each layer that is to become sparse."""

    def shapes(layers_of_model):
        return [weight.shape for weight in masked_weights(sparsify(blocks(), 0.5, layers=layers_of_model))]

    assert shapes(lambda layer: layer.name in ("last", "dense")) == [(6, 2)]
    chosen = shapes(lambda layer: layer.name == "blocks" or isinstance(layer, layers.LSTM))
    assert chosen == [(6, 12), (3, 12)] * 2
    assert shapes(lambda layer: isinstance(layer, Residual | layers.Dense)) == [(6, 6)] * 2 + [(6, 2)]


@on_jax
def test_what_is_frozen_in_a_block_stays_so():
    model = blocks()
    block = model.get_layer("blocks")
    block.first.trainable = block.named["attention"].trainable = block.late.trainable = False
    sparse = sparsify(model, 0.5)
    copy = sparse.get_layer("blocks").layer
    assert [one.trainable for one in (copy.first, copy.named["attention"], copy.late)] == [False] * 3
    assert [one.trainable for one in (copy, copy.pair.first, copy.within.dense)] == [True] * 3
    assert len(sparse.trainable_variables) == len(model.trainable_variables)
    plain = strip(sparse)
    assert [weight.trainable for weight in plain.weights] == [weight.trainable for weight in model.weights]
    block.trainable = False
    assert len(sparsify(model, 0.5).trainable_variables) == len(model.trainable_variables)


def test_models_of_one_s_own_within_a_model():
    @keras.saving.register_keras_serializable(package="tests.composites")
    class Encoder(keras.Model):
        def __init__(self, width=6, **kwargs):
            super().__init__(**kwargs)
            self.width = width
            self.parts = [layers.Dense(width), Residual(width)]

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

        def get_config(self):
            return {"name": self.name, "width": self.width}

    encoder = Encoder(name="encoder")
    with pytest.raises(ValueError, match=r"pass `keras\.Model\(x, model\(x\)\)`"):
        sparsify(encoder, 0.5)
    x = keras.Input((6,))
    sparse = sparsify(filled(keras.Model(x, encoder(x))), 0.5)
    assert list(sparse.get_layer("encoder").mask_specs) == ["parts/0", "parts/1/dense"]
    np.testing.assert_allclose(sparse(X[:, 0]), strip(sparse)(X[:, 0]), rtol=1e-6)


def test_a_layer_that_knows_its_block_is_no_endless_loop():
    class Circle(Residual):
        def __init__(self, width=6, **kwargs):
            super().__init__(width, **kwargs)
            object.__setattr__(self.dense, "block", self)  # without Keras's knowing

    sparse = sparsify(keras.Sequential([keras.Input((6,)), Circle()]), 0.5)
    assert [weight.active for weight in masked_weights(sparse)] == [18]


def test_sparse_layers_beside_plain_ones():
    """A block that makes sparse layers itself keeps these; the plain ones become sparse, too."""

    class Both(Residual):
        def __init__(self, width=6, **kwargs):
            super().__init__(width, **kwargs)
            self.own = SparseDense(width, sparsity=0.25, mask_seed=1)

        def call(self, x):
            return super().call(self.own(x))

    model = keras.Sequential([keras.Input((6,)), Both(name="both")])
    sparse = sparsify(model, 0.5)
    assert [weight.active for weight in masked_weights(sparse)] == [18, 27]
    np.testing.assert_array_equal(masked_weights(sparse)[1].mask, masked_weights(model)[0].mask)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SparseComposite(Residual(), {"hidden": MaskSpec(0.5)})(X),
            r"`masks` must name layers .* Residual 'residual.*' holds\. Received: \['hidden'\]; others are "
            r"\['dense'\]",
        ),
        (lambda: SparseComposite(Residual(), {"dense": {"sparsity": 2.0}}), r"Received: sparsity=2\.0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_layer_that_cannot_describe_itself_is_named():
    class Silent(layers.Layer):
        def __init__(self, width, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(width)

        def call(self, x):
            return self.dense(x)

        def get_config(self):
            return {"width": self.width}  # which it does not keep

    model = keras.Sequential([keras.Input((6,)), Silent(3, name="silent")])
    with pytest.raises(ValueError, match=r"'silent' of class Silent, whose `get_config` says .*width"):
        sparsify(model, 0.5)
