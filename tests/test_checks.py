"""Checks of arguments: what they let through, and what they say."""

import math

import numpy as np
import pytest

from keras_selfish import checks


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_integers_of_every_kind_become_one(value):
    found = checks.integer("steps", value, at_least=3, at_most=3)
    assert (type(found), found) == (int, 3)
    assert checks.integers("steps", (value, value)) == [3, 3]


@pytest.mark.parametrize(
    "value", [2, 4, 3.0, np.float64(3.0), True, np.bool_(True), "3", None, [3], math.nan]
)
def test_what_is_no_integer_in_range(value):
    with pytest.raises(ValueError, match=r"^`steps` must be an integer from 3 to 3\. Received: steps="):
        checks.integer("steps", value, at_least=3, at_most=3)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, np.float32(0.25), -0.0], [1, -1e-9, math.nan, True, "0.5", None, 10**400]),
        ("(0, 1]", [1, 1e-300, np.int8(1)], [0, 1.0000001, -math.inf, [0.5], 0.5j]),
        ("(0, inf)", [5, 1e300], [0, math.inf, np.float32("inf"), np.array([1.0])]),
        ("(-inf, inf)", [0, -1e300], [math.inf, -math.inf, math.nan]),
    ],
)
def test_numbers_in_an_interval(interval, inside, outside):
    assert all(checks.number("rate", value, interval) is value for value in inside)
    for value in outside:
        with pytest.raises(ValueError, match=r"^`rate` must be a .*number.* Received: rate="):
            checks.number("rate", value, interval)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: checks.integer("every", 0, 1, others=("epoch",)),
            '`every` must be "epoch" or a positive integer. Received: every=0',
        ),
        (
            lambda: checks.integer("--every", -1, 0, others=(None,), advice="leave it out"),
            "--every must be a non-negative integer. Received: --every=-1; leave it out",
        ),
        (
            lambda: checks.integer("every", 1, 2, others=(None,)),
            "`every` must be None or an integer of at least 2. Received: every=1",
        ),
        (
            lambda: checks.integers("ends", [1, 0]),
            "`ends` must be a list of positive integers. Received: ends=[1, 0]",
        ),
        (
            lambda: checks.number("p", 2, "[0, 1)", meaning="is a part and"),
            "`p` is a part and must be a number in [0, 1). Received: p=2",
        ),
        (
            lambda: checks.one_of("cell", "gru", ("lstm", "rhn")),
            "`cell` must be one of lstm, rhn. Received: cell='gru'",
        ),
        (
            lambda: checks.one_of("vectors", True, (1, 2)),
            "`vectors` must be one of 1, 2. Received: vectors=True",
        ),
    ],
)
def test_errors_are_one_sentence(check, message):
    with pytest.raises(ValueError) as caught:
        check()
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [np.zeros(3), {}, ["lstm"], math.nan])
def test_a_value_of_any_type_is_compared(value):
    with pytest.raises(ValueError, match="`cell` must be None or one of lstm"):
        checks.one_of("cell", value, ("lstm",), others=(None,))
