"""The kernel of a time step: what it computes in Pallas's interpreter, and that it lowers to Triton."""

import csv
import functools
import sys

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.backends("jax")
if keras.backend.backend() == "jax":
    import jax
    import jax.numpy as jnp

    from benchmarks import fused_step
    from keras_selfish.recurrence.cells import LSTM

UNITS, BATCH, TIME_STEPS = 64, 8, 5


def by_hand(x, states, kernel, d_outputs):
    """Outputs, last c and the gradients of the gates, by loops in float64."""

    def sigmoid(value):
        return 1 / (1 + np.exp(-value))

    x, h, c, kernel, d_outputs = (np.asarray(value, np.float64) for value in (x, *states, kernel, d_outputs))
    steps, outputs = [], []
    for at_step in x:
        i, f, g, o = np.split(at_step + h @ kernel, 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        steps.append((i, f, g, o, c, f * c + i * g))
        c = steps[-1][-1]
        h = o * np.tanh(c)
        outputs.append(h)
    dh, dc, d_gates = np.zeros_like(h), np.zeros_like(c), []
    for (i, f, g, o, before, after), d_output in zip(reversed(steps), reversed(d_outputs), strict=True):
        dh = dh + d_output
        dc = dc + dh * o * (1 - np.tanh(after) ** 2)
        of_gates = [dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g**2)]
        d_gates.append(np.concatenate([*of_gates, dh * np.tanh(after) * o * (1 - o)], axis=1))
        dh, dc = d_gates[-1] @ kernel.T, dc * f
    return np.stack(outputs), c, np.stack(d_gates[::-1])


@pytest.mark.parametrize("tiling", [(16, 32, 4, 2), (32, 64, 4, 2)])
def test_it_computes_what_a_loop_does(tiling):
    x, states, kernel, d_outputs = fused_step.problem(UNITS, BATCH, TIME_STEPS, jnp.float32)
    outputs, last, d_gates = by_hand(x, states, kernel, d_outputs)
    after, kept = fused_step.fused_forward(LSTM(), x, states, kernel, tiling, interpret=True)
    np.testing.assert_allclose(after[0], outputs, atol=2e-6)
    np.testing.assert_allclose(after[1][-1], last, atol=2e-6)
    received = fused_step.fused_backward(
        LSTM(), d_outputs, states, after, kept, kernel, tiling, interpret=True
    )
    np.testing.assert_allclose(received, d_gates, atol=5e-6)


def test_it_computes_what_the_layers_do_in_half_precision():
    x, states, kernel, d_outputs = fused_step.problem(UNITS, BATCH, TIME_STEPS, jnp.bfloat16)
    saved = fused_step.xla_forward(LSTM(), x, states, kernel)
    expected = fused_step.xla_backward(LSTM(), saved, d_outputs)
    tiling = 16, 64, 4, 2
    after, kept = fused_step.fused_forward(LSTM(), x, states, kernel, tiling, interpret=True)
    assert fused_step.difference(after[0], saved[5][0]) < 0.01
    received = fused_step.fused_backward(
        LSTM(), d_outputs, states, after, kept, kernel, tiling, interpret=True
    )
    assert fused_step.difference(received, expected) < 0.02


@pytest.mark.parametrize("tiling", [(16, 64, 4, 2), (32, 256, 8, 4)])
def test_a_compiler_for_gpus_takes_it(tiling):
    """Lowered to Triton, without a GPU, at the width that the published model is padded to."""
    x, states, kernel, d_outputs = fused_step.problem(1536, 32, 1, jnp.bfloat16)
    half = x[..., :1536].astype(jnp.bfloat16)
    forward = jax.jit(functools.partial(fused_step.fused_forward, LSTM(), tiling=tiling))
    backward = jax.jit(functools.partial(fused_step.fused_backward, LSTM(), tiling=tiling))
    for traced in (
        forward.trace(x, states, kernel),
        backward.trace(d_outputs, states, [half, x[..., :1536]], [half] * 4, kernel),
    ):
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_the_command(tmp_path, monkeypatch, capsys):
    sizes = ["--units=64", "--batch=8", "--time_steps=3"]
    monkeypatch.setattr(sys, "argv", ["fused_step", "--interpret", *sizes, f"--output={tmp_path}"])
    fused_step.main()
    with open(tmp_path / "fused_step.csv", newline="", encoding="utf-8") as file:
        rows = {row["way"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"product", "xla", "fused"}
    assert float(rows["fused"]["difference"]) < 1e-5
    assert rows["fused"]["units"] == "64"
    assert "us a time step" in capsys.readouterr().out


def test_weights_of_a_program_lie_side_by_side():
    matrix = np.arange(4 * 8).reshape(4, 8)  # 4 units, 2 gates
    tiles = fused_step.tiled(matrix, 4, 2)
    np.testing.assert_array_equal(tiles[1, 0], matrix[:, 2:4])
    np.testing.assert_array_equal(tiles[0, 1], matrix[:, 4:6])
    tiles = fused_step.tiled_back(matrix, 4, 2)
    np.testing.assert_array_equal(tiles[1, 0], matrix.T[:4, 2:4])
    np.testing.assert_array_equal(tiles[0, 1], matrix.T[4:, :2])
