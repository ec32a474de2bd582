"""How the rewired fraction falls over the training steps."""

import math

import pytest

from keras_selfish.rewiring.schedules import SCHEDULES, Constant, Cosine, Linear


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.8), (25, 0.4025 + 0.3975 * math.sqrt(0.5)), (50, 0.4025), (100, 0.005), (130, 0.005)],
)
def test_cosine(step, rate):
    assert Cosine(0.8, 0.005)(step, 100) == pytest.approx(rate)


def test_cosine_is_the_annealing_that_the_published_code_steps():
    # The published code steps a rate by the recurrence of PyTorch's CosineAnnealingLR.
    rate, end_rate, total = 0.8, 0.005, 40
    schedule = Cosine(rate, end_rate)
    for step in range(1, total + 1):
        cosines = [1 + math.cos(math.pi * (step - k) / total) for k in (0, 1)]
        rate = cosines[0] / cosines[1] * (rate - end_rate) + end_rate
        assert schedule(step, total) == pytest.approx(rate)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.5), (20, 0.42), (100, 0.1), (101, 0.1)])
def test_linear(step, rate):
    assert Linear(0.5, 0.1)(step, 100) == pytest.approx(rate)


def test_constant():
    assert {Constant(0.3)(step) for step in (0, 7, 10**6)} == {0.3}


def test_only_schedules_that_end_need_the_number_of_steps():
    assert {name: schedule(0.5).needs_total_steps for name, schedule in SCHEDULES.items()} == {
        "cosine": True,
        "linear": True,
        "constant": False,
    }
