"""The trigger of averaging, and where the averages stand while a model is trained."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_selfish.layers import SparseDense
from keras_selfish.masks import masked_weights
from keras_selfish.optimizers import SNTASGD, NonMonotonicAveraging, averaging
from keras_selfish.optimizers.snt_asgd import HISTORY_LENGTH, NO_VALUE

BACKEND = keras.backend.backend()
EAGERLY = BACKEND == "tensorflow"  # where a few steps cost less than a graph of them; on JAX they do not
on_all_backends = pytest.mark.backends("tensorflow", "jax", "torch")


# The rule


def empty_history(length=HISTORY_LENGTH + 1, mark=NO_VALUE):
    return np.full(length, mark, "float32")


def first_trigger(values, patience, history):
    """The number, from 1, of the validation at which averaging starts, or None."""
    for number, value in enumerate(values, 1):
        if averaging.triggers(history, value, patience):
            return number
        history = averaging.appended(history, value)
    return None


def published_first_trigger(values, patience):
    values = np.asarray(values, "float32")
    for k in range(1, len(values) + 1):
        if k >= patience + 2 and values[k - 1] > min(values[: k - 1 - patience]):
            return k
    return None


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([5, 4, 3, 2, 1], 0, None),  # always better
        ([5, 6], 0, 2),  # worse than the only one before
        ([5, 6], 1, None),  # too early: 2 < 1 + 2
        ([5, 6, 5], 1, None),  # as good as the best is not worse
        ([5, 6, 5.1], 1, 3),
        ([5, 4, 5, 4.5], 1, 4),  # compared with 5 and 4, not with 5
        ([5, 4, 3, 3.5, 3.6], 2, None),  # better than 5 and 4; the 3 is too recent
        ([5, 4, 3, 3.5, 3.6, 3.4], 2, 6),
        ([9, 1, 2, 3, 4, 5, 6], 5, None),  # at 7 only the 9 counts
        ([9, 1, 2, 3, 4, 5, 6, 1.5], 5, 8),
        ([5, float("nan"), float("nan")], 1, None),
        ([5, float("nan"), 6], 1, 3),
    ],
)
def test_trigger_table(values, patience, expected):
    assert first_trigger(values, patience, empty_history()) == expected


@given(
    st.lists(st.floats(1, 100, width=32), max_size=30),
    st.integers(0, 7),
    st.integers(8, 40),
)
def test_trigger_is_the_published_rule_however_short_the_history(values, patience, length):
    # A history of any length over `patience` is enough: what falls out of it leaves its minimum.
    assert first_trigger(values, patience, empty_history(length)) == published_first_trigger(values, patience)


def test_full_history_keeps_the_minimum_of_what_it_forgets():
    assert averaging.appended(empty_history(3, np.nan), 3).tolist() == [3, -np.inf, -np.inf]  # of old files
    history = empty_history(3)
    found = []
    for value in (3, 1, 2, 4, float("nan")):
        history = averaging.appended(history, value)
        found.append(history.tolist())
    np.testing.assert_array_equal(found[1], [3, 1, -np.inf])
    assert found[2:] == [[3, 1, 2], [1, 2, 4], [1, 4, np.inf]]
    assert history.dtype == np.float32


# In training

INPUTS = np.random.default_rng(1).normal(size=(24, 6)).astype("float32")
TARGETS = np.random.default_rng(2).normal(size=(24, 4)).astype("float32")
WORSE = (INPUTS, -3 * TARGETS)  # the better it learns, the worse it is at these


def make_model(optimizer=None, **compile_arguments):
    model = keras.Sequential([keras.Input((6,)), SparseDense(4, sparsity=0.5, mask_seed=1)])
    (masked_weight,) = masked_weights(model)
    masked_weight.weight.assign(np.random.default_rng(0).normal(scale=0.1, size=(6, 4)))
    masked_weight.project()
    optimizer = optimizer or SNTASGD(0.05, global_clipnorm=1.0)
    model.compile(optimizer, loss="mse", metrics=["mae"], **compile_arguments)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def model(reused):
    return reused(make_model)


def train(model, epochs, callbacks, validation=WORSE, **arguments):
    data = {"x": INPUTS, "y": TARGETS, "validation_data": validation, "batch_size": 8, "shuffle": False}
    return model.fit(**data, epochs=epochs, callbacks=callbacks, verbose=0, **arguments).history


def weights_of(model):
    if BACKEND == "jax":
        model.jax_state_sync()
    return [np.array(ops.convert_to_numpy(weight)) for weight in model.trainable_variables]


def state_of(model):
    weights = weights_of(model)  # first, for on JAX it fetches the optimizer's variables, too
    return weights + [np.array(ops.convert_to_numpy(variable)) for variable in model.optimizer.variables]


def number(variable):
    return ops.convert_to_numpy(variable).item()


class Recorder(keras.callbacks.Callback):
    """Keeps the weights that are in the model at each event, a list with one entry per epoch."""

    def __init__(self):
        super().__init__()
        self.seen = {"begin": [], "trained": [], "validated": [], "ended": []}

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.seen["begin"].append(weights_of(self.model))

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            self.seen["trained"].append(weights_of(self.model))

    def on_test_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.seen["validated"].append(weights_of(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.seen["ended"].append(weights_of(self.model))


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def differ(first, second):
    return any((one != other).any() for one, other in zip(first, second, strict=True))


@on_all_backends
@pytest.mark.parametrize("place", ["before", "after"])
def test_averages_are_validated_saved_and_final_and_raw_weights_return(model, tmp_path, place):
    recorder, saved = Recorder(), make_model()
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    ours = NonMonotonicAveraging(patience=0)
    others = [recorder, saver]
    history = train(model, 5, [*others, ours] if place == "before" else [ours, *others])
    assert history["val_loss"][1] > history["val_loss"][0]  # so the trigger fires after epoch 2
    assert number(model.optimizer.trigger) == 2 * 3
    begin, trained, validated, ended = recorder.seen.values()
    for epoch in range(5):
        assert_same(validated[epoch], ended[epoch])
        # The averages stand in the model from the epoch after the trigger on.
        assert differ(trained[epoch], validated[epoch]) == (epoch >= 2)
        if epoch > 0:
            assert_same(begin[epoch], trained[epoch - 1])
        saved.load_weights(tmp_path / f"{epoch + 1}.weights.h5")
        assert_same(weights_of(saved), validated[epoch])
    assert_same(weights_of(model), validated[-1])
    assert number(model.optimizer.averages_in) == 1
    np.testing.assert_allclose(model.evaluate(*WORSE, verbose=0)[0], history["val_loss"][-1], rtol=1e-6)


@on_all_backends
def test_average_is_the_mean_of_the_weights_since_the_trigger(model):
    after_each = []
    collect = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: after_each.append(weights_of(model))
    )
    train(model, 4, [NonMonotonicAveraging(patience=0), collect])
    assert number(model.optimizer.trigger) == 6
    # The published update leaves the first weights after the trigger out of the mean.
    for index, weight in enumerate(weights_of(model)):
        expected = np.mean([weights[index] for weights in after_each[7:]], axis=0)
        np.testing.assert_allclose(weight, expected, atol=1e-6)


@on_all_backends
def test_averaging_begins_anew_after_an_epoch_that_is_named(model):
    """The averages at the end are the mean of the weights since the last restart, less the first of them."""
    weights = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(weights_of(model))
    )
    averaging_callback = NonMonotonicAveraging(patience=0, restart_epochs=[1, 3, 4])
    train(model, 6, [averaging_callback, record])
    optimizer = model.optimizer
    steps = len(weights) // 6
    assert number(optimizer.trigger) == 4 * steps
    for index, average in enumerate(weights_of(model)):
        since = [one[index] for one in weights[4 * steps + 1 :]]
        np.testing.assert_allclose(average, np.mean(since, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("epochs", [[0], [1.5], ["1"]])
def test_bad_restarts(epochs):
    with pytest.raises(ValueError, match="`restart_epochs` must be a list of positive integers"):
        NonMonotonicAveraging(restart_epochs=epochs)


@on_all_backends
def test_second_fit_goes_on_from_the_raw_weights(reused):
    states = []
    for parts in ([5], [1, 3, 1]):
        model = reused(make_model)
        for epochs in parts:
            train(model, epochs, [NonMonotonicAveraging(patience=0)])
        assert number(model.optimizer.averages_in) == 1
        states.append(state_of(model))
    assert_same(*states)


@on_all_backends
@pytest.mark.parametrize("stop", [1, 3], ids=["before the trigger", "after it"])
def test_backup_restores_history_and_averages(tmp_path, stop, reused):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == stop:
                raise KeyboardInterrupt

    whole = reused(make_model, run_eagerly=EAGERLY)
    train(whole, 4, [NonMonotonicAveraging(patience=0)])
    assert number(whole.optimizer.trigger) == 2 * 3
    expected = state_of(whole)
    backup = {"backup_dir": tmp_path / "backup"}
    callbacks = [keras.callbacks.BackupAndRestore(**backup), NonMonotonicAveraging(patience=0), Interrupt()]
    with pytest.raises(KeyboardInterrupt):
        train(reused(make_model, run_eagerly=EAGERLY), 4, callbacks)
    resumed = make_model(run_eagerly=EAGERLY)  # of its own: Keras notes in a model where it was resumed
    callbacks = [NonMonotonicAveraging(patience=0), keras.callbacks.BackupAndRestore(**backup)]
    history = train(resumed, 4, callbacks)
    assert len(history["loss"]) == 4 - stop
    assert_same(state_of(resumed), expected)


@on_all_backends
def test_epoch_without_validation_ends_with_raw_weights(model):
    recorder = Recorder()
    train(model, 5, [recorder, NonMonotonicAveraging(patience=0)], validation_freq=2)
    assert number(model.optimizer.trigger) == 4 * 3  # validated after epochs 2 and 4
    train(model, 3, [recorder, NonMonotonicAveraging(patience=0)], validation_freq=2)
    _, trained, validated, ended = recorder.seen.values()
    for epoch in (4, 5, 7):
        assert_same(ended[epoch], trained[epoch])
    assert_same(ended[6], validated[-1])
    assert differ(ended[6], trained[6])
    assert differ(weights_of(model), trained[-1])  # the final weights are averages all the same
    assert number(model.optimizer.averages_in) == 1


@on_all_backends
def test_masks_loaded_before_training_are_noticed(model):
    (births,) = [births for births in model.optimizer.births if births is not None]
    masked_weight = model.layers[0].kernel.masked_weight
    mask = np.roll(ops.convert_to_numpy(masked_weight.mask), 1, axis=0)
    masked_weight.mask.assign(mask)
    masked_weight.project()
    train(model, 1, [NonMonotonicAveraging()])
    np.testing.assert_array_equal(ops.convert_to_numpy(births), np.where(mask, 0, -1))
    assert (weights_of(model)[0][~mask] == 0).all()
    assert (weights_of(model)[0][mask] != 0).all()


def test_outside_fit_nothing_is_touched(model):
    ours = NonMonotonicAveraging(patience=0)
    train(model, 3, [ours])
    model.optimizer.exchange_averages()
    raw = weights_of(model)
    model.evaluate(*WORSE, callbacks=[ours], verbose=0)
    model.predict(INPUTS, callbacks=[ours], verbose=0)
    assert_same(weights_of(model), raw)
    assert number(model.optimizer.averages_in) == 0


def multi(optimizer):
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(optimizer, {".*/bias": keras.optimizers.SGD(0.05)})
    )


@on_all_backends
@pytest.mark.parametrize("wrap", [keras.optimizers.LossScaleOptimizer, multi])
def test_in_wrapped_optimizers(wrap, since_keras):
    since_keras("3.15" if wrap is multi else "3.12")
    inner = SNTASGD(0.05, global_clipnorm=1.0, clip_norm_of="active")
    model = make_model(wrap(inner), run_eagerly=EAGERLY)
    train(model, 3, [NonMonotonicAveraging(patience=0)])
    assert number(inner.trigger) == 6
    assert number(inner.averages_in) == 1
    kernel = weights_of(model)[0]
    assert differ([kernel], [ops.convert_to_numpy(inner.averages[0])])
    inner.exchange_averages()
    assert differ([kernel], [weights_of(model)[0]])


@pytest.mark.parametrize("first", [True, False])
def test_best_weights_that_another_callback_restores_stay(first):
    """Also where the last epoch had no validation, and training goes on from them."""
    model = make_model()
    best = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
    ours = NonMonotonicAveraging(patience=0)
    callbacks = [ours, best] if first else [best, ours]
    history = train(model, 7, callbacks, validation_freq=2)
    assert number(model.optimizer.trigger) >= 0
    assert model.evaluate(*WORSE, verbose=0)[0] == pytest.approx(min(history["val_loss"]), rel=1e-6)
    restored = weights_of(model)

    class First(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0:
                assert_same(weights_of(self.model), restored)

    train(model, 1, [First(), NonMonotonicAveraging(patience=0)])


# Bad input


def test_monitor_that_no_validation_gives(model):
    with pytest.raises(ValueError, match=r"`monitor` must be one of val_loss, val_mae\. Received"):
        train(model, 1, [NonMonotonicAveraging("val_x")])


def test_other_optimizer():
    model = make_model(keras.optimizers.SGD(0.1))
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"`optimizer` of the compiled model must be a SNTASGD.*=SGD"):
        train(model, 1, [NonMonotonicAveraging()])
    assert_same(weights_of(model), before)


def test_no_validation_is_said(model, caplog):
    train(model, 1, [NonMonotonicAveraging()], validation=None)
    assert "has seen no validation" in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [{"monitor": "loss"}, {"monitor": None}, {"patience": -1}, {"patience": 1.5}, {"patience": 129}],
)
def test_bad_arguments(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"`{name}` must be .* Received: {name}={value!r}"):
        NonMonotonicAveraging(**arguments)
