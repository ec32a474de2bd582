"""SNTASGD against the published trace, an independent NumPy loop, and itself on other devices."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish.layers import SparseDense, SparseEmbedding
from keras_selfish.masks import MaskedWeight, masked_weights, random_mask
from keras_selfish.optimizers import SNTASGD, NonMonotonicAveraging

BACKEND = keras.backend.backend()
# On JAX each eager step compiles its branches anew.
WAYS = [True] if BACKEND == "jax" else [False, True]
EAGERLY = BACKEND == "tensorflow"  # where a few steps cost less than a graph of them
on_all_backends = pytest.mark.backends("tensorflow", "jax", "torch")


# Running it


@pytest.fixture
def compile_small(monkeypatch):
    """Variables as small as those of the tests are updated by XLA too."""
    if BACKEND == "tensorflow":
        from keras_selfish.optimizers import update_tensorflow

        monkeypatch.setattr(update_tensorflow, "SMALLEST_COMPILED", 0)


def masked_variable(value, mask, name="kernel"):
    """A variable with a mask, as a masked layer makes it."""
    variable = keras.Variable(np.asarray(value, "float32"), name=name)
    variable.masked_weight = MaskedWeight(
        variable, keras.Variable(np.asarray(mask, bool), dtype="bool", trainable=False)
    )
    return variable


def stepper(optimizer, variables, compiled):
    """A function that makes one update with a list of NumPy gradients."""
    optimizer.build(variables)

    def apply(gradients):
        optimizer.scale_loss(0.0)
        optimizer.apply([ops.convert_to_tensor(gradient, "float32") for gradient in gradients], variables)

    if not compiled or BACKEND == "torch":
        return apply
    if BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(apply)
        return lambda gradients: function([tf.constant(gradient, tf.float32) for gradient in gradients])
    import jax

    @jax.jit
    def stateless(state, gradients, weights):
        optimizer.scale_loss(0.0)
        return optimizer.stateless_apply(state, gradients, weights)

    def step(gradients):
        gradients = [np.asarray(gradient, "float32") for gradient in gradients]
        weights, state = stateless(
            [v.value for v in optimizer.variables], gradients, [v.value for v in variables]
        )
        for variable, value in zip(variables + optimizer.variables, weights + state, strict=True):
            variable.assign(value)

    return step


def numpy_of(variables):
    return [ops.convert_to_numpy(variable) for variable in variables]


def rewire(optimizer, variable, value, mask):
    """What the rewiring callback does: weights, mask, state."""
    old = ops.convert_to_numpy(variable.masked_weight.mask)
    mask = np.asarray(mask, bool)
    variable.masked_weight.mask.assign(mask)
    variable.assign(np.where(mask & old, value, 0).astype("float32"))
    optimizer.reset_slots(variable, old & ~mask, mask & ~old)


# The published numbers


@on_all_backends
@pytest.mark.parametrize("compiled", WAYS)
@pytest.mark.parametrize("clip_norm_of", ["active", "dense"])
def test_golden_trace(shared, compile_small, clip_norm_of, compiled):
    trace = json.loads((shared / "golden" / "snt_asgd_trace.json").read_text())
    mask = np.array(trace["mask"], bool)
    kernel, bias = masked_variable(trace["kernel"], mask), keras.Variable(np.array(trace["bias"], "float32"))
    optimizer = SNTASGD(
        trace["learning_rate"],
        weight_decay=trace["weight_decay"],
        global_clipnorm=1e6,  # so large that it clips nothing, but decides who masks
        clip_norm_of=clip_norm_of,
    )
    step = stepper(optimizer, [kernel, bias], compiled)
    optimizer.start_averaging()
    assert any("mask_after" in entry for entry in trace["steps"])
    for entry in trace["steps"]:
        gradient = np.array(entry["grad_kernel"], "float32")
        step([gradient if clip_norm_of == "dense" else gradient * mask, entry["grad_bias"]])
        found = numpy_of([kernel, bias, *optimizer.averages])
        for name, value in zip(["kernel", "bias", "average_kernel", "average_bias"], found, strict=True):
            np.testing.assert_allclose(value, entry[name], rtol=0, atol=1e-6, err_msg=name)
        if "mask_after" in entry:
            mask = np.array(entry["mask_after"], bool)
            rewire(optimizer, kernel, ops.convert_to_numpy(kernel), mask)


class NumPySNTASGD:
    """The published update in float64, weight by weight, written from the equations."""

    def __init__(self, weights, masks, decay, limit, clip_norm_of):
        self.weights = [np.array(weight, float) for weight in weights]
        self.masks = [np.array(mask, bool) for mask in masks]
        self.averages = [np.zeros_like(weight) for weight in self.weights]
        self.ages = [np.zeros_like(weight) for weight in self.weights]
        self.decay, self.limit, self.clip_norm_of = decay, limit, clip_norm_of
        self.averaging = False

    def step(self, gradients, rate):
        masked = [np.where(mask, g, 0.0) for mask, g in zip(self.masks, gradients, strict=True)]
        counted = masked if self.clip_norm_of == "active" else gradients
        norm = np.sqrt(sum(np.sum(np.square(g, dtype=float)) for g in counted))
        factor = min(1.0, self.limit / norm)
        for index, gradient in enumerate(masked):
            weight = self.weights[index]
            weight -= rate * (gradient * factor + self.decay * weight)
            if self.averaging:
                self.ages[index] += 1
                average = self.averages[index]
                average += (weight - average) / np.maximum(1, self.ages[index] - 1)
                average[~self.masks[index]] = 0

    def rewire(self, index, mask):
        changed = mask != self.masks[index]
        for array in (self.weights[index], self.averages[index], self.ages[index]):
            array[changed] = 0
        self.masks[index] = mask


@on_all_backends
@pytest.mark.parametrize("clip_norm_of", ["active", "dense"])
@pytest.mark.parametrize(("compiled", "accumulation"), [(way, None) for way in WAYS] + [(True, 2)])
def test_random_training(compile_small, clip_norm_of, compiled, accumulation):
    # Clipped at most steps, rewired before and after the trigger, with a bias and a dense matrix beside.
    random = np.random.default_rng([7, compiled])
    shapes = [(6, 5), (5, 4), (4, 4), (5,)]
    masks = [
        random_mask(shapes[0], 10, 1),
        random_mask(shapes[1], 6, 2),
        np.ones(shapes[2]),
        np.ones(shapes[3]),
    ]
    weights = [random.normal(size=s) * m for s, m in zip(shapes, masks, strict=True)]
    variables = [masked_variable(w, m) for w, m in zip(weights[:2], masks[:2], strict=True)]
    variables += [keras.Variable(w.astype("float32")) for w in weights[2:]]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([10], [0.5, 0.1])
    optimizer = SNTASGD(
        0.5 if accumulation else schedule,  # Keras's schedules count batches, not updates
        weight_decay=0.01,
        global_clipnorm=3.0,
        clip_norm_of=clip_norm_of,
        gradient_accumulation_steps=accumulation,
    )
    step = stepper(optimizer, variables, compiled)
    reference = NumPySNTASGD([ops.convert_to_numpy(v) for v in variables], masks, 0.01, 3.0, clip_norm_of)
    for update in range(24):
        batches = [[random.normal(size=s) for s in shapes] for _ in range(accumulation or 1)]
        for batch in batches:
            if clip_norm_of == "active":
                batch = [np.where(m, g, 0) for m, g in zip(reference.masks, batch, strict=True)]
            step(batch)
        rate = 0.5 if accumulation or update <= 10 else 0.1
        reference.step([np.mean(g, 0) for g in zip(*batches, strict=True)], rate)
        if update == 8:
            assert all((ops.convert_to_numpy(average) == 0).all() for average in optimizer.averages)
            optimizer.start_averaging()
            reference.averaging = True
        if update in (3, 13, 14, 19):
            for index, active in ((0, 10), (1, 6)):
                mask = random_mask(shapes[index], active, [update, index])
                rewire(optimizer, variables[index], ops.convert_to_numpy(variables[index]), mask)
                reference.rewire(index, mask)
        for index, variable in enumerate(variables):
            value = ops.convert_to_numpy(variable)
            np.testing.assert_allclose(
                value, reference.weights[index], atol=2e-6, err_msg=f"{update} {index}"
            )
            assert (value[~reference.masks[index]] == 0).all()
        if reference.averaging and update > 8:
            for index, average in enumerate(numpy_of(optimizer.averages)):
                np.testing.assert_allclose(average, reference.averages[index], atol=2e-6)
                assert (average[~reference.masks[index]] == 0).all()
    assert ops.convert_to_numpy(optimizer.iterations) == 24


@on_all_backends
def test_clip_norms_by_hand():
    # Gradient (3, 4), of which only the 3 belongs to a connection: norms 5 and 3, both over the limit 1.
    moved = {}
    for clip_norm_of in ("dense", "active"):
        variable = masked_variable([[1.0, 0.0]], [[True, False]])
        step = stepper(SNTASGD(1.0, global_clipnorm=1.0, clip_norm_of=clip_norm_of), [variable], False)
        step([[[3.0, 4.0 if clip_norm_of == "dense" else 0.0]]])
        moved[clip_norm_of] = ops.convert_to_numpy(variable)
    np.testing.assert_allclose(moved["dense"], [[1 - 3 / 5, 0]], rtol=1e-6)
    np.testing.assert_allclose(moved["active"], [[1 - 1, 0]], atol=1e-6)


@on_all_backends
def test_clipnorm_and_clipvalue_by_hand():
    first, second = keras.Variable(np.zeros(2, "float32")), keras.Variable(np.zeros(2, "float32"))
    stepper(SNTASGD(1.0, clipnorm=1.0), [first, second], False)([[3.0, 4.0], [0.3, 0.4]])
    np.testing.assert_allclose(numpy_of([first, second]), [[-0.6, -0.8], [-0.3, -0.4]], rtol=1e-6)
    variable = keras.Variable(np.zeros(2, "float32"))
    stepper(SNTASGD(1.0, clipvalue=0.5), [variable], False)([[3.0, -0.25]])
    np.testing.assert_allclose(ops.convert_to_numpy(variable), [-0.5, 0.25], rtol=1e-6)


def test_gradient_that_is_not_finite_shows():
    variable = keras.Variable(np.zeros(2, "float32"))
    stepper(SNTASGD(1.0, global_clipnorm=1.0), [variable], False)([[np.inf, 1.0]])
    assert np.isnan(ops.convert_to_numpy(variable)).all()


def test_exclude_from_weight_decay():
    kernel = keras.Variable(np.ones(2, "float32"), name="kernel")
    bias = keras.Variable(np.ones(2, "float32"), name="bias")
    optimizer = SNTASGD(0.5, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    stepper(optimizer, [kernel, bias], False)([[0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(ops.convert_to_numpy(kernel), 0.95, rtol=1e-6)
    np.testing.assert_array_equal(ops.convert_to_numpy(bias), 1.0)


@pytest.mark.parametrize("weight_decay", [None, 0.1])
@pytest.mark.parametrize("clip", [{"global_clipnorm": 1.0}, {"clipnorm": 1.0}, {"clipvalue": 0.5}, {}])
def test_rows_that_occur_twice_count_as_their_sum(clip, weight_decay):
    import tensorflow as tf

    mask = random_mask((5, 3), 8, 1)
    values = np.random.default_rng(0).normal(size=(5, 3)) * mask
    rows = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
    slices = tf.IndexedSlices(tf.constant(rows), tf.constant([4, 1, 4, 4]), tf.constant([5, 3]))
    found = []
    for gradient in (slices, tf.convert_to_tensor(slices)):
        variable = masked_variable(values, mask)
        optimizer = SNTASGD(1.0, weight_decay=weight_decay, **clip)
        optimizer.scale_loss(0.0)
        optimizer.apply([gradient], [variable])
        found.append(ops.convert_to_numpy(variable))
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-7)
    assert not np.allclose(found[0], values)


# State between steps


@on_all_backends
def test_exchange_is_exact_and_its_own_inverse():
    values = np.array([1e-45, -0.0, 3.4e38, 1 / 3], "float32")
    variable = keras.Variable(values)
    optimizer = SNTASGD(0.5)
    optimizer.build([variable])
    average = np.array([2.0, 1e-40, -1 / 3, 0.0], "float32")
    optimizer.averages[0].assign(average)
    optimizer.exchange_averages()
    assert ops.convert_to_numpy(variable).tobytes() == average.tobytes()
    assert ops.convert_to_numpy(optimizer.averages[0]).tobytes() == values.tobytes()
    assert ops.convert_to_numpy(optimizer.averages_in) == 1
    optimizer.exchange_averages()
    assert ops.convert_to_numpy(variable).tobytes() == values.tobytes()
    assert ops.convert_to_numpy(optimizer.averages[0]).tobytes() == average.tobytes()
    assert ops.convert_to_numpy(optimizer.averages_in) == 0


@on_all_backends
def test_reset_slots_and_align_masks_by_hand():
    variable = masked_variable([[1.0, 2.0, 0.0, 0.0]], [[True, True, False, False]])
    optimizer = SNTASGD(0.5, gradient_accumulation_steps=2)
    step = stepper(optimizer, [variable], False)
    optimizer.start_averaging()
    for _ in range(3):  # one update, and one gradient in the accumulator
        step([[[1.0, 1.0, 1.0, 1.0]]])
    (births,), (average,) = optimizer.births, optimizer.averages
    (accumulator,) = optimizer._accumulated_gradients
    average.assign([[5.0, 6.0, 0.0, 0.0]])
    dropped, grown = np.array([[False, True, False, False]]), np.array([[False, False, True, False]])
    optimizer.reset_slots(variable, dropped, grown)
    np.testing.assert_array_equal(ops.convert_to_numpy(births), [[0, -1, 1, -1]])
    np.testing.assert_array_equal(ops.convert_to_numpy(average), [[5, 0, 0, 0]])
    np.testing.assert_array_equal(ops.convert_to_numpy(accumulator), [[1, 0, 0, 1]])

    variable.masked_weight.mask.assign([[False, True, True, False]])  # as loading does
    optimizer.align_masks()
    np.testing.assert_array_equal(ops.convert_to_numpy(births), [[-1, 1, 1, -1]])
    np.testing.assert_array_equal(ops.convert_to_numpy(average), [[0, 0, 0, 0]])


def test_start_averaging_again_starts_anew():
    variable = masked_variable([[1.0, 0.0]], [[True, False]])
    optimizer = SNTASGD(1.0)
    step = stepper(optimizer, [variable], False)
    optimizer.start_averaging()
    for _ in range(4):
        step([[[1.0, 0.0]]])
    np.testing.assert_allclose(ops.convert_to_numpy(optimizer.averages[0]), [[-2, 0]])  # of -1, -2, -3
    optimizer.start_averaging()
    np.testing.assert_array_equal(ops.convert_to_numpy(optimizer.births[0]), [[4, -1]])
    np.testing.assert_array_equal(ops.convert_to_numpy(optimizer.averages[0]), [[-3, 0]])
    step([[[1.0, 0.0]]])
    np.testing.assert_array_equal(ops.convert_to_numpy(optimizer.averages[0]), [[-4, 0]])


# In a model

TOKENS = np.random.default_rng(0).integers(0, 30, (32, 6))


def language_model(optimizer, **compile_arguments):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            SparseEmbedding(30, 8, sparsity=0.5, mask_seed=1),
            SparseDense(30, sparsity=0.5, mask_seed=2),
        ]
    )
    for index, masked_weight in enumerate(masked_weights(model)):
        masked_weight.weight.assign(np.random.default_rng(index).normal(scale=0.2, size=masked_weight.shape))
        masked_weight.project()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss, **compile_arguments)
    return model


def train(model, epochs, callbacks=(), validate=True):
    data = {
        "x": TOKENS,
        "y": np.roll(TOKENS, -1, 1),
        "validation_data": (TOKENS, TOKENS) if validate else None,
    }
    arguments = {"epochs": epochs, "callbacks": list(callbacks), "batch_size": 8, "shuffle": False}
    return model.fit(**data, **arguments, verbose=0).history


def snt_asgd(**arguments):
    return SNTASGD(5.0, **{"weight_decay": 1e-3, "global_clipnorm": 0.1, **arguments})


def assert_masked(model):
    for masked_weight in masked_weights(model):
        weight, mask = numpy_of([masked_weight.weight, masked_weight.mask])
        assert (weight[~mask] == 0).all()
        assert (weight[mask] != 0).any()
        assert not masked_weight.gradient_is_dense()


@on_all_backends
def test_dense_norm_in_fit_is_that_of_the_whole_gradient():
    # With the same weights and batch, the two steps differ by the ratio of the two norms, everywhere.
    steps = {}
    for clip_norm_of in ("dense", "active"):
        optimizer = snt_asgd(clip_norm_of=clip_norm_of, weight_decay=None, global_clipnorm=0.01)
        model = language_model(optimizer, run_eagerly=EAGERLY and clip_norm_of == "active")
        before = model.get_weights()
        model.train_on_batch(TOKENS, np.roll(TOKENS, -1, 1))
        assert_masked(model)
        after = model.get_weights()
        changes = [b - a for b, a in zip(before, after, strict=True) if b.dtype == np.float32]
        steps[clip_norm_of] = np.concatenate([change.ravel() for change in changes])
    np.testing.assert_allclose(np.linalg.norm(steps["active"]), 5.0 * 0.01, rtol=1e-4)
    ratio = np.linalg.norm(steps["dense"]) / np.linalg.norm(steps["active"])
    assert 0.5 < ratio < 0.99
    np.testing.assert_allclose(steps["dense"], ratio * steps["active"], atol=1e-6)


def test_other_optimizers_never_get_dense_gradients():
    model = language_model(snt_asgd())
    for optimizer in (model.optimizer, keras.optimizers.SGD(0.1, momentum=0.9)):
        model.compile(optimizer, loss=model.loss, run_eagerly=True)
        model.train_on_batch(TOKENS, np.roll(TOKENS, -1, 1))
        assert_masked(model)


def test_nothing_asks_for_dense_gradients_without_need():
    variable = masked_variable([[1.0, 0.0]], [[True, False]])
    for arguments in ({}, {"clipvalue": 1.0}, {"global_clipnorm": 1.0, "clip_norm_of": "active"}):
        optimizer = SNTASGD(0.5, **arguments)
        for _ in range(2):  # unbuilt and built
            optimizer.scale_loss(0.0)
            assert not variable.masked_weight.gradient_is_dense()
            optimizer.apply([ops.convert_to_tensor([[1.0, 0.0]])], [variable])
    optimizer = SNTASGD(0.5, global_clipnorm=1.0)
    optimizer.scale_loss(0.0)
    assert variable.masked_weight.gradient_is_dense()


@on_all_backends
def test_dense_norm_without_scale_loss_is_an_error():
    variable = masked_variable([[1.0, 0.0]], [[True, False]])
    optimizer = SNTASGD(0.5, global_clipnorm=1.0, clip_norm_of="dense")
    with pytest.raises(ValueError, match="`clip_norm_of` must be 'active' unless `optimizer"):
        optimizer.apply([ops.convert_to_tensor([[1.0, 1.0]])], [variable])
    optimizer.scale_loss(0.0)
    optimizer.apply([ops.convert_to_tensor([[1.0, 1.0]])], [variable])
    with pytest.raises(ValueError, match="`clip_norm_of`"):
        optimizer.apply([ops.convert_to_tensor([[1.0, 1.0]])], [variable])
    np.testing.assert_allclose(ops.convert_to_numpy(variable), [[1 - 0.5 / 2**0.5, 0]], rtol=1e-6)
    # Without a mask the two norms are one.
    SNTASGD(0.5, global_clipnorm=1.0).apply([ops.ones(2)], [keras.Variable(np.ones(2, "float32"))])


@on_all_backends
def test_inside_loss_scale_and_multi_optimizer(since_keras):
    since_keras("3.15")

    def multi(optimizer):
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(optimizer))

    for wrap, scale in ((keras.optimizers.LossScaleOptimizer, 2.0**15), (multi, 1.0)):
        variable = masked_variable([[1.0, 0.0]], [[True, False]])
        optimizer = wrap(SNTASGD(1.0, global_clipnorm=2.0, clip_norm_of="active"))
        stepper(optimizer, [variable], compiled=True)([[[3.0 * scale, 0.0]]])
        np.testing.assert_allclose(ops.convert_to_numpy(variable), [[-1, 0]], rtol=1e-6)
        optimizer = wrap(SNTASGD(1.0, global_clipnorm=2.0, clip_norm_of="dense"))
        with pytest.raises(ValueError, match="LossScaleOptimizer and MultiOptimizer do not call it"):
            stepper(optimizer, [variable], compiled=True)([[[3.0 * scale, 0.0]]])


def test_ways_to_run_a_step_agree(compile_small):
    weights = []
    for arguments in ({}, {"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}):
        model = language_model(snt_asgd(), **arguments)
        model.optimizer.build(model.trainable_variables)
        model.optimizer.start_averaging()
        train(model, 1, validate=False)
        weights.append(model.get_weights() + numpy_of(model.optimizer.averages))
    for others in weights[1:]:
        for value, expected in zip(others, weights[0], strict=True):
            np.testing.assert_allclose(value, expected, atol=2e-6)


def test_accumulated_batches_make_one_step():
    small = language_model(snt_asgd(gradient_accumulation_steps=4))
    train(small, 1, validate=False)
    large = language_model(snt_asgd(), run_eagerly=True)
    large.fit(TOKENS, np.roll(TOKENS, -1, 1), batch_size=32, verbose=0)
    for value, expected in zip(small.get_weights(), large.get_weights(), strict=True):
        np.testing.assert_allclose(value, expected, atol=2e-6)
    assert ops.convert_to_numpy(small.optimizer.iterations) == 1


@on_all_backends
def test_saved_and_loaded_it_trains_on_as_if_never_interrupted(tmp_path):
    whole = language_model(snt_asgd(), run_eagerly=EAGERLY)
    whole.optimizer.build(whole.trainable_variables)
    whole.optimizer.start_averaging()
    train(whole, 1, validate=False)
    whole.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(resumed.optimizer, SNTASGD)
    for model in (whole, resumed):
        train(model, 1, validate=False)
    state = [model.weights + model.optimizer.variables for model in (resumed, whole)]
    for pair in zip(*state, strict=True):
        np.testing.assert_array_equal(*numpy_of(pair), err_msg=pair[0].path)


def averaging_optimizer(seed=0):
    """An optimizer of a masked matrix and a bias, with averages and births of all kinds."""
    generator = np.random.default_rng(seed)
    mask = generator.random((60, 40)) < 0.33
    optimizer = SNTASGD(0.1)
    optimizer.build([masked_variable(generator.normal(size=mask.shape) * mask, mask), keras.Variable([1.0])])
    births = np.where(mask, generator.integers(0, 5, mask.shape), -1)
    average = np.where(mask, generator.normal(size=mask.shape), 0)
    average[mask & (births == 3)] = -0.0
    optimizer.trigger.assign(2.0)
    optimizer.averages[0].assign(average.astype("float32"))
    optimizer.births[0].assign(births.astype("float32"))
    return optimizer


def arrays_of(optimizer):
    return {str(i): ops.convert_to_numpy(variable) for i, variable in enumerate(optimizer.variables)}


def bytes_of(arrays):
    return {key: array.tobytes() for key, array in arrays.items()}


@pytest.mark.backends("tensorflow", "jax")
def test_state_is_stored_without_what_is_not_there_bit_for_bit():
    optimizer, other = averaging_optimizer(), averaging_optimizer(seed=1)
    store, whole = {}, arrays_of(optimizer)
    optimizer.save_own_variables(store)
    assert sum(array.nbytes for array in store.values()) < 0.45 * sum(
        array.nbytes for array in whole.values()
    )
    assert bytes_of(arrays_of(other)) != bytes_of(whole)
    other.load_own_variables(store)
    assert bytes_of(arrays_of(other)) == bytes_of(whole)


def test_whole_arrays_of_earlier_versions_load():
    optimizer, other = averaging_optimizer(), averaging_optimizer(seed=1)
    other.load_own_variables(arrays_of(optimizer))
    assert bytes_of(arrays_of(other)) == bytes_of(arrays_of(optimizer))


def test_stored_state_that_is_damaged_is_refused():
    optimizer, store = averaging_optimizer(), {}
    optimizer.save_own_variables(store)
    key = next(key for key in store if key.endswith("_bits"))
    with pytest.raises(
        ValueError, match=r"stored bits .* must be 300 bytes .* Received: .*; the file is damaged"
    ):
        optimizer.load_own_variables({**store, key: store[key][1:]})


def test_config_round_trip():
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 100)
    optimizer = SNTASGD(
        schedule,
        weight_decay=0.1,
        global_clipnorm=0.3,
        clip_norm_of="active",
        gradient_accumulation_steps=3,
        averaged_rate="first",
    )
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(copy, SNTASGD)
    assert copy.get_config() == optimizer.get_config()
    assert copy.clip_norm_of == "active"
    assert copy.get_config()["global_clipnorm"] == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"clip_norm_of": "sparse"},
            "`clip_norm_of` must be one of dense, active. Received: clip_norm_of='sparse'",
        ),
        (
            {"averaged_rate": "last"},
            "`averaged_rate` must be one of current, first. Received: averaged_rate='last'",
        ),
        (
            {"weight_decay": -1.0},
            "`weight_decay` must be None or a number that is not negative. Received: weight_decay=-1.0",
        ),
        (
            {"global_clipnorm": 0.0},
            "`global_clipnorm` must be None or a number over 0. Received: global_clipnorm=0.0",
        ),
        ({"clipnorm": float("nan")}, "`clipnorm` must be None or a number over 0. Received: clipnorm=nan"),
        ({"use_ema": True}, "`use_ema` must be False"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        SNTASGD(1.0, **arguments)
    assert str(error.value).startswith(message)


def test_reset_of_a_foreign_variable_is_an_error():
    optimizer = SNTASGD(0.5)
    own, foreign = keras.Variable(np.ones((1, 2), "float32")), masked_variable([[1.0, 0.0]], [[True, False]])
    optimizer.build([own])
    nothing = np.zeros((1, 2), bool)
    for variable in (own, foreign):
        with pytest.raises(ValueError, match="`variable` must be a masked weight that this optimizer trains"):
            optimizer.reset_slots(variable, nothing, nothing)


@on_all_backends
def test_one_step_may_be_scaled():
    class Scaled(keras.Model):
        """A linear model whose steps are scaled by the number of rows."""

        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")

        def call(self, inputs):
            return self.dense(inputs)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            self.optimizer.scale_step(ops.shape(y)[0] / 4)
            return super().compute_loss(x, y, y_pred, sample_weight, training)

    model = Scaled()
    model.compile(SNTASGD(0.1, weight_decay=0.5), "mse")
    kernels = [1.0]
    for rows in (2, 4, 8):
        model.train_on_batch(np.ones((rows, 1), "float32"), np.zeros((rows, 1), "float32"))
        kernels.append(float(ops.convert_to_numpy(model.dense.kernel)[0, 0]))
    for before, after, rows in zip(kernels, kernels[1:], (2, 4, 8), strict=False):
        # The gradient is 2 w, the decay 0.5 w.
        assert after == pytest.approx(before - 0.1 * rows / 4 * 2.5 * before, rel=1e-5)


@on_all_backends
@pytest.mark.parametrize("compiled", WAYS)
def test_averaged_rates_as_published(compiled):
    """Masked variables keep the rate of the first averaged step; the others lag a step, until a restart."""
    rates = [0.1, 0.2, 0.5, 0.3, 0.7, 0.4, 0.6]
    masked = masked_variable([[0.0, 0.0]], [[True, False]])
    whole = keras.Variable(np.zeros(2, "float32"))
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(list(range(len(rates) - 1)), rates)
    optimizer = SNTASGD(schedule, averaged_rate="first")
    step = stepper(optimizer, [masked, whole], compiled)
    moved = []
    for index in range(len(rates)):
        if index in (2, 5):
            optimizer.start_averaging()
        before = numpy_of([masked, whole])
        step([np.array([[1.0, 0.0]]), np.ones(2)])
        after = numpy_of([masked, whole])
        moved.append([float((a - b).ravel()[0]) for a, b in zip(before, after, strict=True)])
    expected = [[0.1, 0.1], [0.2, 0.2], [0.5, 0.5], [0.5, 0.5], [0.5, 0.3], [0.4, 0.4], [0.4, 0.4]]
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


# Replicas


@pytest.mark.parametrize("clip_norm_of", ["dense", "active"])
def test_two_replicas_train_as_one_device(two_replicas, request, clip_norm_of):
    averaged_rate = "first" if clip_norm_of == "active" else "current"
    import tensorflow as tf

    if clip_norm_of == "dense":
        request.getfixturevalue("compile_small")
    validate = clip_norm_of == "dense"
    results = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            optimizer = snt_asgd(clip_norm_of=clip_norm_of, averaged_rate=averaged_rate)
            model = language_model(optimizer, run_eagerly=strategy is not two_replicas)
        start = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, m=model: m.optimizer.start_averaging() if epoch == 0 else None
        )
        history = train(model, 2, [NonMonotonicAveraging(), start], validate=validate)
        variables = [v for v in model.trainable_variables + model.optimizer.variables if len(v.shape)]
        results.append((history, numpy_of(variables)))
    for name, values in results[0][0].items():
        np.testing.assert_allclose(results[1][0][name], values, rtol=1e-5, err_msg=name)
    for on_two, on_one in zip(results[1][1], results[0][1], strict=True):
        np.testing.assert_allclose(on_two, on_one, atol=1e-5)
    for variable in variables:
        first, second = variable.value.values
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    assert_masked(model)


def test_accumulation_on_replicas_is_refused(two_replicas):
    with two_replicas.scope():
        model = language_model(snt_asgd(gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be None with several replicas"):
        train(model, 1)


def test_default_names_are_numbered_as_keras_does():
    keras.utils.clear_session()
    optimizers = [SNTASGD(), SNTASGD(), SNTASGD(name="mine")]
    assert [optimizer.name for optimizer in optimizers] == ["snt_asgd", "snt_asgd_1", "mine"]
    assert SNTASGD.from_config(optimizers[1].get_config()).name == "snt_asgd_1"


@pytest.mark.backends("jax")
def test_gradients_of_rows_on_jax():
    from jax.experimental import sparse

    rows = sparse.BCOO((np.full((2, 3), 0.5, "float32"), np.array([[0], [3]])), shape=(5, 3))
    moved = []
    for gradient in (rows, ops.convert_to_tensor(rows.todense())):
        variable = keras.Variable(np.ones((5, 3), "float32"))
        optimizer = SNTASGD(0.5, global_clipnorm=0.25, weight_decay=0.1)
        optimizer.apply([gradient], [variable])
        moved.append(ops.convert_to_numpy(variable))
    np.testing.assert_array_equal(*moved)
    assert (moved[0][0] < moved[0][1]).all()


@pytest.mark.backends("tensorflow", "jax", "torch")
@pytest.mark.parametrize(
    "limits", [{}, {"global_clipnorm": 0.3}, {"clipvalue": 0.2}], ids=lambda one: "".join(one)
)
def test_a_variable_stands_for_the_sum_of_two(limits):
    """Golden: PyTorch's way, two variables with the gradient of their sum; one row has one of them only."""
    generator = np.random.default_rng(3)
    other, first, second = (
        generator.normal(size=shape).astype("float32") for shape in [(3,), (2, 4), (2, 4)]
    )
    second[1] = 0
    options = {"weight_decay": 0.05, **limits}
    apart = [keras.Variable(value) for value in (other, first, second)]
    together = [keras.Variable(other), keras.Variable(first + second)]
    together[1].summands = np.array([[2.0], [1.0]], "float32")
    optimizers = SNTASGD(0.5, **options), SNTASGD(0.5, **options)
    for optimizer, variables in zip(optimizers, (apart, together), strict=True):
        optimizer.build(variables)
    for step in range(6):
        if step == 2:
            for optimizer in optimizers:
                optimizer.start_averaging()
        gradients = [generator.normal(size=shape).astype("float32") for shape in [(3,), (2, 4)]]
        of_second = gradients[1].copy()
        of_second[1] = 0  # that row has no second vector
        optimizers[0].apply([ops.convert_to_tensor(g) for g in (*gradients, of_second)])
        optimizers[1].apply([ops.convert_to_tensor(g) for g in gradients])
    expected = [ops.convert_to_numpy(variable) for variable in apart]
    found = [ops.convert_to_numpy(variable) for variable in together]
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1] + expected[2], rtol=1e-5, atol=1e-6)
    averages = [[ops.convert_to_numpy(average) for average in one.averages] for one in optimizers]
    np.testing.assert_allclose(averages[1][1], averages[0][1] + averages[0][2], rtol=1e-5, atol=1e-6)
