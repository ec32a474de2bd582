"""Whoever writes to a weight or to a mask: the weight is zero where no connection exists, and stays so."""

import threading

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_selfish import SNTASGD, SelfishRewiring, masked_weights, strip
from keras_selfish.layers import SparseDense, SparseEmbedding, SparseLSTM, SparseONLSTM, SparseRHN

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf

pytestmark = pytest.mark.backends("tensorflow", "jax")

WORDS, FEATURES, TIME = 12, 6, 3
X = np.random.default_rng(0).integers(0, WORDS, (8, TIME))
Y = np.random.default_rng(1).normal(size=(8, TIME, 4)).astype("float32")


def numpy(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def dense(seed=0, sparsity=0.5):
    """A layer with weights, built."""
    layer = SparseDense(5, sparsity=sparsity, mask_seed=seed)
    layer.build((None, 6))
    return layer


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


# Written by hand


def test_a_value_loses_what_lies_outside_the_mask():
    layer = dense()
    value, mask = drawn(6, 5), numpy(layer.kernel_mask)
    layer.kernel.assign(value)
    np.testing.assert_array_equal(numpy(layer.kernel), value * mask)
    layer.kernel.assign_add(value)
    np.testing.assert_array_equal(numpy(layer.kernel), 2 * value * mask)


def test_a_mask_takes_weights_away():
    layer = dense()
    layer.kernel.assign(drawn(6, 5))
    before, mask = numpy(layer.kernel), numpy(layer.kernel_mask)
    smaller = mask & (np.arange(30).reshape(6, 5) % 2 == 0)
    layer.kernel_mask.assign(smaller)
    np.testing.assert_array_equal(numpy(layer.kernel), before * smaller)


@pytest.mark.parametrize("mask_first", [True, False])
@pytest.mark.parametrize("as_arrays", [True, False])
def test_weight_and_mask_come_in_any_order(mask_first, as_arrays):
    """As a loop over the variables of two models has them; the values may be gone after each assignment."""
    source, target = dense(seed=1), dense(seed=2)
    names = ["kernel_mask", "kernel"] if mask_first else ["kernel", "kernel_mask"]
    for name in names:
        value = getattr(source, name)
        getattr(target, name).assign(numpy(value) if as_arrays else value)
    np.testing.assert_array_equal(numpy(target.kernel_mask), numpy(source.kernel_mask))
    np.testing.assert_array_equal(numpy(target.kernel), numpy(source.kernel))


def test_a_value_is_not_kept_for_ever():
    layer = dense()
    layer.kernel.assign(np.ones((6, 5)))
    layer(np.ones((1, 6), "float32"))
    all_of_it = np.ones((6, 5), bool)
    mask = numpy(layer.kernel_mask)
    layer.kernel_mask.assign(all_of_it)
    np.testing.assert_array_equal(numpy(layer.kernel), mask.astype("float32"))


@pytest.mark.backends("tensorflow")
def test_in_a_function_of_tensorflow():
    """A copy to a target network, as reinforcement learning compiles it."""
    source, target = dense(seed=1), dense(seed=2)

    @tf.function
    def copied(rate):
        for one, other in zip(target.weights, source.weights, strict=True):
            mixed = one if one.dtype == "bool" else rate * other.value + (1 - rate) * one.value
            one.assign(other if one.dtype == "bool" else mixed)

    copied(tf.constant(1.0))
    for one, other in zip(target.weights, source.weights, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))
    source.kernel.assign(2 * numpy(source.kernel))
    copied(tf.constant(0.5))
    np.testing.assert_allclose(numpy(target.kernel), 0.75 * numpy(source.kernel))


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("made", [False, True])
def test_a_checkpoint_of_tensorflow(tmp_path, made):
    source, target = dense(seed=1), dense(seed=2)
    path = tf.train.Checkpoint(layer=source).save(tmp_path / "checkpoint")
    if made:  # what was written by hand is not the checkpoint's
        target.kernel.assign(np.ones((6, 5)))
    tf.train.Checkpoint(layer=target).restore(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(numpy(target.kernel_mask), numpy(source.kernel_mask))
    np.testing.assert_array_equal(numpy(target.kernel), numpy(source.kernel))


# State of an optimizer that is older than a mask


def model_of(optimizer, seed=0, recurrent=False, **options):
    layers = [SparseEmbedding(WORDS, FEATURES, sparsity=0.5, mask_seed=seed)]
    if recurrent:
        layers.append(SparseLSTM(FEATURES, sparsity=0.5, mask_seed=seed + 1, return_sequences=True))
    layers.append(SparseDense(4, sparsity=0.5, mask_seed=seed + 2))
    model = keras.Sequential([keras.Input((TIME,), dtype="int32"), *layers])
    model.compile(optimizer, "mse", **options)
    return model


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "snt_asgd": lambda: SNTASGD(0.5, global_clipnorm=0.25, weight_decay=0.01),
}


def fit(model, epochs=1, **arguments):
    return model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0, shuffle=False, **arguments)


def rolled(mask):
    """Another mask of as many connections."""
    return np.roll(mask, 1, axis=0)


def assert_sparse(model, counts=None):
    weights = masked_weights(model)
    for masked_weight in weights:
        weight, mask = numpy(masked_weight.weight), numpy(masked_weight.mask)
        assert not weight[~mask].any(), masked_weight.name
    if counts is not None:
        assert [masked_weight.active for masked_weight in weights] == counts
    outputs = model.predict(X, verbose=0)
    np.testing.assert_allclose(strip(model).predict(X, verbose=0), outputs, rtol=1e-4, atol=1e-5)
    return outputs


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_of_other_masks_moves_nothing(name):
    """No callback tells the optimizer; `strip` differs if the forward pass sees what should not exist."""
    model = model_of(OPTIMIZERS[name]())
    fit(model, 2)
    for masked_weight in masked_weights(model):
        masked_weight.mask.assign(rolled(numpy(masked_weight.mask)))
    fit(model, 2)
    assert_sparse(model)
    moved = numpy(masked_weights(model)[1].weight) != 0
    assert moved.sum() > 0.5 * masked_weights(model)[1].active  # new connections learn


def test_a_callback_settles_what_others_have_changed():
    model = model_of("adam")
    fit(model)
    masked_weight = masked_weights(model)[1]
    masked_weight.mask.assign(rolled(numpy(masked_weight.mask)))
    assert not masked_weight.is_settled
    fit(model, callbacks=[SelfishRewiring(0.5)])
    assert masked_weight.is_settled
    fit(model)
    assert_sparse(model)


@pytest.mark.parametrize("recurrent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_best_weights_and_more_training(recurrent):
    model = model_of("adam", recurrent=recurrent)
    stop = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    fit(model, 5, validation_data=(X, -Y), callbacks=[SelfishRewiring(0.5), stop])
    fit(model, 2)
    assert_sparse(model)


def test_an_interrupted_step_asks_nothing_of_others():
    """A key is pressed while the first step is traced, after the optimizer has asked for dense gradients."""

    class Interrupted(SNTASGD):
        def apply(self, *args, **kwargs):
            raise KeyboardInterrupt

    layers = [dense(seed) for seed in (1, 2)]
    models = [keras.Sequential([keras.Input((6,)), layer]) for layer in layers]
    data = drawn(8, 6), drawn(8, 5)
    models[0].compile(Interrupted(1.0, global_clipnorm=0.1), "mse", run_eagerly=BACKEND == "tensorflow")
    with pytest.raises(KeyboardInterrupt):
        models[0].fit(*data, verbose=0)
    # On JAX Keras 3.15 leaves the interrupted model itself without values.
    for model, layer in list(zip(models, layers, strict=True))[BACKEND == "jax" :]:
        model.compile("adam", "mse")
        model.fit(*data, epochs=2, verbose=0)
        weight, mask = numpy(layer.kernel), numpy(layer.kernel_mask)
        assert not weight[~mask].any()


@pytest.mark.backends("jax")  # Keras 3.15 cannot compile such a layer on TensorFlow
def test_a_pass_that_is_computed_again_has_the_same_gradient():
    results = []
    for again in (False, True):
        with keras.RematScope(mode="full" if again else None):
            layer = SparseDense(FEATURES, sparsity=0.5, mask_seed=1)
        model = keras.Sequential([keras.Input((FEATURES,)), layer, SparseDense(4, mask_seed=2)])
        for weight in masked_weights(model):
            weight.weight.assign(drawn(*weight.shape))
        model.compile(SNTASGD(1.0, global_clipnorm=0.01), "mse")
        model.fit(drawn(8, FEATURES), drawn(8, 4), epochs=2, verbose=0)
        results.append(numpy(layer.kernel))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-7)


# Anything in any order


class World:
    """A model, what others may do to it, and how many connections each of its weights should have."""

    def __init__(self, folder, recurrent):
        self.folder, self.recurrent = folder, recurrent
        self.model = model_of("adam", recurrent=recurrent)
        self.counts = [masked_weight.active for masked_weight in masked_weights(self.model)]
        self.saved = self.model.get_weights()
        self.seed = 10

    def other(self):
        self.seed += 10
        return model_of("sgd", seed=self.seed, recurrent=self.recurrent)

    def fit(self, name):
        self.model.compile(OPTIMIZERS[name](), "mse")
        fit(self.model)

    def fit_on(self, _):
        fit(self.model)

    def rewire(self, _):
        fit(self.model, 2, callbacks=[SelfishRewiring(0.5)])

    def assign(self, _):
        for masked_weight in masked_weights(self.model):
            masked_weight.weight.assign(drawn(*masked_weight.shape, seed=self.seed))

    def set_weights(self, _):
        self.model.set_weights(self.other().get_weights())

    def remember(self, _):
        self.saved = self.model.get_weights()

    def restore(self, _):
        self.model.set_weights(self.saved)

    def load_weights(self, _):
        self.other().save_weights(self.folder / "other.weights.h5")
        self.model.load_weights(self.folder / "other.weights.h5")

    def save_and_load(self, _):
        outputs = self.model.predict(X, verbose=0)
        self.model.save(self.folder / "model.keras")
        self.model = keras.models.load_model(self.folder / "model.keras")
        np.testing.assert_allclose(self.model.predict(X, verbose=0), outputs, rtol=1e-5, atol=1e-6)

    def masks_by_hand(self, _):
        for masked_weight in masked_weights(self.model):
            masked_weight.mask.assign(rolled(numpy(masked_weight.mask)))

    def interrupt(self, _):
        class Interrupting(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(self.model, callbacks=[SelfishRewiring(0.5, frequency=1, total_steps=9), Interrupting()])
        if BACKEND == "jax":
            self.model.jax_state_sync()

    def freeze(self, _):
        layer = self.model.layers[-1]
        layer.trainable = not layer.trainable
        self.model.compile("adam", "mse")

    def copy_to(self, _):
        target = self.other()
        for one, other in zip(target.weights, self.model.weights, strict=True):
            one.assign(other)
        self.model = target


ACTIONS = [name for name in vars(World) if not name.startswith("_") and name != "other"]
steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from(sorted(OPTIMIZERS))), min_size=2, max_size=5
)


def check_world(folder, actions, recurrent=False):
    world = World(folder, recurrent)
    for action, name in actions:
        getattr(world, action)(name)
        assert_sparse(world.model, world.counts)
    return world.model


@settings(max_examples=6)
@given(actions=steps)
def test_anything_in_any_order(tmp_path_factory, actions):
    check_world(tmp_path_factory.mktemp("world"), actions)


@pytest.mark.slow
@settings(max_examples=60)
@given(actions=steps, recurrent=st.booleans())
def test_anything_in_any_order_for_long(tmp_path_factory, actions, recurrent):
    folder = tmp_path_factory.mktemp("world")
    model = check_world(folder, actions, recurrent)
    if BACKEND == "tensorflow":
        from keras_selfish.export import saved_model

        served = tf.saved_model.load(str(saved_model(model, folder / "served")))
        np.testing.assert_allclose(
            served.serve(X.astype("int32")), model.predict(X, verbose=0), rtol=1e-4, atol=1e-5
        )


# Threads


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize(
    "make",
    [
        lambda: SparseRHN(5, depth=2, sparsity=0.5),
        lambda: SparseONLSTM(6, chunk_size=2, sparsity=0.5),
        lambda: SparseLSTM(5, activation="relu", sparsity=0.5),
    ],
    ids=["RHN", "ON-LSTM", "LSTM in Keras's loop"],
)
def test_one_thread_traces_what_another_calls(make):
    model = keras.Sequential([keras.Input((3, 4)), make()])
    x = tf.constant(drawn(2, 3, 4))
    expected, traced, failed = numpy(model(x)), threading.Event(), []

    def trace():
        for _ in range(4):
            tf.function(lambda x: model(x))(x)
        traced.set()

    thread = threading.Thread(target=trace)
    thread.start()
    while not traced.is_set():
        try:
            failed += [] if np.allclose(model(x), expected, atol=1e-5) else ["other values"]
        except TypeError as error:  # a tensor of the other thread's graph
            failed.append(str(error))
    thread.join()
    assert failed == []
