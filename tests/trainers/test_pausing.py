"""Training that stops after any step, and goes on as if it had not."""

import csv
import json

import numpy as np
import pytest

from keras_selfish.packing import unpacked

# Two steps an epoch, with dropout, rewiring and averages that begin.
MODEL = (
    *("--dataset=text", "--units=8", "--layers=1", "--batch_size=8", "--bptt=75", "--sparsity=0.5"),
    *("--learning_rate=20", "--epochs=4", "--dropout=0.3", "--patience=1", "--noexport", "--seed=3"),
)
METHODS = {
    "selfish": ("--method=selfish", "--random_lengths"),
    "rigl": ("--method=rigl", "--rewiring_steps=2"),
    "gmp": ("--method=gmp",),
}
OF_THE_CLOCK = {"seconds", "tokens_per_second"}


def history(workdir):
    with open(workdir / "history.csv", newline="", encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name not in OF_THE_CLOCK}
            for row in csv.DictReader(file)
        ]


def last_checkpoint(workdir):
    state = json.loads((workdir / "checkpoint.json").read_text())
    with np.load(workdir / state["weights"]) as stored:
        return unpacked(stored)


def assert_same(whole, steps):
    """Compares the history, the last checkpoint and the results of two runs."""
    assert history(steps) == history(whole)
    expected, found = last_checkpoint(whole), last_checkpoint(steps)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (whole, steps))
    assert first == second


def pause_often(run, workdir, flags, pauses):
    """Runs a trainer, paused after each of so many steps and resumed; returns what it said each time."""
    said = [run(workdir, *flags, "--time_limit=0") for _ in range(pauses)]
    assert {result.returncode for result in said} == {75}
    said.append(run(workdir, *flags))
    assert said[-1].returncode == 0, said[-1].stderr
    return [result.stderr for result in said]


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize(("method", "pauses"), [("selfish", 7), ("rigl", 3), ("gmp", 1)])
def test_a_language_model_trained_a_step_at_a_time(trainer, corpus, tmp_path, method, pauses, capsys):
    run = trainer("language_model").run
    flags = (f"--data_dir={corpus}", *MODEL, *METHODS[method])
    result = run(tmp_path / "whole", *flags)
    assert result.returncode == 0, result.stderr
    said = pause_often(run, tmp_path / "steps", flags, pauses)
    assert (
        "Paused at --time_limit=0: the checkpoint after step 1 of epoch 1 is kept in"
        in capsys.readouterr().err
    )
    assert "Resuming after step 1 of epoch 1 of 4 epochs" in said[1]
    assert_same(tmp_path / "whole", tmp_path / "steps")
    assert sorted(path.name for path in (tmp_path / "steps").glob("checkpoint-*")) == ["checkpoint-00004.npz"]


@pytest.mark.parametrize("method", ["switcher", "gmp"])
def test_an_image_classifier_trained_a_step_at_a_time(trainer, tmp_path, method):
    """A switcher's turn, its frozen structure and an epoch of fine-tuning begin between two pauses."""
    run = trainer("image_classifier").run
    flags = (
        *(f"--method={method}", "--epochs=2", "--finetune_epochs=1", "--batch_size=700", "--width=0.1"),
        *("--task_steps=2", "--switcher_steps=1", "--warmup_epochs=0", "--augmentation=crop", "--noexport"),
    )
    result = run(tmp_path / "whole", *flags)
    assert result.returncode == 0, result.stderr
    pause_often(run, tmp_path / "steps", flags, 5)
    assert_same(tmp_path / "whole", tmp_path / "steps")


def test_replicas_stop_before_an_epoch_that_does_not_fit(trainer, corpus, tmp_path, capsys):
    run = trainer("language_model").run
    flags = (f"--data_dir={corpus}", *MODEL, "--strategy=mirrored")
    result = run(tmp_path, *flags, "--time_limit=0")
    assert result.returncode == 75
    assert "the checkpoint after epoch 1 is kept in" in capsys.readouterr().err
    assert "Resuming after epoch 1 of 4 epochs" in run(tmp_path, *flags).stderr


@pytest.mark.parametrize("strategy", ["multi_worker", "model_parallel"])
def test_several_processes_have_no_time_limit(trainer, corpus, tmp_path, monkeypatch, strategy):
    monkeypatch.setenv(
        "TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}'
    )
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    flags = (f"--data_dir={corpus}", *MODEL, f"--strategy={strategy}", "--time_limit=9")
    result = trainer("language_model").run(tmp_path / "run", *flags)
    assert result.returncode == 1
    assert "--time_limit must be left out where a run has several processes" in result.stderr
    assert list((tmp_path / "run").glob("*")) == []


def test_a_time_limit_is_a_number_of_seconds(trainer, tmp_path):
    for name in ("language_model", "image_classifier"):
        for value in ("-1", "nan", "soon"):
            result = trainer(name).run(tmp_path / "run", f"--time_limit={value}")
            assert result.returncode == 1
            assert "time_limit" in result.stderr
    assert list(tmp_path.iterdir()) == []
