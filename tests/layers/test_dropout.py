"""Locked dropout, dropout of words and activation regularisation: numbers, files, stripped, exported."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_selfish import LanguageModel, Perplexity, TokenCrossEntropy, strip
from keras_selfish.keras_internals import track_layer
from keras_selfish.layers import (
    ActivationRegularization,
    LockedDropout,
    SparseEmbedding,
    SparseLSTM,
    SparseReversibleEmbedding,
)
from keras_selfish.layers.dropout import drop_connections

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf

also_on_jax = pytest.mark.backends("tensorflow", "jax")
few_on_jax = settings(max_examples=30 if BACKEND == "tensorflow" else 6)  # where each size is compiled

BATCH, TIME, FEATURES, WORDS = 3, 4, 5, 40
EMBEDDINGS = [SparseEmbedding, SparseReversibleEmbedding]
each_embedding = pytest.mark.parametrize("embedding_class", EMBEDDINGS)
TOKENS = np.random.default_rng(0).integers(0, WORDS, (BATCH, TIME))


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def within_binomial_bounds(count, trials, probability):
    return abs(count - trials * probability) < 5 * np.sqrt(trials * probability * (1 - probability))


# Locked dropout


@also_on_jax
@few_on_jax
@given(rate=st.floats(0.05, 0.95), seed=st.integers(0, 2**31 - 1), steps=st.integers(1, 4))
def test_locked_dropout(rate, seed, steps):
    inputs = draw(40, steps, 50)
    outputs = numpy(LockedDropout(rate, seed=seed)(inputs, training=True))
    kept = (outputs != 0).all(1)
    np.testing.assert_array_equal(outputs != 0, np.broadcast_to(kept[:, None], outputs.shape))
    np.testing.assert_allclose(outputs, inputs * kept[:, None] / (1 - rate), rtol=1e-5)
    assert within_binomial_bounds(kept.sum(), kept.size, 1 - rate)


@also_on_jax
@given(rate=st.floats(0, 0.99))
def test_locked_dropout_in_inference_is_the_identity(rate):
    inputs = draw(BATCH, TIME, FEATURES)
    np.testing.assert_array_equal(LockedDropout(rate)(inputs), inputs)


@also_on_jax
def test_locked_dropout_against_a_loop_with_the_same_draws():
    """A loop over sequences, steps and features; Keras draws the mask, from the same seed, elsewhere."""
    inputs = draw(BATCH, TIME, FEATURES)
    layer = LockedDropout(0.4, seed=9)
    generator = keras.random.SeedGenerator(9)
    for _ in range(2):
        ones = np.ones((BATCH, 1, FEATURES), "float32")
        kept = numpy(keras.random.dropout(ones, 0.4, seed=generator)) > 0
        outputs = numpy(layer(inputs, training=True))
        assert 0 < kept.sum() < kept.size
        for sequence, step, feature in np.ndindex(BATCH, TIME, FEATURES):
            factor = 1 / 0.6 if kept[sequence, 0, feature] else 0.0
            found = outputs[sequence, step, feature]
            assert found == pytest.approx(factor * inputs[sequence, step, feature], rel=1e-5)


@also_on_jax
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_word_dropout_against_a_loop_with_the_same_draws(sparsity):
    layer = SparseEmbedding(WORDS, FEATURES, embedding_dropout=0.3, seed=4, sparsity=sparsity, mask_seed=1)
    layer.build()
    matrix = numpy(layer.embeddings)
    generator = keras.random.SeedGenerator(4)
    for _ in range(2):
        kept = numpy(keras.random.uniform((WORDS,), dtype="float32", seed=generator)) >= 0.3
        outputs = numpy(layer(TOKENS, training=True))
        for sequence, step in np.ndindex(BATCH, TIME):
            word = TOKENS[sequence, step]
            expected = matrix[word] / 0.7 if kept[word] else np.zeros(FEATURES)
            np.testing.assert_allclose(outputs[sequence, step], expected, rtol=1e-5)
        assert 0 < kept.sum() < WORDS


@also_on_jax
def test_locked_dropout_follows_its_seed():
    def two_calls(seed):
        layer = LockedDropout(0.5, seed=seed)
        return [numpy(layer(np.ones((BATCH, 2, 100), "float32"), training=True)) for _ in range(2)]

    first, second = two_calls(7)
    assert (first != second).any()  # each call draws anew
    for expected, again in zip([first, second], two_calls(7), strict=True):
        np.testing.assert_array_equal(again, expected)
    assert (two_calls(8)[0] != first).any()


@also_on_jax
def test_locked_dropout_keeps_its_policy():
    layer = LockedDropout(0.25, seed=3, dtype="mixed_bfloat16", name="locked", trainable=False)
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copy) is LockedDropout
    assert copy.get_config() == layer.get_config()
    assert (copy.rate, copy.seed, copy.dtype_policy.name) == (0.25, 3, "mixed_bfloat16")
    outputs = copy(draw(BATCH, TIME, FEATURES), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"


# Dropout of words


def embedding(embedding_class, rate, sparsity=0.5, seed=1, **options):
    layer = embedding_class(
        WORDS, FEATURES, sparsity=sparsity, mask_seed=2, embedding_dropout=rate, seed=seed, **options
    )
    layer.build()
    layer.trainable_weights[0].assign(draw(WORDS, FEATURES))
    for masked_weight in layer._masked.values():
        masked_weight.project()
    return layer


@also_on_jax
@pytest.mark.parametrize("sparsity", [0.0, 0.5], ids=["dense", "sparse"])
@each_embedding
def test_whole_words_are_dropped(embedding_class, sparsity):
    """Every word once in the first column: it tells which are dropped, everywhere in the batch."""
    layer = embedding(embedding_class, 0.4, sparsity)
    tokens = np.stack([np.arange(WORDS), np.roll(np.arange(WORDS), 7), np.full(WORDS, 3)], axis=1)
    plain, outputs = numpy(layer(tokens)), numpy(layer(tokens, training=True))
    np.testing.assert_array_equal(plain, numpy(layer.embeddings)[tokens])
    kept = (outputs[:, 0] != 0).any(1)
    assert 0 < kept.sum() < WORDS
    np.testing.assert_allclose(outputs, plain * kept[tokens][..., None] / 0.6, rtol=1e-6)
    np.testing.assert_array_equal(layer(tokens, training=False), plain)


@given(rate=st.floats(0.05, 0.95), seed=st.integers(0, 2**31 - 1))
def test_how_many_words_are_dropped(rate, seed):
    layer = SparseEmbedding(2000, 1, sparsity=0, embedding_dropout=rate, seed=seed)
    layer.build()
    layer.embeddings.assign(np.ones((2000, 1)))
    outputs = numpy(layer(np.arange(2000), training=True))[:, 0]
    np.testing.assert_allclose(outputs[outputs != 0], 1 / (1 - rate), rtol=1e-6)
    assert within_binomial_bounds((outputs != 0).sum(), 2000, 1 - rate)


@each_embedding
def test_words_to_drop_follow_the_seed(embedding_class):
    tokens = np.arange(WORDS)

    def dropped(seed):
        return numpy(embedding(embedding_class, 0.5, seed=seed)(tokens, training=True))

    np.testing.assert_array_equal(dropped(4), dropped(4))
    assert (dropped(4) != dropped(5)).any()


@also_on_jax
def test_a_tied_decoder_sees_all_words():
    layer = embedding(SparseReversibleEmbedding, 0.5)
    features = draw(BATCH, TIME, FEATURES)
    expected = features @ numpy(layer.embeddings).T
    np.testing.assert_allclose(layer(features, reverse=True, training=True), expected, rtol=1e-5, atol=1e-5)


@each_embedding
def test_the_gradient_is_one_of_rows_without_those_of_dropped_words(embedding_class):
    layer = embedding(embedding_class, 0.5)
    upstream = draw(BATCH, TIME, FEATURES)
    with tf.GradientTape() as tape:
        outputs = layer(TOKENS, training=True)
        loss = tf.reduce_sum(outputs * upstream)
    gradient = tape.gradient(loss, layer.trainable_weights[0].value)
    assert isinstance(gradient, tf.IndexedSlices)
    kept = (outputs.numpy() != 0).any(-1)
    expected = np.zeros((WORDS, FEATURES))
    for place in np.ndindex(TOKENS.shape):
        expected[TOKENS[place]] += upstream[place] * kept[place] / 0.5
    expected *= np.asarray(layer.embeddings_mask)
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), expected, rtol=1e-5, atol=1e-6)
    assert 0 < kept.sum() < kept.size


def test_padding_is_marked_where_words_are_dropped():
    for embedding_class in EMBEDDINGS:
        layer = embedding(embedding_class, 0.5, mask_zero=True)
        padding = layer(np.array([[3, 0]]), training=True)._keras_mask
        np.testing.assert_array_equal(padding, [[True, False]])


@each_embedding
def test_config_round_trip_of_embeddings(embedding_class):
    layer = embedding(embedding_class, 0.25, seed=9)
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert copy.get_config() == layer.get_config()
    assert (copy.embedding_dropout, copy.seed) == (0.25, 9)
    without = layer.get_config()
    for name in ("embedding_dropout", "seed"):  # as in files of earlier versions
        del without[name]
    assert embedding_class.from_config(without).embedding_dropout == 0


# Activation regularisation


def penalties(h, ar, tar):
    """An independent loop over all entries, in float64."""
    h = h.astype("float64")
    large = sum(value**2 for value in h.flat) / h.size
    changes = [
        (h[n, t + 1, f] - h[n, t, f]) ** 2
        for n in range(h.shape[0])
        for t in range(h.shape[1] - 1)
        for f in range(h.shape[2])
    ]
    return [ar * large, tar * (sum(changes) / len(changes) if changes else 0.0)]


@also_on_jax
@few_on_jax
@given(st.floats(0.01, 4), st.floats(0.01, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_penalties(ar, tar, batch, steps, seed):
    layer = ActivationRegularization(ar=ar, tar=tar)
    inputs = draw(batch, steps, 3, seed=seed)
    np.testing.assert_array_equal(layer(inputs, training=True), inputs)
    losses = [float(loss) for loss in layer.losses]
    expected = penalties(inputs, ar, tar)
    assert losses == pytest.approx(expected if steps > 1 else expected[:1], rel=1e-5)
    np.testing.assert_array_equal(layer(inputs), inputs)
    assert layer.losses == []


@pytest.mark.parametrize("options", [{"ar": 2.0}, {"tar": 1.0}, {}])
def test_each_penalty_by_itself(options):
    layer = ActivationRegularization(**options, dtype="mixed_bfloat16")
    inputs = ops.cast(draw(BATCH, TIME, FEATURES), "bfloat16")
    layer(inputs, training=True)
    expected = penalties(numpy(ops.cast(inputs, "float32")), **{"ar": 0.0, "tar": 0.0, **options})
    assert [float(loss) for loss in layer.losses] == pytest.approx([e for e in expected if e], rel=1e-5)
    assert all(keras.backend.standardize_dtype(loss.dtype) == "float32" for loss in layer.losses)
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert copy.get_config() == layer.get_config()


def test_a_window_of_one_step_of_unknown_length():
    layer = ActivationRegularization(tar=1.0)

    @tf.function(input_signature=[tf.TensorSpec((None, None, FEATURES))])
    def penalty(inputs):
        layer(inputs, training=True)
        return layer.losses[0]

    assert float(penalty(draw(BATCH, 1, FEATURES))) == 0
    inputs = draw(BATCH, TIME, FEATURES)
    assert float(penalty(inputs)) == pytest.approx(penalties(inputs, 0, 1.0)[1], rel=1e-5)


@also_on_jax
def test_fit_trains_on_the_penalties():
    """One step of SGD on a weight of which the loss and both penalties are known."""
    inputs = keras.Input((TIME, FEATURES))
    dense = keras.layers.Dense(2, use_bias=False)
    outputs = ActivationRegularization(tar=3.0)(ActivationRegularization(ar=2.0)(dense(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y, kernel = draw(BATCH, TIME, FEATURES), draw(BATCH, TIME, 2, seed=1), draw(FEATURES, 2)
    dense.kernel.assign(kernel)
    h = x @ kernel
    losses = [np.mean((h - y) ** 2), *penalties(h, 2.0, 3.0)]
    history = model.fit(x, y, batch_size=BATCH, verbose=0).history
    assert history["loss"] == pytest.approx([sum(losses)], rel=1e-4)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        np.mean((x @ numpy(dense.kernel) - y) ** 2), rel=1e-4
    )
    d_h = 2 * (h - y) / h.size + 2 * 2.0 * h / h.size
    changes = h[:, 1:] - h[:, :-1]
    d_h[:, 1:] += 2 * 3.0 * changes / changes.size
    d_h[:, :-1] -= 2 * 3.0 * changes / changes.size
    expected = kernel - 0.1 * np.einsum("ntf,ntu->fu", x, d_h)
    np.testing.assert_allclose(dense.kernel, expected, rtol=1e-4, atol=1e-5)


class PenalisedLanguageModel(LanguageModel):
    """A language model with a penalty of 5 * mean(logits ** 2) on it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.penalty = ActivationRegularization(ar=5.0)
        track_layer(self, self.penalty)

    def call(self, inputs, training=False, mask=None):
        return self.penalty(super().call(inputs, training=training), training=training)


@also_on_jax
def test_the_language_model_trains_on_penalties_and_reports_its_tokens():
    inputs = {"tokens": TOKENS % 17, "first": np.ones(BATCH, "int32")}
    targets = np.roll(inputs["tokens"], -1, 1)
    results = {}
    for model_class in (LanguageModel, PenalisedLanguageModel):
        model = model_class(17, units=8, dropout=0.0, batch_size=BATCH, seed=3)
        model.compile(
            keras.optimizers.SGD(1.0),
            TokenCrossEntropy(),
            metrics=[Perplexity()],
            run_eagerly=BACKEND == "tensorflow",  # JAX takes longer over each operation
        )
        history = model.fit(inputs, targets, epochs=2, batch_size=BATCH, shuffle=False, verbose=0).history
        assert history["loss"] == pytest.approx(np.log(history["perplexity"]), rel=1e-5)
        scores = model.evaluate(inputs, targets, verbose=0, return_dict=True)
        assert scores["loss"] == pytest.approx(np.log(scores["perplexity"]), rel=1e-5)
        results[model_class] = (history["perplexity"], np.abs(numpy(model(inputs))).mean())
    (plain, logits), (penalised, smaller) = results.values()
    assert penalised[0] == pytest.approx(plain[0], rel=1e-6)  # before the first step
    assert penalised[1] != pytest.approx(plain[1], rel=1e-4)  # after it
    assert smaller < logits


# All of them in a model


def model_with_all():
    tokens = keras.Input((None,), dtype="int32")
    tied = SparseReversibleEmbedding(WORDS, 6, embedding_dropout=0.3, seed=1, mask_seed=1)
    x = tied(tokens)
    x = x + SparseEmbedding(WORDS, 6, embedding_dropout=0.3, seed=4, mask_seed=4)(tokens)
    x = LockedDropout(0.4, seed=2, name="locked")(x)
    options = {"recurrent_initializer": "glorot_uniform", "mask_seed": 3, "seed": 3}
    x = SparseLSTM(6, return_sequences=True, weight_drop=0.5, **options)(x)
    x = ActivationRegularization(tar=1.0, name="changes")(x)
    x = ActivationRegularization(ar=2.0, name="size")(LockedDropout(0.4, seed=5)(x))
    return keras.Model(tokens, tied(x, reverse=True))


@also_on_jax
def test_save_and_load(tmp_path):
    model = model_with_all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for layer, copy in zip(model.layers, loaded.layers, strict=True):
        assert copy.get_config() == layer.get_config()
    np.testing.assert_array_equal(loaded(TOKENS), model(TOKENS))
    np.testing.assert_array_equal(loaded(TOKENS, training=True), model(TOKENS, training=True))


@also_on_jax
def test_fit_with_everything_at_once():
    model = model_with_all()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(TOKENS, TOKENS, epochs=30, batch_size=BATCH, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_stripped_to_plain_layers():
    model = model_with_all()
    stripped = strip(model)
    assert not any(type(layer).__module__.startswith("keras_selfish") for layer in stripped.layers)
    assert type(stripped.get_layer("locked")) is keras.layers.Dropout
    assert type(stripped.get_layer("changes")) is keras.layers.Identity
    np.testing.assert_allclose(stripped(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)


def test_a_stripped_locked_dropout_drops_the_same():
    model = keras.Sequential([keras.Input((None, FEATURES)), LockedDropout(0.5, seed=6)])
    inputs = draw(BATCH, TIME, FEATURES)
    outputs = strip(model)(inputs, training=True)
    np.testing.assert_array_equal(outputs, model(inputs, training=True))
    assert (numpy(outputs) == 0).all(1).any()


def test_in_a_saved_model(tmp_path):
    model = model_with_all()
    model.export(str(tmp_path / "model"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "model"))
    outputs = served.serve(tf.constant(TOKENS, "int32"))
    np.testing.assert_allclose(outputs, model(TOKENS), rtol=1e-5, atol=1e-6)


def test_half_precision_drops_at_the_rate_asked_for():
    """A rate between two numbers of bfloat16: 0.998 keeps 0.2%, where uniform bfloat16s keep 0.4% or none."""
    weight = ops.ones((1000, 500), "bfloat16")
    kept = drop_connections(weight, 0.998, keras.random.SeedGenerator(1))
    assert keras.backend.standardize_dtype(kept.dtype) == "bfloat16"
    assert within_binomial_bounds(float(ops.sum(ops.cast(kept != 0, "float32"))), 500_000, 0.002)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LockedDropout(1.0), r"`rate` .* in \[0, 1\)\. Received: rate=1\.0"),
        (lambda: LockedDropout("0.5"), r"`rate` .* Received: rate='0\.5'"),
        (lambda: SparseEmbedding(4, 4, embedding_dropout=-0.1), r"`embedding_dropout` .* Received: .*=-0\.1"),
        (lambda: SparseLSTM(4, weight_drop=float("nan")), r"`weight_drop` .* Received: weight_drop=nan"),
        (lambda: ActivationRegularization(ar=-1), r"`ar` .* not negative\. Received: ar=-1"),
        (lambda: ActivationRegularization(tar=True), r"`tar` .* Received: tar=True"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
