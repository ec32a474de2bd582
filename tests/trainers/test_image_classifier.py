"""The trainer of image classifiers on real scans."""

import csv
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

pytest.importorskip("sklearn")

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TINY = (
    *("--epochs=6", "--finetune_epochs=1", "--batch_size=32", "--width=0.3", "--sparsity=0.7"),
    *("--task_steps=10", "--switcher_steps=2", "--warmup_epochs=0.5"),
)


@pytest.fixture(scope="module")
def run(trainer):
    """A function that runs the trainer in this process on a folder, with flags."""
    return trainer("image_classifier").run


def history(workdir):
    with open(workdir / "history.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def stop_after(last, monkeypatch):
    """Has the trainer exit with status 3 once an epoch is saved."""
    from trainers import callbacks

    class Stopping(callbacks.ClassifierRecorder):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            if epoch + 1 == last:
                sys.exit(3)

    monkeypatch.setattr(callbacks, "ClassifierRecorder", Stopping)


@pytest.fixture(scope="module")
def whole_run(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    result = run(workdir, *TINY)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_a_run_learns_and_leaves_everything_it_promises(whole_run):
    workdir, result = whole_run
    results = json.loads((workdir / "results.json").read_text())
    assert results["sparsity"] == pytest.approx(0.7, abs=0.01)
    assert results["test_accuracy"] > 0.85
    assert results["difference"] < 1e-4
    rows = history(workdir)
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 8)]
    assert {"loss", "accuracy", "val_accuracy", "sparsity"} <= set(rows[0])
    left = {"config.json", "final.keras", "saved_model", "tensorboard"}
    assert left <= {path.name for path in workdir.iterdir()}
    assert "test accuracy" in result.stdout
    assert re.search(r"Epoch 3 of 7 done: loss .*val_accuracy .*sparsity .* about \d+ s left", result.stderr)


def test_a_run_is_reported(trainer, whole_run):
    from trainers.reporting.run import read_run

    workdir, _ = whole_run
    result = trainer("report").run(workdir)
    assert result.returncode == 0, result.stderr
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "finished: 7 of 7 epochs" in page
    run = read_run(workdir)
    (missing,) = run.missing
    assert missing.startswith("The history has no densities of gates")
    assert (run.first.when, run.last.when) == ("before training", "after epoch 7")
    masks = [one.mask for one in run.last.weights.values()]
    density = sum(map(np.count_nonzero, masks)) / sum(mask.size for mask in masks)
    assert 1.0 - density == pytest.approx(float(history(workdir)[-1]["sparsity"]), abs=1e-6)


def test_the_artifact_needs_no_switcher(whole_run):
    """Nor this package: all classes are Keras's."""
    import keras
    import tensorflow as tf

    workdir, _ = whole_run
    with zipfile.ZipFile(workdir / "final.keras") as archive:
        config = archive.read("config.json").decode()
    assert "keras_selfish" not in config
    model = keras.models.load_model(workdir / "final.keras")
    assert not any("switcher" in variable.path for variable in model.variables)
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype("float32")
    served = tf.saved_model.load(workdir / "saved_model")
    np.testing.assert_allclose(
        served.serve(tf.constant(x)), model.predict(x, verbose=0), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("stop", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_whole_run(run, whole_run, tmp_path, monkeypatch, stop):
    """A run that stopped after an epoch, as its checkpoint and history say.

    Sums over threads may differ in their last bits under load, and a switch near the threshold makes more of
    it: on a quiet machine the runs are equal bit for bit, here within a few images.
    """
    with monkeypatch.context() as patched:
        stop_after(stop, patched)
        assert run(tmp_path, *TINY, "--noexport").returncode == 3
    assert len(history(tmp_path)) == stop
    result = run(tmp_path, *TINY, "--noexport")
    assert result.returncode == 0, result.stderr
    for one, other in zip(history(tmp_path), history(whole_run[0]), strict=True):
        for name in one:
            assert float(one[name]) == pytest.approx(float(other[name]), abs=0.01), name


def test_a_resumed_run_with_augmentation_is_the_whole_run(run, tmp_path, monkeypatch):
    flags = ("--method=dense", "--epochs=2", "--finetune_epochs=0", "--width=0.3", "--noexport")
    losses = {}
    for name, augmentation in {"plain": "none", "whole": "crop", "resumed": "crop"}.items():
        if name == "resumed":
            with monkeypatch.context() as patched:
                stop_after(1, patched)
                assert run(tmp_path / name, *flags, f"--augmentation={augmentation}").returncode == 3
        result = run(tmp_path / name, *flags, f"--augmentation={augmentation}")
        assert result.returncode == 0, result.stderr
        losses[name] = [float(row["loss"]) for row in history(tmp_path / name)]
    assert losses["resumed"] == pytest.approx(losses["whole"], abs=1e-3)
    assert losses["plain"][1] < losses["whole"][1] - 0.1


def test_epochs_that_are_added_keep_the_schedule_and_the_structure(run, whole_run, tmp_path):
    import keras

    shutil.copytree(whole_run[0], tmp_path / "run")
    refused = run(tmp_path / "run", *TINY, "--epochs=5", "--noexport")
    assert refused.returncode == 1
    assert "--epochs must be at least 6, as when the run in --workdir began" in refused.stderr
    result = run(tmp_path / "run", *TINY, "--epochs=8", "--noexport")
    assert result.returncode == 0, result.stderr
    rows = history(tmp_path / "run")
    assert rows[:7] == history(whole_run[0])
    assert [row["sparsity"] for row in rows[6:]] == [rows[6]["sparsity"]] * 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["schedule_epochs"] == 6
    kernels = [
        [np.asarray(layer.kernel) != 0 for layer in model.layers if isinstance(layer, keras.layers.Dense)]
        for model in (
            keras.models.load_model(folder / "final.keras") for folder in (whole_run[0], tmp_path / "run")
        )
    ]
    for one, other in zip(*kernels, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "method",
    [
        "rigl",
        "gmp",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("dense", "static", "selfish", "set", "snip")
        ),
    ],
)
def test_other_methods(run, tmp_path, method):
    import keras

    flags = ["--distribution=erk"] if method == "rigl" else []
    result = run(tmp_path, *TINY, f"--method={method}", "--noexport", *flags)
    assert result.returncode == 0, result.stderr
    sparsity = json.loads((tmp_path / "results.json").read_text())["sparsity"]
    assert sparsity == pytest.approx(0.0 if method == "dense" else 0.7, abs=0.01)
    if flags:
        layers = keras.models.load_model(tmp_path / "final.keras").layers
        kernels = [np.asarray(one.kernel) for one in layers if isinstance(one, keras.layers.Dense)]
        densities = [np.count_nonzero(kernel) / kernel.size for kernel in kernels]
        assert densities[0] < densities[1] < densities[2]


@pytest.mark.slow
def test_neurons_leave_the_network_on_jax(trainer, tmp_path, jax_alone):
    import keras

    run = trainer("image_classifier").run_alone
    flags = (*TINY, "--method=switcher_neuron")
    refused = run(tmp_path, *flags)
    assert refused.returncode == 1
    assert "--export needs Keras's TensorFlow backend. Received: backend 'jax'" in refused.stderr
    assert "Traceback" not in refused.stderr
    result = run(tmp_path, *flags, "--noexport")
    assert result.returncode == 0, result.stderr
    assert "No TensorBoard logs" in result.stderr
    model = keras.models.load_model(tmp_path / "final.keras")
    units = [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert units[0] + units[1] < 0.5 * (90 + 30)
    assert all(
        np.asarray(layer.kernel).any() for layer in model.layers if isinstance(layer, keras.layers.Dense)
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sparsity=1.5"], "--sparsity is the fraction of zeros"),
        (["--method=gmp", "--pruning_rate=0.3"], "--pruning_rate must be left out with --method=gmp"),
        (["--ramp=2"], "--ramp must be a number in [0, 1]. Received: --ramp=2.0"),
        (["--width=0"], "--width must be a number over 0. Received: --width=0.0"),
        (["--sparsity=nan"], "--sparsity must be a finite number. Received: --sparsity=nan"),
        (["--warmup_epochs=inf"], "--warmup_epochs must be a finite number"),
        (["--seed=4294967296"], "seed=4294967296"),
        (["--epochs=1", "--batch_size=1500"], "--epochs must make at least 44 training steps, a turn of the"),
        (
            ["--warmup_epochs=60"],
            "--warmup_epochs must leave at least 44 training steps, a turn of the network",
        ),
        (["--epochs=1", "--batch_size=1500", "--method=gmp"], "--epochs must make at least 2 training steps"),
        (
            ["--method=gmp", "--distribution=erk"],
            "--distribution needs a method that begins sparse (static, ",
        ),
        (["--method=switcher_neuron", "--network=resnet_18"], "needs a network with hidden dense layers"),
        (["--network=lenet_5"], "`input_shape` must be"),
        (
            ["--augmentation=crop_flip"],
            "--augmentation=crop_flip needs images that stay what they are in a mirror",
        ),
        (["--dataset=mnist", "--data_dir=/nowhere"], "`data_dir` must be a folder"),
    ],
)
def test_bad_flags(run, tmp_path, flags, message):
    result = run(tmp_path, *flags)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "config.json").exists()


def test_a_workdir_of_another_trainer(run, tmp_path):
    config = {"format": "keras_selfish language model run, version 1", "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run(tmp_path)
    assert result.returncode == 1
    assert "config.json in --workdir must be from this trainer" in result.stderr


def test_a_loss_that_is_no_number_ends_the_run(run, tmp_path):
    result = run(tmp_path, *TINY, "--method=dense", "--learning_rate=1e38")
    assert result.returncode == 1
    assert "try a smaller --learning_rate in a new --workdir" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "final.keras").exists()


def test_it_is_a_program(trainer, tmp_path):
    result = trainer("image_classifier").run_alone(tmp_path, "--sparsity=1.5")
    assert result.returncode == 1
    assert "error: --sparsity is the fraction of zeros" in result.stderr
    assert "Traceback" not in result.stderr


# The runs of benchmarks/cifar.sh.


@pytest.fixture
def cifar_runs(tmp_path):
    """A function that runs the script with names of runs; nothing is trained but where asked."""

    def script(*names, train=False, **environment):
        recorder = tmp_path / "recorder"
        recorder.mkdir(exist_ok=True)
        (recorder / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/commands\n')
        (recorder / "python").chmod(0o755)
        path = os.environ["PATH"] if train else f"{recorder}:{os.environ['PATH']}"
        return subprocess.run(
            ["benchmarks/cifar.sh", tmp_path / "cifar.npz", tmp_path / "runs", *names],
            cwd=REPOSITORY,
            env={**os.environ, "PATH": path, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return script


def commands(tmp_path, trainer):
    """The settings of the runs that the script has asked for, by the name of their folder."""
    lines = (tmp_path / "commands").read_text().split("\n")[:-1]
    (tmp_path / "commands").unlink()
    found = {}
    for words in map(str.split, lines):
        assert words[:2] == ["-m", "trainers.image_classifier"]
        assert "--noexport" in words
        (folder,) = [word for word in words if word.startswith(f"--workdir={tmp_path}/runs/")]
        found[folder.rpartition("/")[2]] = trainer("image_classifier").settings(*words[2:])
    return found


NETWORKS = ("resnet_18", "mobilenet", "vgg_16", "resnet_34")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
def test_the_runs_on_cifar_are_what_their_names_say(cifar_runs, trainer, tmp_path):
    assert cifar_runs().returncode == 0
    found = commands(tmp_path, trainer)
    assert list(found) == [
        f"{network}_{method}_{seed}"
        for seed in range(3)
        for network in NETWORKS
        for method in ("dense", "gmp", "switcher")
    ]
    for name, settings in found.items():
        assert f"{settings.network}_{settings.method}_{settings.seed}" == name
        assert (settings.dataset, settings.width, settings.sparsity) == ("cifar10", 1.0, 0.9)
        assert (settings.epochs, settings.finetune_epochs, settings.augmentation) == (60, 2, "crop_flip")


@needs_bash
def test_some_of_the_runs_on_cifar(cifar_runs, trainer, tmp_path):
    (tmp_path / "runs" / "vgg_16_gmp_2").mkdir(parents=True)
    (tmp_path / "runs" / "vgg_16_gmp_2" / "results.json").touch()
    names = ("vgg_16_gmp_2", "vgg_16_gmp_1", "mobilenet")
    result = cifar_runs(*names, TRAINER_FLAGS="--width=0.1 --epochs=1")
    assert (result.returncode, result.stdout) == (0, "vgg_16_gmp_2 is finished\n")
    found = commands(tmp_path, trainer)
    assert list(found) == ["vgg_16_gmp_1", "mobilenet-switcher", "mobilenet-dense"]
    assert {(settings.width, settings.epochs) for settings in found.values()} == {(0.1, 1)}
    assert [settings.augmentation for settings in found.values()] == ["crop_flip", "none", "none"]
    refused = cifar_runs("vgg_16_gmp_1", "vgg_17_gmp_1")
    assert refused.returncode == 1
    assert refused.stderr.startswith("unknown run vgg_17_gmp_1; known: resnet_18 mobilenet ")
    assert not (tmp_path / "commands").exists()


@needs_bash
@pytest.mark.slow
def test_runs_on_cifar_make_a_table(cifar_runs, tmp_path, capsys):
    pytest.importorskip("jax")
    from benchmarks import accuracy_table

    generator = np.random.default_rng(0)
    images = {f"x_{part}": generator.integers(0, 256, (96, 32, 32, 3), "uint8") for part in ("train", "test")}
    np.savez(tmp_path / "cifar.npz", **images, **dict.fromkeys(("y_train", "y_test"), np.arange(96) % 10))
    for name, backend in {"resnet_18_gmp_0": "tensorflow", "resnet_18_gmp_1": "jax"}.items():
        environment = {"TRAINER_FLAGS": "--width=0.05 --epochs=1 --batch_size=8", "KERAS_BACKEND": backend}
        result = cifar_runs(name, train=True, **environment)
        assert result.returncode == 0, result.stderr
    accuracy_table.main([str(tmp_path / "runs")])
    (row,) = capsys.readouterr().out.splitlines()[2:]
    assert re.fullmatch(
        r"\| resnet_18 \| gmp \| 90 \| 90\.\d+ \| \d+\.\d+ \| \d+\.\d+ \| 2 \| \d+\.\d+ \|", row
    )
