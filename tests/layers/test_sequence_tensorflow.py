"""The layers over a sequence for TensorFlow, against Keras's layers, NumPy and finite differences."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if keras.backend.backend() != "tensorflow":
    pytest.skip("needs Keras's TensorFlow backend", allow_module_level=True)

import tensorflow as tf

from keras_selfish.layers import recurrence_tensorflow
from keras_selfish.layers.sequence_tensorflow import gru, lstm, simple_rnn

KINDS = {
    "lstm": (lstm, keras.layers.LSTM, {}),
    "gru": (gru, keras.layers.GRU, {}),
    "gru, reset before": (gru, keras.layers.GRU, {"reset_after": False}),
    "simple_rnn": (simple_rnn, keras.layers.SimpleRNN, {}),
}
GATES = {"lstm": 4, "gru": 3, "gru, reset before": 3, "simple_rnn": 1}
USES = {
    "outputs": (1, 0, 0),
    "last output only": (0, 1, 0),
    "cell state only": (0, 0, 1),
    "all": (1, 1, 1),
}

each_kind = pytest.mark.parametrize("kind", KINDS)


def arguments(kind, batch=3, time=5, features=4, units=6, seed=0, dtype="float32", bias=True):
    """Sequences, one or two states, two kernels and a bias (or None)."""
    rng = np.random.default_rng([seed, batch, time, features, units])
    width = GATES[kind] * units
    states = [(batch, units)] * (2 if kind == "lstm" else 1)
    bias_shape = (2, width) if kind == "gru" else (width,)
    shapes = [(batch, time, features), *states, (features, width), (units, width), bias_shape]
    values = [tf.constant(rng.normal(size=shape), dtype) for shape in shapes]
    return values if bias else [*values[:-1], None]


def padding(batch=3, time=5, seed=0):
    """Padded steps anywhere; the first row has no others."""
    mask = np.random.default_rng(seed).random((batch, time)) < 0.6
    mask[0] = False
    return mask


def dropout(kind, batch=3, units=6, dtype="float32", of_gates=False):
    masks = np.random.default_rng(3).choice([0.0, 1.5], p=[1 / 3, 2 / 3], size=(4, batch, units))
    masks = [tf.constant(mask, dtype) for mask in masks]
    return masks[: GATES[kind]] if of_gates else masks[0]


def everything(kind, **sizes):
    """Options of a function that change each of its loops."""
    small = {name: sizes[name] for name in ("batch", "time") if name in sizes}
    others = {name: size for name, size in sizes.items() if name != "time"}
    return {
        "go_backwards": True,
        "mask": padding(**small),
        "recurrent_dropout_mask": dropout(kind, of_gates=True, **others),
    }


def ours(kind, **options):
    function, _, kind_options = KINDS[kind]
    return lambda *values: function(*values, **kind_options, **options)


def used_loss(results, use="all"):
    """A scalar that depends on the outputs chosen by `use`, differently at each position."""
    total = 0.0
    factors = (1, 1) if len(results) == 2 and use == "cell state only" else USES[use]
    for result, factor in zip(results, factors, strict=False):
        if factor:
            weights = np.random.default_rng(7).normal(size=result.shape)
            total += tf.reduce_sum(result * tf.constant(weights, result.dtype))
    return total


def results_and_gradients(function, values, use="all"):
    """`function(*values)` and the gradients of its `used_loss` wrt all that is not None."""
    sources = [value for value in values if value is not None]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        results = function(*values)
        loss = used_loss(results, use)
    gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
    return [*results, *gradients]


def keras_layer(kind, go_backwards=False, mask=None):
    """Keras's layer as a function of the same tensors as ours."""

    def function(sequences, *values):
        *states, kernel, recurrent_kernel, bias = values
        _, layer_class, options = KINDS[kind]
        layer = layer_class(
            states[0].shape[1],
            return_sequences=True,
            return_state=True,
            go_backwards=go_backwards,
            use_bias=bias is not None,
            unroll=True,
            dtype=sequences.dtype.name,
            **options,
        )
        layer.build(sequences.shape)
        variables = [layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias]
        tensors = [kernel, recurrent_kernel, bias]
        pairs = [pair for pair in zip(variables, tensors, strict=True) if pair[0] is not None]
        # A stateless scope lets gradients flow to the tensors that stand for the variables.
        with keras.StatelessScope(state_mapping=pairs):
            return layer(sequences, initial_state=states, mask=mask)

    return function


def assert_same(ours, theirs, tolerance=1e-5):
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        scale = max(1.0, float(np.abs(their).max(initial=0.0)))
        np.testing.assert_allclose(our, their, rtol=0, atol=tolerance * scale)


@settings(max_examples=10)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 7)),
    seed=st.integers(0, 99),
    go_backwards=st.booleans(),
    bias=st.booleans(),
    padded=st.booleans(),
    use=st.sampled_from(sorted(USES)),
)
@each_kind
def test_equals_keras_eagerly(kind, sizes, seed, go_backwards, bias, padded, use):
    values = arguments(kind, *sizes, seed=seed, bias=bias)
    options = {
        "go_backwards": go_backwards,
        "mask": tf.constant(padding(*sizes[:2], seed)) if padded else None,
    }
    assert_same(
        results_and_gradients(ours(kind, **options), values, use),
        results_and_gradients(keras_layer(kind, **options), values, use),
    )


@each_kind
def test_equals_itself_in_a_function_of_dynamic_shape(kind):
    states = [tf.TensorSpec((None, 6))] * (2 if kind == "lstm" else 1)
    weights = [tf.TensorSpec(value.shape) for value in arguments(kind)[1 + len(states) :]]
    traces = []

    @tf.function(
        input_signature=[tf.TensorSpec((None, None)), tf.TensorSpec((None, None, 4)), *states, *weights]
    )
    def compiled(mask, *values):
        traces.append(values)
        masks = [tf.where(values[1] > bound, 2.0, 0.0) for bound in (-1.0, -0.5, 0.0, 0.5)]
        function = ours(kind, go_backwards=True, mask=mask, recurrent_dropout_mask=masks[: GATES[kind]])
        with tf.GradientTape() as tape:
            tape.watch(values)
            results = function(*values)
            loss = tf.add_n([tf.reduce_sum(result**2) for result in results])
        return [*results, *tape.gradient(loss, values)]

    for batch, time in [(3, 5), (2, 1)]:
        call = [tf.constant(padding(batch, time), tf.float32), *arguments(kind, batch, time)]
        assert_same(compiled(*call), compiled.python_function(*call), 1e-6)
    assert len(traces) == 3  # one of them by TensorFlow


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def numpy_step(kind, x, states, kernel, recurrent_kernel, bias, masks):
    """The equations of a time step, gate by gate; `masks` are those of dropout, of each gate."""
    h, *c = states
    units = h.shape[1]
    of_inputs, of_h = bias if kind == "gru" else (bias, np.zeros_like(bias))

    def projected(gate):
        columns = slice(gate * units, (gate + 1) * units)
        return x @ kernel[:, columns] + of_inputs[columns]

    def recurrent(gate, h):
        columns = slice(gate * units, (gate + 1) * units)
        return (h * masks[gate]) @ recurrent_kernel[:, columns] + of_h[columns]

    if kind == "lstm":
        i, f, g, o = (projected(gate) + recurrent(gate, h) for gate in range(4))
        c = sigmoid(f) * c[0] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(c), c]
    if kind == "simple_rnn":
        return [np.tanh(projected(0) + recurrent(0, h))]
    z, r = (sigmoid(projected(gate) + recurrent(gate, h)) for gate in range(2))
    of_candidate = r * recurrent(2, h) if kind == "gru" else recurrent(2, r * h)
    return [z * h + (1 - z) * np.tanh(projected(2) + of_candidate)]


@pytest.mark.parametrize("of_gates", [False, True])
@each_kind
def test_equals_a_loop_in_numpy(kind, of_gates):
    values = arguments(kind, dtype="float64")
    masks, mask = dropout(kind, dtype="float64", of_gates=of_gates), padding()
    results = ours(kind, mask=mask, recurrent_dropout_mask=masks)(*values)
    x, *states, kernel, recurrent_kernel, bias = (value.numpy() for value in values)
    masks = masks if of_gates else [masks] * 4
    output, expected = np.zeros_like(states[0]), []
    for t in range(x.shape[1]):
        new = numpy_step(kind, x[:, t], states, kernel, recurrent_kernel, bias, masks)
        real = mask[:, t, None]
        output = np.where(real, new[0], output)
        states = [np.where(real, *pair) for pair in zip(new, states, strict=True)]
        expected.append(output)
    for result, value in zip(results, [np.stack(expected, axis=1), *states], strict=True):
        np.testing.assert_allclose(result, value, atol=1e-12)


@each_kind
def test_gradient_equals_finite_differences_in_float64(kind):
    sizes = {"batch": 2, "units": 3, "dtype": "float64"}
    values = arguments(kind, time=3, features=2, **sizes)
    function = ours(kind, **everything(kind, time=3, **sizes))

    @tf.function(autograph=False)
    def loss(*values):
        return used_loss(function(*values))

    for by_hand, by_differences in zip(*tf.test.compute_gradient(loss, values, delta=1e-5), strict=True):
        np.testing.assert_allclose(by_hand, by_differences, atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.03), ("float16", 0.004)])
@each_kind
def test_half_precision_is_near_float32(kind, dtype, tolerance):
    halves = [tf.cast(0.5 * value, dtype) for value in arguments(kind, units=16)]
    singles = [tf.cast(value, tf.float32) for value in halves]
    function = ours(kind, **everything(kind, units=16, dtype=dtype))
    found = results_and_gradients(function, halves)
    assert {result.dtype for result in found} == {tf.as_dtype(dtype)}
    expected = results_and_gradients(ours(kind, **everything(kind, units=16)), singles)
    assert_same([tf.cast(result, tf.float32) for result in found], expected, tolerance)


def test_cell_state_keeps_small_terms_in_bfloat16():
    # Forget gate 1, input gate 0.0067: in bfloat16 the sum would stop growing below 2.
    bias = tf.constant([-5.0, 30.0, 30.0, 0.0], tf.bfloat16)
    kernel, state = tf.zeros((1, 4), tf.bfloat16), tf.zeros((1, 1), tf.bfloat16)
    sequences = tf.zeros((1, 1000, 1), tf.bfloat16)
    _, _, c = tf.function(lstm)(sequences, state, state, kernel, kernel, bias)
    assert float(c[0, 0]) == pytest.approx(1000 / (1 + np.exp(5)), rel=0.005)


@pytest.mark.parametrize("reset_after", [True, False])
def test_output_of_a_gru_keeps_small_terms_in_bfloat16(reset_after):
    # Candidate 1, update gate 0.9933: in bfloat16 the average would stop growing at 0.7.
    bias = tf.constant([5.0, 0.0, 30.0], tf.bfloat16)
    bias = tf.stack([bias, tf.zeros_like(bias)]) if reset_after else bias
    kernel, state = tf.zeros((1, 3), tf.bfloat16), tf.zeros((1, 1), tf.bfloat16)
    sequences = tf.zeros((1, 300, 1), tf.bfloat16)
    _, h = tf.function(gru)(sequences, state, kernel, kernel, bias, reset_after)
    assert float(h[0, 0]) == pytest.approx(1 - sigmoid(5.0) ** 300, abs=0.005)


@each_kind
def test_compiles_with_xla(kind):
    values = arguments(kind)
    function = ours(kind, **everything(kind))
    expected = results_and_gradients(function, values)
    specs = [tf.TensorSpec((None, None, 4)), *(tf.TensorSpec(value.shape) for value in values[1:])]

    @tf.function(jit_compile=True, input_signature=specs)
    def compiled(sequences, *values):
        with tf.GradientTape() as tape:
            tape.watch([sequences, *values])
            results = function(sequences, *values)
            weights = [np.random.default_rng(7).normal(size=each.shape) for each in expected[: len(results)]]
            loss = tf.add_n(
                [tf.reduce_sum(r * tf.cast(w, r.dtype)) for r, w in zip(results, weights, strict=True)]
            )
        return [*results, *tape.gradient(loss, [sequences, *values])]

    assert_same(compiled(*values), expected)


@each_kind
def test_second_gradient_is_refused(kind):
    values = arguments(kind)

    def second(source, *values):
        with tf.GradientTape() as outer:
            outer.watch(values[source])
            with tf.GradientTape() as inner:
                inner.watch(values)
                loss = used_loss(ours(kind)(*values))
            norm = tf.add_n([tf.reduce_sum(g**2) for g in inner.gradient(loss, values)])
        return outer.gradient(norm, values[source])

    message = f"first order only.* use `keras.layers.{KINDS[kind][1].__name__}`"
    for source in range(len(values)):
        with pytest.raises(LookupError, match=message):
            second(source, *values)
    with pytest.raises(LookupError, match=message):
        tf.function(second, autograph=False)(0, *values)


@pytest.mark.parametrize("units", [6, 520])
@each_kind
def test_what_stands_inside_and_outside_of_the_loops(kind, units, loop_bodies):
    @tf.function(autograph=False)
    def step(*values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = used_loss(ours(kind)(*values))
        return tape.gradient(loss, values)

    values = arguments(kind, units=units)
    graph = step.get_concrete_function(*values).graph.as_graph_def()

    def count(nodes, *names):
        return sum(node.op in names for node in nodes)

    products = ("MatMul", "BatchMatMulV2")
    bodies = [body.node_def for body in loop_bodies(step, *values)]
    assert len(bodies) == 2
    separate = kind == "gru, reset before"
    expected = GATES[kind] if units == 6 else 1 + separate
    assert [count(body, *products) for body in bodies] == [expected] * 2
    # The projection, and the gradients of the inputs and of the two kernels.
    assert count(graph.node, *products) == 4 + separate
    # Derivatives of the gates, transposed kernels and padding have no place in a loop.
    backward = min(bodies, key=lambda body: count(body, "Tanh"))
    assert count(backward, "Tanh", "Sigmoid", "TanhGrad", "SigmoidGrad", "Sub") <= 1  # Sub: the time
    for body in bodies:
        assert count(body, "Transpose", "Select", "SelectV2", "Cast") == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_kind
def test_one_product_a_step_equals_one_for_each_gate(kind, dtype, monkeypatch):
    values = [tf.cast(0.5 * value, dtype) for value in arguments(kind)]
    options = {"mask": padding(), "recurrent_dropout_mask": dropout(kind, dtype=dtype)}
    found = []
    for one in (True, False):
        monkeypatch.setattr(recurrence_tensorflow, "groups_of", lambda _, gates, one=one: 1 if one else gates)
        results = results_and_gradients(ours(kind, **options), values)
        found.append([tf.cast(result, tf.float32).numpy() for result in results])
    assert_same(*found, 1e-6 if dtype == "float32" else 0.02)


@each_kind
def test_one_dropout_mask_is_that_of_each_gate(kind):
    mask, values = dropout(kind), arguments(kind)
    results = [
        results_and_gradients(ours(kind, recurrent_dropout_mask=masks), values)
        for masks in (mask, [mask] * GATES[kind])
    ]
    assert_same(*results, 1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru", "gru, reset before"])
def test_different_inputs_of_each_gate(kind):
    """They are the inputs of a kernel of blocks."""
    gates = GATES[kind]

    def in_lists(sequences, *values):
        return ours(kind)([sequences * (gate + 1) for gate in range(gates)], *values)

    def in_blocks(sequences, *values):
        *states, kernel, recurrent_kernel, bias = values
        joined = tf.concat([sequences * (gate + 1) for gate in range(gates)], axis=2)
        blocks = [
            tf.pad(part, [[0, 0], [6 * gate, 6 * (gates - gate - 1)]])
            for gate, part in enumerate(tf.split(kernel, gates, axis=1))
        ]
        return ours(kind)(joined, *states, tf.concat(blocks, axis=0), recurrent_kernel, bias)

    values = arguments(kind)
    assert_same(results_and_gradients(in_lists, values), results_and_gradients(in_blocks, values))
