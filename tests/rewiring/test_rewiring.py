"""The callback: when it rewires, at which rate, what it reports, and what training does around it."""

import csv
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish.layers import SparseDense, SparseEmbedding, SparseLSTM
from keras_selfish.masks import masked_weights
from keras_selfish.optimizers import SNTASGD
from keras_selfish.rewiring import Rewiring, SelfishRewiring
from keras_selfish.rewiring.matrix_change import choose_change
from keras_selfish.rewiring.rules import Matrix, magnitude, random

STEPS = 6  # batches of an epoch


class Recorded(Rewiring):
    """Remembers the steps and rates at which it rewired."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps, self.rates = [], []

    def rewire(self, rate, step):
        self.steps.append(step)
        self.rates.append(rate)
        super().rewire(rate, step)


def dense_model(optimizer="sgd", layers=1, **compile_arguments):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            *(SparseDense(8, sparsity=0.6, mask_seed=i, name=f"dense_{i}") for i in range(layers)),
        ]
    )
    for index, masked_weight in enumerate(masked_weights(model)):
        masked_weight.weight.assign(np.random.default_rng(index).normal(size=masked_weight.shape))
        masked_weight.project()
    model.compile(optimizer, "mse", **{"run_eagerly": True, **compile_arguments})
    return model


def compiled_model(momentum=0.0, steps_per_execution=1):
    optimizer = keras.optimizers.SGD(0.05, momentum=momentum)
    return dense_model(optimizer, run_eagerly=False, steps_per_execution=steps_per_execution)


@pytest.fixture
def model(reused):
    return reused(compiled_model)


def data(steps=STEPS, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(4 * steps, 6)), generator.normal(size=(4 * steps, 8))


def fit(model, *callbacks, steps=STEPS, epochs=3, **kwargs):
    inputs, targets = data(steps)
    return model.fit(
        inputs, targets, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **kwargs
    )


def values(model):
    """All weights and masks, and the optimizer's state, as NumPy arrays."""
    return [ops.convert_to_numpy(v).copy() for v in [*model.variables, *model.optimizer.variables]]


def masks_of(model):
    return [ops.convert_to_numpy(w.mask).copy() for w in masked_weights(model)]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


# When.


@pytest.mark.parametrize(
    ("frequency", "together", "steps"),
    [
        ("epoch", 1, [6, 12]),
        ("epoch", 4, [6, 12]),
        (4, 1, [4, 8, 12, 16]),
        (6, 1, [6, 12]),
        (9, 1, [9]),
        (18, 1, []),  # never after the last step
        (4, 2, [4, 8, 12, 16]),
        # Looked at before the steps 0, 4, 6, 10, 12 and 16, where the multiple of 3 was 0, 3, 6, 9, 12, 15.
        (3, 4, [4, 6, 10, 12, 16]),
        (1, 4, [4, 6, 10, 12, 16]),
    ],
)
def test_when(frequency, together, steps, reused):
    rewiring = Recorded(frequency=frequency)
    fit(reused(compiled_model, steps_per_execution=together), rewiring)
    assert rewiring.steps == steps


@pytest.mark.parametrize(("frequency", "reads"), [("epoch", 3), (4, 5), (6, 3), (18, 1)])
def test_the_step_is_read_only_where_a_rewiring_may_be_due(frequency, reads, model):
    """On JAX a reading waits for the device and takes the state apart."""

    class Reading(Rewiring):
        reads = 0

        def _step(self):
            self.reads += 1
            return super()._step()

    rewiring = Reading(frequency=frequency)
    fit(model, rewiring)
    assert rewiring.reads - 4 == reads  # four where training begins and where epochs end


def test_steps_are_updates_of_the_optimizer():
    rewiring = Recorded(schedule="linear", end_rate=0.0, frequency=2)
    fit(dense_model(keras.optimizers.SGD(gradient_accumulation_steps=3)), rewiring)
    # 18 batches are 6 updates; the sixth is the last.
    assert rewiring.steps == [2, 4]
    assert rewiring.rates == pytest.approx([0.5 * 4 / 6, 0.5 * 2 / 6])


def test_steps_that_the_loss_scale_skips_do_not_count():
    # The scaled loss overflows a few times, each of which halves the scale.
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=2.0**127)
    rewiring = Recorded()
    fit(dense_model(optimizer, loss_weights=[16.0]), rewiring)
    skipped = 18 - int(ops.convert_to_numpy(optimizer.inner_optimizer.iterations))
    assert 0 < skipped < 6
    assert rewiring.steps == [6 - skipped, 12 - skipped]


@pytest.mark.parametrize(("frequency", "end_step", "steps"), [("epoch", 6, [6]), (4, 8, [4, 8]), (4, 3, [])])
def test_no_rewiring_after_the_end_step(frequency, end_step, steps, model):
    rewiring = Recorded(frequency=frequency, end_step=end_step)
    fit(model, rewiring)
    assert rewiring.steps == steps


def test_no_rewiring_where_averaging_has_just_begun():
    class Trigger(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.model.optimizer.start_averaging()

    rewiring = Recorded()
    fit(dense_model(SNTASGD(0.1)), rewiring, Trigger(), epochs=4)
    assert rewiring.steps == [6, 18]


def test_a_second_fit_goes_on(model, caplog):
    """What was due at the end of the first is done when the second begins, and the schedule is of both."""
    for _ in range(2):
        rewiring = Recorded(schedule="linear", end_rate=0.0)
        fit(model, rewiring, epochs=2)
    assert rewiring.steps == [12, 18]
    assert rewiring.rates == pytest.approx([0.5 * 12 / 24, 0.5 * 6 / 24])
    assert caplog.text.count("give `total_steps`") == 1


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("numbered", [False, True])
def test_a_fit_for_each_epoch(model, told, numbered, caplog):
    """As users of layers with a state of their own write it, with a callback for each or one for all."""
    one = Recorded(schedule="linear", end_rate=0.0, total_steps=24 if told else None)
    callbacks = []
    for epoch in range(4):
        callbacks.append(
            one if numbered else Recorded(schedule="linear", end_rate=0.0, total_steps=one.total_steps)
        )
        fit(model, callbacks[-1], epochs=epoch + 1 if numbered else 1, initial_epoch=epoch if numbered else 0)
    callbacks = callbacks[:1] if numbered else callbacks
    assert [step for each in callbacks for step in each.steps] == [6, 12, 18]
    rates = [0.5 * 18 / 24, 0.5 * 12 / 24, 0.5 * 6 / 24] if told else [0.5] * 3
    assert [rate for each in callbacks for rate in each.rates] == pytest.approx(rates)
    assert ("give `total_steps`" in caplog.text) != told


def test_compiling_again_does_not_set_the_clock_back():
    model = dense_model()
    rewiring = Recorded(schedule="linear", end_rate=0.0, total_steps=36)
    fit(model, rewiring)
    model.compile("adam", "mse", run_eagerly=True)
    fit(model, rewiring)
    assert rewiring.steps == [6, 12, 18, 24, 30]


class OwnOptimizer(keras.Sequential):
    """Trained by an optimizer that `compile` is not told of."""

    def compile(self, optimizer):
        super().compile(run_eagerly=True)
        self.own = optimizer

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        self.step(tape.gradient(loss, [variable.value for variable in self.trainable_variables]))
        return {"loss": loss}

    def step(self, gradients):
        self.own.apply(gradients, self.trainable_variables)


class Unknown(OwnOptimizer):
    """Trained by nothing that is known to be an optimizer."""

    def step(self, gradients):
        for variable, gradient in zip(self.trainable_variables, gradients, strict=True):
            variable.assign_sub(self.own * gradient)


@pytest.mark.parametrize("frequency", ["epoch", 3])
def test_the_optimizer_that_trains_the_weights_is_found(frequency):
    model = OwnOptimizer([keras.Input((6,)), SparseDense(8, sparsity=0.6, mask_seed=1)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    rewiring = Recorded(schedule="linear", end_rate=0.0, frequency=frequency)
    fit(model, rewiring)
    assert rewiring.steps == ([6, 12] if frequency == "epoch" else [3, 6, 9, 12, 15])
    assert rewiring.rates == pytest.approx([0.5 * (18 - step) / 18 for step in rewiring.steps])
    (masked_weight,) = masked_weights(model)
    rewiring.rewire(1.0, 18)
    momentum = ops.convert_to_numpy(model.own.variables[2])
    assert not momentum[~ops.convert_to_numpy(masked_weight.mask)].any()


def test_batches_are_counted_where_no_optimizer_is_known(caplog):
    model = Unknown([keras.Input((6,)), SparseDense(8, sparsity=0.6, mask_seed=1)])
    model.compile(0.1)
    rewiring = Recorded(schedule="linear", end_rate=0.0)
    fit(model, rewiring)
    assert rewiring.steps == [6, 12]
    assert rewiring.rates == pytest.approx([0.5 * 12 / 18, 0.5 * 6 / 18])
    assert caplog.text.count("No optimizer is known") == 1
    assert not values_outside(model)


def values_outside(model):
    return any(
        ops.convert_to_numpy(each.weight)[~ops.convert_to_numpy(each.mask)].any()
        for each in masked_weights(model)
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loop_that_calls_the_hooks_by_hand(compiled):
    """As the guide of TensorFlow Model Optimization writes it, which says neither epochs nor batches."""
    import tensorflow as tf

    model = keras.Sequential([keras.Input((6,)), SparseDense(8, sparsity=0.6, mask_seed=1)])
    optimizer = keras.optimizers.Adam(0.01)
    if compiled:
        model.compile(optimizer, "mse")
    else:
        model.optimizer = optimizer
    rewiring = Recorded(schedule="linear", end_rate=0.0, total_steps=18)
    rewiring.set_model(model)
    rewiring.on_train_begin()
    for _ in range(3):
        for x, y in batches():
            rewiring.on_train_batch_begin(-1)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
            gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
            optimizer.apply(gradients, model.trainable_variables)
        rewiring.on_epoch_end(-1)
    assert rewiring.steps == [6, 12]
    assert rewiring.rates == pytest.approx([0.5 * 12 / 18, 0.5 * 6 / 18])
    assert not values_outside(model)


def test_a_loop_of_ones_own_has_to_say_how_long_it_is():
    rewiring = SelfishRewiring()
    rewiring.set_model(dense_model())
    with pytest.raises(ValueError, match="`total_steps` must be given to SelfishRewiring in a training loop"):
        rewiring.on_train_begin()


# How many.


def test_rates_follow_the_schedule(model):
    rewiring = Recorded(0.8, frequency=3)
    history = fit(model, rewiring).history
    expected = [0.005 + 0.795 * (1 + math.cos(math.pi * step / 18)) / 2 for step in (3, 6, 9, 12, 15, 18)]
    assert rewiring.rates == pytest.approx(expected[:-1])
    assert history["pruning_rate"] == pytest.approx(expected[1::2])


def test_a_schedule_of_ones_own(model):
    rewiring = Recorded(schedule=lambda step, total_steps: 1 / step)
    fit(model, rewiring)
    assert rewiring.rates == [1 / 6, 1 / 12]


def batches(steps=STEPS):
    inputs, targets = data(steps)
    for start in range(0, len(inputs), 4):
        yield inputs[start : start + 4], targets[start : start + 4]


def unknown_length(steps=STEPS):
    """For models that run eagerly: in a graph Keras counts a step, too, where the data end."""
    import tensorflow as tf

    signature = (tf.TensorSpec((4, 6)), tf.TensorSpec((4, 8)))
    return tf.data.Dataset.from_generator(lambda: batches(steps), output_signature=signature)


def test_where_the_length_is_unknown_epochs_are_expected_to_be_alike():
    known, unknown = Recorded(), Recorded()
    fit(dense_model(), known)
    dense_model().fit(unknown_length(), epochs=3, verbose=0, callbacks=[unknown])
    assert unknown.steps == known.steps == [6, 12]
    assert unknown.rates == pytest.approx(known.rates)


def test_total_steps():
    rewiring = Recorded(schedule="linear", end_rate=0.0, frequency=5, total_steps=20)
    dense_model().fit(unknown_length(), epochs=3, verbose=0, callbacks=[rewiring])
    assert rewiring.rates == pytest.approx([0.5 * 15 / 20, 0.5 * 10 / 20, 0.5 * 5 / 20])


def test_steps_without_a_length_need_total_steps():
    model = dense_model()
    before = values(model)
    with pytest.raises(ValueError, match=r"`total_steps` must be given.*total_steps=None"):
        model.fit(unknown_length(), epochs=3, verbose=0, callbacks=[Rewiring(frequency=5)])
    assert_same(before, values(model))
    rewiring = Recorded(schedule="constant", frequency=5)
    model.fit(unknown_length(), epochs=3, verbose=0, callbacks=[rewiring])
    assert rewiring.steps == [5, 10, 15]


# What training does.


@pytest.mark.parametrize(
    ("arguments", "recurrent"),
    [({"steps_per_execution": 2}, True), ({"jit_compile": True}, False)],
)
def test_weights_without_a_connection_stay_zero(arguments, recurrent):
    layers = [SparseLSTM(8, sparsity=0.6, mask_seed=2, return_sequences=True)] if recurrent else []
    model = keras.Sequential(
        [
            SparseEmbedding(12, 8, sparsity=0.6, mask_seed=1),
            *layers,
            SparseDense(12, sparsity=0.6, block_shape=(4, 1), mask_seed=3),
        ]
    )  # without an input shape: built by its first batch
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, **arguments)
    tokens = np.random.default_rng(0).integers(0, 12, (12, 5))
    history = model.fit(tokens, tokens, batch_size=2, epochs=4, verbose=0, callbacks=[SelfishRewiring(0.8)])
    assert bool(model.jit_compile) is not recurrent
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert len(set(history.history["sparsity"])) == 1
    for masked_weight in masked_weights(model):
        weight, mask = (ops.convert_to_numpy(v) for v in (masked_weight.weight, masked_weight.mask))
        assert not weight[~mask].any()
        assert np.count_nonzero(weight) > 0.8 * mask.sum()
    blocks = mask.reshape(2, 4, 12)
    assert (blocks == blocks[:, :1]).all()


def test_the_same_seed_gives_the_same_result():
    runs = []
    for seed in (1, 1, 2):
        model = dense_model(keras.optimizers.SGD(0.1, momentum=0.9))
        fit(model, Rewiring(seed=seed, frequency=2), epochs=1)
        runs.append(values(model))
    assert_same(runs[0], runs[1])
    assert any((one != other).any() for one, other in zip(runs[0], runs[2], strict=True))


def test_the_growth_of_each_weight_step_and_seed_differs():
    changes = []
    for seed, step in [(0, 1), (0, 2), (1, 1)]:
        model = dense_model(layers=2)
        for masked_weight in masked_weights(model):
            masked_weight.mask.assign(np.eye(*masked_weight.shape, dtype=bool))
        rewiring = Rewiring(seed=seed)
        rewiring.set_model(model)
        rewiring.rewire(1.0, step)
        changes += [mask[:6] for mask in masks_of(model)]
    for index, change in enumerate(changes):
        assert not any((change == other).all() for other in changes[:index])


def test_frozen_weights_stay_and_keep_their_place():
    second = []
    for frozen in (False, True):
        model = dense_model(keras.optimizers.SGD(0.0), layers=2)
        model.layers[0].trainable = not frozen
        before = masks_of(model)
        fit(model, Rewiring())
        after = masks_of(model)
        assert (before[0] == after[0]).all() == frozen
        assert (before[1] != after[1]).any()
        second.append(after[1])
    np.testing.assert_array_equal(*second)


def test_values_assigned_outside_the_mask_are_removed():
    model = dense_model(keras.optimizers.SGD(0.0))
    (masked_weight,) = masked_weights(model)
    masked_weight.weight.assign(np.ones(masked_weight.shape))
    fit(model, Rewiring(), epochs=1)
    weight, mask = (ops.convert_to_numpy(v) for v in (masked_weight.weight, masked_weight.mask))
    np.testing.assert_array_equal(weight, mask.astype("float32"))


def test_regrown_connections_keep_their_value_or_start_anew():
    """With a learning rate of zero a kept value is an old one; all others are zero."""
    kept = {}
    for reset_regrown in (False, True):
        model = dense_model(keras.optimizers.SGD(0.0))
        (masked_weight,) = masked_weights(model)
        old = ops.convert_to_numpy(masked_weight.weight).copy()
        fit(model, Rewiring(schedule="constant", pruning_rate=0.75, reset_regrown=reset_regrown), epochs=2)
        new = ops.convert_to_numpy(masked_weight.weight)
        np.testing.assert_array_equal(new[new != 0], old[new != 0])
        kept[reset_regrown] = np.count_nonzero(new)
    active = masked_weight.active
    assert kept[True] == active - math.ceil(0.75 * active)
    assert kept[False] > kept[True]


class Interrupted(keras.callbacks.Callback):
    """Ends the run with an error as an epoch begins."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("frequency", "together", "accumulated", "steps"),
    [
        ("epoch", 1, None, [6]),
        (3, 1, None, [3, 6, 9]),
        (4, 1, None, [4, 8]),
        # Looked at before the batches 0, 4, 6 and 10.
        (3, 4, None, [4, 6, 10]),
        (4, 4, None, [4, 10]),
        (1, 1, 4, [1, 2]),
        (1, 4, 4, [1, 2]),
    ],
)
def test_resumed_training_is_the_same(tmp_path, frequency, together, accumulated, steps):
    def train(*callbacks):
        keras.utils.clear_session(free_memory=False)  # so that the models' variables have the same names
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=accumulated)
        model = dense_model(optimizer, steps_per_execution=together)
        rewiring = Recorded(frequency=frequency)
        try:
            fit(model, rewiring, *callbacks, epochs=2)  # before the callback that restores
        except KeyboardInterrupt:
            return None, rewiring.steps
        return values(model), rewiring.steps

    whole, all_steps = train()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    _, first = train(backup, Interrupted(1))
    resumed, second = train(keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert all_steps == first + second == steps
    assert_same(whole, resumed)


# What is reported.


def test_statistics(tmp_path):
    model = keras.Sequential(
        [
            SparseEmbedding(12, 8, sparsity=0.5, mask_seed=1, name="embedding"),
            SparseLSTM(4, sparsity=0.5, mask_seed=2, name="lstm"),
        ],
        name="model",
    )
    model.compile("sgd", "mse", run_eagerly=True)
    tokens = np.random.default_rng(0).integers(0, 12, (8, 5))
    callbacks = [
        SelfishRewiring(),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TensorBoard(tmp_path / "board"),
    ]
    history = model.fit(tokens, np.ones((8, 4)), 4, 3, verbose=0, callbacks=callbacks).history
    gates = [f"density/model/lstm/lstm_cell/{k}/{g}" for k in ("kernel", "recurrent_kernel") for g in "ifco"]
    keys = ["sparsity", "pruning_rate", "density/model/embedding/embeddings/all", *gates]
    assert sorted(keys) == sorted(set(history) - {"loss"})
    assert all(len(history[key]) == 3 for key in keys)
    assert history["sparsity"] == [0.5] * 3

    kernel = ops.convert_to_numpy(masked_weights(model)[1].mask)
    for index, gate in enumerate(gates[:4]):
        assert history[gate][-1] == kernel[:, 4 * index : 4 * index + 4].mean()
    drift = np.array([history[gate] for gate in gates[:4]])
    np.testing.assert_allclose(drift.mean(axis=0), 0.5)
    assert (drift[:, 0] != drift[:, -1]).any()

    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row[gates[0]]) for row in rows] == pytest.approx(history[gates[0]])
    (events,) = (tmp_path / "board" / "train").iterdir()
    assert f"epoch_{gates[0]}".encode() in events.read_bytes()


def test_statistics_between_rewirings_are_not_measured_again(monkeypatch, model):
    from keras_selfish.masks import MaskedWeight

    calls = []
    measure = MaskedWeight.gate_densities
    monkeypatch.setattr(MaskedWeight, "gate_densities", lambda self: calls.append(1) or measure(self))
    history = fit(model, Rewiring(frequency=100), epochs=3).history
    assert len(calls) == 1
    assert len(history["sparsity"]) == 3


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruning_rate": 1.2}, "`pruning_rate` must be a number in [0, 1]. Received: pruning_rate=1.2"),
        ({"pruning_rate": math.nan}, "`pruning_rate` must be a number in [0, 1]. Received: pruning_rate=nan"),
        (
            {"pruning_rate": "high"},
            "`pruning_rate` must be a number in [0, 1]. Received: pruning_rate='high'",
        ),
        ({"end_rate": -0.1}, "`end_rate` must be a number in [0, 1]. Received: end_rate=-0.1"),
        (
            {"pruning_rate": 0.1, "end_rate": 0.2},
            "`end_rate` must be at most `pruning_rate`. Received: end_rate=0.2, pruning_rate=0.1",
        ),
        (
            {"schedule": "cosinus"},
            "`schedule` must be one of cosine, linear, constant, or a function. Received: schedule='cosinus'",
        ),
        (
            {"drop": 3},
            "`drop` must be one of magnitude, magnitude_by_sign, magnitude_and_gradient, sensitivity, or a "
            "function. Received: drop=3",
        ),
        (
            {"grow": "most"},
            "`grow` must be one of random, gradient, momentum, guided, or a function. Received: grow='most'",
        ),
        (
            {"frequency": "batch"},
            "`frequency` must be \"epoch\" or a positive integer. Received: frequency='batch'",
        ),
        ({"frequency": 0}, '`frequency` must be "epoch" or a positive integer. Received: frequency=0'),
        ({"end_step": 2.5}, "`end_step` must be None or a positive integer. Received: end_step=2.5"),
        (
            {"total_steps": True},
            "`total_steps` must be None or a positive integer. Received: total_steps=True",
        ),
        (
            {"stop_fraction": 0.0},
            "`stop_fraction` must be a number in (0, 1]. Received: stop_fraction=0.0",
        ),
        (
            {"redistribution": "equal"},
            "`redistribution` must be one of none, magnitude, nonzeros, momentum, or a function. "
            "Received: redistribution='equal'",
        ),
        ({"drop_scope": "gate"}, "`drop_scope` must be one of matrix, model. Received: drop_scope='gate'"),
        (
            {"grow": "gradient"},
            "`gradient_data` must be given to Rewiring: a rule needs the gradients of connections that do "
            "not exist. Received: gradient_data=None; pass the training data",
        ),
        (
            {"gradient_data": 3},
            "`gradient_data` must be a batch, which is a tuple (x, y) or (x, y, sample_weight), a sequence "
            "or an iterable of batches, or a function from a step to a batch. Received: gradient_data=3",
        ),
        ({"seed": -1}, "`seed` must be a non-negative integer. Received: seed=-1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError) as error:
        Rewiring(**arguments)
    assert str(error.value) == message


def test_a_rate_out_of_range(model):
    with pytest.raises(ValueError, match=r"`rate` must be a number in \[0, 1\]. Received: rate=6"):
        fit(model, Rewiring(schedule=lambda step, total_steps: step))


@pytest.mark.parametrize("built", [True, False])
def test_a_model_without_masks(built):
    layers = [keras.Input((6,))] if built else []
    model = keras.Sequential([*layers, keras.layers.Dense(8)], name="dense")
    model.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(
        ValueError, match=r"`model` must have masked weights.*model='dense'; give its layers a"
    ):
        fit(model, SelfishRewiring())


@pytest.mark.parametrize("multi", [False, True])
def test_an_optimizer_that_mixes_weights_is_refused_at_once(multi, since_keras):
    since_keras("3.15" if multi else "3.12")
    optimizer = keras.optimizers.Muon(0.01)
    model = dense_model(keras.optimizers.MultiOptimizer(lambda variable: optimizer) if multi else optimizer)
    before = values(model)
    with pytest.raises(ValueError, match=r"`optimizer` must update each weight by itself.*Muon"):
        fit(model, SelfishRewiring(), epochs=1)
    if not multi:  # which of its optimizers holds a weight is known after the first batch
        assert_same(before, values(model))


def test_training_that_broke_is_reported():
    model = dense_model(keras.optimizers.SGD(1e30))
    with pytest.raises(ValueError, match=r"NaN in 'sequential.*/dense_0/kernel'; lower the learning rate"):
        fit(model, SelfishRewiring())


# Replicas and backends.


def test_replicas_hold_the_same_connections(two_replicas, reused):
    with two_replicas.scope():
        mirrored = compiled_model(momentum=0.9)
    single = reused(compiled_model, momentum=0.9, steps_per_execution=1)
    for model in (mirrored, single):
        fit(model, Rewiring(0.8, frequency=4))
    for one, other in zip(
        [*mirrored.variables, *mirrored.optimizer.variables],
        [*single.variables, *single.optimizer.variables],
        strict=True,
    ):
        copies = [copy.numpy() for copy in two_replicas.experimental_local_results(one.value)]
        assert len(copies) == 2
        np.testing.assert_array_equal(copies[0], copies[1])
        np.testing.assert_allclose(copies[0], ops.convert_to_numpy(other), rtol=1e-4, atol=1e-6)


@pytest.mark.backends("tensorflow", "jax", "torch")
@pytest.mark.parametrize(
    ("learning_rate", "frequency", "together", "steps"),
    [
        (0.0, "epoch", 1, [6, 12]),
        (0.0, 4, 1, [4, 8, 12, 16]),
        (0.0, 3, 4, [4, 6, 10, 12, 16]),
        (0.05, 2, 1, None),
    ],
)
def test_backends(learning_rate, frequency, together, steps, reused):
    if together > 1 and keras.backend.backend() == "torch":
        pytest.skip("Keras refuses steps_per_execution on torch")
    model = reused(compiled_model, momentum=0.9, steps_per_execution=together)
    model.optimizer.learning_rate = learning_rate
    (masked_weight,) = masked_weights(model)
    start, start_mask = (ops.convert_to_numpy(v).copy() for v in (masked_weight.weight, masked_weight.mask))
    rewiring = Rewiring(schedule="constant", frequency=frequency)
    history = fit(model, rewiring, validation_data=data()).history
    assert len(history["sparsity"]) == 3
    weight, mask = (ops.convert_to_numpy(v) for v in (masked_weight.weight, masked_weight.mask))
    assert not weight[~mask].any()
    (momentum,) = (
        ops.convert_to_numpy(v) for v in model.optimizer.variables if v.name.endswith("kernel_momentum")
    )
    assert not momentum[~mask].any()
    if learning_rate:  # new connections learn
        assert momentum[mask].any()
        assert np.count_nonzero(weight[mask & ~start_mask])
        return
    # Without learning only rewiring changes weights: the result is known exactly.
    assert not momentum.any()
    expected, expected_mask = start, start_mask
    for step in steps:
        matrix = Matrix(expected, expected_mask, masked_weight, generator=np.random.default_rng([0, step, 0]))
        change = choose_change(matrix, 0.5, magnitude, random)
        expected, expected_mask = np.where(change.mask, expected, 0), change.mask
    np.testing.assert_array_equal(weight, expected)
    np.testing.assert_array_equal(mask, expected_mask)
