"""Checkpoints: all variables bit for bit, in little room, also those of earlier versions."""

import hashlib
import json

import keras
import numpy as np
import pytest

from keras_selfish import SNTASGD, SparseDense
from keras_selfish.masks import masked_weights
from trainers import records
from trainers.callbacks import Recorder
from trainers.workdir import RunError, Workdir


def make_model(seed, units=60):
    layers = [SparseDense(units, mask_seed=seed), keras.layers.Dropout(0.5, seed=seed), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((80,)), *layers])
    model.compile(SNTASGD(0.1), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.start_averaging()
    return model


def arrays_of(model):
    return [np.array(variable) for variable in [*model.variables, *model.optimizer.variables]]


def bytes_of(model):
    return [array.tobytes() for array in arrays_of(model)]


@pytest.fixture
def workdir(tmp_path):
    workdir = Workdir(tmp_path / "run", "test")
    workdir.prepare()
    return workdir


def test_a_checkpoint_holds_every_variable_in_little_room(workdir):
    model, other = make_model(0), make_model(1)
    workdir.save_checkpoint(model, 1, best=2.5)
    checkpoint = workdir.checkpoint()
    assert (checkpoint["epochs_done"], checkpoint["best"]) == (1, 2.5)
    assert checkpoint["weights"].stat().st_size < 0.6 * sum(array.nbytes for array in arrays_of(model))
    assert bytes_of(other) != bytes_of(model)
    workdir.restore(other, checkpoint)
    assert bytes_of(other) == bytes_of(model)


def test_checkpoints_of_earlier_versions_are_restored(workdir):
    model, other = make_model(0), make_model(1)
    weights = workdir.path / "checkpoint-00003.npz"
    np.savez(weights, **{str(index): array for index, array in enumerate(arrays_of(model))})
    state = {"format": workdir.format, "epochs_done": 3, "weights": weights.name}
    state["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    workdir.state.write_text(json.dumps(state))
    workdir.restore(other, workdir.checkpoint())
    assert bytes_of(other) == bytes_of(model)


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_changed(workdir):
    workdir.save_checkpoint(make_model(0, units=61), 1)
    other = make_model(1)
    before = bytes_of(other)
    with pytest.raises(RunError, match=r"must be of this model, but its weights do not fit\. Received: "):
        workdir.restore(other, workdir.checkpoint())
    assert bytes_of(other) == before


@pytest.mark.backends("tensorflow", "jax")
def test_a_run_keeps_its_first_and_last_masks_and_what_it_ran_with(workdir):
    model = make_model(0)
    (weight,) = masked_weights(model)
    first = np.array(weight.mask)
    last = np.roll(first, 1, axis=0)

    def begin():
        checkpoint = workdir.checkpoint()
        recorder = Recorder(workdir, checkpoint["rows"] if checkpoint else [])
        recorder.set_model(model)
        recorder.on_train_begin()
        return recorder

    recorder = begin()
    assert not (workdir.path / records.LAST_MASKS).exists()
    weight.change_mask(last)
    recorder.on_epoch_begin(0)
    recorder.on_epoch_end(0, {"loss": 1.0})
    recorder.on_train_begin()  # of a second phase
    begin()
    begin()  # the one before ended in its first epoch
    workdir.wait()
    stored = {
        name: records.read_masks(workdir.path / name) for name in (records.FIRST_MASKS, records.LAST_MASKS)
    }
    for name, epoch, mask in ((records.FIRST_MASKS, 0, first), (records.LAST_MASKS, 1, last)):
        assert stored[name][0] == epoch
        (found,) = stored[name][1]
        assert found.name == weight.name
        assert found.mask.tobytes() == mask.tobytes()
    sessions = records.read_sessions(workdir.path / records.ENVIRONMENT)
    assert [session["first_epoch"] for session in sessions] == [1, 2]
    assert sessions[0]["backend"] == keras.backend.backend()
    assert sessions[0]["keras"] == keras.__version__
