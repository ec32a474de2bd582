"""The layers over a whole sequence, written by hand for TensorFlow and for JAX, against a loop in NumPy."""

import contextlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_selfish.recurrence import GRU, LSTM, ONLSTM, RHN, SimpleRNN, driver, padding, run
from keras_selfish.recurrence.cells import split_last

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf

    from keras_selfish.recurrence import driver_tensorflow
elif BACKEND == "jax":
    import jax
    import jax.numpy as jnp

pytestmark = pytest.mark.backends("tensorflow", "jax")
tensorflow_only = pytest.mark.backends("tensorflow")
jax_only = pytest.mark.backends("jax")

GATES = {"lstm": 4, "gru": 3, "gru, reset before": 3, "simple_rnn": 1}
CELLS = {
    "lstm": LSTM(),
    "gru": GRU(),
    "gru, reset before": GRU(reset_after=False),
    "simple_rnn": SimpleRNN(),
    "rhn": RHN(depth=3),
    "rhn, carry gate": RHN(depth=2, coupled=False),
    "on_lstm": ONLSTM(chunk_size=2),
}
each_kind = pytest.mark.parametrize("kind", GATES)

BATCH, TIME, FEATURES, UNITS = 4, 5, 3, 6
# Padded on the right, on the left, everywhere, and in between.
PADDED = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0]], bool)
USES = {"all": [0, 1, -1], "outputs": [0], "last output": [1], "last state": [-1]}
# Only the functions for TensorFlow take a mask, or inputs, of each gate.
OF_GATES = ["of each gate"] if BACKEND == "tensorflow" else []


def arguments(kind, batch=BATCH, time=TIME, features=FEATURES, units=UNITS, bias=True, dropout=None, seed=0):
    """What the function of a kind takes, by name."""
    products = CELLS[kind].widths(units)
    width, biases = sum(CELLS[kind].input_widths(units)), {"gru": 2, "rhn": 3, "rhn, carry gate": 2}
    shapes = {
        "sequences": (batch, time, features),
        "initial_h": (batch, units),
        "initial_c": (batch, units),
        "kernel": (features, width),
        "recurrent_kernel": (units, sum(map(sum, products))),
        "bias": (biases[kind], width) if kind in biases else (width,),
    }
    if "lstm" not in kind:
        del shapes["initial_c"]
    generator = np.random.default_rng([seed, batch, time, features, units])
    values = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    if not bias:
        del values["bias"]
    masks = generator.choice([0.0, 1.5], size=(4, batch, units), p=[1 / 3, 2 / 3])
    if dropout:
        values["recurrent_dropout_mask"] = list(masks[: GATES[kind]]) if dropout in OF_GATES else masks[0]
    return values


def in_dtype(values, dtype):
    return keras.tree.map_structure(lambda value: ops.cast(value, dtype), values)


def ours(kind, inputs="one", **options):
    """The function of a kind."""

    def function(sequences, kernel, recurrent_kernel, bias=None, recurrent_dropout_mask=None, **states):
        sequences = of_each_gate(kind, sequences) if inputs in OF_GATES else sequences
        states = [states[name] for name in ("initial_h", "initial_c") if name in states]
        widths = [sum(widths) for widths in CELLS[kind].widths(recurrent_kernel.shape[0])]
        kernels, biases = split_last(recurrent_kernel, widths), None
        if bias is not None and len(bias.shape) == 2:
            bias, *biases = ops.unstack(bias)
            gates = CELLS[kind].widths(recurrent_kernel.shape[0])
            biases = [split_last(*pair) for pair in zip(biases, gates[-len(biases) :], strict=True)]
            biases = biases if kind == "gru" else [[None] * len(gates[0]), *biases]
        weights = (kernel, kernels, bias, biases, recurrent_dropout_mask)
        outputs, states = run(CELLS[kind], sequences, states, *weights, **options)
        return outputs, *states

    return function


def of_each_gate(kind, sequences):
    return [sequences * (gate + 1) for gate in range(GATES[kind])]


def results_and_gradients(function, values, used="all"):
    """`function(**values)`, and gradients of a loss in which all that is used counts differently, by name."""

    def with_loss(values):
        results = function(**values)
        return sum(ops.sum((results[index] - 0.5) ** 2) for index in USES[used]), results

    if BACKEND == "jax":
        gradients, results = jax.grad(with_loss, has_aux=True)(values)
    else:
        sources = {name: value for name, value in values.items() if name != "recurrent_dropout_mask"}
        with tf.GradientTape() as tape:
            tape.watch(sources)
            loss, results = with_loss(values)
        gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
    return numbered(results) | gradients


def numbered(results):
    return {f"result {number}": result for number, result in enumerate(results)}


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        result, value = np.asarray(found[name], "float64"), np.asarray(value, "float64")
        scale = max(1.0, np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(result, value, rtol=0, atol=tolerance * scale, err_msg=name)


def compiled_on_jax(function):
    """There one function is compiled sooner than each of its operations."""
    return jax.jit(function, static_argnums=0) if BACKEND == "jax" else function


def in_float64():
    if BACKEND != "jax":
        return contextlib.nullcontext()
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # its place before JAX 0.8

    return enable_x64()


# The published equations. All arrays may have further dimensions in front.


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def numpy_step(kind, inputs, states, kernel, recurrent_kernel, bias, dropout):
    """A time step, gate by gate; `inputs`, and the masks of the output before, `dropout`, are of each."""
    if kind not in GATES:
        step = numpy_on_lstm if kind == "on_lstm" else numpy_highway
        return step(kind, inputs[0], states, kernel, recurrent_kernel, bias, dropout[0])
    h, *c = states
    units = h.shape[-1]
    of_inputs, of_h = (bias[..., 0, :], bias[..., 1, :]) if kind == "gru" else (bias, np.zeros_like(bias))

    def columns(tensor, gate):
        return tensor[..., gate * units : (gate + 1) * units]

    def projected(gate):
        return inputs[gate] @ columns(kernel, gate) + columns(of_inputs, gate)[..., None, :]

    def recurrent(gate, h):
        return (h * dropout[gate]) @ columns(recurrent_kernel, gate) + columns(of_h, gate)[..., None, :]

    if kind == "lstm":
        i, f, g, o = (projected(gate) + recurrent(gate, h) for gate in range(4))
        c = sigmoid(f) * c[0] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(c), c]
    if kind == "simple_rnn":
        return [np.tanh(projected(0) + recurrent(0, h))]
    z, r = (sigmoid(projected(gate) + recurrent(gate, h)) for gate in range(2))
    of_candidate = r * recurrent(2, h) if kind == "gru" else recurrent(2, r * h)
    return [z * h + (1 - z) * np.tanh(projected(2) + of_candidate)]


def numpy_highway(kind, inputs, states, kernel, recurrent_kernel, bias, dropout):
    (state,), depth = states, bias.shape[-2]
    units = state.shape[-1]
    for index, of_depth in enumerate(np.split(recurrent_kernel, depth, axis=-1)):
        z = (state * dropout) @ of_depth + bias[..., index, :][..., None, :]
        z = z + inputs @ kernel if index == 0 else z
        h, t = np.tanh(z[..., :units]), sigmoid(z[..., units : 2 * units])
        carry = 1 - t if kind == "rhn" else sigmoid(z[..., 2 * units :])
        state = h * t + state * carry
    return [state]


def numpy_on_lstm(kind, inputs, states, kernel, recurrent_kernel, bias, dropout):
    h, c = states
    units, masters = h.shape[-1], h.shape[-1] // 2
    z = inputs @ kernel + (h * dropout) @ recurrent_kernel + bias[..., None, :]
    master_i, master_f, o, g, i, f = np.split(
        z, [masters, 2 * masters, *(2 * masters + units * n for n in (1, 2, 3))], axis=-1
    )

    def cumax(logits):
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return np.repeat(np.cumsum(shares, -1), 2, axis=-1)

    master_i, master_f = 1 - cumax(master_i), cumax(master_f)
    overlap = master_i * master_f
    c = (sigmoid(f) * overlap + master_f - overlap) * c + (
        sigmoid(i) * overlap + master_i - overlap
    ) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def numpy_loop(kind, values, inputs="one", go_backwards=False, mask=None):
    """Outputs and last states, one time step after the other."""
    bias = values["bias"] if "bias" in values else np.zeros(np.shape(arguments(kind)["bias"]))
    weights = [values["kernel"], values["recurrent_kernel"], bias]
    sequences, dropout = values["sequences"], values.get("recurrent_dropout_mask", 1.0)
    sequences = of_each_gate(kind, sequences) if inputs in OF_GATES else [sequences] * GATES.get(kind, 1)
    dropout = dropout if isinstance(dropout, list) else [dropout] * GATES.get(kind, 1)
    states = [values[name] for name in ("initial_h", "initial_c") if name in values]
    # At a padded step before all others the function for TensorFlow gives zeros, as Keras does there.
    output, outputs = (np.zeros_like(states[0]) if BACKEND == "tensorflow" else states[0]), []
    steps = range(sequences[0].shape[-2])
    for t in reversed(steps) if go_backwards else steps:
        new = numpy_step(kind, [sequence[..., t, :] for sequence in sequences], states, *weights, dropout)
        real = True if mask is None else mask[:, t, None]
        output = np.where(real, new[0], output)
        states = [np.where(real, *pair) for pair in zip(new, states, strict=True)]
        outputs.append(output)
    return [np.stack(np.broadcast_arrays(*outputs), axis=-2), *states]


def expected(kind, values, used="all", **options):
    """What `results_and_gradients` is to return, of the loop in NumPy.

    The gradients are complex steps, derivatives without the error of differences.
    """

    def loss(values):
        results = numpy_loop(kind, values, **options)
        axes = [(-2, -1)] * len(results)
        axes[0] = (-3, -2, -1)
        return sum(((results[index] - 0.5) ** 2).sum(axes[index]) for index in USES[used])

    gradients = {}
    for name, value in values.items():
        if name == "recurrent_dropout_mask" and BACKEND == "tensorflow":
            continue  # there it is taken to be constant
        step = 1e-30 * np.eye(value.size).reshape(value.size, *value.shape)
        gradients[name] = loss(values | {name: value + 1j * step}).imag.reshape(value.shape) / 1e-30
    return numbered(numpy_loop(kind, values, **options)) | gradients


# The numbers


@pytest.fixture
def products_of(monkeypatch):
    """A function that sets whether a time step takes one product, or one for each gate."""

    def set_to(products):
        if BACKEND == "tensorflow":
            monkeypatch.setattr(driver_tensorflow, "separates", lambda *_: products in OF_GATES)

    return set_to


TABLE = {
    "go_backwards": [False, True],
    "padded": [False, True],
    "dropout": [None, "one mask", *OF_GATES],
    "inputs": ["one", *OF_GATES],
    "bias": [True, False],
    "used": list(USES),
    "products": ["one", *OF_GATES],
}


def each_case(test):
    if BACKEND == "tensorflow":
        return each_kind(pytest.mark.pairwise(**TABLE)(test))
    # On JAX each is compiled; `test_compiled` has everything at once there.
    return pytest.mark.pairwise(kind=list(GATES), **TABLE)(test)


@each_case
def test_equals_numpy(kind, go_backwards, padded, dropout, inputs, bias, used, products, products_of):
    products_of(products)
    values = arguments(kind, bias=bias, dropout=dropout)
    options = {"go_backwards": go_backwards, "mask": PADDED if padded else None, "inputs": inputs}
    with in_float64():
        found = results_and_gradients(ours(kind, **options), in_dtype(values, "float64"), used)
    assert_same(found, expected(kind, values, used, **options), 1e-12)


@pytest.mark.parametrize(("kind", "bias"), [*((kind, True) for kind in CELLS), ("on_lstm", False)])
def test_units_padded_for_a_gpu_change_nothing(kind, bias, monkeypatch):
    values = arguments(kind, bias=bias, dropout="one mask")
    options = {"mask": PADDED, "go_backwards": True}
    seen = []

    def widths(cell, x, states, *others):
        seen.append((x.shape[-1], states[0].shape[-1]))
        return run_loops(cell, x, states, *others)

    run_loops = driver.run_loops
    monkeypatch.setattr(driver, "run_loops", widths)
    monkeypatch.setattr(driver, "on_gpu", lambda: True)
    with in_float64():
        found = compiled_on_jax(results_and_gradients)(ours(kind, **options), in_dtype(values, "float64"))
    assert_same(found, expected(kind, values, **options), 1e-12)
    assert seen == [(sum(CELLS[kind].input_widths(8)), 8)]


def test_padded_widths():
    assert [padding.padded_width(width) for width in (6, 64, 100, 650, 830, 1500)] == [
        8,
        64,
        104,
        704,
        832,
        1536,
    ]
    assert padding.padded_width(1150, 10) == 1160


@pytest.mark.parametrize("kind", [kind for kind in CELLS if kind not in GATES])
@pytest.mark.parametrize(
    "options", [{}, {"padded": True, "go_backwards": True}, {"dropout": True}, {"bias": False, "one": True}]
)
def test_highway_and_ordered_neurons_equal_numpy(kind, options, products_of):
    products_of("one" if "one" in options else "of each gate")
    values = arguments(
        kind, bias=options.get("bias", True), dropout="one mask" if options.get("dropout") else None
    )
    arguments_of_run = {
        "go_backwards": "go_backwards" in options,
        "mask": PADDED if "padded" in options else None,
    }
    with in_float64():
        found = compiled_on_jax(results_and_gradients)(
            ours(kind, **arguments_of_run), in_dtype(values, "float64")
        )
    assert_same(found, expected(kind, values, **arguments_of_run), 1e-12)


@tensorflow_only  # on JAX each size would be compiled
@settings(max_examples=25)
@given(
    kind=st.sampled_from(list(GATES)),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 7)),
    seed=st.integers(0, 99),
    padded=st.booleans(),
)
def test_equals_numpy_at_any_size(kind, sizes, seed, padded):
    values = arguments(kind, *sizes, seed=seed)
    mask = np.random.default_rng(seed).random(sizes[:2]) < 0.6 if padded else None
    found = results_and_gradients(ours(kind, mask=mask), in_dtype(values, "float64"))
    assert_same(found, expected(kind, values, mask=mask), 1e-11)


# Compiled


@tensorflow_only
@pytest.mark.parametrize("xla", [False, True], ids=["graph", "XLA"])
@each_kind
def test_compiled_with_dynamic_shapes(kind, xla):
    def specs_of(name, value):
        shape = {"sequences": (None, None, FEATURES), "initial_h": (None, UNITS), "initial_c": (None, UNITS)}
        return tf.TensorSpec(shape.get(name, value.shape), tf.float64)

    traces = []

    def run(mask, values):
        traces.append(values)
        # Made of a tensor of unknown size: in a model the masks are drawn.
        masks = [tf.where(values["initial_h"] > bound, 2.0, 0.0) for bound in (-1.0, -0.5, 0.0, 0.5)]
        dropout = [tf.cast(mask, tf.float64) for mask in masks[: GATES[kind]]]
        function = ours(kind, go_backwards=True, mask=mask)
        return results_and_gradients(function, values | {"recurrent_dropout_mask": dropout})

    specs = {name: specs_of(name, value) for name, value in arguments(kind).items()}
    signature = [tf.TensorSpec((None, None), tf.bool), specs]
    compiled = tf.function(run, input_signature=signature, jit_compile=xla, autograph=False)
    for batch, time in [(BATCH, TIME)] if xla else [(BATCH, TIME), (2, 1)]:
        values, mask = arguments(kind, batch, time), PADDED[:batch, :time]
        masks = [np.where(values["initial_h"] > bound, 2.0, 0.0) for bound in (-1.0, -0.5, 0.0, 0.5)]
        with_masks = values | {"recurrent_dropout_mask": masks[: GATES[kind]]}
        found = compiled(mask, in_dtype(values, "float64"))
        assert_same(found, expected(kind, with_masks, go_backwards=True, mask=mask), 1e-12)
    assert len(traces) == 1


@jax_only
@each_kind
def test_compiled(kind):
    values = arguments(kind, dropout="one mask")
    options = {"go_backwards": True, "mask": PADDED}
    compiled = jax.jit(lambda values: results_and_gradients(ours(kind, **options), values))
    assert_same(compiled(in_dtype(values, "float32")), expected(kind, values, **options), 1e-5)


@jax_only
@each_kind
def test_any_length(kind):
    values = in_dtype(arguments(kind, time=0), "float32")
    results = results_and_gradients(ours(kind), values)
    assert results["result 0"].shape == (BATCH, 0, UNITS)
    np.testing.assert_array_equal(results["result 1"], values["initial_h"])
    np.testing.assert_array_equal(results["recurrent_kernel"], 0)

    batch, time = jax.export.symbolic_shape("batch, time")
    any_shape = {name: jax.ShapeDtypeStruct(value.shape, "float32") for name, value in values.items()}
    for name in set(values) & {"sequences", "initial_h", "initial_c"}:
        shape = (batch, time, FEATURES) if name == "sequences" else (batch, UNITS)
        any_shape[name] = jax.ShapeDtypeStruct(shape, "float32")
    exported = jax.export.export(jax.jit(lambda values: ours(kind)(**values)))(any_shape)
    values = arguments(kind, time=7)
    found = exported.call(in_dtype(values, "float32"))
    assert_same(numbered(found), numbered(numpy_loop(kind, values)), 1e-5)


# Half precision


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance", "products"),
    [(kind, "bfloat16", 0.03, products) for kind in GATES for products in ["one", *OF_GATES]]
    + [(kind, "float16", 0.004, "one") for kind in (GATES if BACKEND == "tensorflow" else ["lstm"])],
)
def test_half_precision_is_near_exact(kind, dtype, tolerance, products, products_of):
    products_of(products)
    values = arguments(kind, dropout="one mask")
    # Exact in half precision, so that both are of the same numbers.
    values = {name: np.round(8 * value) / 16 for name, value in values.items()}
    options = {"go_backwards": True, "mask": PADDED}
    found = compiled_on_jax(results_and_gradients)(ours(kind, **options), in_dtype(values, dtype))
    assert {keras.backend.standardize_dtype(value.dtype) for value in found.values()} == {dtype}
    found = {name: ops.cast(value, "float32") for name, value in found.items()}
    assert_same(found, expected(kind, values, **options), tolerance)


def of_biases_alone(function, states, bias, steps):
    """Runs a layer of one unit in bfloat16, in which its gates depend on its bias only."""
    bias = ops.cast(np.array(bias), "bfloat16")
    kernel = ops.zeros((1, bias.shape[-1]), "bfloat16")
    states = [ops.cast(state, "bfloat16") for state in states]
    sequences = ops.zeros((1, steps, 1), "bfloat16")
    named = dict(zip(["initial_h", "initial_c"], states, strict=False))
    return function(sequences, bias=bias, kernel=kernel, recurrent_kernel=kernel, **named)


@pytest.mark.parametrize(
    ("kind", "bias", "steps", "expected"),
    [
        # Forget gate 1, input gate 0.0067: in bfloat16 the sum would stop growing below 2.
        ("lstm", [-5, 30, 30, 0], 1000, 1000 / (1 + np.exp(5))),
        # Update gate 0.9933, candidate 1: in bfloat16 the mean would stop growing at 0.7.
        ("gru", [[5, 0, 30], [0, 0, 0]], 300, 1 - sigmoid(5.0) ** 300),
        ("gru, reset before", [5, 0, 30], 300, 1 - sigmoid(5.0) ** 300),
    ],
)
def test_states_keep_small_terms_in_bfloat16(kind, bias, steps, expected):
    states = [np.zeros((1, 1))] * (2 if kind == "lstm" else 1)
    compiled = jax.jit if BACKEND == "jax" else tf.function
    last_state = compiled(lambda: of_biases_alone(ours(kind), states, bias, steps)[-1])()
    assert float(last_state[0, 0]) == pytest.approx(expected, rel=0.005)


@jax_only
@pytest.mark.parametrize(
    ("kind", "bias", "expected"),
    [
        # Nothing enters the states, nothing is forgotten, and half of the cell state (all of the state of
        # a GRU) comes out: in bfloat16 the sum would stop growing at 128 (at 256).
        ("lstm", [-30, 30, 0, 0], 500),
        ("gru", [[30, 0, 0], [0, 0, 0]], 1000),
        ("gru, reset before", [30, 0, 0], 1000),
    ],
)
def test_gradients_of_states_keep_small_terms_in_bfloat16(kind, bias, expected):
    def sum_of_outputs(states):
        return of_biases_alone(ours(kind), states, bias, 1000)[0].astype("float32").sum()

    states = [jnp.zeros((1, 1))] * (2 if kind == "lstm" else 1)
    assert float(jax.grad(sum_of_outputs)(states)[-1][0, 0]) == expected


# Gradients of gradients


@tensorflow_only
@pytest.mark.parametrize(("kind", "compiled"), [*((kind, False) for kind in GATES), ("simple_rnn", True)])
def test_second_gradient_is_refused(kind, compiled):
    values = in_dtype(arguments(kind), "float32")
    layer = {"lstm": "LSTM", "simple_rnn": "SimpleRNN"}.get(kind, "GRU")

    def second(names):
        with tf.GradientTape(persistent=not compiled) as outer:
            outer.watch(values)
            gradients = results_and_gradients(ours(kind), values)
            norm = tf.add_n([tf.reduce_sum(gradients[name] ** 2) for name in values])
        for name in names:
            with pytest.raises(LookupError, match=f"first order only.*unroll=True.*Sparse{layer}Cell"):
                outer.gradient(norm, values[name])

    if compiled:
        tf.function(second, autograph=False)(["kernel"])
    else:
        second(list(values))


@jax_only
@each_kind
def test_second_gradient_equals_differences_in_float64(kind):
    def random_direction(seed):
        generator = np.random.default_rng(seed)
        return jax.tree.map(lambda value: generator.normal(size=value.shape), values)

    def along(gradient, direction):
        return sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)))

    def moved(step, direction):
        return jax.tree.map(lambda value, d: value + step * d, values, direction)

    def slope(values):
        """Of the loss in the first direction; `test_equals_numpy` has the gradients that it is made of."""
        gradients = results_and_gradients(ours(kind, mask=PADDED, go_backwards=True), values)
        return along({name: gradients[name] for name in values}, first)

    with in_float64():
        values = in_dtype(arguments(kind, dropout="one mask"), "float64")
        first, second = random_direction(1), random_direction(2)
        both = jax.jit(jax.value_and_grad(slope))
        by_hand = float(along(both(values)[1], second))
        above, below = (both(moved(step, second))[0] for step in (1e-5, -1e-5))
        assert by_hand == pytest.approx(float(above - below) / 2e-5, rel=1e-6)


@jax_only
@each_kind
def test_forward_mode_is_refused(kind):
    values = in_dtype(arguments(kind), "float32")
    with pytest.raises(TypeError, match=r"can't apply forward-mode .*\(jvp\) to a custom_vjp function"):
        jax.jvp(lambda kernel: ours(kind)(**values | {"kernel": kernel}), *[(values["kernel"],)] * 2)


@jax_only
def test_forward_mode_applies_to_the_gradient():
    values = in_dtype(arguments("lstm"), "float32")

    def gradient(kernel):
        return results_and_gradients(ours("lstm"), values | {"kernel": kernel})["kernel"]

    kernel, direction = values["kernel"], jnp.ones_like(values["kernel"])
    forward = jax.jit(lambda kernel: jax.jvp(gradient, (kernel,), (direction,))[1])(kernel)
    reverse = jax.jit(jax.grad(lambda kernel: jnp.sum(gradient(kernel) * direction)))(kernel)
    assert_same({"kernel": forward}, {"kernel": reverse}, 1e-5)


# How it is computed


@tensorflow_only
@pytest.mark.parametrize("units", [6, 520])
@each_kind
def test_what_stands_inside_and_outside_of_the_loops(kind, units, loop_bodies):
    @tf.function(autograph=False)
    def step(values):
        return results_and_gradients(ours(kind), values)

    values = in_dtype(arguments(kind, units=units), "float32")
    graph = step.get_concrete_function(values).graph.as_graph_def()

    def count(nodes, *names):
        return sum(node.op in names for node in nodes)

    products = ("MatMul", "BatchMatMulV2")
    bodies = [body.node_def for body in loop_bodies(step, values)]
    assert len(bodies) == 2
    separate = kind == "gru, reset before"
    of_a_step = GATES[kind] if units == 6 else 1 + separate
    assert [count(body, *products) for body in bodies] == [of_a_step] * 2
    # The projection, and the gradients of the inputs and of the two kernels.
    assert count(graph.node, *products) == 4 + separate
    # Derivatives of the gates, transposed kernels and padding have no place in a loop.
    backward = min(bodies, key=lambda body: count(body, "Tanh"))
    assert count(backward, "Tanh", "Sigmoid", "TanhGrad", "SigmoidGrad", "Sub") <= 1  # Sub: the time
    for body in bodies:
        assert count(body, "Transpose", "Select", "SelectV2", "Cast") == 0
        assert not any(node.attr["transpose_b"].b for node in body)  # slow in float32


def inner_jaxprs(equation):
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else [value]:
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def products(jaxpr):
    """Shapes of the right factors of the products outside of all loops, and in each loop's body."""
    outside, bodies = [], []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            outside.append(equation.invars[1].aval.shape)
        for inner in inner_jaxprs(equation):
            inner_outside, inner_bodies = products(inner)
            if equation.primitive.name == "scan":
                bodies.append(inner_outside)
            else:
                outside += inner_outside
            bodies += inner_bodies
    return outside, bodies


@jax_only
@pytest.mark.parametrize("dropout", [None, "one mask"])
@each_kind
def test_products_inside_and_outside_of_the_loops(kind, dropout):
    width = GATES[kind] * UNITS
    values = in_dtype(arguments(kind, dropout=dropout), "float32")
    constant = {name: values.pop(name) for name in ("recurrent_dropout_mask",) if name in values}
    options = {"mask": PADDED, "go_backwards": True} if dropout else {}

    def gradient(values):
        return results_and_gradients(lambda **values: ours(kind, **options)(**values, **constant), values)

    outside, bodies = products(jax.make_jaxpr(gradient)(values).jaxpr)
    if kind == "gru, reset before":
        assert bodies == [[(UNITS, 2 * UNITS), (UNITS, UNITS)], [(UNITS, UNITS), (2 * UNITS, UNITS)]]
    else:
        assert bodies == [[(UNITS, width)], [(width, UNITS)]]
    # The projection, the gradients of the inputs and of the kernel, and those of the recurrent kernel and
    # of the dropout mask, which take as many products as a time step does.
    assert len(outside) == 3 + len(bodies[0]) * (2 if dropout else 1)
