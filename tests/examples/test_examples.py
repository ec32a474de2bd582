"""The examples at small sizes: they run, learn, and print what they say."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def run(module, *flags, backend="tensorflow"):
    result = subprocess.run(
        [sys.executable, "-m", f"examples.{module}", *map(str, flags)],
        cwd=REPOSITORY,
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def numbers(output):
    accuracy = re.search(r"^test accuracy (\d\.\d{4})$", output, re.M)
    sparsity = re.search(r"^sparsity (\d\.\d{4}): ([\d,]+) of ([\d,]+) weights$", output, re.M)
    active, total = (int(count.replace(",", "")) for count in sparsity.groups()[1:])
    assert float(sparsity[1]) == pytest.approx(1 - active / total, abs=1e-4)
    return float(accuracy[1]), active, total


def test_a_sparse_resnet_learns_generated_images():
    flags = ("--sparsity=0.8", "--filters=4", "--examples=1000", "--epochs=5")
    accuracy, active, total = numbers(run("cnn_resnet", *flags))
    # Kernels: 9*4; 2*9*16; 9*32 + 9*64 + 32; 9*128 + 9*256 + 128.
    assert total == 36 + 288 + 896 + 3584
    assert active == round(0.2 * total)
    assert accuracy > 0.5  # 0.1 by chance


def test_a_sparse_resnet_reads_a_folder(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        f"{name}_{part}": generator.integers(0, 10 if name == "y" else 255, shape).astype("uint8")
        for part in ("train", "test")
        for name, shape in (("x", (40, 8, 8, 3)), ("y", (40, 1)))
    }
    np.savez(tmp_path / "cifar10_subset.npz", **arrays)
    output = run("cnn_resnet", f"--data_dir={tmp_path}", "--filters=2", "--examples=20", "--epochs=1")
    assert numbers(output)[2] == 54 + 72 + 224 + 896


@pytest.mark.parametrize(("cell", "backend"), [("lstm", "tensorflow"), ("gru", "jax")])
def test_a_sparse_recurrent_network_learns_time_series(cell, backend):
    pytest.importorskip(backend)
    flags = ("--units=16", "--sparsity=0.7", "--examples=1000", "--epochs=6", f"--cell={cell}")
    output = run("sequence_classification", *flags, backend=backend)
    accuracy, active, total = numbers(output)
    gates = {"lstm": 4, "gru": 3}[cell]
    assert total == 2 * (2 + 16) * 16 * gates + 32 * 4
    assert active == pytest.approx(0.3 * total, abs=3)
    assert accuracy > 0.5  # 0.25 by chance
    assert len(re.findall(r"^density of .*kernel: ", output, re.M)) == 5
