"""The trainer on several devices of one and of two processes, with JAX."""

import json
import os
import socket
import subprocess

import numpy as np
import pytest

from keras_selfish.packing import unpacked

SMALL = ("--dataset=text", "--units=8", "--layers=1", "--batch_size=4", "--bptt=8", "--preset=quick")
SMALL += ("--noexport", "--rewiring_steps=20", "--seed=3", "--epochs=2")


def environment(devices=1, processes=1, number=0, port=0):
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    found = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    if processes > 1:
        found |= {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes),
            "KERAS_DISTRIBUTION_PROCESS_ID": str(number),
        }
    return found


@pytest.fixture
def train(trainer, corpus):
    """A function that runs the trainer in some processes; returns what each wrote, and its exit status."""
    command = trainer("language_model").command

    def run(workdir, *flags, devices=1, processes=1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [
            subprocess.Popen(
                command(workdir, f"--data_dir={corpus}", *SMALL, *flags),
                env=environment(devices, processes, number, port),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(processes)
        ]
        try:
            written = [process.communicate(timeout=900)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        return [(process.returncode, text) for process, text in zip(started, written, strict=True)]

    return run


def checkpoint(workdir):
    (path,) = workdir.glob("checkpoint-*.npz")
    with np.load(path) as stored:
        arrays = unpacked(stored)
    return [arrays[str(index)] for index in range(len(arrays))]


def check_same(workdir, expected):
    """Whole numbers and masks exactly; other numbers but for sums that are taken in another order."""
    for found, array in zip(checkpoint(workdir), checkpoint(expected), strict=True):
        if array.dtype.kind in "bui":
            np.testing.assert_array_equal(found, array)
        else:
            np.testing.assert_allclose(found, array, rtol=1e-4, atol=1e-5)
    results = [json.loads((folder / "results.json").read_text()) for folder in (workdir, expected)]
    assert results[0] == pytest.approx(results[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "method"), [("data_parallel", "selfish"), ("model_parallel", "rigl")])
def test_two_processes_train_as_one_device(train, strategy, method, tmp_path):
    flags = (f"--method={method}",)
    ((status, written),) = train(tmp_path / "one", *flags)
    assert status == 0, written
    for status, written in train(tmp_path / "two", *flags, f"--strategy={strategy}", devices=2, processes=2):
        assert status == 0, written
    check_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(train, tmp_path):
    flags = ("--method=selfish", "--schedule=constant")
    ((status, written),) = train(tmp_path / "one", *flags)
    assert status == 0, written
    stages = [
        ("--strategy=model_parallel", "--epochs=1", {"devices": 4}),
        ("--strategy=data_parallel", "--epochs=2", {"devices": 2}),
    ]
    for *more, where in stages:
        ((status, written),) = train(tmp_path / "moved", *flags, *more, **where)
        assert status == 0, written
    check_same(tmp_path / "moved", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "devices", "message"),
    [
        (("--strategy=data_parallel", "--batch_size=6"), 4, "--batch_size must be a multiple of the number"),
        (("--strategy=model_parallel", "--units=6"), 4, "`units` must be a multiple of the 4 devices"),
        (("--strategy=mirrored",), 1, "--strategy=mirrored needs Keras's backend 'tensorflow'"),
    ],
)
def test_what_does_not_divide_is_one_sentence(train, flags, devices, message, tmp_path):
    ((status, written),) = train(tmp_path / "run", *flags, devices=devices)
    assert status == 1
    assert message in written
    assert "Traceback" not in written
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("strategy", ["data_parallel", "model_parallel"])
def test_a_strategy_of_another_backend(trainer, corpus, strategy, tmp_path):
    flags = (f"--data_dir={corpus}", *SMALL, f"--strategy={strategy}")
    result = trainer("language_model").run(tmp_path / "run", *flags)
    assert result.returncode != 0
    assert (
        f"--strategy={strategy} needs Keras's backend 'jax'. Received: backend 'tensorflow'" in result.stderr
    )
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.backends("jax")
def test_a_model_is_not_divided_among_one_device(trainer, corpus, tmp_path):
    flags = (f"--data_dir={corpus}", *SMALL, "--strategy=model_parallel")
    result = trainer("language_model").run(tmp_path / "run", *flags)
    assert result.returncode != 0
    assert "--strategy=model_parallel needs several devices. Received: 1 device" in result.stderr
    assert not (tmp_path / "run" / "config.json").exists()


IMAGES = (
    *(
        "--epochs=2",
        "--finetune_epochs=1",
        "--batch_size=300",
        "--width=0.2",
        "--warmup_epochs=0",
        "--noexport",
    ),
    *("--task_steps=4", "--switcher_steps=2"),
)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["switcher", "rigl"])
def test_image_classifiers_on_four_devices(trainer, method, tmp_path):
    """The last batch of an epoch, of 94 images, is filled up with two."""
    command = trainer("image_classifier").command
    for name, devices, flags in (("one", 1, ()), ("four", 4, ("--strategy=data_parallel",))):
        done = subprocess.run(
            command(tmp_path / name, *IMAGES, f"--method={method}", *flags),
            env=environment(devices),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
    one, four = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "four"))
    # The switcher is on its way to its sparsity still, and the two images tell.
    assert four["sparsity"] == pytest.approx(one["sparsity"], rel=0.01)
    assert four["test_loss"] == pytest.approx(one["test_loss"], rel=1e-3)
    assert four["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.01)
    assert four["difference"] < 1e-5


@pytest.mark.backends("jax")
def test_image_classifiers_have_one_process(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    result = trainer("image_classifier").run(tmp_path / "run", *IMAGES, "--strategy=data_parallel")
    assert result.returncode == 1
    assert (
        "KERAS_DISTRIBUTION_NUM_PROCESSES must be left out: image classifiers are trained by one"
        in result.stderr
    )


def test_image_classifiers_are_divided_on_jax(trainer, tmp_path):
    result = trainer("image_classifier").run(tmp_path / "run", *IMAGES, "--strategy=data_parallel")
    assert result.returncode == 1
    assert "--strategy=data_parallel needs Keras's backend 'jax'" in result.stderr
    assert not (tmp_path / "run" / "config.json").exists()
