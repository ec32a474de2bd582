"""Recurrent layers over whole sequences, and with hoisted inputs, against plain Keras ones.

Outputs, states and all gradients: those of the inputs, the initial states and the weights.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish.layers import SparseGRU, SparseLSTM, SparseSimpleRNN
from keras_selfish.layers.hoisted import HoistedCell, HoistedRNN

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax

tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="needs Keras's TensorFlow backend")
jax_only = pytest.mark.skipif(BACKEND != "jax", reason="needs Keras's JAX backend")

BATCH, TIME, FEATURES, UNITS = 4, 5, 3, 6
# Padded on the right, on the left, everywhere, and in between.
MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0]], bool)
KINDS = {
    "LSTM": (SparseLSTM, {}),
    "GRU": (SparseGRU, {}),
    "GRU, reset before": (SparseGRU, {"reset_after": False}),
    "SimpleRNN": (SparseSimpleRNN, {}),
}
ALL = {"return_sequences": True, "return_state": True}
BOTH_DROPOUTS = {"dropout": 0.4, "recurrent_dropout": 0.3, "seed": 5}
# Options of the layer, and whether it gets padded steps, initial states and `training`.
CASES = {
    "plain": (ALL, ""),
    "padded": (ALL, "padded states"),
    "padded, last output": ({}, "padded states"),
    "padded, last output, backwards": ({"go_backwards": True, "use_bias": False}, "padded states"),
    "padded, zeros": ({**ALL, "zero_output_for_mask": True, "go_backwards": True}, "padded states"),
    "padded, last zero": ({"zero_output_for_mask": True}, "padded states"),
    "dropout": ({**ALL, "dropout": 0.4, "seed": 5}, "training"),
    "recurrent dropout": ({**ALL, "recurrent_dropout": 0.3, "seed": 5, "use_bias": False}, "training"),
    "everything": ({**ALL, **BOTH_DROPOUTS, "go_backwards": True}, "padded states training"),
    "no dropout in inference": ({**ALL, **BOTH_DROPOUTS}, "padded states"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def with_weights(layer):
    """Builds a layer, and gives it weights that are not what Keras starts from."""
    layer.build((BATCH, TIME, FEATURES))
    for index, weight in enumerate(layer.trainable_weights):
        weight.assign(0.7 * draw(*weight.shape, seed=index))
    return layer


def sparse_and_dense(kind, options):
    sparse_class, kind_options = KINDS[kind]
    options = {**kind_options, **options}
    return [
        with_weights(sparse_class(UNITS, sparsity=0, **options)),
        with_weights(sparse_class.keras_layer(UNITS, **options)),
    ]


def call_arguments(layer, given=""):
    arguments = {"training": "training" in given}
    if "padded" in given:
        arguments["mask"] = ops.convert_to_tensor(MASK)
    states = [draw(BATCH, size, seed=1) for size in layer.state_size] if "states" in given else []
    return draw(BATCH, TIME, FEATURES), states, arguments


def outputs_and_gradients(layer, inputs, states, arguments):
    """Outputs, and gradients of a loss in which every output counts differently."""
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

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        gradients, outputs = gradient(weights, inputs, states)
    else:
        inputs, *states = [tf.convert_to_tensor(tensor) for tensor in (inputs, *states)]
        with tf.GradientTape() as tape:
            tape.watch([inputs, *states])
            loss, outputs = loss_of(layer(inputs, **initial_state(states), **arguments))
        gradients = tape.gradient(loss, [weights, inputs, states], unconnected_gradients="zero")
    return [ops.convert_to_numpy(result) for result in keras.tree.flatten([outputs, gradients])]


def assert_same(results, expected):
    assert len(results) == len(expected)
    for result, value in zip(results, expected, strict=True):
        assert result.shape == value.shape
        np.testing.assert_allclose(result, value, rtol=0, atol=1e-5 * max(1, np.abs(value).max()))


@each_kind
@pytest.mark.parametrize("case", CASES)
def test_equals_keras(case, kind):
    options, given = CASES[case]
    results = []
    for layer in sparse_and_dense(kind, options):
        results.append(outputs_and_gradients(layer, *call_arguments(layer, given)))
    assert_same(*results)
    if "training" in given:
        plain = outputs_and_gradients(layer, *call_arguments(layer, given.replace("training", "")))
        assert np.abs(plain[0] - results[0][0]).max() > 0.01  # dropout did something


@tensorflow_only
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_dropout_mask_for_each_gate(kind):
    options = {**ALL, "implementation": 1, "dropout": 0.5, "seed": 5, "use_cudnn": False}
    pair = sparse_and_dense(kind, options)
    assert_same(*(outputs_and_gradients(layer, *call_arguments(layer, "training")) for layer in pair))


@tensorflow_only
@each_kind
def test_in_a_function_of_dynamic_shape(kind):
    pair = sparse_and_dense(kind, {**ALL, **BOTH_DROPOUTS, "go_backwards": True})
    states = [tf.TensorSpec((None, UNITS))] * len(pair[0].state_size)
    specs = [tf.TensorSpec((None, None, FEATURES)), tf.TensorSpec((None, None), tf.bool), *states]

    def compiled(layer):
        @tf.function(input_signature=specs)
        def run(inputs, mask, *states):
            sources = [inputs, *states, *(weight.value for weight in layer.trainable_weights)]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                outputs = layer(inputs, mask=mask, initial_state=list(states), training=True)
                loss = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
            return [*outputs, *tape.gradient(loss, sources)]

        return run

    functions = [compiled(layer) for layer in pair]
    for batch, time in [(BATCH, TIME), (2, 1)]:
        sequences, states, _ = call_arguments(pair[0], "states")
        arguments = [sequences[:batch, :time], MASK[:batch, :time], *(state[:batch] for state in states)]
        assert_same(*([result.numpy() for result in function(*arguments)] for function in functions))


# Options of the layer, and arguments of its call.
WHOLE_SEQUENCE = {
    "plain": ({}, {}),
    "padded": ({}, {"mask": MASK}),
    "dropout": (BOTH_DROPOUTS, {"training": True}),
    "no dropout in inference": ({"dropout": 1.0}, {}),
}
KERAS_LOOP = {
    "drops everything": ({"dropout": 1.0}, {"training": True}),
    "drops all states": ({"recurrent_dropout": 1.0}, {"training": True}),
    "unrolled": ({"unroll": True}, {}),
    "relu": ({"activation": "relu"}, {}),
    "padding of rank 3": ({}, {"mask": MASK[:, :, None]}),
}


@tensorflow_only
@pytest.mark.parametrize(
    ("kind", "case"),
    [(kind, case) for kind in KINDS for case in WHOLE_SEQUENCE]
    + [(kind, case) for kind in ("LSTM", "SimpleRNN") for case in KERAS_LOOP],
)
def test_what_runs_over_the_whole_sequence(kind, case):
    """Keras's own loop, which has a gradient of second order, is left what it alone computes."""
    options, arguments = {**WHOLE_SEQUENCE, **KERAS_LOOP}[case]
    layer, dense = sparse_and_dense(kind, options)
    inputs, call = draw(BATCH, TIME, FEATURES), {"training": False, **arguments}
    assert_same(*(outputs_and_gradients(each, inputs, [], call) for each in (layer, dense)))

    def second_gradient():
        weight = layer.cell.kernel.value
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_sum(layer(inputs, **call))
            norm = tf.reduce_sum(inner.gradient(loss, weight) ** 2)
        return outer.gradient(norm, weight)

    if case in WHOLE_SEQUENCE:
        with pytest.raises(
            LookupError, match=f"second-order gradients use `keras.layers.{kind.split(',')[0]}`"
        ):
            second_gradient()
    else:
        assert second_gradient() is not None


@jax_only
def test_functions_for_jax():
    """They have no derivative in forward mode, which Keras's loops have."""

    def forward_derivative(kind, options, **arguments):
        layer, _ = sparse_and_dense(kind, options)
        weights = [variable.value for variable in layer.variables]
        weights = [weights[: len(layer.trainable_variables)], weights[len(layer.trainable_variables) :]]
        inputs = draw(BATCH, TIME, FEATURES)
        return jax.jvp(lambda x: layer.stateless_call(*weights, x, **arguments)[0], [inputs], [inputs])

    for kind in KINDS:
        with pytest.raises(TypeError, match="custom_vjp"):
            forward_derivative(kind, {} if kind == "SimpleRNN" else {"use_cudnn": False})
    # A dropout mask for each gate is left to Keras.
    forward_derivative("LSTM", {"recurrent_dropout": 0.5}, training=True)


@jax_only
@pytest.mark.parametrize(
    ("policy", "meant"), [("float32", True), ("mixed_bfloat16", False), ("mixed_float16", False)]
)
def test_jax_has_cudnn_for_full_precision_only(policy, meant, monkeypatch):
    layer = SparseLSTM(UNITS, dtype=policy)
    monkeypatch.setattr("keras_selfish.layers.sequence_jax.on_gpu", lambda: True)  # here there is none
    assert layer._cudnn_is_meant(None) is meant


@tensorflow_only
@pytest.mark.parametrize("sparse_class", [SparseLSTM, SparseGRU])
def test_other_gates_are_left_to_keras(sparse_class):
    layer = sparse_class(UNITS, sparsity=0, recurrent_activation="hard_sigmoid")
    dense = sparse_class.keras_layer(UNITS, recurrent_activation="hard_sigmoid")
    results = [
        outputs_and_gradients(with_weights(each), *call_arguments(each, "padded states"))
        for each in (layer, dense)
    ]
    assert_same(*results)


def stack(sparse):
    """All kinds of layers, one upon the other, on padded sequences of any length."""
    options = {"sparsity": 0.5, "mask_seed": 1} if sparse else {}

    def layer(sparse_class, **others):
        return (sparse_class if sparse else sparse_class.keras_layer)(
            UNITS, return_sequences=True, **others, **options
        )

    return keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras.layers.Masking(),
            layer(SparseLSTM, dropout=0.2),
            layer(SparseGRU, go_backwards=True),
            keras.layers.Bidirectional(layer(SparseSimpleRNN)),
            layer(SparseGRU, reset_after=False, recurrent_dropout=0.2),
        ]
    )


@tensorflow_only
def test_in_a_saved_model(tmp_path):
    model = stack(sparse=True)
    model.export(str(tmp_path / "model"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    dense = stack(sparse=False)
    weights = [weight for weight in model.weights if not weight.name.endswith("_mask")]
    for weight, value in zip(dense.weights, weights, strict=True):
        weight.assign(value)
    for batch, time in [(BATCH, TIME), (2, 3)]:
        sequences = draw(BATCH, TIME, FEATURES) * MASK[:, :, None]
        sequences = sequences[:batch, :time]
        np.testing.assert_allclose(loaded.serve(sequences), dense.predict(sequences, verbose=0), atol=1e-5)


@tensorflow_only
def test_mirrored_strategy_on_two_devices(two_replicas):
    with two_replicas.scope():
        model = stack(sparse=True)
    sequences = draw(BATCH, TIME, FEATURES) * MASK[:, :, None]
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
    expected = tf.function(gradients)(tf.constant(sequences))
    for found, value in zip(step(distributed), expected, strict=True):
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
        ({}, ""),
        (ALL, "padded states"),
        ({**ALL, "go_backwards": True, "zero_output_for_mask": True}, "padded states"),
        ({**ALL, "unroll": True}, "padded"),
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


@pytest.mark.jax
@tensorflow_only
def test_this_file_on_jax(run_tests):
    names = "(hoisted_inputs and zero) or zeros-GRU or everything-SimpleRNN or functions_for_jax"
    run_tests(__file__, names, backend="jax")
