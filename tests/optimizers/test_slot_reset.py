"""Optimizer state at the positions where a connection was dropped or grown."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish.layers import SparseDense
from keras_selfish.masks import masked_weights
from keras_selfish.optimizers import SNTASGD
from keras_selfish.optimizers.slot_reset import momentum_of, reset_state
from keras_selfish.rewiring import Rewiring

optimizers = keras.optimizers

# Name: (how to make it, initial values of its slots in the order of their names).
ELEMENTWISE = {
    "sgd": (lambda **kw: optimizers.SGD(0.05, **kw), {}),
    "momentum": (lambda **kw: optimizers.SGD(0.05, momentum=0.9, nesterov=True, **kw), {"momentum": 0}),
    "adam": (
        lambda **kw: optimizers.Adam(0.05, amsgrad=True, **kw),
        {"momentum": 0, "velocity": 0, "velocity_hat": 0},
    ),
    "adamw": (lambda **kw: optimizers.AdamW(0.05, **kw), {"momentum": 0, "velocity": 0}),
    "rmsprop": (
        lambda **kw: optimizers.RMSprop(0.05, momentum=0.9, centered=True, **kw),
        {"average_gradient": 0, "momentum": 0, "velocity": 0},
    ),
    "lion": (lambda **kw: optimizers.Lion(0.05, **kw), {"momentum": 0}),
    "ftrl": (
        lambda **kw: optimizers.Ftrl(0.05, initial_accumulator_value=0.3, **kw),
        {"accumulator": 0.3, "linear": 0},
    ),
    "adagrad": (lambda **kw: optimizers.Adagrad(0.05, **kw), {"accumulator": 0.1}),
    "adadelta": (
        lambda **kw: optimizers.Adadelta(0.05, **kw),
        {"accumulated_delta_var": 0, "accumulated_grad": 0},
    ),
    "adamax": (lambda **kw: optimizers.Adamax(0.05, **kw), {"momentum": 0, "norm": 0}),
    "nadam": (lambda **kw: optimizers.Nadam(0.05, **kw), {"momentum": 0, "velocity": 0}),
    "schedule_free": (lambda **kw: optimizers.ScheduleFreeAdamW(0.05, **kw), {"momentum": 0, "velocity": 0}),
}


def sparse_model(optimizer, layers=1):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            *(SparseDense(8, sparsity=0.5, mask_seed=i, name=f"dense_{i}") for i in range(layers)),
        ]
    )
    compile_model(model, optimizer)
    return model


def compile_model(model, optimizer):
    # Eagerly: a graph for three steps costs more than they do. The callback's tests train in graphs.
    model.compile(optimizer, "mse", run_eagerly=True)


def train(model, steps=3, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        inputs = generator.normal(size=(4, *model.input_shape[1:]))
        model.train_on_batch(inputs, generator.normal(size=(4, *model.output_shape[1:])))


def slots_of(optimizer, variable):
    """Slot name to NumPy array, of all that has the shape of `variable` and its path in its name."""
    prefix = variable.path.replace("/", "_") + "_"
    return {
        slot.name.removeprefix(prefix): ops.convert_to_numpy(slot)
        for slot in optimizer.variables
        if slot.name.startswith(prefix) and tuple(slot.shape) == tuple(variable.shape)
    }


def rewire_once(model, rate=0.6):
    """Rewires the model and returns the positions that changed, for each weight."""
    before = [ops.convert_to_numpy(w.mask).copy() for w in masked_weights(model)]
    rewiring = Rewiring(seed=1)
    rewiring.set_model(model)
    rewiring.rewire(rate, step=3)
    return [old ^ ops.convert_to_numpy(w.mask) for old, w in zip(before, masked_weights(model), strict=True)]


def check_reset(model, leaf, initial):
    """Rewires a trained model, checks every slot, trains on and checks that zeros stay zeros."""
    weights = masked_weights(model)
    before = [slots_of(leaf, w.weight) for w in weights]
    assert sorted(before[0]) == sorted(initial)
    for weight, old, changed in zip(weights, before, rewire_once(model), strict=True):
        assert changed.any()
        for name, values in slots_of(leaf, weight.weight).items():
            np.testing.assert_array_equal(values[changed], np.float32(initial[name]), name)
            np.testing.assert_array_equal(values[~changed], old[name][~changed], name)
            assert (values[~changed] != np.float32(initial[name])).any(), f"{name} was never in use"
    masks = [ops.convert_to_numpy(w.mask) for w in weights]
    train(model, seed=1)
    for weight, mask in zip(weights, masks, strict=True):
        values = ops.convert_to_numpy(weight.weight)
        assert (values[~mask] == 0).all()
        assert np.count_nonzero(values[mask]) > mask.sum() / 2


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_changed_positions_start_anew(name, since_keras):
    since_keras("3.14" if name == "schedule_free" else "3.12")
    make, initial = ELEMENTWISE[name]
    model = sparse_model(make())
    train(model)
    check_reset(model, model.optimizer, initial)


def test_moving_averages_and_accumulated_gradients_too():
    optimizer = optimizers.Adam(0.05, use_ema=True, gradient_accumulation_steps=2)
    model = sparse_model(optimizer)
    train(model, steps=3)  # an odd number: a gradient is accumulated
    check_reset(model, optimizer, {"average": 0, "gradient_accumulator": 0, "momentum": 0, "velocity": 0})
    mask = ops.convert_to_numpy(masked_weights(model)[0].mask)
    average = slots_of(optimizer, masked_weights(model)[0].weight)["average"]
    assert not average[~mask].any()


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw", "rmsprop", "lion", "ftrl"])
def test_within_a_loss_scale_optimizer(name):
    make, initial = ELEMENTWISE[name]
    model = sparse_model(optimizers.LossScaleOptimizer(make(), initial_scale=8.0))
    train(model)
    check_reset(model, model.optimizer.inner_optimizer, initial)


@pytest.mark.parametrize("wrapped", [False, True])
def test_within_a_multi_optimizer(wrapped, since_keras):
    """Each of two layers has an optimizer of its own, of another kind."""
    since_keras("3.15")
    chosen = {"dense_0": "adam", "dense_1": "ftrl"}
    leaves = {layer: ELEMENTWISE[name][0]() for layer, name in chosen.items()}
    rest = optimizers.SGD(0.05)

    def choose(variable):
        return leaves[variable.path.split("/")[-2]] if variable.path.endswith("kernel") else rest

    optimizer = optimizers.MultiOptimizer(choose)
    model = sparse_model(optimizers.LossScaleOptimizer(optimizer) if wrapped else optimizer, layers=2)
    train(model)
    weights = masked_weights(model)
    changes = rewire_once(model)
    for weight, changed in zip(weights, changes, strict=True):
        layer = weight.name.split("/")[-2]
        initial = ELEMENTWISE[chosen[layer]][1]
        slots = slots_of(leaves[layer], weight.weight)
        assert sorted(slots) == sorted(initial)
        for name, values in slots.items():
            np.testing.assert_array_equal(values[changed], np.float32(initial[name]), name)
            assert (values[~changed] != np.float32(initial[name])).any()
    masks = [ops.convert_to_numpy(w.mask) for w in weights]
    train(model, seed=1)
    for weight, mask in zip(weights, masks, strict=True):
        assert not ops.convert_to_numpy(weight.weight)[~mask].any()


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_optimizer_with_a_method_for_it_resets_itself(wrapped, since_keras):
    optimizer = both = SNTASGD(0.1)
    if wrapped:
        since_keras("3.15")
        rest = optimizers.SGD(0.1)
        both = optimizers.MultiOptimizer(lambda variable: optimizer if "kernel" in variable.path else rest)
    model = sparse_model(both)
    train(model)
    (changed,) = rewire_once(model)
    (weight,) = masked_weights(model)
    births = slots_of(optimizer, weight.weight)["birth"]
    mask = ops.convert_to_numpy(weight.mask)
    np.testing.assert_array_equal(births[~mask], -1)
    np.testing.assert_array_equal(births[changed & mask], 3)
    np.testing.assert_array_equal(births[mask & ~changed], 0)


def five_percent():
    return 0.05


def test_a_schedule_or_function_of_the_learning_rate():
    schedule = optimizers.schedules.ExponentialDecay(0.05, 10, 0.9)
    for learning_rate in (schedule, five_percent):
        model = sparse_model(optimizers.SGD(learning_rate, momentum=0.9))
        train(model)
        check_reset(model, model.optimizer, {"momentum": 0})


@pytest.mark.parametrize("make", [optimizers.Adam, SNTASGD])
def test_before_it_is_built_there_is_nothing_to_do(make):
    model = sparse_model(make())
    (weight,) = masked_weights(model)
    changed = np.ones(weight.shape, bool)
    reset_state(model.optimizer, weight, changed, changed)
    assert not model.optimizer.built


@pytest.mark.parametrize("make", [optimizers.Muon, optimizers.Adafactor])
@pytest.mark.parametrize("wrap", [None, "loss scale", "multi"])
def test_optimizers_that_mix_the_entries_of_a_matrix_are_refused(make, wrap, since_keras):
    since_keras("3.15" if wrap == "multi" else "3.12")
    optimizer = make(0.01)
    if wrap == "loss scale":
        optimizer = optimizers.LossScaleOptimizer(optimizer)
    elif wrap == "multi":
        optimizer = optimizers.MultiOptimizer(lambda variable, inner=optimizer: inner)
    model = sparse_model(optimizer)
    if wrap == "multi":
        model.optimizer.build(model.trainable_variables)
    (weight,) = masked_weights(model)
    changed = np.ones(weight.shape, bool)
    with pytest.raises(ValueError, match=f"`optimizer` must update each weight by itself.*{make.__name__}"):
        reset_state(model.optimizer, weight, changed, changed)


def test_muon_may_train_what_is_not_masked(since_keras):
    since_keras("3.15")
    kernels, rest = optimizers.Adam(), optimizers.Muon()
    model = sparse_model(optimizers.MultiOptimizer(lambda v: kernels if "kernel" in v.path else rest))
    train(model)
    rewire_once(model)


class RowOptimizer(optimizers.SGD):
    """SGD that keeps a number per row of a matrix."""

    def build(self, variables):
        super().build(variables)
        self.rows = [self.add_variable(v.shape[:1], name=f"{v.name}_rows") for v in variables]


class NamelessOptimizer(optimizers.SGD):
    """SGD whose slots do not tell which weight they belong to."""

    def build(self, variables):
        super().build(variables)
        self.slots = [self.add_variable(v.shape, name="slot") for v in variables]


class BoundOptimizer(optimizers.SGD):
    """SGD that its configuration does not describe."""

    def __init__(self, secret):
        super().__init__(0.1)
        self.secret = secret


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (RowOptimizer, "RowOptimizer, whose variable 'probe_rows' has another shape or name"),
        (NamelessOptimizer, "NamelessOptimizer, whose variable 'slot' has another shape or name"),
        (lambda: BoundOptimizer(1), "BoundOptimizer; give it a method `reset_slots"),
    ],
)
def test_state_that_cannot_be_told_apart_is_refused(make, message):
    model = sparse_model(make())
    model.optimizer.build(model.trainable_variables)
    (weight,) = masked_weights(model)
    changed = np.ones(weight.shape, bool)
    with pytest.raises(ValueError, match=message):
        reset_state(model.optimizer, weight, changed, changed)


def test_new_connections_begin_without_state():
    """Also one that exists already: with `reset_regrown` it is dropped and grown at once."""
    model = sparse_model(optimizers.SGD(0.05, momentum=0.9))
    train(model)
    (masked_weight,) = masked_weights(model)
    before = slots_of(model.optimizer, masked_weight.weight)["momentum"].copy()
    grown = ops.convert_to_numpy(masked_weight.mask) & (np.arange(8) < 4)
    assert before[grown].any()
    reset_state(model.optimizer, masked_weight, np.zeros_like(grown), grown)
    after = slots_of(model.optimizer, masked_weight.weight)["momentum"]
    np.testing.assert_array_equal(after, np.where(grown, 0, before))


@pytest.mark.parametrize("made", ["as layers of models", "as functional models"])
def test_two_weights_whose_slots_have_one_name(made):
    """They are told apart by their order: towers that one function makes have equal names inside."""
    if made == "as layers of models":
        first = keras.Sequential([keras.Input((8,)), SparseDense(8, mask_seed=1, name="b_c")], name="a")
        second = keras.Sequential([keras.Input((8,)), SparseDense(8, mask_seed=2, name="c")], name="a_b")
    else:
        inputs = [keras.Input((8,)) for _ in range(2)]
        layers = [SparseDense(8, mask_seed=seed, name="dense") for seed in (1, 2)]
        first, second = (
            keras.Model(given, layer(given), name=name)
            for given, layer, name in zip(inputs, layers, ("left", "right"), strict=True)
        )
    model = keras.Sequential([keras.Input((8,)), first, second])
    compile_model(model, optimizers.Adam())
    train(model)
    changes = rewire_once(model)
    prefix = masked_weights(model)[0].name.replace("/", "_")
    for suffix in ("momentum", "velocity"):
        slots = [slot for slot in model.optimizer.variables if slot.name == f"{prefix}_{suffix}"]
        assert len(slots) == 2
        for slot, changed in zip(slots, changes, strict=True):
            value = ops.convert_to_numpy(slot)
            assert not value[changed].any()
            assert value[~changed].any()


def test_paths_that_begin_alike_are_told_apart():
    names = ["a", "a_kernel"]
    model = keras.Sequential(
        [keras.Input((8,)), *(SparseDense(8, sparsity=0.5, mask_seed=1, name=name) for name in names)]
    )
    compile_model(model, optimizers.SGD(0.1, momentum=0.9))
    train(model)
    changes = rewire_once(model)
    for weight, changed in zip(masked_weights(model), changes, strict=True):
        momentum = slots_of(model.optimizer, weight.weight)["momentum"]
        assert not momentum[changed].any()
        assert momentum[~changed].any()


def linear_model(optimizer):
    model = keras.Sequential([keras.Input((6,)), SparseDense(8, sparsity=0.5, mask_seed=1, use_bias=False)])
    compile_model(model, optimizer)
    return model


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_momentum_against_a_loop(name, scaled):
    """That of PyTorch's optimizers, as Sparse Momentum reads it: of SGD up to a factor, of Adam divided."""
    optimizer = optimizers.SGD(0.05, momentum=0.9) if name == "momentum" else optimizers.Adam(0.05)
    model = linear_model(optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0) if scaled else optimizer)
    kernel = masked_weights(model)[0].weight
    mask = ops.convert_to_numpy(masked_weights(model)[0].mask)
    assert momentum_of(model.optimizer, kernel) is None  # before the first step
    momentum, square = np.zeros((6, 8)), np.zeros((6, 8))
    for step in range(3):
        inputs, targets = np.random.default_rng(step).normal(size=(2, 4, 8))
        inputs = inputs[:, :6]
        error = inputs @ ops.convert_to_numpy(kernel) - targets
        gradient = np.where(mask, inputs.T @ error * 2 / error.size, 0.0)
        momentum = 0.9 * momentum + (gradient if name == "momentum" else 0.1 * gradient)
        square = 0.999 * square + 0.001 * gradient**2
        model.train_on_batch(inputs, targets)
    expected = -0.05 * momentum if name == "momentum" else momentum / (np.sqrt(square) + 1e-8)
    np.testing.assert_allclose(momentum_of(model.optimizer, kernel), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamax", "ours"])
def test_an_optimizer_without_momentum_of_gradients(name):
    model = sparse_model(SNTASGD(0.05) if name == "ours" else ELEMENTWISE[name][0]())
    train(model)
    assert momentum_of(model.optimizer, masked_weights(model)[0].weight) is None


def test_momenta_of_several_optimizers_do_not_compare(since_keras):
    since_keras("3.15")
    kernels, rest = optimizers.SGD(0.05, momentum=0.9), optimizers.SGD(0.5, momentum=0.9)
    model = sparse_model(
        optimizers.MultiOptimizer(lambda v: kernels if "dense_0" in v.path else rest), layers=2
    )
    train(model)
    assert momentum_of(model.optimizer, masked_weights(model)[0].weight) is None
