"""`weight_drop` of the recurrent layers: which connections are dropped, and what is computed then."""

import contextlib

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_selfish import SNTASGD, strip
from keras_selfish.layers import (
    SparseGRU,
    SparseLSTM,
    SparseLSTMCell,
    SparseRHN,
    SparseSimpleRNN,
)
from keras_selfish.masks import masked_weights

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax

also_on_jax = pytest.mark.backends("tensorflow", "jax")

BATCH, TIME, FEATURES, UNITS = 3, 4, 5, 6
KINDS = {"LSTM": SparseLSTM, "GRU": SparseGRU, "SimpleRNN": SparseSimpleRNN}
each_kind = pytest.mark.parametrize("kind", KINDS)
SEED, RATE = 5, 0.4
PADDED = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]], bool)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def with_weights(layer):
    layer.build((BATCH, TIME, FEATURES))
    for index, weight in enumerate(layer.trainable_weights):
        weight.assign(0.7 * draw(*weight.shape, seed=index))
    for masked_weight in masked_weights(layer):
        masked_weight.project()
    return layer


def sparse_layer(kind, weight_drop=RATE, sparsity=0.5, seed=SEED, **options):
    # Weights are assigned; to draw orthogonal ones first would take longer than most of these tests.
    options = {"return_sequences": True, "mask_seed": 2, "recurrent_initializer": "zeros", **options}
    return with_weights(KINDS[kind](UNITS, sparsity=sparsity, weight_drop=weight_drop, seed=seed, **options))


def drop_factor(shape, rate=RATE, seed=SEED):
    """What the first call multiplies the recurrent kernel by: the seed decides."""
    numbers = keras.random.uniform(shape, dtype="float32", seed=keras.random.SeedGenerator(seed))
    return np.where(numpy(numbers) >= rate, 1 / (1 - rate), 0).astype("float32")


def dense_twin(layer, rate=RATE, **options):
    """Keras's layer with the dropped recurrent kernel baked in, and the factor of it."""
    twin = layer.plain_class(UNITS, return_sequences=True, recurrent_initializer="zeros", **options)
    twin.build((BATCH, TIME, FEATURES))
    masks = {id(masked_weight.mask) for masked_weight in masked_weights(layer)}
    weights = [numpy(weight) for weight in layer.weights if id(weight) not in masks]
    factor = drop_factor(weights[1].shape, rate)
    weights[1] = weights[1] * factor
    twin.set_weights(weights)
    return twin, factor


def outputs_and_gradients(layer, inputs, **call):
    """Outputs, and the gradients of the inputs and weights of a loss in which every output counts."""
    weights = [weight.value for weight in layer.trainable_weights]
    upstream = draw(BATCH, TIME, UNITS, seed=9)
    if BACKEND == "jax":

        def loss(weights, inputs):
            others = [variable.value for variable in layer.non_trainable_variables]
            outputs, _ = layer.stateless_call(weights, others, inputs, **call)
            return ops.sum(ops.cast(outputs, "float32") * upstream), outputs

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        (d_weights, d_inputs), outputs = gradient(weights, inputs)
    else:
        inputs = tf.convert_to_tensor(inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, **call)
            loss = tf.reduce_sum(tf.cast(outputs, "float32") * upstream)
        d_weights, d_inputs = tape.gradient(loss, [weights, inputs])
    return [numpy(result) for result in (outputs, d_inputs, *d_weights)]


def assert_close(results, expected):
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=1e-4, atol=1e-5 * max(1, np.abs(value).max()))


# Which connections


def effective_kernel(layer, units, **call):
    """The recurrent kernel in use, read from outputs: a step from each unit vector, times a small number."""
    small = 1e-3
    states = small * np.eye(units, dtype="float32")
    inputs = np.zeros((units, 1, 1), "float32")
    return np.arctanh(numpy(layer(inputs, initial_state=states, **call))).astype(float) / small


def simple_layer(units, rate, seed):
    options = {"use_bias": False, "recurrent_initializer": "zeros"}
    layer = SparseSimpleRNN(units, sparsity=0, weight_drop=rate, seed=seed, **options)
    layer.build((None, None, 1))
    layer.cell.recurrent_kernel.assign(np.ones((units, units)))
    return layer


@given(rate=st.floats(0.05, 0.95), seed=st.integers(0, 2**31 - 1))
def test_fraction_and_scale_of_what_is_dropped(rate, seed):
    kernel = effective_kernel(simple_layer(60, rate, seed), 60, training=True)
    kept = kernel > 0.5
    np.testing.assert_allclose(kernel, kept / (1 - rate), rtol=1e-3, atol=1e-3)
    assert abs(kept.sum() - 3600 * (1 - rate)) < 5 * np.sqrt(3600 * rate * (1 - rate))


@also_on_jax
def test_seeds_and_calls():
    def two_kernels(seed):
        layer = simple_layer(20, 0.5, seed)
        return [effective_kernel(layer, 20, training=True) for _ in range(2)]

    first, second = two_kernels(3)
    assert (first != second).any()  # each call drops others
    np.testing.assert_array_equal(two_kernels(3), [first, second])
    assert (two_kernels(4)[0] != first).any()


def test_inference_drops_nothing_and_a_rate_of_0_never():
    np.testing.assert_allclose(effective_kernel(simple_layer(20, 0.5, 1), 20), 1, rtol=1e-3)
    layer = simple_layer(20, 0.0, 1)
    state = numpy(layer.cell.seed_generator.state)
    np.testing.assert_allclose(effective_kernel(layer, 20, training=True), 1, rtol=1e-3)
    np.testing.assert_array_equal(layer.cell.seed_generator.state, state)  # nothing was drawn


# What is computed

OPTIONS = {
    "default": ({}, {}),
    "padded": ({}, {"mask": PADDED}),
    "backwards": ({"go_backwards": True}, {}),
    "Keras's loop": ({"activation": "relu"}, {}),
    "unrolled": ({"unroll": True}, {}),
}


@also_on_jax
@pytest.mark.pairwise(
    kind=list(KINDS),
    case=list(OPTIONS) if BACKEND == "tensorflow" else ["padded"],
    sparsity=[0.5, 0.0] if BACKEND == "tensorflow" else [0.5],
)
def test_against_keras(kind, case, sparsity):
    """As Keras's layer with the dropped kernel: the same connections at all time steps."""
    options, call = OPTIONS[case]
    call = {name: ops.convert_to_tensor(value) for name, value in call.items()}
    layer = sparse_layer(kind, sparsity=sparsity, **options)
    twin, factor = dense_twin(layer, **options)
    assert 0 < np.count_nonzero(factor) < factor.size
    inputs = draw(BATCH, TIME, FEATURES)
    expected = outputs_and_gradients(twin, inputs, **call)
    expected[3] = expected[3] * factor
    for index, masked_weight in enumerate(masked_weights(layer)):
        expected[2 + index] = expected[2 + index] * numpy(masked_weight.mask)
    assert_close(outputs_and_gradients(layer, inputs, training=True, **call), expected)


def test_against_a_loop_of_numpy():
    """An LSTM by its equations in float64, one sequence, step and unit after the other."""
    layer = sparse_layer("LSTM")
    kernel, recurrent_kernel, bias = (numpy(weight).astype(float) for weight in layer.trainable_weights)
    factor = drop_factor(recurrent_kernel.shape)
    inputs = draw(BATCH, TIME, FEATURES)
    expected = np.zeros((BATCH, TIME, UNITS))
    for n in range(BATCH):
        h, c = np.zeros(UNITS), np.zeros(UNITS)
        for t in range(TIME):
            z = bias.copy()
            for column in range(4 * UNITS):
                for feature in range(FEATURES):
                    z[column] += inputs[n, t, feature] * kernel[feature, column]
                for unit in range(UNITS):
                    z[column] += h[unit] * recurrent_kernel[unit, column] * factor[unit, column]
            i, f, g, o = np.split(z, 4)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
            expected[n, t] = h
    np.testing.assert_allclose(layer(inputs, training=True), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(numpy(layer(inputs)) - expected).max() > 0.01


@each_kind
def test_gradient_against_differences(kind):
    layer = sparse_layer(kind)
    inputs = draw(BATCH, TIME, FEATURES)
    upstream = draw(BATCH, TIME, UNITS, seed=9)
    gradient = outputs_and_gradients(layer, inputs, training=True)[3]
    weight, step = layer.trainable_weights[1], 1e-2
    value, start = numpy(weight), numpy(layer.cell.seed_generator.state)

    def loss(kernel):
        layer.cell.seed_generator.state.assign([SEED, 0])
        weight.assign(kernel)
        return float(np.sum(numpy(layer(inputs, training=True)).astype(float) * upstream))

    assert start[0] == SEED
    mask = numpy(weight.masked_weight.mask)
    factor = drop_factor(value.shape)
    for exists, dropped in [(True, False), (True, True), (False, False)]:
        places = np.argwhere((mask == exists) & ((factor == 0) == dropped))
        for place in map(tuple, places[:: max(1, len(places) // 4)]):
            change = np.zeros_like(value)
            change[place] = step
            if exists:
                difference = (loss(value + change) - loss(value - change)) / (2 * step)
                assert gradient[place] == pytest.approx(difference, rel=0.02, abs=5e-3), place
            if dropped or not exists:
                assert gradient[place] == 0


@each_kind
def test_the_dense_gradient_an_optimizer_may_ask_for(kind):
    """It passes the mask of connections, but not the drop."""
    layer = sparse_layer(kind)
    twin, factor = dense_twin(layer)
    inputs = draw(BATCH, TIME, FEATURES)
    expected = outputs_and_gradients(twin, inputs)
    expected[3] = expected[3] * factor
    with contextlib.ExitStack() as dense:
        for masked_weight in masked_weights(layer):
            dense.enter_context(masked_weight.dense_gradient())
        assert_close(outputs_and_gradients(layer, inputs, training=True), expected)
    mask = numpy(layer.trainable_weights[1].masked_weight.mask)
    assert np.abs(expected[3][~mask]).max() > 0


@also_on_jax
def test_one_pattern_at_all_time_steps():
    """A network that hands its state on: through a kept connection it lives on, through others it dies."""
    layer = SparseSimpleRNN(
        30, sparsity=0, weight_drop=0.5, seed=1, use_bias=False, activation="linear", return_sequences=True
    )
    layer.build((None, None, 1))
    layer.cell.recurrent_kernel.assign(np.eye(30))
    outputs = numpy(
        layer(np.zeros((1, 3, 1), "float32"), initial_state=np.ones((1, 30), "float32"), training=True)
    )[0]
    kept = outputs[0] != 0
    assert 0 < kept.sum() < 30
    np.testing.assert_array_equal(outputs, [kept * 2.0, kept * 4.0, kept * 8.0])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@each_kind
def test_half_precision(kind, policy):
    layer = sparse_layer(kind, dtype=policy)
    expected, factor = dense_twin(layer)
    results = outputs_and_gradients(layer, draw(BATCH, TIME, FEATURES), training=True)
    twin = outputs_and_gradients(expected, draw(BATCH, TIME, FEATURES))
    np.testing.assert_allclose(results[0].astype(float), twin[0], atol=0.05)
    mask = numpy(layer.trainable_weights[1].masked_weight.mask)
    assert results[3].dtype == "float32"
    assert (results[3][~mask | (factor == 0)] == 0).all()
    assert (results[3] != 0).any()


# In models


def model_of(kind, **options):
    return keras.Sequential(
        [
            keras.Input((TIME, FEATURES)),
            KINDS[kind](UNITS, mask_seed=1, weight_drop=RATE, seed=SEED, **options),
        ]
    )


@pytest.mark.parametrize("clip_norm_of", ["dense", "active"])
@each_kind
def test_fit_moves_existing_connections_only(kind, clip_norm_of):
    model = model_of(kind)
    before = [numpy(weight.weight) for weight in masked_weights(model)]
    as_a_graph = kind == "LSTM" and clip_norm_of == "dense"
    optimizer = SNTASGD(1.0, global_clipnorm=0.25, clip_norm_of=clip_norm_of)
    model.compile(optimizer, "mse", run_eagerly=not as_a_graph)
    model.fit(draw(8, TIME, FEATURES), draw(8, UNITS), batch_size=4, epochs=3, verbose=0)
    for masked_weight, start in zip(masked_weights(model), before, strict=True):
        weight, mask = numpy(masked_weight.weight), numpy(masked_weight.mask)
        assert (weight[~mask] == 0).all()
        assert (weight != start)[mask].mean() > 0.8


@also_on_jax
def test_steps_are_clipped_by_the_dense_norm():
    """One step of SGD: learning rate * 0.01 / norm of the gradient of all positions, twin's as reference."""
    layer = sparse_layer("SimpleRNN")
    twin, factor = dense_twin(layer)
    inputs = draw(BATCH, TIME, FEATURES)
    targets = draw(BATCH, TIME, UNITS, seed=9)
    model = keras.Sequential([keras.Input((TIME, FEATURES)), layer])
    # The gradient of mean((h - targets)**2) is that of sum(h * upstream) with this upstream.
    reference = keras.Sequential([keras.Input((TIME, FEATURES)), twin])
    start = [numpy(weight) for weight in layer.trainable_weights]
    reference.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=BACKEND == "tensorflow")
    reference_start = [numpy(weight) for weight in twin.trainable_weights]
    reference.fit(inputs, targets, batch_size=BATCH, verbose=0)
    gradients = [
        value - numpy(weight) for value, weight in zip(reference_start, twin.trainable_weights, strict=True)
    ]
    gradients[1] = gradients[1] * factor
    norm = np.sqrt(sum((gradient.astype(float) ** 2).sum() for gradient in gradients))
    model.compile(SNTASGD(1.0, global_clipnorm=0.01), "mse", run_eagerly=BACKEND == "tensorflow")
    model.fit(inputs, targets, batch_size=BATCH, verbose=0)
    for value, weight, gradient in zip(start, layer.trainable_weights, gradients, strict=True):
        mask = numpy(weight.masked_weight.mask) if hasattr(weight, "masked_weight") else 1
        expected = value - 0.01 / norm * gradient * mask
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)


def test_all_recurrent_kernels_of_a_highway_network():
    layer = SparseRHN(UNITS, depth=2, sparsity=0.5, mask_seed=1, weight_drop=RATE, seed=SEED)
    twin = SparseRHN(UNITS, depth=2, sparsity=0.5, mask_seed=1)
    inputs = draw(BATCH, TIME, FEATURES)
    plain, dropped = numpy(layer(inputs)), numpy(layer(inputs, training=True))
    twin(inputs)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(twin(inputs, training=True), plain)
    generator = keras.random.SeedGenerator(SEED)
    for name in ("recurrent_kernel_0", "recurrent_kernel_1"):
        weight = getattr(twin.cell, name)
        numbers = keras.random.uniform(weight.shape, dtype="float32", seed=generator)
        weight.assign(np.where(numpy(numbers) >= RATE, numpy(weight) / (1 - RATE), 0))
    np.testing.assert_allclose(twin(inputs), dropped, rtol=1e-5, atol=1e-6)
    assert np.abs(plain - dropped).max() > 1e-3


@each_kind
def test_bidirectional(kind):
    """Both directions drop: what fuses them must not pass by the drop."""
    layer = keras.layers.Bidirectional(
        KINDS[kind](UNITS, mask_seed=1, weight_drop=0.9, seed=SEED, return_sequences=True)
    )
    inputs = draw(BATCH, TIME, FEATURES)
    plain, dropped = numpy(layer(inputs)), numpy(layer(inputs, training=True))
    differs = np.abs(plain - dropped).max((0, 1)) > 1e-6
    assert differs[:UNITS].any()
    assert differs[UNITS:].any()


@pytest.mark.parametrize("sparsity", [0.0, 0.5], ids=["dense", "sparse"])
def test_kernels_read_by_another_layer_are_dropped(sparsity):
    """As Keras's `Bidirectional` reads them for cuDNN, without a call of the layer itself."""
    layer = sparse_layer("LSTM", sparsity=sparsity)

    class Reader(keras.layers.Layer):
        def call(self, inputs, training=False):
            return ops.convert_to_tensor(layer.cell.recurrent_kernel) + 0 * ops.sum(inputs)

    raw = numpy(layer.trainable_weights[1])
    reader = Reader()
    np.testing.assert_array_equal(reader(np.zeros(1)), raw)
    factor = drop_factor(raw.shape)
    np.testing.assert_allclose(reader(np.zeros(1), training=True), raw * factor, rtol=1e-6)
    np.testing.assert_array_equal(layer.cell.recurrent_kernel, raw)


def test_cudnn_gets_the_dropped_kernel(monkeypatch):
    """Where the layer is left to Keras, which hands its cell's kernel to cuDNN; here there is no GPU."""
    layer = sparse_layer("LSTM", use_cudnn="auto")
    twin, _ = dense_twin(layer)
    monkeypatch.setattr("keras_selfish.recurrence.on_gpu", lambda: True)
    assert layer._cudnn_is_meant(None)
    inputs = draw(BATCH, TIME, FEATURES)
    np.testing.assert_allclose(layer(inputs, training=True), twin(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse_class", [*KINDS.values(), SparseLSTMCell])
def test_config_round_trip(sparse_class):
    layer = sparse_class(8, weight_drop=0.25, mask_seed=4, seed=2)
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert copy.get_config() == layer.get_config()
    assert copy.weight_drop == 0.25
    without = layer.get_config()
    del without["weight_drop"]  # as in files of earlier versions
    assert sparse_class.from_config(without).weight_drop == 0


@each_kind
def test_save_load_strip(kind, tmp_path):
    model, inputs = model_of(kind), draw(BATCH, TIME, FEATURES)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs), model(inputs))
    np.testing.assert_array_equal(loaded(inputs, training=True), model(inputs, training=True))
    stripped = strip(model)
    assert type(stripped.layers[0]) is KINDS[kind].plain_class
    np.testing.assert_allclose(stripped(inputs), model(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "jit"),
    [*((kind, False) for kind in KINDS), ("SimpleRNN", True)],
    ids=lambda value: ["graph", "XLA"][value] if isinstance(value, bool) else value,
)
def test_compiled_calls_draw_anew(kind, jit):
    layer = sparse_layer(kind, use_cudnn=False) if kind != "SimpleRNN" else sparse_layer(kind)
    twin, _ = dense_twin(layer)
    run = tf.function(lambda inputs: layer(inputs, training=True), jit_compile=jit)
    inputs = tf.constant(draw(BATCH, TIME, FEATURES))
    layer.cell.seed_generator.state.assign([SEED, 0])
    first, second = run(inputs), run(inputs)
    assert np.abs(first - second).max() > 1e-3
    layer.cell.seed_generator.state.assign([SEED, 0])
    np.testing.assert_array_equal(run(inputs), first)
    if not jit:  # XLA has random numbers of its own
        np.testing.assert_allclose(first, twin(inputs), rtol=1e-4, atol=1e-5)


def test_a_cell_by_itself_says_that_it_cannot_drop():
    layer = keras.layers.RNN(SparseLSTMCell(UNITS, weight_drop=0.5))
    inputs = draw(BATCH, TIME, FEATURES)
    layer(inputs)  # in inference there is nothing to drop
    with pytest.raises(
        ValueError, match=r"`weight_drop` must be 0 .* Received: weight_drop=0\.5; use a layer"
    ):
        layer(inputs, training=True)
