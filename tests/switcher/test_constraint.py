"""The threshold that keeps as many connections open as wanted."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import ops

from keras_selfish import SparsityConstraint
from keras_selfish.switcher.constraint import Count, count, together


def test_count_is_that_of_a_loop():
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype("float32")
    is_open = near = total = squares = 0.0
    for logit in logits.ravel().astype(float):
        gate = 1 / (1 + np.exp(-(logit - 0.3) / 0.5))
        is_open += logit > 0.3
        near += gate * (1 - gate) / 0.5
        total += logit
        squares += logit**2
    counted = [float(one) for one in count(ops.convert_to_tensor(logits), 0.3, 0.5)]
    np.testing.assert_allclose(counted, [is_open, near, total, squares], rtol=1e-5)


def test_a_step_by_hand():
    constraint = SparsityConstraint(0.75, ramp_steps=0)
    constraint.build()
    # 60 of 100 open, 25 wanted; 200 a unit of logit near the threshold, -5: 35 / 200 up.
    constraint.update(Count(100.0, 60.0, 200.0, 50.0, 125.0), advance=True)
    assert float(constraint.threshold) == pytest.approx(-5 + 35 / 200)
    assert float(constraint.width) == pytest.approx(0.3 * np.sqrt(1.25 - 0.25) + 1e-3)
    assert float(constraint.steps) == 1


def test_a_step_over_the_target_is_taken_back_by_hand():
    constraint = SparsityConstraint(0.75, ramp_steps=0)
    constraint.build()
    constraint.update(Count(100.0, 60.0, 200.0, 50.0, 125.0), advance=True)
    # 60 open at -5, now 15 at -4.825; 25 are wanted: 10 / 45 of the way back.
    constraint.update(Count(100.0, 15.0, 1.0, 50.0, 125.0), advance=True)
    assert float(constraint.threshold) == pytest.approx(-4.825 - 0.175 * 10 / 45)


def test_a_step_is_limited():
    constraint = SparsityConstraint(0.75, ramp_steps=0)
    constraint.build()
    constraint.update(Count(100.0, 100.0, 0.0, 0.0, 100.0), advance=False)
    assert float(constraint.threshold) == pytest.approx(-5 + 2 * 0.3)
    assert float(constraint.steps) == 0


def test_approach_to_the_target():
    constraint = SparsityConstraint(0.8, ramp_steps=10)
    constraint.build()
    wanted = []
    for step in (0, 5, 10, 20):
        constraint.steps.assign(float(step))
        wanted.append(float(constraint.density_wanted()))
    np.testing.assert_allclose(wanted, [1.0, 1 - 0.8 * (1 - 0.5**3), 0.2, 0.2], rtol=1e-5)


@hypothesis.given(
    target=st.floats(0.05, 0.97),
    center=st.floats(-3, 30),
    spread=st.floats(0.05, 20),
    shape=st.sampled_from(["normal", "uniform", "two groups"]),
)
@hypothesis.example(target=0.5, center=16.0, spread=0.0625, shape="normal")
@hypothesis.example(target=0.97, center=30.0, spread=0.05, shape="uniform")
def test_reaches_the_target_for_any_logits(target, center, spread, shape):
    """In as many steps as it takes there, from -5 on, at two widths of 0.3 deviations a step, and 500."""
    generator = np.random.default_rng(1)
    logits = generator.normal(size=2000) if shape == "normal" else generator.uniform(-2, 2, size=2000)
    logits += 4 * (generator.uniform(size=2000) > 0.5) if shape == "two groups" else 0
    parts = [
        ops.convert_to_tensor(part) for part in np.split((center + spread * logits).astype("float32"), [300])
    ]
    constraint = SparsityConstraint(target, ramp_steps=0)
    constraint.build()
    sparsities = []
    for _ in range(500 + int((center + 5) / (0.6 * spread))):
        state = ops.convert_to_tensor(constraint.threshold), ops.convert_to_tensor(constraint.width)
        counted = together([Count(float(part.shape[0]), *count(part, *state)) for part in parts])
        sparsities.append(1 - float(counted.is_open) / 2000)
        constraint.update(counted, advance=True)
        if abs(sparsities[-1] - target) < 0.005:
            break
    assert abs(sparsities[-1] - target) < 0.01


@pytest.mark.parametrize("target", [0.8, 0.9, 0.98])
def test_is_at_rest_at_the_edge_of_the_logits(target):
    """Those that a switcher begins with, of a layer as it is initialised."""
    weights = np.random.default_rng(0).uniform(-1, 1, 20000)
    logits = ops.convert_to_tensor((2 + np.log(np.abs(weights) + 1e-6)).astype("float32"))
    constraint = SparsityConstraint(target, ramp_steps=0)
    constraint.build()
    sparsities = []
    for _ in range(40):
        state = ops.convert_to_tensor(constraint.threshold), ops.convert_to_tensor(constraint.width)
        counted = Count(20000.0, *count(logits, *state))
        sparsities.append(1 - float(counted.is_open) / 20000)
        constraint.update(counted, advance=True)
    np.testing.assert_allclose(sparsities[-10:], target, atol=1e-3)


@hypothesis.given(target=st.floats(0.0, 0.99), seed=st.integers(0, 100))
def test_units_are_closed_as_near_to_the_target_as_can_be(target, seed):
    generator = np.random.default_rng(seed)
    logits = [generator.normal(size=size).astype("float32") for size in (7, 4)]
    constraint = SparsityConstraint(target, ramp_steps=0)
    constraint.build()
    constraint.place([ops.convert_to_tensor(logit) for logit in logits], [3, 10])
    total = 7 * 3 + 4 * 10
    threshold = float(constraint.threshold)
    closed = sum(size * (logit <= threshold).sum() for logit, size in zip(logits, (3, 10), strict=True))
    flat = sorted([(logit, 3) for logit in logits[0]] + [(logit, 10) for logit in logits[1]])
    possible = [sum(size for _, size in flat[:count]) for count in range(12)]
    assert abs(closed - target * total) <= min(abs(one - target * total) for one in possible) + 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_sparsity": 1.0}, "`target_sparsity` is the fraction of zeros"),
        ({"target_sparsity": 0.5, "ramp_steps": -1}, "`ramp_steps` must be a non-negative integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparsityConstraint(**arguments)


def test_config():
    constraint = SparsityConstraint(0.8, ramp_steps=10)
    twin = SparsityConstraint.from_config(constraint.get_config())
    assert twin.get_config() == constraint.get_config()
