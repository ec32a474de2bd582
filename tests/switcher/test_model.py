"""Training a network and its switcher in turns."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import (
    SparsityConstraint,
    SwitchedDense,
    SwitchedModel,
    SwitcherNetwork,
    masked_weights,
    strip,
)

on_jax_too = pytest.mark.backends("tensorflow", "jax")
SLOW_ON_JAX = [pytest.mark.slow] if keras.backend.backend() == "jax" else []

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(48, 12)).astype("float32")
Y = (X[:, :3] @ GENERATOR.normal(size=(3, 4))).argmax(1)
LOSS = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
GRANULARITIES_SLOW_ON_JAX = [
    pytest.param(granularity, marks=SLOW_ON_JAX) for granularity in ("connection", "neuron")
]


def make_model(granularity="connection", hidden=(20, 16), normalise=True, graph=False, **arguments):
    """A model whose steps run eagerly, or in graphs, which take seconds to make; on JAX always compiled."""
    initial = keras.initializers.GlorotUniform(seed=1)
    layers = [
        SwitchedDense(units, "relu", granularity=granularity, kernel_initializer=initial) for units in hidden
    ]
    if normalise:
        layers.insert(1, keras.layers.BatchNormalization())
    layers += [keras.layers.Dense(4, kernel_initializer=initial)]
    network = keras.Sequential([keras.Input((12,)), *layers])
    model = SwitchedModel(network, **{"task_steps": 3, "switcher_steps": 2, **arguments})
    model.compile(
        keras.optimizers.Adam(0.01),
        **LOSS,
        metrics=["accuracy"],
        switcher_optimizer=keras.optimizers.Adam(0.02),
        run_eagerly=not graph and keras.backend.backend() == "tensorflow",
    )
    return model


def fit(model, **arguments):
    history = model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **arguments)
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    return history


def values(variables):
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def state(model):
    """What each side owns: variables, optimizer state, and moving statistics or the constraint's state."""
    task, switcher = model.sides()
    statistics = [v for v in model.non_trainable_variables if "moving" in v.path]
    return (
        values([*task, *statistics, *model.optimizer.task_optimizer.variables]),
        values([*switcher, *model.optimizer.switcher_optimizer.variables]),
    )


def differ(before, after):
    return [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)]


@on_jax_too
@pytest.mark.parametrize(
    ("granularity", "estimator", "graph"),
    [
        ("connection", "straight_through", True),
        ("neuron", "hard_concrete", True),
        pytest.param("connection", "hard_concrete", False, marks=SLOW_ON_JAX),
        pytest.param("neuron", "straight_through", False, marks=SLOW_ON_JAX),
    ],
)
def test_a_step_moves_its_side_only(granularity, estimator, graph):
    """And the first of the network sees the switches that the switcher, as it became, decides on."""
    model = make_model(
        granularity,
        hidden=[20],
        graph=graph,
        target_sparsity=SparsityConstraint(0.5, ramp_steps=0),
        estimator=estimator,
    )
    assert [model.phase_of(step) for step in range(9)] == (
        ["task"] * 3 + ["switcher"] * 2 + ["refresh"] + ["task"] * 2 + ["switcher"]
    )
    for step in range(9):
        before, kernel = state(model), values([model.layers[1].kernel])[0]
        model.train_on_batch(X[:8], Y[:8])
        if model.phase_of(step) == "refresh" and granularity == "connection":
            logits = ops.convert_to_numpy(model.switcher(ops.convert_to_tensor(kernel)))
            expected = logits > float(model.constraint.threshold)
            assert 0 < expected.mean() < 1
            # A logit may lie on the threshold to the last bit.
            assert (values([model.layers[1].mask])[0] != expected).mean() < 0.01
        task, switcher = (differ(one, other) for one, other in zip(before, state(model), strict=True))
        if model.phase_of(step) == "switcher":
            assert not any(task)
            assert sum(switcher) > len(switcher) / 2
        else:
            assert not any(switcher)
            assert sum(task) > len(task) / 2
    assert int(model.optimizer.iterations) == 9
    assert int(model.optimizer.task_optimizer.iterations) == 6


@on_jax_too
def test_gradient_of_the_network_is_that_of_a_masked_layer():
    """A task step with given switches, against plain Keras with a masked kernel."""
    model = make_model(normalise=False)
    mask = np.random.default_rng(1).uniform(size=(12, 20)) < 0.5
    first = model.layers[1]
    first.set_switches(mask)
    before = values(model.sides()[0])
    plain = strip(model)
    plain.compile(keras.optimizers.Adam(0.01), **LOSS, run_eagerly=model.run_eagerly)
    plain.train_on_batch(X[:8], Y[:8])
    model.train_on_batch(X[:8], Y[:8])
    kernel = values([first.kernel])[0]
    np.testing.assert_array_equal(kernel[~mask], before[0][~mask])
    np.testing.assert_allclose(kernel[mask], values([plain.layers[1].kernel])[0][mask], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        values([first.bias])[0], values([plain.layers[1].bias])[0], rtol=1e-4, atol=1e-6
    )


@on_jax_too
@pytest.mark.parametrize("granularity", GRANULARITIES_SLOW_ON_JAX)
def test_training_learns_and_reaches_the_target(granularity):
    model = make_model(
        granularity,
        (100, 16),
        normalise=False,
        graph=True,
        target_sparsity=SparsityConstraint(0.7, ramp_steps=10),
    )
    losses = fit(model, epochs=15).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert model.phase_of(15 * 6 - 1) == "switcher"  # it decides a last time
    predicted = model.predict(X, verbose=0)
    model.freeze()
    assert np.abs(model.predict(X, verbose=0) - predicted).max() > 0
    weights = masked_weights(model)
    size = sum(np.prod(weight.shape) for weight in weights)
    sparsity = 1 - sum(weight.active for weight in weights) / size
    # A unit of the second layer is 100 of 2800 connections.
    assert sparsity == pytest.approx(0.7, abs=0.01 if granularity == "connection" else 0.5 * 100 / size)
    for weight in weights:
        counts = set(values([weight.mask])[0].sum(0))
        assert (counts <= {0, weight.shape[0]}) == (granularity == "neuron")
    assert_frozen(model)


def assert_frozen(model):
    """Training moves what is on and nothing else."""
    masks, switchers = values(weight.mask for weight in masked_weights(model)), values(model.sides()[1])
    before = model.predict(X, verbose=0)
    fit(model, epochs=2)
    assert not any(differ(masks, values(weight.mask for weight in masked_weights(model))))
    assert not any(differ(switchers, values(model.sides()[1])))
    for weight in masked_weights(model):
        assert not values([weight.weight])[0][~values([weight.mask])[0]].any()
    assert np.abs(model.predict(X, verbose=0) - before).max() > 0


def test_without_a_target_the_loss_alone_moves_the_switches():
    """A kernel that the task wants larger: closing connections costs, so that they open."""
    switcher = SwitcherNetwork(initial_logit=0.0)
    model = make_model(hidden=[20], normalise=False, switcher=switcher, warmup_steps=0)
    fit(model, epochs=1)
    (weight,) = masked_weights(model)
    first = weight.active
    assert 0 < first < 12 * 20
    fit(model, epochs=5)
    assert weight.active != first


@pytest.mark.parametrize("granularity", ["connection", "neuron"])
def test_save_and_load_in_the_middle_of_an_alternation(granularity, tmp_path):
    model = make_model(granularity, target_sparsity=0.5)
    fit(model, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.predict(X, verbose=0), loaded.predict(X, verbose=0))
    ours, theirs = model.get_config(), loaded.get_config()
    del ours["network"], theirs["network"]  # it says also how it was built
    assert ours == theirs
    for side, loaded_side in zip(state(model), state(loaded), strict=True):
        assert not any(differ(side, loaded_side))
    for one, other in zip(values(model.variables), values(loaded.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    fit(model, epochs=1)  # which has steps of all phases
    fit(loaded, epochs=1)
    # Not to the bit: on a busy machine TensorFlow rounded one of some hundred runs otherwise, and a switch
    # near the threshold turned. State that is lost moves weights by the learning rates, 0.01 and 0.02.
    for one, other in zip(values(model.variables), values(loaded.variables), strict=True):
        if one.dtype == bool:
            assert (one != other).mean() < 0.02
        else:
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "granularity"),
    [(name, "connection") for name in ("contextual", "attention", "convolution", "weight")]
    + [("contextual", "neuron")],
)
def test_gradients_are_summed_in_one_order(architecture, granularity):
    """TensorFlow sums three tensors and more in an order that depends on other threads."""
    import tensorflow as tf

    switcher = SwitcherNetwork(architecture, granularity, tile_size=50)  # in parts, and what is left over
    model = make_model(
        *(granularity, (20, 16, 12), False),  # Keras's batch normalization sums three
        **{"switcher": switcher, "target_sparsity": 0.5, "warmup_steps": 0, "graph": True},
    )
    model.make_train_function()
    with model._in_phase("switcher"):
        step = tf.function(lambda x, y: model.train_step((x, y)), autograph=False)
        graph = step.get_concrete_function(tf.constant(X), tf.constant(Y)).graph
    sums = [node for node in graph.as_graph_def().node if node.op == "AddN"]
    assert all(len(node.input) == 2 for node in sums), [list(node.input) for node in sums]


@on_jax_too
@pytest.mark.parametrize("granularity", GRANULARITIES_SLOW_ON_JAX)
def test_freeze_fine_tune_and_strip(granularity, tmp_path):
    model = make_model(granularity, normalise=False, target_sparsity=SparsityConstraint(0.5, ramp_steps=0))
    fit(model, epochs=2)
    assert model.phase_of(2 * 6 - 1) == "task"  # the switcher has nothing to add
    before = model.predict(X, verbose=0)
    model.freeze()
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)
    assert_frozen(model)
    tuned = model.predict(X, verbose=0)
    stripped = strip(model)
    np.testing.assert_allclose(stripped.predict(X, verbose=0), tuned, rtol=1e-5, atol=1e-6)
    assert all(type(layer) in (keras.layers.Dense, keras.layers.InputLayer) for layer in stripped.layers)
    assert all("switcher" not in variable.path for variable in stripped.variables)
    if granularity == "neuron":
        assert sum(layer.units for layer in stripped.layers[1:]) < 20 + 16 + 4
        assert stripped.count_params() < 12 * 20 + 20 * 16 + 16 * 4
    model.save(tmp_path / "frozen.keras")
    assert keras.models.load_model(tmp_path / "frozen.keras").frozen


def test_mixed_precision():
    with_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make_model(target_sparsity=0.5)
    finally:
        keras.config.set_dtype_policy(with_policy)
    fit(model, epochs=2)
    assert {keras.backend.standardize_dtype(v.dtype) for v in model.trainable_variables} == {"float32"}
    assert np.isfinite(model.predict(X, verbose=0)).all()


def test_several_steps_at_a_time():
    one, several = (make_model(hidden=[20], normalise=False, task_steps=4) for _ in range(2))
    one.compile(keras.optimizers.SGD(0.1), **LOSS, run_eagerly=True)
    several.compile(keras.optimizers.SGD(0.1), **LOSS, steps_per_execution=2)
    for model in (one, several):
        fit(model, epochs=3)
    assert (
        int(several.optimizer.task_optimizer.iterations) == int(one.optimizer.task_optimizer.iterations) < 18
    )
    with pytest.raises(ValueError, match="`steps_per_execution` must divide"):
        one.compile("sgd", **LOSS, steps_per_execution=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_steps": 0}, "`task_steps` must be a positive integer. Received: task_steps=0"),
        ({"switcher_steps": 1.5}, "`switcher_steps` must be a positive integer"),
        ({"warmup_steps": -1}, "`warmup_steps` must be a non-negative integer"),
        ({"estimator": "reinforce"}, "`estimator` must be one of straight_through, hard_concrete"),
        ({"target_sparsity": 1.2}, "`target_sparsity` is the fraction of zeros"),
        ({"switcher": SwitcherNetwork(granularity="neuron")}, "`switcher` must be of the granularity"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)


def test_networks_that_cannot_be_switched():
    with pytest.raises(ValueError, match="`network` must have a SwitchedDense layer"):
        SwitchedModel(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="`network` must be a built"):
        SwitchedModel(keras.Sequential([SwitchedDense(2)]))


def test_two_replicas_do_what_one_device_does(two_replicas):
    settings = {"hidden": [20], "normalise": False, "target_sparsity": SparsityConstraint(0.5, ramp_steps=0)}
    models = [make_model(**settings)]
    with two_replicas.scope():
        settings["target_sparsity"] = SparsityConstraint(0.5, ramp_steps=0)
        models.append(make_model(**settings, graph=True))
    losses = [fit(model, epochs=3).history["loss"] for model in models]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    for one, two in zip(*(masked_weights(model) for model in models), strict=True):
        first, second = (value.numpy() for value in two.mask.value.values)
        np.testing.assert_array_equal(first, second)
        assert 0 < first.sum() < first.size
        assert (first != values([one.mask])[0]).mean() < 0.02
    first, second = (value.numpy() for value in models[1].constraint.threshold.value.values)
    assert first == second == pytest.approx(float(models[0].constraint.threshold), abs=1e-2)


@pytest.mark.parametrize("graph", [False, True])
def test_the_gradient_sees_the_threshold_of_the_forward_pass(graph):
    """Which the constraint has moved by then."""
    tf = pytest.importorskip("tensorflow")
    layer = SwitchedDense(3, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    constraint = SparsityConstraint(0.5, ramp_steps=0)
    model = SwitchedModel(
        keras.Sequential([keras.Input((12,)), layer]),
        **{"task_steps": 1, "switcher_steps": 1, "warmup_steps": 0, "target_sparsity": constraint},
    )
    rate = 0.5
    model.compile(
        "sgd", "mse", switcher_optimizer=keras.optimizers.SGD(rate), run_eagerly=not graph, jit_compile=False
    )
    wanted = GENERATOR.normal(size=(48, 3)).astype("float32")
    parameters = {name: tf.identity(value) for name, value in model.switcher.parameters().items()}
    threshold, width = (ops.convert_to_numpy(one) for one in (constraint.threshold, constraint.width))
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        kernel, _, _ = model.switcher.switched(layer.masked_weight.weight, threshold, width, None, parameters)
        loss = tf.reduce_mean(tf.square(X @ kernel + layer.bias - wanted))
    gradients = tape.gradient(loss, parameters)
    model.train_on_batch(X, wanted)
    assert abs(constraint.threshold - threshold) > 0.1
    largest = 0.0
    for name, value in model.switcher.parameters().items():
        expected = 0.0 if gradients[name] is None else rate * ops.convert_to_numpy(gradients[name])
        moved = ops.convert_to_numpy(parameters[name]) - ops.convert_to_numpy(value)
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-7, err_msg=name)
        largest = max(largest, np.abs(expected).max())
    assert largest > 1e-4
