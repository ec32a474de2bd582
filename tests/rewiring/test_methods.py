"""Every method in `model.fit`: counts exact, weights zero outside the mask, the same again when resumed."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import masks
from keras_selfish.layers import SparseDense, SparseEmbedding, SparseLSTM, SparseReversibleEmbedding
from keras_selfish.masks import masked_weights
from keras_selfish.optimizers import SNTASGD
from keras_selfish.rewiring import GMP, METHODS, SNIP, PolynomialDecay, Rewiring, register, rules
from keras_selfish.rewiring.gradients import DenseGradients

on_jax = pytest.mark.backends("tensorflow", "jax")

GENERATOR = np.random.default_rng(0)
TOKENS, TARGETS = GENERATOR.integers(0, 12, (16, 5)), GENERATOR.integers(0, 8, (16, 5))
GRADIENTS = DenseGradients((TOKENS, TARGETS))
REWIRING = [
    name for name, method in METHODS.items() if method.callback and issubclass(method.callback, Rewiring)
]


def sequence_model(optimizer=None, recurrent=True, compiling=None, **arguments):
    arguments = {"sparsity": 0.5, **arguments}
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            SparseEmbedding(12, 8, sparsity=0.5, mask_seed=1),
            *([SparseLSTM(8, return_sequences=True, mask_seed=2, **arguments)] if recurrent else []),
            SparseDense(8, mask_seed=3, **arguments),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.5), loss, **(compiling or {}))
    return model


def callback(name, frequency=3, **arguments):
    if name == "gmp":
        return GMP(PolynomialDecay(0.2, 0.5, begin_step=1, end_step=5, frequency=2))
    if name == "snip":
        return SNIP(gradient_data=(TOKENS, TARGETS))
    arguments = {"frequency": frequency, "gradient_data": (TOKENS, TARGETS), **arguments}
    rewiring = METHODS[name].callback(0.5, **arguments)
    rewiring.gradients = GRADIENTS  # which are traced once for a model, and not for each of its callbacks
    return rewiring


def fit(model, *callbacks, **arguments):
    arguments = {"epochs": 4, "batch_size": 4, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(TOKENS, TARGETS, callbacks=callbacks, **arguments)


def state_of(model):
    """All but the seeds of dropout, of which a copy draws its own."""
    variables = [*model.variables, *model.optimizer.variables]
    return [ops.convert_to_numpy(v).copy() for v in variables if "seed_generator" not in v.path]


def assert_zero_outside(model):
    for masked_weight in masked_weights(model):
        weight, mask = (ops.convert_to_numpy(v) for v in (masked_weight.weight, masked_weight.mask))
        assert not weight[~mask].any()


@pytest.mark.parametrize(
    ("name", "frequency"),
    [
        ("static", 3),
        ("selfish", "epoch"),
        ("selfish", 3),
        ("set", "epoch"),
        ("dsr", 3),
        ("snfs", "epoch"),
        ("rigl", 3),
        ("rigl", "epoch"),
        ("gse", 3),
    ],
)
def test_rewiring_keeps_the_number_of_connections(name, frequency, reused):
    model = reused(sequence_model)
    before = [masked_weight.active for masked_weight in masked_weights(model)]
    old = [ops.convert_to_numpy(masked_weight.mask).copy() for masked_weight in masked_weights(model)]
    history = fit(model, callback(name, frequency=frequency), epochs=3).history
    after = [masked_weight.active for masked_weight in masked_weights(model)]
    assert sum(after) == sum(before)
    assert name in ("dsr", "snfs") or after == before
    moved = any(
        (one != ops.convert_to_numpy(w.mask)).any() for one, w in zip(old, masked_weights(model), strict=True)
    )
    assert moved == (name != "static")
    assert history["sparsity"] == pytest.approx([0.5] * 3)
    assert history["loss"][-1] < history["loss"][0]
    assert_zero_outside(model)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in REWIRING if name != "snfs"),
        "gmp",
        pytest.param("snfs", marks=on_jax),
        pytest.param("snip", marks=on_jax),
    ],
)
def test_interrupted_and_resumed_training_is_the_same(name, tmp_path):
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        model = sequence_model(SNTASGD(0.5), recurrent=name == "selfish")
        model.run_eagerly = keras.backend.backend() == "tensorflow"  # compiling costs more than the steps
        models.append(model)
    whole, parts = models
    arguments = {} if name in ("gmp", "snip") else {"frequency": "epoch"}
    fit(whole, callback(name, **arguments), batch_size=8, epochs=3)
    arguments = {**arguments, "total_steps": 6} if arguments else {}
    fit(parts, callback(name, **arguments), batch_size=8, epochs=1)
    parts.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    resumed.run_eagerly = parts.run_eagerly
    fit(resumed, callback(name, **arguments), batch_size=8, epochs=3, initial_epoch=1)
    for one, other in zip(state_of(whole), state_of(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", [name for name in REWIRING if name not in ("dsr", "snfs")])
def test_with_a_pattern(name, reused):
    model = reused(sequence_model, n_of_m=(2, 4))
    fit(model, callback(name), epochs=2)
    for masked_weight in masked_weights(model)[1:]:
        mask = ops.convert_to_numpy(masked_weight.mask)
        assert (mask.reshape(-1, 4, mask.shape[1]).sum(axis=1) == 2).all()
    assert_zero_outside(model)


@pytest.mark.parametrize("name", ["dsr", "snfs", "gmp"])
def test_a_pattern_with_a_method_that_moves_connections_elsewhere_is_refused(name, reused):
    model = reused(sequence_model, n_of_m=(2, 4))
    with pytest.raises(ValueError, match=r"`n_of_m` fixes the number .* Received: n_of_m=\(2, 4\)"):
        fit(model, callback(name))


@pytest.mark.parametrize("name", [*REWIRING, "gmp", "snip"])
def test_with_blocks(name, reused):
    model = reused(sequence_model, block_shape=(4, 1))
    if name in ("dsr", "snfs"):  # the embedding has single weights
        with pytest.raises(ValueError, match=r"same size in all layers .* blocks of \[1, 4\] weights"):
            fit(model, callback(name))
        return
    fit(model, callback(name), epochs=2)
    for masked_weight in masked_weights(model)[1:]:
        mask = ops.convert_to_numpy(masked_weight.mask)
        blocks = masks.expand_blocks(masks.block_mask(mask, (4, 1)), (4, 1))
        np.testing.assert_array_equal(blocks, mask)


class Watched(keras.callbacks.Callback):
    """The sparsity of each masked weight after each training step."""

    def __init__(self):
        super().__init__()
        self.sparsities = []

    def on_train_batch_end(self, batch, logs=None):
        self.sparsities.append([1 - w.active / np.prod(w.shape) for w in masked_weights(self.model)])


@on_jax
def test_rigl_grows_where_the_gradient_is_largest_and_stops():
    model = keras.Sequential([keras.Input((6,)), SparseDense(8, sparsity=0.5, mask_seed=1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    inputs, targets = GENERATOR.normal(size=(8, 6)), GENERATOR.normal(size=(8, 8))
    rewiring = METHODS["rigl"].callback(
        0.25, frequency=1, gradient_data=(inputs, targets), schedule="constant"
    )
    (masked_weight,) = masked_weights(model)
    weight, mask = (ops.convert_to_numpy(v).copy() for v in (masked_weight.weight, masked_weight.mask))
    steps = []
    original = rewiring.rewire
    rewiring.rewire = lambda rate, step: (steps.append(step), original(rate, step))
    model.fit(inputs, targets, batch_size=8, epochs=8, verbose=0, callbacks=[rewiring])
    assert steps == [1, 2, 3, 4, 5, 6]
    for _ in steps:
        gradient = inputs.T @ (inputs @ weight - targets)  # up to a factor; the bias is zero
        kept = mask.copy().reshape(-1)
        active = np.flatnonzero(kept)
        kept[active[np.argsort(np.abs(weight.reshape(-1)[active]), kind="stable")[:6]]] = False
        free = np.flatnonzero(~kept)
        mask = kept.copy()
        mask[free[np.argsort(-np.abs(gradient.reshape(-1)[free]), kind="stable")[:6]]] = True
        mask = mask.reshape(6, 8)
        weight = np.where(mask, weight, 0)
    np.testing.assert_array_equal(ops.convert_to_numpy(masked_weight.mask), mask)
    np.testing.assert_array_equal(ops.convert_to_numpy(masked_weight.weight), weight)


@on_jax
@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
def test_the_shares_of_snfs_are_of_the_momentum_of_the_optimizer(optimizer):
    model = token_model()
    rates = {"adam": keras.optimizers.Adam(0.1), "momentum": keras.optimizers.SGD(0.1, momentum=0.9)}
    model.compile(rates.get(optimizer, keras.optimizers.SGD(0.1)), model.loss, run_eagerly=model.run_eagerly)
    snfs = METHODS["snfs"].callback(frequency=99, gradient_data=(TOKENS, TARGETS))
    model.fit(TOKENS, TARGETS, batch_size=4, shuffle=False, verbose=0, callbacks=[snfs])
    for matrix in snfs.matrices(step=4, gradient_batches=1):
        averages = matrix.gradient
        if optimizer != "sgd":
            slots = [v for v in model.optimizer.variables if tuple(v.shape) == matrix.mask.shape]
            averages, *squares = (ops.convert_to_numpy(v) for v in slots)
            averages = averages / (np.sqrt(squares[0]) + 1e-8) if squares else averages
        share = np.abs(averages[matrix.mask]).mean()
        assert rules.mean_momentum(matrix) == pytest.approx(share, rel=1e-5)


@pytest.mark.backends("tensorflow")
def test_snfs_on_replicas(two_replicas):
    """The shares are of momenta that replicas have in common: the masks are those of one device."""
    inputs, targets = GENERATOR.normal(size=(8, 6)), GENERATOR.normal(size=(8, 9))
    found = []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        keras.utils.set_random_seed(0)
        with scope:
            layers = [SparseDense(units, sparsity=0.5, mask_seed=units) for units in (8, 9)]
            model = keras.Sequential([keras.Input((6,)), *layers])
            model.compile(keras.optimizers.Adam(0.05), "mse")
        snfs = METHODS["snfs"].callback(gradient_data=(inputs, targets), frequency=2)
        model.fit(inputs, targets, epochs=5, batch_size=8, shuffle=False, verbose=0, callbacks=[snfs])
        found.append(masks_of(model))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("redistribution", [None, "none"])
def test_snfs_without_redistribution_keeps_the_number_of_each_matrix(redistribution, reused):
    model = reused(sequence_model)
    before = [mask.sum() for mask in masks_of(model)]
    fit(model, callback("snfs", redistribution=redistribution), epochs=2)
    assert [mask.sum() for mask in masks_of(model)] == before


@on_jax
def test_gmp_begins_dense_and_follows_the_schedule(reused):
    model, watched = reused(sequence_model), Watched()
    schedule = PolynomialDecay(0.2, 0.75, begin_step=3, end_step=12, frequency=4)
    fit(model, GMP(schedule), watched, epochs=4)

    def at(step):
        return 0.75 + (0.2 - 0.75) * (1 - (step - 3) / 9) ** 3

    # The first step is 1, and the sparsity is exact at the end.
    expected = [0, 0, *[at(3)] * 4, *[at(7)] * 4, at(11), *[0.75] * 5]
    for sizes, sparsity in zip(watched.sparsities, expected, strict=True):
        assert sizes == pytest.approx([sparsity] * 4, abs=1 / 96)
    assert_zero_outside(model)


def test_gmp_takes_the_smallest_and_they_stay_away():
    model = keras.Sequential([keras.Input((2,)), SparseDense(4, sparsity=0.25)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    (masked_weight,) = masked_weights(model)

    class Assign(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0:
                masked_weight.weight.assign([[1, -2, 3, -4], [5, 6, -7, 8]])

    pruning = GMP(PolynomialDecay(0.0, 0.5, begin_step=1, end_step=2, frequency=1))
    model.fit(np.ones((4, 2)), np.ones((4, 4)), batch_size=1, verbose=0, callbacks=[pruning, Assign()])
    np.testing.assert_array_equal(ops.convert_to_numpy(masked_weight.mask), [[0] * 4, [1] * 4])


@pytest.mark.parametrize(
    ("kind", "together"), [("PolynomialDecay", 1), ("PolynomialDecay", 3), ("ConstantSparsity", 1)]
)
def test_schedules_of_tensorflow_model_optimization(kind, together, reused):
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    if kind == "PolynomialDecay":
        theirs = tfmot.sparsity.keras.PolynomialDecay(0.1, 0.6, begin_step=2, end_step=11, frequency=3)
        ours = PolynomialDecay(0.1, 0.6, begin_step=2, end_step=11, frequency=3)
        for step in range(16):
            due, sparsity = theirs(step)
            assert bool(due) == ours(step)[0]
            assert float(sparsity) == pytest.approx(ours(step)[1], abs=1e-6)
    else:
        theirs = tfmot.sparsity.keras.ConstantSparsity(0.6, begin_step=5, frequency=3)
    model = reused(sequence_model, compiling={"steps_per_execution": together} if together > 1 else None)
    watched = Watched()
    fit(model, GMP(theirs), watched, epochs=4)
    sparsities = [each[1] for each in watched.sparsities]
    assert sparsities[0] == 0
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == pytest.approx(0.6, abs=1 / 256)
    if kind == "ConstantSparsity":
        assert [round(each, 2) for each in sparsities] == [0.0] * 4 + [0.6] * 12


@pytest.mark.parametrize("frequency", [1, 4])
def test_the_sparsities_of_tensorflow_model_optimization(frequency):
    """After each step, of its wrapper and of ours; the schedule ends with the last step."""
    tfmot, tf_keras = pytest.importorskip("tensorflow_model_optimization"), pytest.importorskip("tf_keras")
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=8, frequency=frequency)
    x, y = np.ones((16, 10), "float32"), np.ones((16, 10), "float32")
    found = []

    class Watch:
        def watch(self):
            layer = self.model.layers[0]
            masks = [v for v in layer.weights if v.name.split(":")[0].endswith("mask")]
            found[-1].append(1 - float(np.mean(np.array(masks[0]))))

        def on_train_batch_end(self, batch, logs=None):
            self.watch()

    theirs = tf_keras.Sequential([tf_keras.layers.Dense(10, input_shape=(10,))])
    theirs = tfmot.sparsity.keras.prune_low_magnitude(theirs, pruning_schedule=schedule)
    theirs.compile("sgd", "mse", run_eagerly=True)
    ours = keras.Sequential([keras.Input((10,)), SparseDense(10, sparsity=0.8)])
    ours.compile("sgd", "mse", run_eagerly=True)
    for model, callbacks_of, pruning in [
        (theirs, tf_keras.callbacks, tfmot.sparsity.keras.UpdatePruningStep()),
        (ours, keras.callbacks, GMP(schedule)),
    ]:
        found.append([])
        watch = type("Watching", (Watch, callbacks_of.Callback), {})()
        model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[pruning, watch])
    assert found[1] == pytest.approx(found[0], abs=0.011)
    assert found[1][-1] == 0.8


@pytest.mark.parametrize("schedule", [0.5, lambda step: (True, 0.5)])
def test_what_is_no_pruning_schedule(schedule):
    with pytest.raises(ValueError, match="`schedule` must be a pruning schedule with begin_step"):
        GMP(schedule)


def test_a_pruning_schedule_out_of_range():
    with pytest.raises(ValueError, match=r"`final_sparsity` .* Received: final_sparsity=1.0"):
        PolynomialDecay(0.0, 1.0, 0, 10)
    with pytest.raises(
        ValueError, match=r"`end_step` must be .* Received: end_step=10; it must come after begin_step=10"
    ):
        PolynomialDecay(0.0, 0.5, 10, 10)


def opened(model):
    """The weights of a model whose connections all exist; the model stays as it is."""
    before = model.get_weights()
    masks.densify(model)
    weights = [ops.convert_to_numpy(masked_weight.weight).copy() for masked_weight in masked_weights(model)]
    model.set_weights(before)
    return weights


@on_jax
def test_snip_keeps_what_the_loss_is_most_sensitive_to():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            SparseDense(8, sparsity=0.6, mask_seed=0),
            keras.layers.Dropout(0.5),
            SparseDense(3, sparsity=0.6, mask_seed=1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    count = sum(masked_weight.active for masked_weight in masked_weights(model))
    inputs, targets = GENERATOR.normal(size=(8, 6)), GENERATOR.normal(size=(8, 3))
    first, second = opened(model)
    hidden = inputs @ first
    error = hidden @ second - targets
    scores = [np.abs(first * (inputs.T @ (error @ second.T))), np.abs(second * (hidden.T @ error))]
    limit = np.sort(np.concatenate([each.reshape(-1) for each in scores]))[-count]
    snip = SNIP(gradient_data=(inputs, targets))
    history = model.fit(inputs, targets, epochs=2, verbose=0, callbacks=[snip]).history
    for masked_weight, each in zip(masked_weights(model), scores, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(masked_weight.mask), each >= limit)
    assert history["sparsity"] == pytest.approx([1 - count / 72] * 2)


class TokenBatches(keras.utils.PyDataset):
    """Two batches of tokens that have a part of the vocabulary of 12 each."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return TOKENS[:8] % 3 + 3 * index, TARGETS[:8]


def token_model(tied=False):
    """Logits that are linear in an embedding."""
    tokens = keras.Input((None,), dtype="int32")
    if tied:
        embedding = SparseReversibleEmbedding(12, 6, sparsity=0.5, mask_seed=1)
        model = keras.Model(tokens, embedding(embedding(tokens), reverse=True))
    else:
        embedding = SparseEmbedding(12, 6, sparsity=0.5, mask_seed=1)
        model = keras.Model(tokens, SparseDense(8, sparsity=0.5, mask_seed=2)(embedding(tokens)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=keras.backend.backend() == "tensorflow")
    return model


def masks_of(model):
    return [ops.convert_to_numpy(masked_weight.mask).copy() for masked_weight in masked_weights(model)]


def test_snip_leaves_tokens_that_are_in_no_batch_their_connections():
    model = token_model()
    (table, kernel), values = masks_of(model), ops.convert_to_numpy(model.weights[0]).copy()
    model.fit(TOKENS, TARGETS, verbose=0, callbacks=[SNIP(gradient_data=TokenBatches())])
    after = masks_of(model)
    np.testing.assert_array_equal(after[0], table)
    np.testing.assert_array_equal(ops.convert_to_numpy(model.weights[0]), values)
    assert after[1].sum() == kernel.sum()
    assert (after[1] != kernel).any()
    assert masked_weights(model)[0].unpruned is None


@on_jax
@pytest.mark.parametrize("batches", [1, 2])
def test_snip_of_embeddings_over_several_batches(batches):
    """A loop over tokens: the rows of those that are in no batch lose everything."""
    model, data = token_model(), TokenBatches()
    count = sum(mask.sum() for mask in masks_of(model))
    table, kernel = opened(model)
    gradients = [np.zeros_like(table), np.zeros_like(kernel)]
    for index in range(batches):
        tokens, targets = (part.reshape(-1) for part in data[index])
        for token, target in zip(tokens, targets, strict=True):
            odds = np.exp(table[token] @ kernel)
            error = odds / odds.sum() - (np.arange(8) == target)
            gradients[0][token] += kernel @ error
            gradients[1] += np.outer(table[token], error)
    scores = [np.abs(table * gradients[0]), np.abs(kernel * gradients[1])]
    limit = np.sort(np.concatenate([each.reshape(-1) for each in scores]))[-count]
    snip = SNIP(gradient_data=data, gradient_batches=batches, prune_embeddings=True)
    model.fit(TOKENS, TARGETS, verbose=0, callbacks=[snip])
    for mask, each in zip(masks_of(model), scores, strict=True):
        np.testing.assert_array_equal(mask, each >= limit)
    assert not masks_of(model)[0][3 * batches :].any()


def test_snip_prunes_an_embedding_that_a_decoder_is_tied_to():
    model = token_model(tied=True)
    (before,) = masks_of(model)
    model.fit(TOKENS % 3, TOKENS, verbose=0, callbacks=[SNIP(gradient_data=(TOKENS % 3, TOKENS))])
    (after,) = masks_of(model)
    assert (after != before).any()
    assert after.sum() == before.sum()
    assert after.any(axis=1).sum() > 6  # not only the tokens that are looked up


def test_snip_leaves_alone_what_is_not_trained():
    model = token_model()
    model.layers[-1].trainable = False
    before = masks_of(model)
    snip = SNIP(gradient_data=(TOKENS, TARGETS), prune_embeddings=True)
    model.compile(keras.optimizers.SGD(0.0), model.loss, run_eagerly=True)
    model.fit(TOKENS, TARGETS, verbose=0, callbacks=[snip])
    np.testing.assert_array_equal(masks_of(model)[1], before[1])
    with pytest.raises(
        ValueError, match=r"`prune_embeddings` must be True .* Received: prune_embeddings=False"
    ):
        model.fit(TOKENS, TARGETS, verbose=0, callbacks=[SNIP(gradient_data=(TOKENS, TARGETS))])


def test_snip_over_no_batch_is_refused():
    with pytest.raises(
        ValueError, match=r"`gradient_batches` must be .* positive integer. Received: gradient_batches=0"
    ):
        SNIP(gradient_data=(TOKENS, TARGETS), gradient_batches=0)


def test_snip_with_a_pattern():
    model = keras.Sequential([keras.Input((8,)), SparseDense(3, n_of_m=(1, 4), mask_seed=0)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    inputs, targets = GENERATOR.normal(size=(8, 8)), GENERATOR.normal(size=(8, 3))
    (kernel,) = opened(model)
    scores = np.abs(kernel * (inputs.T @ (inputs @ kernel - targets))).reshape(2, 4, 3)
    model.fit(inputs, targets, verbose=0, callbacks=[SNIP(gradient_data=(inputs, targets))])
    (masked_weight,) = masked_weights(model)
    expected = (scores == scores.max(axis=1, keepdims=True)).reshape(8, 3)
    np.testing.assert_array_equal(ops.convert_to_numpy(masked_weight.mask), expected)


@pytest.mark.parametrize("name", ["gmp", "snip"])
def test_pruning_needs_a_built_model(name):
    model = keras.Sequential([SparseDense(4)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`model` must be built before training with"):
        model.fit(np.ones((2, 4)), np.ones((2, 4)), verbose=0, callbacks=[callback(name)])


def test_a_method_of_ones_own_is_registered_by_one_statement(monkeypatch):
    monkeypatch.setitem(METHODS, "own", None)

    @register("own", "drops and grows at random", options=("pruning_rate",))
    class Own(Rewiring):
        pass

    assert (METHODS["own"].callback, METHODS["own"].begins_sparse) == (Own, True)
    (made,) = METHODS["own"].for_run(sparsity=0.5, total_steps=90, data=[], seed=3, pruning_rate=0.25)
    assert (type(made), made.pruning_rate, made.total_steps, made.seed) == (Own, 0.25, 90, 3)


@pytest.mark.parametrize("name", ["rigl", "dense", "my method", ""])
def test_a_name_that_is_taken_or_no_word_is_refused(name):
    before = dict(METHODS)
    with pytest.raises(ValueError, match=f"`name` must be a word .* Received: name={name!r}"):
        register(name, "what it does")(Rewiring)
    assert before == METHODS


def test_what_is_no_callback_is_refused():
    with pytest.raises(ValueError, match="`callback` must be a subclass of MaskCallback"):
        register("own", "what it does")(keras.callbacks.Callback)
    assert "own" not in METHODS
