"""Several workers, processes of their own: they must do together what one device does."""

import hashlib
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import (
    SNTASGD,
    LanguageModel,
    NonMonotonicAveraging,
    Perplexity,
    RigL,
    SelfishRewiring,
    SparseDense,
    SparseEmbedding,
    SparseLSTM,
    SwitchedDense,
    SwitchedModel,
    masked_weights,
)
from keras_selfish.data import RandomWindows, Windows

COLUMNS, UNITS, EPOCHS = 6, 16, 4
TOKENS = np.random.default_rng(0).integers(0, 30, COLUMNS * 92)
VALIDATION = np.random.default_rng(1).integers(0, 30, COLUMNS * 24)
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def language_model(workers, **options):
    """A model whose averaging begins: random text cannot be learnt, so validation gets worse."""
    model = LanguageModel(30, UNITS, layers=1, dropout=0.0, batch_size=COLUMNS // workers, seed=3, **options)
    compile_(model, SNTASGD(5.0, global_clipnorm=0.25, weight_decay=1e-3))
    return model


def functional():
    """A model of a user's own, of Keras's class."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = SparseEmbedding(30, UNITS, sparsity=0.5, mask_seed=0)(tokens)
    x = SparseLSTM(UNITS, return_sequences=True, sparsity=0.5, mask_seed=1)(x)
    model = keras.Model(tokens, SparseDense(30, sparsity=0.5, mask_seed=2)(x))
    compile_(model, keras.optimizers.SGD(1.0, momentum=0.9))
    return model


def switched():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(30, UNITS)(tokens)
    network = keras.Model(tokens, keras.layers.Dense(30)(SwitchedDense(UNITS)(x)))
    model = SwitchedModel(network, task_steps=8, switcher_steps=4)
    compile_(model, "sgd")
    return model


def compile_(model, optimizer):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss, metrics=[Perplexity()])


class Recording(keras.callbacks.Callback):
    """Keeps the loss of each step, and digests of what every worker must have after each rewiring."""

    def __init__(self):
        super().__init__()
        self.losses, self.digests = [], []

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.built and len(self.losses) % 5 == 0:
            variables = [*self.model.trainable_variables, *self.model.optimizer.variables]
            variables += [masked_weight.mask for masked_weight in masked_weights(self.model)]
            digest = hashlib.sha256()
            for variable in variables:
                digest.update(ops.convert_to_numpy(variable).tobytes())
            self.digests.append(digest.hexdigest())

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


def train(kind, workers=1):
    """Trains a model, as one of several workers or alone; returns what it has become as a dict of arrays."""
    keras.utils.set_random_seed(1)
    windows = Windows(TOKENS, COLUMNS, 7)
    rewiring = SelfishRewiring(pruning_rate=0.5, frequency=5, seed=7)
    if kind == "functional":
        model, callbacks = functional(), [rewiring]
    elif kind == "switched":
        model, callbacks = switched(), []
    else:
        options = {"reference_length": 7} if kind == "random lengths" else {}
        model = language_model(workers, **options)
        callbacks = [rewiring, NonMonotonicAveraging(monitor="val_perplexity", patience=1)]
    if kind == "random lengths":
        windows = RandomWindows(TOKENS, COLUMNS, 7)
        callbacks.append(windows.callback())
    elif kind == "rigl":
        callbacks[0] = RigL(gradient_data=windows, pruning_rate=0.5, frequency=5, seed=7)
    recording = Recording()
    training, validation = windows.dataset(), Windows(VALIDATION, COLUMNS, 7).dataset()
    if kind in ("functional", "switched"):  # which carry no states
        training, validation = (
            dataset.map(lambda inputs, targets: (inputs["tokens"], targets))
            for dataset in (training, validation)
        )
    history = model.fit(
        training,
        validation_data=validation,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, recording],
    ).history
    states = [ops.convert_to_numpy(v) for v in model.variables if "_state_" in v.path]
    return {
        "losses": recording.losses,
        "digests": recording.digests,
        "validation": history["val_perplexity"],
        "weights": np.concatenate([ops.convert_to_numpy(v).ravel() for v in model.trainable_variables]),
        "trigger": ops.convert_to_numpy(getattr(model.optimizer, "trigger", -1.0)),
        "states": np.stack(states) if states else [],
    }


def work(kind, file):
    """What a worker's process does: trains, and writes what came out to a file."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    given = set()

    def watched(reduce_op, value, axis):
        nested = tf.nest.is_nested(value)
        if nested or (axis == 0 and value.shape.rank == 0):
            given.add("nested" if nested else "scalar")
        return type(strategy).reduce(strategy, reduce_op, value, axis)

    with strategy.scope():
        strategy.reduce = watched
        found = train(kind, strategy.num_replicas_in_sync)
    np.savez(file, given=sorted(given), **found)


def run_workers(environments, kind, folder):
    """What each worker came to, a list of dicts of arrays."""
    processes = []
    for index, environment in enumerate(environments):
        command = [sys.executable, __file__, kind, str(folder / f"{index}.npz")]
        with open(folder / f"{index}.log", "w") as log:
            process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=log, stderr=log)
        processes.append(process)
    try:
        for index, process in enumerate(processes):
            assert process.wait(timeout=300) == 0, (folder / f"{index}.log").read_text()
    finally:
        for process in processes:
            process.kill()
    return [dict(np.load(folder / f"{index}.npz")) for index in range(len(processes))]


def check(kind, environments, folder):
    """Compares workers with each other, and with one device."""
    number = len(environments)
    workers = run_workers(environments, kind, folder)
    one = train(kind)
    for worker in workers:
        for name in ("losses", "digests", "validation", "weights", "trigger"):
            np.testing.assert_array_equal(worker[name], workers[0][name], err_msg=name)
        assert len(worker["losses"]) == 52
        assert len(set(worker["digests"])) >= 10
        np.testing.assert_allclose(worker["losses"], one["losses"], rtol=1e-5)
        np.testing.assert_allclose(worker["validation"], one["validation"], rtol=1e-5)
        np.testing.assert_allclose(worker["weights"], one["weights"], atol=1e-5)
        assert float(worker["trigger"]) == float(one["trigger"])
    if len(one["states"]):
        # Each has followed its own columns.
        columns = COLUMNS // number
        states = np.concatenate([worker["states"][:, :columns] for worker in workers], axis=1)
        np.testing.assert_allclose(states, one["states"], atol=1e-5)
        assert abs(states[:, 0] - states[:, columns]).max() > 1e-3
    return one, workers


def test_two_workers_train_as_one_device(cluster, tmp_path):
    """RigL grows by gradients over the data; random text makes averaging begin."""
    one, workers = check("rigl", cluster(2), tmp_path)
    assert float(one["trigger"]) > 0, "averaging has not begun; the test shows nothing"
    for worker in workers:
        assert {"nested", "scalar"} <= set(worker["given"]), (
            "Keras no longer gives the strategy what keras_selfish/workers_tensorflow.py is for: remove what "
            "it does not need any more"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"),
    [("rigl", 3), ("selfish", 3), ("random lengths", 2), ("functional", 3), ("switched", 2)],
)
def test_workers_train_as_one_device(kind, number, cluster, tmp_path):
    check(kind, cluster(number), tmp_path)


if __name__ == "__main__":
    work(*sys.argv[1:])
