"""Recurrent layers over whole sequences, and with hoisted inputs, against plain Keras ones.

Outputs, states and all gradients: those of the inputs, the initial states and the weights.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import recurrence
from keras_selfish.layers import SparseGRU, SparseLSTM, SparseONLSTM, SparseRHN, SparseSimpleRNN
from keras_selfish.layers.hoisted import HoistedCell, HoistedRNN
from keras_selfish.masks import masked_weights

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax

pytestmark = pytest.mark.backends("tensorflow", "jax")
tensorflow_only = pytest.mark.backends("tensorflow")
jax_only = pytest.mark.backends("jax")

BATCH, TIME, FEATURES, UNITS = 4, 3, 4, 6
# Padded on the right, on the left, everywhere, and in between.
MASK = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]], bool)
KINDS = {
    "LSTM": (SparseLSTM, {}),
    "GRU": (SparseGRU, {}),
    "GRU, reset before": (SparseGRU, {"reset_after": False}),
    "SimpleRNN": (SparseSimpleRNN, {}),
}
ALL = {"return_sequences": True, "return_state": True}
BOTH_DROPOUTS = {"dropout": 0.4, "recurrent_dropout": 0.3}
# Weights are assigned; to draw them first would take longer than anything else here.
CHEAP = {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}
each_kind = pytest.mark.parametrize("kind", KINDS)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def with_weights(layer):
    """Builds a layer, and gives it weights that are not what Keras starts from."""
    layer.build((BATCH, TIME, FEATURES))
    for index, weight in enumerate(layer.trainable_weights):
        weight.assign(0.7 * draw(*weight.shape, seed=index))
    return layer


def sparse_and_dense(kind, options, sparsity=0.0):
    """A sparse layer, and Keras's with the same weights and zeros."""
    sparse_class, kind_options = KINDS[kind]
    options = {**CHEAP, **kind_options, **options}
    layer = with_weights(sparse_class(UNITS, sparsity=sparsity, mask_seed=7, **options))
    dense = with_weights(sparse_class.plain_class(UNITS, **options))
    for masked_weight in masked_weights(layer):
        masked_weight.project()
    for weight, value in zip(dense.trainable_weights, layer.trainable_weights, strict=True):
        weight.assign(ops.convert_to_numpy(value))
    return layer, dense


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make", [SparseLSTM, SparseGRU, SparseSimpleRNN, SparseRHN, SparseONLSTM])
def test_how_many_time_steps_there_are_stays_known(make, padded):
    """Keras's `TimeDistributed` takes the batch for the time where it does not know, as in a graph."""
    inputs = keras.Input((TIME, FEATURES))
    steps = keras.layers.Masking()(inputs) if padded else inputs
    model = keras.Model(
        inputs, keras.layers.TimeDistributed(keras.layers.Dense(2))(make(10, return_sequences=True)(steps))
    )
    x = draw(TIME - 2, TIME, FEATURES)
    outputs = model.predict(x, verbose=0)
    assert outputs.shape == (TIME - 2, TIME, 2)
    np.testing.assert_allclose(outputs, ops.convert_to_numpy(model(x)), rtol=1e-5, atol=1e-6)


def call_arguments(layer, given=""):
    arguments = {"training": "training" in given}
    if "padded" in given:
        arguments["mask"] = ops.convert_to_tensor(MASK)
    states = [draw(BATCH, size, seed=1) for size in layer.state_size] if "states" in given else []
    return draw(BATCH, TIME, FEATURES), states, arguments


def outputs_and_gradients(layer, inputs, states, arguments):
    """Outputs, and gradients of a loss in which every output counts differently.

    Gradients are those of the weights, the inputs and the initial states, in this order.
    """
    weights = [weight.value for weight in layer.trainable_weights]

    def loss_of(outputs):
        outputs = keras.tree.flatten(outputs)
        factors = [draw(*output.shape, seed=2) for output in outputs]
        return sum(ops.sum(output * factor) for output, factor in zip(outputs, factors, strict=True)), outputs

    def initial_state(states):
        return {"initial_state": list(states)} if states else {}

    if BACKEND == "jax":

        def loss(weights, inputs, states):
            others = [variable.value for variable in layer.non_trainable_variables]
            outputs, _ = layer.stateless_call(weights, others, inputs, **initial_state(states), **arguments)
            return loss_of(outputs)

        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        gradients, outputs = gradient(weights, inputs, states)
    else:
        inputs, *states = [tf.convert_to_tensor(tensor) for tensor in (inputs, *states)]
        with tf.GradientTape() as tape:
            tape.watch([inputs, *states])
            loss, outputs = loss_of(layer(inputs, **initial_state(states), **arguments))
        gradients = tape.gradient(loss, [weights, inputs, states], unconnected_gradients="zero")
    return [
        [ops.convert_to_numpy(each) for each in keras.tree.flatten(part)] for part in (outputs, gradients)
    ]


def assert_same(results, expected, exact=False):
    for result, value in zip(keras.tree.flatten(results), keras.tree.flatten(expected), strict=True):
        assert result.shape == value.shape
        if exact:
            np.testing.assert_array_equal(result, value)
        else:
            np.testing.assert_allclose(result, value, rtol=0, atol=1e-5 * max(1, np.abs(value).max()))


def assert_equals_keras(layer, dense, given="", exact=False, **arguments):
    """The outputs are the same, and the gradients, but for those of connections that do not exist."""
    inputs, states, call = call_arguments(layer, given)
    outputs, gradients = outputs_and_gradients(layer, inputs, states, call | arguments)
    expected, dense_gradients = outputs_and_gradients(dense, inputs, states, call | arguments)
    assert_same(outputs, expected, exact)
    for index, masked_weight in enumerate(masked_weights(layer)):
        mask = ops.convert_to_numpy(masked_weight.mask)
        assert mask.mean() == 0.5
        assert np.abs(dense_gradients[index][~mask]).max() > 0  # it was the mask, not chance
        assert (gradients[index][~mask] == 0).all()
        dense_gradients[index] = np.where(mask, dense_gradients[index], 0)
    assert_same(gradients, dense_gradients, exact)
    return outputs


@pytest.fixture
def calls(monkeypatch):
    """The calls of the functions over whole sequences, which Keras's own loop does without."""
    seen = []

    def recorded(function):
        def call(cell, *args, **kwargs):
            seen.append(cell.layer)
            return function(cell, *args, **kwargs)

        return call

    monkeypatch.setattr(recurrence, "run", recorded(recurrence.run))
    return seen


TABLE = {
    "sparsity": [0.0, 0.5],
    "returns": [{}, {"return_sequences": True}, ALL],
    "go_backwards": [False, True],
    "padding": [None, "repeated", "zeros"],
    "states": [False, True],
    "use_bias": [True, False],
    "drops": [{}, {"dropout": 0.4}, {"recurrent_dropout": 0.3}, BOTH_DROPOUTS],
    "training": [True, False],
    # The first draws a dropout mask for each gate.
    "implementation": [2, 1],
}


def each_case(test):
    if BACKEND == "tensorflow":
        return each_kind(pytest.mark.pairwise(**TABLE)(test))
    # On JAX each is compiled.
    short = {"drops": [{}, BOTH_DROPOUTS], "padding": [None, "zeros"], "returns": [{}, ALL]}
    return pytest.mark.pairwise(kind=list(KINDS), **{**TABLE, **short})(test)


@each_case
def test_equals_keras(
    kind, sparsity, returns, go_backwards, padding, states, use_bias, drops, training, implementation, calls
):
    options = {**returns, **drops, "go_backwards": go_backwards, "use_bias": use_bias, "seed": 5}
    options["zero_output_for_mask"] = padding == "zeros"
    if kind != "SimpleRNN":
        options |= {"implementation": implementation, "use_cudnn": False}
    given = " ".join(
        ["padded" if padding else "", "states" if states else "", "training" if training else ""]
    )
    pair = sparse_and_dense(kind, options, sparsity)
    dropped = assert_equals_keras(*pair, given)
    # On JAX a dropout mask for each gate is left to Keras.
    of_gates = getattr(pair[1].cell, "implementation", 2) == 1
    left = BACKEND == "jax" and training and drops and of_gates
    assert len(calls) == (0 if left else 1)
    inputs, initial, arguments = call_arguments(pair[1], given.replace("training", ""))
    if drops and training:
        initial = {"initial_state": initial} if states else {}
        plain = keras.tree.flatten(pair[1](inputs, **initial, **arguments))[0]
        assert np.abs(ops.convert_to_numpy(plain) - dropped[0]).max() > 0.01  # dropout did something


# Options of the layer, and arguments of its call.
LEFT_TO_KERAS = {
    "drops everything": ({"dropout": 1.0}, {"training": True}),
    "drops all states": ({"recurrent_dropout": 1.0}, {"training": True}),
    "unrolled": ({"unroll": True}, {}),
    "relu": ({"activation": "relu"}, {}),
    "padding of rank 3": ({}, {"mask": MASK[:, :, None]}),
    "hard gates": ({"recurrent_activation": "hard_sigmoid"}, {"mask": MASK}),
}


@tensorflow_only
@pytest.mark.pairwise(kind=["LSTM", "GRU", "SimpleRNN"], case=list(LEFT_TO_KERAS), sparsity=[0.5, 0.0])
def test_what_is_left_to_keras(kind, case, sparsity, calls, since_keras):
    """What Keras's own loop alone computes; it gives the very same numbers."""
    options, arguments = LEFT_TO_KERAS[case]
    if 1.0 in options.values():
        since_keras("3.14")  # earlier ones fail at such a rate
    if "recurrent_activation" in options and kind == "SimpleRNN":
        options = {"activation": "linear"}
    if {"dropout", "recurrent_dropout"} & set(options):
        sparsity = 0.0  # else there are kernels without any gradient
    assert_equals_keras(*sparse_and_dense(kind, options, sparsity), exact=True, **arguments)
    assert calls == []


@tensorflow_only
def test_dropout_of_everything_leaves_inference_to_ours(calls, since_keras):
    since_keras("3.14")
    assert_equals_keras(*sparse_and_dense("LSTM", {"dropout": 1.0}))
    assert calls == ["LSTM"]


@tensorflow_only
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_stateful(kind):
    layer, dense = sparse_and_dense(kind, {"stateful": True}, sparsity=0.5)
    first, second = (assert_equals_keras(layer, dense)[0] for _ in range(2))
    assert np.abs(first - second).max() > 0.01


@tensorflow_only
def test_second_gradients():
    """Ours are of first order and say so; Keras's loop has them."""

    def second_gradient(**options):
        layer, _ = sparse_and_dense("LSTM", options)
        weight = layer.cell.kernel.value
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_sum(layer(draw(BATCH, TIME, FEATURES)))
            norm = tf.reduce_sum(inner.gradient(loss, weight) ** 2)
        return outer.gradient(norm, weight)

    assert np.abs(second_gradient(activation="relu")).max() > 0
    with pytest.raises(
        LookupError, match=r"`unroll=True`, or .*`keras\.layers\.RNN\(SparseLSTMCell\(units\)\)`"
    ):
        second_gradient()


@tensorflow_only
@pytest.mark.parametrize("kind", ["LSTM", "GRU, reset before", "SimpleRNN"])
def test_in_a_function_of_dynamic_shape(kind):
    options = {**ALL, **BOTH_DROPOUTS, "seed": 5, "go_backwards": True}
    layer, dense = sparse_and_dense(kind, options, sparsity=0.5)
    states = [tf.TensorSpec((None, UNITS))] * len(layer.state_size)
    specs = [tf.TensorSpec((None, None, FEATURES)), tf.TensorSpec((None, None), tf.bool), *states]

    def run(layer, inputs, mask, *states):
        sources = [inputs, *states, *(weight.value for weight in layer.trainable_weights)]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = layer(inputs, mask=mask, initial_state=list(states), training=True)
            loss = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
        return [*outputs, *tape.gradient(loss, sources)]

    compiled = tf.function(lambda *arguments: run(layer, *arguments), input_signature=specs)
    masks = [ops.convert_to_numpy(masked_weight.mask) for masked_weight in masked_weights(layer)]
    for batch, time in [(BATCH, TIME), (2, 1)]:
        sequences, states, _ = call_arguments(layer, "states")
        arguments = [sequences[:batch, :time], MASK[:batch, :time], *(state[:batch] for state in states)]
        arguments = [tf.constant(argument) for argument in arguments]
        expected = [result.numpy() for result in run(dense, *arguments)]
        first = len(expected) - len(layer.trainable_weights)
        for index, mask in enumerate(masks, first):
            expected[index] = expected[index] * mask
        assert_same([result.numpy() for result in compiled(*arguments)], expected)


@jax_only
@pytest.mark.parametrize(
    ("units", "policy", "meant"),
    [
        (UNITS, "float32", True),
        (UNITS, "mixed_bfloat16", False),
        (UNITS, "mixed_float16", False),
        (1500, "float32", False),  # there ours is faster
    ],
)
def test_where_jax_calls_cudnn(units, policy, meant, monkeypatch):
    layer = SparseLSTM(units, dtype=policy)
    monkeypatch.setattr(recurrence, "on_gpu", lambda: True)  # here there is none
    assert layer._cudnn_is_meant(None) is meant


def stack(sparse, kinds=tuple(KINDS), **options):
    """Layers of these kinds, one upon the other, on padded sequences of any length."""
    if sparse:
        options = {"sparsity": 0.5, "mask_seed": 1, **options}
    own = {
        "LSTM": {"dropout": 0.2, "seed": 1},
        "GRU": {"go_backwards": True},
        "GRU, reset before": {"reset_after": False, "recurrent_dropout": 0.2, "seed": 2},
    }
    model = keras.Sequential([keras.Input((None, FEATURES)), keras.layers.Masking()])
    for kind in kinds:
        layer_class = KINDS[kind][0] if sparse else KINDS[kind][0].plain_class
        layer = layer_class(
            UNITS, return_sequences=True, recurrent_initializer="zeros", **own.get(kind, {}), **options
        )
        model.add(keras.layers.Bidirectional(layer) if kind == "SimpleRNN" else layer)
    for index, weight in enumerate(model.trainable_weights):
        weight.assign(0.7 * draw(*weight.shape, seed=index))
    for masked_weight in masked_weights(model):
        masked_weight.project()
    return model


def padded_sequences():
    return draw(BATCH, TIME, FEATURES) * MASK[:, :, None]


@tensorflow_only
def test_in_a_saved_model(tmp_path):
    model, dense = stack(sparse=True), stack(sparse=False)
    model.export(str(tmp_path / "model"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    for weight, value in zip(dense.trainable_weights, model.trainable_weights, strict=True):
        weight.assign(value.numpy())
    for batch, time in [(BATCH, TIME), (2, 2)]:
        sequences = padded_sequences()[:batch, :time]
        np.testing.assert_allclose(loaded.serve(sequences), dense(sequences), atol=1e-5)


@jax_only
def test_fit_equals_keras():
    def fitted(sparse):
        model = stack(sparse, ["LSTM", "GRU"], **({"sparsity": 0.0} if sparse else {}))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(padded_sequences(), draw(BATCH, TIME, UNITS), batch_size=2, shuffle=False, verbose=0)
        return [ops.convert_to_numpy(weight) for weight in model.trainable_weights]

    expected = fitted(sparse=False)
    assert_same(fitted(sparse=True), expected)


@tensorflow_only
def test_mirrored_strategy_on_two_devices(two_replicas):
    with two_replicas.scope():
        model = stack(sparse=True, kinds=["LSTM", "GRU, reset before"])
    sequences = padded_sequences()
    halves = [sequences[:2], sequences[2:]]
    variables = model.trainable_variables

    def gradients(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(inputs) ** 2)
        return tape.gradient(loss, [variable.value for variable in variables])

    @tf.function
    def step(inputs):
        def of_replica(inputs):
            return tf.distribute.get_replica_context().all_reduce("sum", gradients(inputs))

        return two_replicas.run(of_replica, args=(inputs,))

    distributed = two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(halves[context.replica_id_in_sync_group])
    )
    for found, value in zip(step(distributed), gradients(tf.constant(sequences)), strict=True):
        for replica in two_replicas.experimental_local_results(found):
            np.testing.assert_allclose(replica, value, atol=1e-5 * max(1, np.abs(value).max()))


# Hoisted inputs


class MinimalGatedCell(keras.layers.Layer):
    """The minimally gated unit of Zhou et al. 2016, whose state is counted beside, at each real step."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.state_size = [units, 1]
        self.output_size = units
        self.projected_shapes = []

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 2 * self.units), name="kernel")
        self.recurrent_kernel = self.add_weight(shape=(self.units, 2 * self.units), name="recurrent_kernel")
        self.bias = self.add_weight(shape=(2 * self.units,), name="bias")

    def projection(self, inputs):
        return ops.matmul(inputs, self.kernel) + self.bias

    def recurrence(self, projected, states):
        h, count = states
        forget_kernel, candidate_kernel = ops.split(self.recurrent_kernel, 2, axis=1)
        of_forget, of_candidate = ops.split(projected, 2, axis=1)
        forget = ops.sigmoid(of_forget + ops.matmul(h, forget_kernel))
        candidate = ops.tanh(of_candidate + ops.matmul(forget * h, candidate_kernel))
        h = (1 - forget) * h + forget * candidate
        return h, [h, count + 1]

    def call(self, inputs, states, training=False):
        return self.recurrence(self.projection(inputs), states)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class HoistedMinimalGatedCell(HoistedCell, MinimalGatedCell):
    def project_inputs(self, inputs, training=False):
        self.projected_shapes.append(tuple(inputs.shape))
        return self.projection(inputs)

    def step(self, projected, states, training=False):
        return self.recurrence(projected, states)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        pytest.param({}, "", marks=tensorflow_only),
        pytest.param(ALL, "padded states", marks=tensorflow_only),
        ({**ALL, "go_backwards": True, "zero_output_for_mask": True}, "padded states"),
        pytest.param({**ALL, "unroll": True}, "padded", marks=tensorflow_only),
    ],
    ids=str,
)
def test_hoisted_inputs(options, given):
    layer = with_weights(HoistedRNN(HoistedMinimalGatedCell(UNITS), **options))
    plain = with_weights(keras.layers.RNN(MinimalGatedCell(UNITS), **options))
    unhoisted = with_weights(keras.layers.RNN(HoistedMinimalGatedCell(UNITS), **options))
    layers = (layer, plain, unhoisted)
    hoisted, expected, also = (outputs_and_gradients(each, *call_arguments(each, given)) for each in layers)
    assert_same(hoisted, expected)
    assert_same(also, expected)
    assert layer.cell.projected_shapes == [(BATCH, TIME, FEATURES)]  # once, and all of it
    assert {len(shape) for shape in unhoisted.cell.projected_shapes} == {2}


@tensorflow_only
def test_hoisted_rnn_round_trip():
    layer = HoistedRNN(HoistedMinimalGatedCell(UNITS), return_sequences=True, name="layer")
    custom = {"HoistedMinimalGatedCell": HoistedMinimalGatedCell}
    copy = keras.layers.deserialize(keras.layers.serialize(layer), custom_objects=custom)
    assert type(copy) is HoistedRNN
    assert copy.get_config() == layer.get_config()


def test_bad_cells():
    with pytest.raises(
        ValueError, match=r"`cell` must be a `HoistedCell`.* Received: cell=<MinimalGatedCell"
    ):
        HoistedRNN(MinimalGatedCell(UNITS))
    with pytest.raises(ValueError, match=r"computes in float64, in a layer that computes in float32"):
        HoistedRNN(HoistedMinimalGatedCell(UNITS, dtype="float64"))


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_are_no_fractions(kind, dtype):
    """Eagerly with states, in a `Bidirectional`, and declared by a `keras.Input`: as Keras's layers."""
    inputs = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 4, (BATCH, TIME, FEATURES))
    inputs = inputs.astype(dtype)
    sparse, dense = sparse_and_dense(kind, {"return_sequences": True})
    states = [np.ones((BATCH, UNITS), "int32") for _ in keras.tree.flatten(dense.state_size)]
    for call in ({}, {"initial_state": states}):
        expected = ops.convert_to_numpy(dense(inputs.astype("float32"), **call))
        np.testing.assert_allclose(sparse(inputs, **call), expected, atol=1e-5)
    given = keras.Input((TIME, FEATURES), dtype=dtype)
    model = keras.Model(given, sparse(given))
    np.testing.assert_allclose(
        model(inputs), ops.convert_to_numpy(dense(inputs.astype("float32"))), atol=1e-5
    )
    both = keras.layers.Bidirectional(KINDS[kind][0](UNITS, sparsity=0.5, mask_seed=1, **KINDS[kind][1]))
    np.testing.assert_allclose(both(inputs), ops.convert_to_numpy(both(inputs.astype("float32"))), atol=1e-5)
