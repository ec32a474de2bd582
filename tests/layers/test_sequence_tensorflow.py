"""The LSTM over a sequence for TensorFlow, against Keras's layer and finite differences."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if keras.backend.backend() != "tensorflow":
    pytest.skip("needs Keras's TensorFlow backend", allow_module_level=True)

import tensorflow as tf

from keras_selfish.layers import sequence_tensorflow
from keras_selfish.layers.sequence_tensorflow import lstm

USES = {
    "outputs": (1, 0, 0),
    "last output only": (0, 1, 0),
    "cell state only": (0, 0, 1),
    "all": (1, 1, 1),
}


def arguments(batch=3, time=5, features=4, units=6, seed=0, dtype="float32", bias=True):
    """Sequences, two states, two kernels and a bias (or None)."""
    rng = np.random.default_rng([seed, batch, time, features, units])
    shapes = [
        (batch, time, features),
        (batch, units),
        (batch, units),
        (features, 4 * units),
        (units, 4 * units),
        (4 * units,),
    ]
    values = [tf.constant(rng.normal(size=shape), dtype) for shape in shapes]
    return values if bias else [*values[:-1], None]


def used_loss(results, use):
    """A scalar that depends on the outputs chosen by `use`, differently at each position."""
    total = 0.0
    for result, factor in zip(results, USES[use], strict=True):
        if factor:
            weights = np.random.default_rng(7).normal(size=result.shape)
            total += tf.reduce_sum(result * tf.constant(weights, result.dtype))
    return total


def results_and_gradients(function, values, use):
    """`function(*values)` and the gradients of its `used_loss` wrt all that is not None."""
    sources = [value for value in values if value is not None]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        results = function(*values)
        loss = used_loss(results, use)
    gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
    return [*results, *gradients]


def keras_lstm(go_backwards=False):
    """`keras.layers.LSTM` as a function of the same tensors as `lstm`."""

    def function(sequences, h, c, kernel, recurrent_kernel, bias):
        layer = keras.layers.LSTM(
            h.shape[1],
            return_sequences=True,
            return_state=True,
            go_backwards=go_backwards,
            use_bias=bias is not None,
            unroll=True,
            dtype=sequences.dtype.name,
        )
        layer.build(sequences.shape)
        variables = [layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias]
        tensors = [kernel, recurrent_kernel, bias]
        pairs = [pair for pair in zip(variables, tensors, strict=True) if pair[0] is not None]
        # A stateless scope lets gradients flow to the tensors that stand for the variables.
        with keras.StatelessScope(state_mapping=pairs):
            return layer(sequences, initial_state=[h, c])

    return function


def assert_same(ours, theirs, tolerance):
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        scale = max(1.0, float(np.abs(their).max(initial=0.0)))
        np.testing.assert_allclose(our, their, rtol=0, atol=tolerance * scale)


@settings(deadline=None, max_examples=12)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(1, 7)),
    seed=st.integers(0, 99),
    go_backwards=st.booleans(),
    bias=st.booleans(),
    use=st.sampled_from(sorted(USES)),
)
def test_equals_keras_eagerly(sizes, seed, go_backwards, bias, use):
    values = arguments(*sizes, seed=seed, bias=bias)

    def ours(*values):
        return lstm(*values, go_backwards=go_backwards)

    theirs = keras_lstm(go_backwards)
    assert_same(results_and_gradients(ours, values, use), results_and_gradients(theirs, values, use), 1e-5)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("go_backwards", [False, True])
def test_equals_keras_in_a_function_of_dynamic_shape(go_backwards, use):
    specs = [
        tf.TensorSpec((None, None, 4)),
        tf.TensorSpec((None, 6)),
        tf.TensorSpec((None, 6)),
        tf.TensorSpec((4, 24)),
        tf.TensorSpec((6, 24)),
        tf.TensorSpec((24,)),
    ]
    traces = []

    @tf.function(input_signature=[*specs, *(tf.TensorSpec(s) for s in [(None, None, 6)] * 3)])
    def ours(*values):
        traces.append(values)
        values, weights = values[:6], values[6:]
        with tf.GradientTape() as tape:
            tape.watch(values)
            results = lstm(*values, go_backwards=go_backwards)
            loss = 0.0
            for result, weight, factor in zip(results, weights, USES[use], strict=True):
                if factor:
                    loss += tf.reduce_sum(result * weight)
        return [*results, *tape.gradient(loss, values)]

    for batch, time in [(3, 5), (2, 1), (1, 8)]:
        values = arguments(batch, time)
        theirs = results_and_gradients(keras_lstm(go_backwards), values, use)
        weights = [np.random.default_rng(7).normal(size=r.shape) for r in theirs[:3]]
        weights = [weights[0], weights[1][None], weights[2][None]]
        assert_same(ours(*values, *(tf.constant(w, tf.float32) for w in weights)), theirs, 1e-5)
    assert len(traces) == 1


def test_equals_a_loop_in_numpy():
    x, h, c, kernel, recurrent_kernel, bias = (value.numpy() for value in arguments(dtype="float64"))
    expected = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent_kernel + bias, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        expected.append(h)
    outputs, last_h, last_c = lstm(*arguments(dtype="float64"))
    np.testing.assert_allclose(outputs, np.stack(expected, axis=1), atol=1e-12)
    np.testing.assert_allclose(last_h, h, atol=1e-12)
    np.testing.assert_allclose(last_c, c, atol=1e-12)


@pytest.mark.parametrize("go_backwards", [False, True])
def test_gradient_equals_finite_differences_in_float64(go_backwards):
    values = arguments(batch=2, time=3, features=2, units=3, dtype="float64")

    @tf.function(autograph=False)
    def loss(*values):
        return used_loss(lstm(*values, go_backwards=go_backwards), "all")

    for by_hand, by_differences in zip(*tf.test.compute_gradient(loss, values, delta=1e-5), strict=True):
        np.testing.assert_allclose(by_hand, by_differences, atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_half_precision_is_near_float32(dtype, tolerance):
    halves = [tf.cast(0.5 * value, dtype) for value in arguments(units=16)]
    singles = [tf.cast(value, tf.float32) for value in halves]
    ours = results_and_gradients(lstm, halves, "all")
    assert {result.dtype for result in ours} == {tf.as_dtype(dtype)}
    ours = [tf.cast(result, tf.float32) for result in ours]
    assert_same(ours, results_and_gradients(lstm, singles, "all"), tolerance)


def test_cell_state_keeps_small_terms_in_bfloat16():
    # Forget gate 1, input gate 0.0067: in bfloat16 the sum would stop growing below 2.
    bias = tf.constant([-5.0, 30.0, 30.0, 0.0], tf.bfloat16)
    kernel, state = tf.zeros((1, 4), tf.bfloat16), tf.zeros((1, 1), tf.bfloat16)
    sequences = tf.zeros((1, 1000, 1), tf.bfloat16)
    _, _, c = tf.function(lstm)(sequences, state, state, kernel, kernel, bias)
    assert float(c[0, 0]) == pytest.approx(1000 / (1 + np.exp(5)), rel=0.005)


@pytest.mark.parametrize("static", [True, False])
def test_compiles_with_xla(static):
    values = arguments()
    expected = results_and_gradients(lstm, values, "all")
    weights = [np.random.default_rng(7).normal(size=r.shape) for r in expected[:3]]
    specs = [tf.TensorSpec(value.shape) for value in values]
    if not static:
        specs[:3] = [tf.TensorSpec((None, None, 4)), tf.TensorSpec((None, 6)), tf.TensorSpec((None, 6))]

    @tf.function(jit_compile=True, input_signature=specs)
    def compiled(*values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            results = lstm(*values)
            loss = tf.add_n(
                [tf.reduce_sum(r * tf.constant(w, tf.float32)) for r, w in zip(results, weights, strict=True)]
            )
        return [*results, *tape.gradient(loss, values)]

    assert_same(compiled(*values), expected, 1e-5)


def test_saved_model(tmp_path):
    *_, kernel, recurrent_kernel, bias = arguments()
    weights = [kernel, recurrent_kernel, bias]
    module = tf.Module()
    module.weights = [tf.Variable(weight) for weight in weights]

    @tf.function(input_signature=[tf.TensorSpec((None, None, 4))])
    def serve(sequences):
        states = tf.zeros((tf.shape(sequences)[0], 6))
        return lstm(sequences, states, states, *module.weights)

    module.serve = serve
    tf.saved_model.save(module, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    for batch, time in [(3, 5), (1, 2)]:
        sequences = arguments(batch, time)[0]
        states = tf.zeros((batch, 6))
        expected = lstm(sequences, states, states, *weights)
        for our, their in zip(loaded.serve(sequences), expected, strict=True):
            np.testing.assert_allclose(our, their, atol=1e-6)


@pytest.mark.parametrize("in_function", [False, True])
def test_second_gradient_is_refused(in_function):
    values = arguments()

    def second(*values):
        with tf.GradientTape() as outer:
            outer.watch(values)
            with tf.GradientTape() as inner:
                inner.watch(values)
                loss = used_loss(lstm(*values), "all")
            norm = tf.add_n([tf.reduce_sum(g**2) for g in inner.gradient(loss, values)])
        return outer.gradient(norm, values)

    with pytest.raises(LookupError, match="`lstm` has a first-order gradient only"):
        (tf.function(second, autograph=False) if in_function else second)(*values)


@pytest.mark.parametrize(("units", "products_of_a_step"), [(6, 4), (520, 1)])
def test_products_inside_and_outside_of_the_loops(units, products_of_a_step):
    @tf.function(autograph=False)
    def step(*values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = used_loss(lstm(*values), "all")
        return tape.gradient(loss, values)

    graph = step.get_concrete_function(*arguments(units=units)).graph.as_graph_def()

    def products(nodes):
        return sum(node.op in ("MatMul", "BatchMatMulV2") for node in nodes)

    bodies = [f for f in graph.library.function if "body" in f.signature.name]
    assert [products(body.node_def) for body in bodies] == [products_of_a_step] * 2
    # The projection, and the gradients of the inputs and of the two kernels.
    assert products(graph.node) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_product_a_step_equals_one_for_each_gate(dtype, monkeypatch):
    values = [tf.cast(0.5 * value, dtype) for value in arguments()]
    found = []
    for groups in (1, 4):
        monkeypatch.setattr(sequence_tensorflow, "_groups", lambda _, groups=groups: groups)
        results = results_and_gradients(lstm, values, "all")
        found.append([tf.cast(result, tf.float32).numpy() for result in results])
    assert_same(*found, 1e-6 if dtype == "float32" else 0.02)


MIRRORED = """
import runpy, sys
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
lstm = runpy.run_path(sys.argv[1])["lstm"]
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(0)
draw = lambda *shape: tf.constant(rng.normal(size=shape), tf.float32)
values = [draw(4, 12), draw(3, 12), draw(12)]
with strategy.scope():
    variables = [tf.Variable(value) for value in values]
halves, state = [draw(2, 5, 4), draw(2, 5, 4)], tf.zeros((2, 3))

def gradients(sequences, weights):
    with tf.GradientTape() as tape:
        tape.watch(weights)
        outputs, h, c = lstm(sequences, state, state, *weights)
        loss = tf.reduce_sum(outputs ** 2) + tf.reduce_sum(h * c)
    return tape.gradient(loss, weights)

def replica_step(sequences):
    context = tf.distribute.get_replica_context()
    return context.all_reduce("sum", gradients(sequences, variables))

@tf.function
def step(sequences):
    return strategy.run(replica_step, args=(sequences,))

distributed = strategy.experimental_distribute_values_from_function(
    lambda context: halves[context.replica_id_in_sync_group])
both = [sum(pair) for pair in zip(*(gradients(half, values) for half in halves))]
for ours, expected in zip(step(distributed), both):
    for replica in strategy.experimental_local_results(ours):
        np.testing.assert_allclose(replica, expected, atol=1e-4)
print("replicas", strategy.num_replicas_in_sync)
"""


@pytest.mark.slow
def test_mirrored_strategy_on_two_devices():
    source = pathlib.Path(sequence_tensorflow.__file__)
    run = subprocess.run(
        [sys.executable, "-c", MIRRORED, str(source)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "replicas 2" in run.stdout
