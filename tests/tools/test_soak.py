"""The soak: the slope of memory and its interval, and a run of half a minute."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tools.soak import BLOCKS, arguments, slope

ROOT = pathlib.Path(__file__).resolve().parents[2]


def samples_of(times, megabytes):
    return [(seconds, 1e6 * size, 0) for seconds, size in zip(times, megabytes, strict=True)]


def test_the_slope_of_a_line():
    times = np.linspace(0, 7200, 500)
    found, half = slope(samples_of(times, np.where(times < 1000, 0.0, 3 * times / 3600 + 700)), warmup=1000)
    assert found == pytest.approx(3)
    assert half < 1e-6


def test_the_interval_holds_the_slope_as_often_as_it_says():
    """Also of samples that depend on those before, as those of memory do."""
    draw = np.random.default_rng(0)
    times = np.linspace(0, 3600, 1200)
    held = 0
    for _ in range(300):
        noise = np.zeros(len(times))
        for index, shock in enumerate(draw.normal(size=len(times) - 1), start=1):
            noise[index] = 0.8 * noise[index - 1] + shock
        found, half = slope(samples_of(times, 5 * times / 3600 + noise), warmup=0)
        held += abs(found - 5) <= half
    # 285 of 300 are meant: four standard deviations and what dependence is left across blocks.
    assert 265 <= held <= 299


def test_too_few_samples_are_not_judged():
    assert all(map(np.isnan, slope(samples_of(range(BLOCKS), range(BLOCKS)), warmup=0)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--minutes=0"], "--minutes: must be a number over 0. Received: 0"),
        (["--minutes=1", "--warmup=1"], "--warmup must be shorter than --minutes"),
        (["--epoch_steps=2.5"], "--epoch_steps: must be a number over 0. Received: 2.5"),
    ],
)
def test_flags_that_say_nothing(given, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        arguments([f"--output={tmp_path / 'new'}", *given])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.backends("tensorflow", "jax")
def test_a_short_run(tmp_path):
    """Its memory is not judged: half a minute is less than the allocator takes to settle."""
    sizes = ["--minutes=0.4", "--epoch_steps=45", "--units=8", "--vocabulary=50", "--limit=100000"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.soak", f"--output={tmp_path}", *sizes],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    properties = result["properties"]
    assert all(found["holds"] for found in properties.values())
    assert properties["counts"]["checks"] == (result["steps"] - 1) // 20
    assert properties["compilations"]["all"] > 10
    assert len(properties["counts"]["connections"]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_what_is_compiled_after_the_warm_up_is_noticed(backend, run_python):
    code = """
        import sys
        import numpy as np
        import keras
        from tools.soak import Compilations

        compilations = Compilations(sys.argv[1])
        model = keras.Sequential([keras.Input((None, 2)), keras.layers.Dense(3)])
        if sys.argv[1] == "tensorflow":
            import tensorflow as tf
            function = tf.function(lambda x: model(x))
        else:
            import jax
            function = jax.jit(lambda x: model(x))
        function(np.ones((1, 2, 2), "float32"))
        assert compilations.times and not compilations.late
        compilations.is_warm = True
        function(np.ones((1, 2, 2), "float32"))
        assert not compilations.late
        function(np.ones((1, 5, 2), "float32"))
        assert compilations.late and compilations.places
    """
    run_python(code, backend, backend=backend)
