"""The recurrent layers over a sequence for JAX, against Keras's own loops, NumPy and differences."""

import functools

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
if BACKEND == "jax":
    import jax
    import jax.numpy as jnp

    from keras_selfish.layers.sequence_jax import gru, lstm, simple_rnn

jax_only = pytest.mark.skipif(BACKEND != "jax", reason="needs Keras's JAX backend")
KINDS = ["lstm", "gru", "gru, reset before", "simple_rnn"]
each_kind = pytest.mark.parametrize("kind", KINDS)

BATCH, TIME, FEATURES, UNITS = 4, 5, 3, 6
# Padded on the right, on the left, everywhere, and in between.
MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0]], bool)
EVERYTHING = {"mask": MASK, "go_backwards": True, "recurrent_dropout": True}
CASES = {"plain": {}, "padded, without bias": {"mask": MASK, "bias": False}, "everything": EVERYTHING}


@pytest.fixture(autouse=True, scope="module")
def compiled_in_haste():
    """Hardly anything is computed here: it is compiling that takes the time."""
    if BACKEND != "jax":
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def gates(kind):
    return {"lstm": 4, "simple_rnn": 1}.get(kind, 3)


def arguments(kind, bias=True, recurrent_dropout=False, scale=1.0, dtype="float32", time=TIME):
    """The arrays that the function of a kind takes, by name; all that are not None have a gradient."""
    width = gates(kind) * UNITS
    shapes = {
        "sequences": (BATCH, time, FEATURES),
        "initial_h": (BATCH, UNITS),
        "initial_c": (BATCH, UNITS),
        "kernel": (FEATURES, width),
        "recurrent_kernel": (UNITS, width),
        "bias": (2, width) if kind == "gru" else (width,),
    }
    if kind != "lstm":
        del shapes["initial_c"]
    generator = np.random.default_rng(0)
    values = {name: scale * generator.normal(size=shape) for name, shape in shapes.items()}
    dropout = generator.choice([0.0, 1.5], size=(BATCH, UNITS), p=[1 / 3, 2 / 3])
    values["recurrent_dropout_mask"] = dropout if recurrent_dropout else None
    if not bias:
        values["bias"] = None
    return {name: value if value is None else value.astype(dtype) for name, value in values.items()}


def ours(kind, **options):
    if kind.startswith("gru"):
        return functools.partial(gru, reset_after=kind == "gru", **options)
    return functools.partial({"lstm": lstm, "simple_rnn": simple_rnn}[kind], **options)


def keras_loop(kind, use_bias, recurrent_dropout, mask=None, go_backwards=False):
    """The loop of Keras's layer as a function of the same tensors."""
    options = {"return_sequences": True, "return_state": True, "go_backwards": go_backwards}
    options |= {"use_bias": use_bias, "recurrent_dropout": 0.3 if recurrent_dropout else 0.0}
    if kind == "lstm":
        layer = keras.layers.LSTM(UNITS, use_cudnn=False, **options)
    elif kind == "simple_rnn":
        layer = keras.layers.SimpleRNN(UNITS, **options)
    else:
        layer = keras.layers.GRU(UNITS, use_cudnn=False, reset_after=kind == "gru", **options)
    layer.build((BATCH, TIME, FEATURES))

    def function(sequences, kernel, recurrent_kernel, bias, recurrent_dropout_mask, **initial):
        # Keras draws a mask for each gate; `lstm` and `gru` take one for all.
        masks = recurrent_dropout_mask if kind == "simple_rnn" else [recurrent_dropout_mask] * gates(kind)
        if recurrent_dropout:
            layer.cell.get_recurrent_dropout_mask = lambda _: masks
        results, _ = layer.stateless_call(
            [kernel, recurrent_kernel, *([bias] if use_bias else [])],
            [variable.value for variable in layer.non_trainable_variables],
            sequences,
            initial_state=[initial[name] for name in ("initial_h", "initial_c") if name in initial],
            mask=mask,
            training=recurrent_dropout,
        )
        return tuple(results)

    return function


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_loop(
    kind,
    sequences,
    initial_h,
    kernel,
    recurrent_kernel,
    bias,
    recurrent_dropout_mask,
    initial_c=None,
    go_backwards=False,
    mask=None,
):
    """The published equations, one sequence and one time step after the other."""
    results = []
    for n, steps in enumerate(sequences):
        h = initial_h[n]
        c = None if initial_c is None else initial_c[n]
        dropout = 1.0 if recurrent_dropout_mask is None else recurrent_dropout_mask[n]
        outputs = []
        for t in reversed(range(len(steps))) if go_backwards else range(len(steps)):
            if mask is None or mask[n, t]:
                input_bias, recurrent_bias = bias if kind == "gru" else (bias, 0.0)
                x = steps[t] @ kernel + input_bias
                u = (dropout * h) @ recurrent_kernel + recurrent_bias
                if kind == "lstm":
                    i, f, g, o = np.split(x + u, 4)
                    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                    h = sigmoid(o) * np.tanh(c)
                elif kind == "simple_rnn":
                    h = np.tanh(x + u)
                else:
                    z, r = np.split(sigmoid(x + u)[: 2 * UNITS], 2)
                    product = r * u[2 * UNITS :]
                    if kind == "gru, reset before":
                        product = (r * dropout * h) @ recurrent_kernel[:, 2 * UNITS :]
                    h = z * h + (1 - z) * np.tanh(x[2 * UNITS :] + product)
            outputs.append(h)
        results.append((outputs, h) if c is None else (outputs, h, c))
    return [np.array(result) for result in zip(*results, strict=True)]


def weighted_sum(results):
    """A loss in which every number of every result counts differently."""
    generator = np.random.default_rng(7)
    weights = [generator.normal(size=result.shape) for result in results]
    return sum(jnp.sum(r * jnp.asarray(w, r.dtype)) for r, w in zip(results, weights, strict=True))


def results_and_gradients(function, values):
    """The results of `function(**values)` by number, and the gradients of their sum by argument."""

    @jax.jit
    def both(values):
        def loss(values):
            results = function(**values)
            return weighted_sum(results), results

        gradients, results = jax.grad(loss, has_aux=True)(values)
        return numbered(results) | gradients

    return {name: value for name, value in both(values).items() if value is not None}


def numbered(results):
    return {f"result {number}": result for number, result in enumerate(results)}


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value = np.asarray(value, "float64")
        scale = max(1.0, np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(
            np.asarray(found[name], "float64"), value, rtol=0, atol=tolerance * scale, err_msg=str(name)
        )


# The numbers


@jax_only
@pytest.mark.parametrize("case", CASES)
@each_kind
def test_equals_keras(kind, case):
    options = dict(CASES[case])
    bias, dropout = options.pop("bias", True), options.pop("recurrent_dropout", False)
    values = arguments(kind, bias, dropout)
    expected = results_and_gradients(keras_loop(kind, bias, dropout, **options), values)
    assert_same(results_and_gradients(ours(kind, **options), values), expected, 1e-5)


@jax_only
@each_kind
def test_equals_a_loop_in_numpy(kind):
    with jax.enable_x64(True):
        for options in ({"go_backwards": True}, {"mask": MASK}):
            values = arguments(kind, recurrent_dropout="mask" in options, dtype="float64")
            expected = numpy_loop(kind, **values, **options)
            found = jax.jit(ours(kind, **options))(**values)
            assert_same(numbered(found), numbered(expected), 1e-12)


@jax_only
@each_kind
def test_first_and_second_gradients_equal_differences_in_float64(kind):
    def random_direction(seed):
        generator = np.random.default_rng(seed)
        return jax.tree.map(lambda value: generator.normal(size=value.shape), values)

    def along(gradient, direction):
        return sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)))

    def moved(step, direction):
        return jax.tree.map(lambda value, d: value + step * d, values, direction)

    def loss(values):
        return weighted_sum(ours(kind, mask=MASK, go_backwards=True)(**values))

    def slope(values):
        value, gradient = jax.value_and_grad(loss)(values)
        return along(gradient, first), value

    with jax.enable_x64(True):
        values = arguments(kind, recurrent_dropout=True, dtype="float64")
        first, second = random_direction(1), random_direction(2)
        both = jax.jit(jax.value_and_grad(slope, has_aux=True))
        (by_hand, _), gradient_of_slope = both(values)
        (_, above), _ = both(moved(1e-5, first))
        (_, below), _ = both(moved(-1e-5, first))
        assert float(by_hand) == pytest.approx(float(above - below) / 2e-5, rel=1e-6)
        (above, _), _ = both(moved(1e-5, second))
        (below, _), _ = both(moved(-1e-5, second))
        by_hand = float(along(gradient_of_slope, second))
        assert by_hand == pytest.approx(float(above - below) / 2e-5, rel=1e-6)


@jax_only
@each_kind
def test_forward_mode_is_refused(kind):
    values = arguments(kind)
    with pytest.raises(TypeError, match=r"can't apply forward-mode .*\(jvp\) to a custom_vjp function"):
        jax.jvp(lambda kernel: ours(kind)(**values | {"kernel": kernel}), *[(values["kernel"],)] * 2)


@jax_only
def test_forward_mode_applies_to_the_gradient():
    values = arguments("lstm")

    def gradient(kernel):
        return jax.grad(lambda kernel: weighted_sum(lstm(**values | {"kernel": kernel})))(kernel)

    kernel, direction = values["kernel"], jnp.ones_like(values["kernel"])
    forward = jax.jit(lambda kernel: jax.jvp(gradient, (kernel,), (direction,))[1])(kernel)
    reverse = jax.jit(jax.grad(lambda kernel: jnp.sum(gradient(kernel) * direction)))(kernel)
    assert_same({"kernel": forward}, {"kernel": reverse}, 1e-5)


@jax_only
@each_kind
def test_any_length(kind):
    values = arguments(kind, time=0)
    results = results_and_gradients(ours(kind), values)
    assert results["result 0"].shape == (BATCH, 0, UNITS)
    np.testing.assert_array_equal(results["result 1"], values["initial_h"])
    np.testing.assert_array_equal(results["recurrent_kernel"], 0)

    batch, time = jax.export.symbolic_shape("batch, time")
    any_shape = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), values)
    for name in set(values) & {"sequences", "initial_h", "initial_c"}:
        shape = (batch, time, FEATURES) if name == "sequences" else (batch, UNITS)
        any_shape[name] = jax.ShapeDtypeStruct(shape, "float32")
    exported = jax.export.export(jax.jit(lambda values: ours(kind)(**values)))(any_shape)
    values = arguments(kind, time=7)
    expected = numpy_loop(kind, **values)
    assert_same(numbered(exported.call(values)), numbered(expected), 1e-5)


# Half precision


@jax_only
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [*((kind, "bfloat16", 0.03) for kind in KINDS), ("lstm", "float16", 0.004)],
)
def test_half_precision_is_near_float32(kind, dtype, tolerance):
    function = ours(kind, mask=MASK)
    # Exact in half precision, so that both are of the same numbers.
    values = arguments(kind, recurrent_dropout=True, scale=0.5)
    values = jax.tree.map(lambda value: np.round(16 * value) / 16, values)
    found = results_and_gradients(function, jax.tree.map(lambda value: value.astype(dtype), values))
    assert {value.dtype for value in found.values()} == {jnp.dtype(dtype)}
    assert_same(found, results_and_gradients(function, values), tolerance)


def without_kernels(function, states, bias):
    """Runs a layer of one unit over 1000 steps in bfloat16, in which its gates depend on its bias only."""
    bias = jnp.array(bias, "bfloat16")
    kernel = jnp.zeros((1, bias.shape[-1]), "bfloat16")
    states = [state.astype("bfloat16") for state in states]
    return function(jnp.zeros((1, 1000, 1), "bfloat16"), *states, kernel, kernel, bias)


@jax_only
@pytest.mark.parametrize(
    ("kind", "bias", "expected"),
    [
        # Forget gate 1, input gate 0.0067: in bfloat16 the sum would stop growing below 2.
        ("lstm", [-5, 30, 30, 0], 1000 / (1 + np.exp(5))),
        # Update gate 0.9933, candidate 1: in bfloat16 the mean would stop growing below 0.8.
        ("gru", [[5, 0, 30], [0, 0, 0]], 1 - (1 + np.exp(-5)) ** -1000),
        ("gru, reset before", [5, 0, 30], 1 - (1 + np.exp(-5)) ** -1000),
    ],
)
def test_states_keep_small_terms_in_bfloat16(kind, bias, expected):
    states = [jnp.zeros((1, 1))] * (2 if kind == "lstm" else 1)
    last_state = without_kernels(ours(kind), states, bias)[-1]
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
        return without_kernels(ours(kind), states, bias)[0].astype("float32").sum()

    states = [jnp.zeros((1, 1))] * (2 if kind == "lstm" else 1)
    assert float(jax.grad(sum_of_outputs)(states)[-1][0, 0]) == expected


# How it is computed


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
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@each_kind
def test_products_inside_and_outside_of_the_loops(kind, options):
    width = gates(kind) * UNITS
    options = dict(options)
    values = arguments(kind, recurrent_dropout=options.pop("recurrent_dropout", False))
    names = [name for name in values if name != "recurrent_dropout_mask"]

    def gradient(values):
        dropout = {"recurrent_dropout_mask": values["recurrent_dropout_mask"]}
        loss = jax.grad(lambda values: weighted_sum(ours(kind, **options)(**values, **dropout)))
        return loss({name: values[name] for name in names})

    outside, bodies = products(jax.make_jaxpr(gradient)(values).jaxpr)
    if kind == "gru, reset before":
        assert bodies == [[(UNITS, 2 * UNITS), (UNITS, UNITS)], [(UNITS, UNITS), (2 * UNITS, UNITS)]]
    else:
        assert bodies == [[(UNITS, width)], [(width, UNITS)]]
    # The projection, the gradients of the inputs and of the kernel, and those of the recurrent kernel and
    # of the dropout mask, which take as many products as a time step does.
    assert len(outside) == 3 + len(bodies[0]) * (2 if options else 1)


# In Keras's trainer


@jax_only
def test_fit_equals_keras():
    class LSTM(keras.layers.LSTM):
        def inner_loop(self, sequences, initial_state, mask, training=False):
            cell = self.cell
            outputs, h, c = lstm(
                sequences, *initial_state, cell.kernel, cell.recurrent_kernel, cell.bias, mask=mask
            )
            return h, outputs, [h, c]

    class GRU(keras.layers.GRU):
        def inner_loop(self, sequences, initial_state, mask, training=False):
            cell = self.cell
            weights = (cell.kernel, cell.recurrent_kernel, cell.bias)
            outputs, h = gru(sequences, *initial_state, *weights, mask=mask)
            return h, outputs, [h]

    class SimpleRNN(keras.layers.SimpleRNN):
        def inner_loop(self, sequences, initial_state, mask, training=False):
            cell = self.cell
            weights = (cell.kernel, cell.recurrent_kernel, cell.bias)
            outputs, h = simple_rnn(sequences, *initial_state, *weights, mask=mask)
            return h, outputs, [h]

    tokens = np.random.default_rng(0).integers(0, 9, size=(12, TIME))
    tokens[1::2, 3:] = 0
    labels = tokens[:, :1] % 2

    def fitted(lstm_class, gru_class, simple_rnn_class):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.layers.Embedding(9, FEATURES, mask_zero=True),
                lstm_class(UNITS, use_cudnn=False, return_sequences=True),
                gru_class(UNITS, use_cudnn=False, return_sequences=True),
                simple_rnn_class(UNITS),
                keras.layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
        model.fit(tokens, labels, batch_size=6, epochs=2, verbose=0, shuffle=False)
        return numbered(model.get_weights())

    expected = fitted(keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
    assert_same(fitted(LSTM, GRU, SimpleRNN), expected, 1e-5)


# Other backends


@pytest.mark.jax
@pytest.mark.skipif(BACKEND != "tensorflow", reason="is itself run from TensorFlow's run")
def test_this_file_on_jax(run_tests):
    run_tests(__file__, "not this_file", backend="jax")
