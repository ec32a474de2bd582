"""The mixture of softmaxes against NumPy and differences; tied, saved, stripped, in half precision."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_selfish import Perplexity, SelfishRewiring, TokenCrossEntropy, sparsify, strip
from keras_selfish.analysis import inference_flops
from keras_selfish.layers import MixtureOfSoftmaxes, SparseEmbedding, SparseLSTM, SparseReversibleEmbedding
from keras_selfish.layers.log_mixture import log_mixture
from keras_selfish.masks import masked_weights

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax

also_on_jax = pytest.mark.backends("tensorflow", "jax")

BATCH, TIME, FEATURES, EXPERTS, LATENT, VOCABULARY = 3, 4, 6, 3, 4, 12
SIZES = (VOCABULARY, EXPERTS, LATENT)
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, TIME))


def draw(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng([seed, *shape]).normal(size=shape)).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def mixture_in_float64(latents, log_priors, decoder, bias):
    """Row by row and expert by expert: a sum of probabilities, then its logarithm."""
    latents, log_priors, decoder, bias = (a.astype(float) for a in (latents, log_priors, decoder, bias))
    rows = []
    for row, priors in zip(latents, log_priors, strict=True):
        probabilities = np.zeros(decoder.shape[1])
        for latent, log_prior in zip(row, priors, strict=True):
            probabilities += np.exp(log_prior) * softmax(latent @ decoder + bias)
        rows.append(np.log(probabilities))
    return np.array(rows)


def arguments(rows=5, experts=EXPERTS, scale=1.0, seed=0):
    priors = draw(rows, experts, seed=seed, scale=scale)
    log_priors = np.log([softmax(row.astype(float)) for row in priors]).astype("float32")
    return [
        draw(rows, experts, LATENT, seed=seed, scale=scale),
        log_priors,
        draw(LATENT, VOCABULARY, seed=seed, scale=scale),
        draw(VOCABULARY, seed=seed, scale=scale),
    ]


def gradients_of(function, arrays):
    """Gradients of sum(outputs * upstream) by all arrays."""
    arrays = [ops.convert_to_tensor(array) for array in arrays]

    def loss(*arrays):
        outputs = function(*arrays)
        return ops.sum(outputs * draw(*outputs.shape, seed=9))

    if BACKEND == "jax":
        return [numpy(gradient) for gradient in jax.grad(loss, argnums=tuple(range(len(arrays))))(*arrays)]
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        value = loss(*arrays)
    return [numpy(gradient) for gradient in tape.gradient(value, arrays)]


# The function


@also_on_jax
@settings(max_examples=30 if BACKEND == "tensorflow" else 4)  # elsewhere each size is compiled
@given(st.integers(1, 5), st.integers(1, 4), st.floats(0.1, 3), st.integers(0, 99))
def test_values(rows, experts, scale, seed):
    arrays = arguments(rows, experts, scale, seed)
    outputs = numpy(log_mixture(*map(ops.convert_to_tensor, arrays)))
    np.testing.assert_allclose(outputs, mixture_in_float64(*arrays), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.exp(outputs).sum(-1), 1, rtol=1e-4)


def test_what_a_sum_of_probabilities_would_lose():
    """Probabilities under 1e-38 are 0 in float32; their logarithms are not infinite, nor is the gradient."""
    latents = np.array([[[1.0], [2.0]]], "float32")
    decoder = np.array([[0.0, -150.0, 0.0]], "float32")
    arrays = [latents, np.log([[0.25, 0.75]]).astype("float32"), decoder, np.zeros(3, "float32")]
    outputs = numpy(log_mixture(*map(ops.convert_to_tensor, arrays)))
    # log(1/4 exp(-150) / 2 + 3/4 exp(-300) / 2)
    np.testing.assert_allclose(outputs, [[-np.log(2), np.log(0.125) - 150, -np.log(2)]], rtol=1e-6)
    _, d_log_priors, d_decoder, _ = gradients_of(lambda *a: log_mixture(*a)[:, 1:2], arrays)
    upstream = draw(1, 1, seed=9)[0, 0]
    np.testing.assert_allclose(d_log_priors, [[upstream, 0]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_decoder, upstream * np.array([[-0.5, 1, -0.5]]), rtol=1e-5)


@also_on_jax
@pytest.mark.parametrize("experts", [1, 3])
def test_gradients_against_differences(experts):
    arrays = arguments(3, experts)
    upstream = draw(3, VOCABULARY, seed=9)
    found = gradients_of(log_mixture, arrays)
    step = 1e-6
    for index, array in enumerate(arrays):
        for place in np.ndindex(array.shape):
            differences = []
            for sign in (1, -1):
                moved = [a.astype(float) for a in arrays]
                moved[index][place] += sign * step
                differences.append((mixture_in_float64(*moved) * upstream).sum())
            expected = (differences[0] - differences[1]) / (2 * step)
            assert found[index][place] == pytest.approx(expected, rel=1e-3, abs=1e-4)


# The layer


def built(embedding=None, sparsity=0.5, **options):
    layer = MixtureOfSoftmaxes(*SIZES, embedding=embedding, sparsity=sparsity, mask_seed=3, **options)
    layer.build((None, None, FEATURES))
    for weight in layer.trainable_weights:
        weight.assign(draw(*weight.shape, scale=0.7))
    for masked_weight in masked_weights(layer):
        masked_weight.project()
    return layer


def layer_in_float64(layer, inputs):
    names = ("prior_kernel", "latent_kernel", "latent_bias", "bias")
    prior_kernel, latent_kernel, latent_bias, bias = (numpy(getattr(layer, n)).astype(float) for n in names)
    decoder = numpy(layer.embedding.embeddings).T if layer.embedding else numpy(layer.decoder_kernel)
    outputs = np.zeros((*inputs.shape[:2], VOCABULARY))
    for place in np.ndindex(*inputs.shape[:2]):
        h = inputs[place].astype(float)
        priors = softmax(h @ prior_kernel)
        latents = np.tanh(h @ latent_kernel + latent_bias)
        probabilities = 0
        for expert in range(EXPERTS):
            latent = latents[expert * LATENT : (expert + 1) * LATENT]
            probabilities = probabilities + priors[expert] * softmax(latent @ decoder.astype(float) + bias)
        outputs[place] = np.log(probabilities)
    return outputs


@also_on_jax
@pytest.mark.parametrize("sparsity", [0.0, 0.5], ids=["dense", "sparse"])
@pytest.mark.parametrize("embedding_class", [None, SparseReversibleEmbedding, keras.layers.Embedding])
def test_against_numpy(embedding_class, sparsity):
    layer = built(embedding_class and embedding_class(VOCABULARY, LATENT), sparsity)
    inputs = draw(BATCH, TIME, FEATURES)
    outputs = layer(inputs)
    np.testing.assert_allclose(outputs, layer_in_float64(layer, inputs), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ops.log_softmax(outputs), outputs, atol=1e-5)  # they are logits, too


@also_on_jax
def test_masks():
    layer = built(sparsity=0.75)
    counts = {weight.weight.name: weight.active for weight in masked_weights(layer)}
    assert counts == {"prior_kernel": 18 // 4 + 1, "latent_kernel": 18, "decoder_kernel": 12}  # 4.5 rounds up
    inputs = draw(BATCH, TIME, FEATURES)
    values = [weight.value for weight in layer.trainable_weights]
    if BACKEND == "jax":
        others = [weight.value for weight in layer.non_trainable_variables]
        gradients = jax.grad(lambda v: layer.stateless_call(v, others, inputs)[0][..., 0].sum())(values)
    else:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(inputs)[..., 0])
        gradients = tape.gradient(loss, values)
    for weight, gradient in zip(layer.trainable_weights, gradients, strict=True):
        gradient = numpy(gradient)
        assert np.isfinite(gradient).all()
        if hasattr(weight, "masked_weight"):
            mask = numpy(weight.masked_weight.mask)
            assert (gradient[~mask] == 0).all()
            assert (gradient[mask] != 0).mean() > 0.8


def test_latent_dropout():
    """Of one expert with an open decoder: the same latent features at all steps, others in each sequence."""
    layer = MixtureOfSoftmaxes(60, 1, 60, latent_dropout=0.25, seed=1, sparsity=0)
    layer.build((None, None, 2))
    layer.latent_bias.assign(np.full(60, 20.0))  # tanh of it is 1
    layer.decoder_kernel.assign(np.eye(60))
    inputs = np.zeros((20, 3, 2), "float32")
    outputs = numpy(layer(inputs, training=True))
    logits = outputs - outputs.min(-1, keepdims=True)  # 0 or 1 / (1 - 0.25)
    kept = logits > 0.5
    np.testing.assert_allclose(logits, kept / 0.75, atol=1e-4)
    np.testing.assert_array_equal(kept, np.broadcast_to(kept[:, :1], kept.shape))
    assert abs(kept[:, 0].sum() - 900) < 5 * np.sqrt(1200 * 0.25 * 0.75)
    assert (kept[0] != kept[1]).any()
    np.testing.assert_allclose(layer(inputs), np.full((20, 3, 60), -np.log(60)), rtol=1e-5)
    twin = MixtureOfSoftmaxes.from_config(layer.get_config())
    twin.build((None, None, 2))
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(twin(inputs, training=True), outputs)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(policy):
    layer = built(dtype=policy)
    inputs = draw(BATCH, TIME, FEATURES)
    outputs = layer(inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    np.testing.assert_allclose(outputs, layer_in_float64(layer, inputs), atol=0.05)
    np.testing.assert_allclose(np.exp(numpy(outputs)).sum(-1), 1, atol=1e-5)  # whatever was rounded before
    model = keras.Sequential([keras.Input((TIME, FEATURES)), layer])
    model.compile("adam", TokenCrossEntropy(), run_eagerly=True)
    before = [numpy(weight) for weight in layer.trainable_weights]
    model.fit(inputs, TOKENS, verbose=0)
    for weight, start in zip(layer.trainable_weights, before, strict=True):
        assert weight.dtype == "float32"
        assert (numpy(weight) != start).any()


# In models


def language_model(tied=True, **options):
    tokens = keras.Input((None,), dtype="int32")
    embedding_class = SparseReversibleEmbedding if tied else SparseEmbedding
    embedding = embedding_class(VOCABULARY, LATENT, mask_seed=1, name="embedding")
    # Drawing and, on JAX, compiling an orthogonal matrix would take longer than the model itself.
    lstm = SparseLSTM(FEATURES, return_sequences=True, mask_seed=2, recurrent_initializer="glorot_uniform")
    x = lstm(embedding(tokens))
    options = {"embedding": embedding if tied else None, "mask_seed": 3, "name": "decoder", **options}
    return keras.Model(tokens, MixtureOfSoftmaxes(*SIZES, **options)(x))


each_tying = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@each_tying
def test_losses_and_metrics_take_the_outputs_as_logits(tied):
    model = language_model(tied)
    outputs = numpy(model(TOKENS)).astype(float)
    expected = -np.take_along_axis(outputs, TOKENS[..., None], -1).mean()
    for loss in (TokenCrossEntropy(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)):
        model.compile("sgd", loss, metrics=[Perplexity()], run_eagerly=True)
        scores = model.evaluate(TOKENS, TOKENS, verbose=0, return_dict=True)
        assert scores["loss"] == pytest.approx(expected, rel=1e-4)
        assert scores["perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)


@each_tying
def test_fit_and_rewire(tied):
    model = language_model(tied)
    assert len(masked_weights(model)) == 5 + (not tied)
    counts = [weight.active for weight in masked_weights(model)]
    model.compile(keras.optimizers.Adam(0.05), TokenCrossEntropy(), run_eagerly=not tied)
    losses = model.fit(
        TOKENS, TOKENS, epochs=10, batch_size=BATCH, verbose=0, callbacks=[SelfishRewiring(0.3)]
    ).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert [weight.active for weight in masked_weights(model)] == counts
    for masked_weight in masked_weights(model):
        assert (numpy(masked_weight.weight)[~numpy(masked_weight.mask)] == 0).all()


def test_both_uses_of_a_tied_matrix_add_to_its_gradient():
    """A step of SGD also moves rows of tokens that did not occur: by the decoder."""
    model = language_model(sparsity=0)
    embedding = model.get_layer("embedding")
    before, mask = numpy(embedding.embeddings), numpy(embedding.embeddings_mask)
    model.compile(keras.optimizers.SGD(1.0), TokenCrossEntropy(), run_eagerly=True)
    model.fit(np.full((1, TIME), 2), np.full((1, TIME), 3), verbose=0)
    moved = numpy(embedding.embeddings) != before
    assert (moved == mask).mean() > 0.95
    assert not moved[~mask].any()


@also_on_jax
@each_tying
def test_save_and_load(tied, tmp_path):
    model = language_model(tied, latent_dropout=0.5, seed=7)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(TOKENS), model(TOKENS))
    np.testing.assert_array_equal(loaded(TOKENS, training=True), model(TOKENS, training=True))
    assert len(loaded.weights) == len(model.weights)
    if tied:
        assert loaded.get_layer("decoder").embedding is loaded.get_layer("embedding")
    for mine, other in zip(masked_weights(model), masked_weights(loaded), strict=True):
        np.testing.assert_array_equal(mine.mask, other.mask)


@each_tying
def test_stripped(tied):
    model = language_model(tied, latent_dropout=0.5)
    stripped = strip(model)
    assert masked_weights(stripped) == []
    np.testing.assert_allclose(stripped(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)
    decoder = stripped.get_layer("decoder")
    assert (type(decoder), decoder.sparsity) == (MixtureOfSoftmaxes, 0)
    if tied:
        assert decoder.embedding is stripped.get_layer("embedding")
        assert type(decoder.embedding) is keras.layers.ReversibleEmbedding
    zeros = np.count_nonzero(numpy(decoder.latent_kernel) == 0)
    assert zeros == decoder.latent_kernel.shape[0] * decoder.latent_kernel.shape[1] - (
        masked_weights(model.get_layer("decoder"))[1].active
    )


def test_a_sparse_twin_stays_tied():
    model = strip(language_model())
    twin = sparsify(model, initial="nonzero")
    assert twin.get_layer("decoder").embedding is twin.get_layer("embedding")
    assert type(twin.get_layer("embedding")) is SparseReversibleEmbedding
    np.testing.assert_allclose(twin(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)


@each_tying
def test_in_a_saved_model(tied, tmp_path):
    from keras_selfish.export import saved_model

    model = language_model(tied)
    served = tf.saved_model.load(saved_model(model, tmp_path / "model"))
    outputs = served.serve(tf.constant(TOKENS, "int32"))
    np.testing.assert_allclose(outputs, model(TOKENS), rtol=1e-5, atol=1e-6)


def test_experts_are_computed_one_after_the_other():
    """Each but the first waits for the one before, forward and backward: so their memory is that of one."""

    @tf.function
    def gradients(*arrays):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            loss = tf.reduce_sum(log_mixture(*arrays) ** 2)
        return tape.gradient(loss, arrays)

    arrays = [tf.constant(array) for array in arguments(experts=4)]
    graph = gradients.get_concrete_function(*arrays).graph
    waiting = [operation for operation in graph.get_operations() if operation.control_inputs]
    assert len([operation for operation in waiting if operation.type == "Identity"]) >= 2 * (4 - 1)


@each_tying
def test_operations_of_the_decoder_count_for_each_expert(tied):
    counts = [weight.active for weight in masked_weights(language_model(tied))]
    embedding, *others = counts
    decoder = embedding if tied else others.pop()
    expected = 2 * (sum(others) + EXPERTS * decoder)
    assert inference_flops(language_model(tied)).sparse == expected


def test_config_round_trip():
    embedding = SparseReversibleEmbedding(VOCABULARY, LATENT, mask_seed=5)
    layer = MixtureOfSoftmaxes(
        *SIZES,
        embedding=embedding,
        latent_dropout=0.25,
        seed=2,
        kernel_initializer="he_normal",
        distribution="erk",
        block_shape=(2, 1),
        mask_seed=4,
        dtype="mixed_bfloat16",
    )
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert copy.get_config() == layer.get_config()
    assert (copy.units, copy.experts, copy.latent_units) == SIZES
    assert (copy.latent_dropout, copy.seed, copy.block_shape, copy.mask_seed) == (0.25, 2, (2, 1), 4)
    assert type(copy.embedding) is SparseReversibleEmbedding


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MixtureOfSoftmaxes(0, 2, 2), r"`units` must be a positive integer\. Received: units=0"),
        (lambda: MixtureOfSoftmaxes(4, 1.5, 2), r"`experts` .* Received: experts=1\.5"),
        (lambda: MixtureOfSoftmaxes(4, 2, 2, latent_dropout=1), r"`latent_dropout` .* Received: .*=1"),
        (lambda: MixtureOfSoftmaxes(4, 2, 2, sparsity=1), r"`sparsity` .* Received: sparsity=1"),
        (
            lambda: MixtureOfSoftmaxes(4, 2, 2, embedding=SparseEmbedding(4, 3)),
            r"`embedding` must have a matrix of shape .* \(4, 2\)\. Received: a matrix of shape \(4, 3\)",
        ),
        (lambda: MixtureOfSoftmaxes(4, 2, 2, embedding="tied"), r"`embedding` .* Received: embedding='tied'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
