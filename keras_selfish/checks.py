"""Checks of arguments, each with an error of one sentence: the name, the rule, what was received.

Importing this module loads neither Keras nor a backend.

Example:

>>> integer("units", 8, at_least=1), number("rate", 0.5, "[0, 1)"), one_of("cell", "lstm", ("lstm", "rhn"))
(8, 0.5, 'lstm')
>>> number("rate", 1, "[0, 1)")
Traceback (most recent call last):
    ...
ValueError: `rate` must be a number in [0, 1). Received: rate=1
>>> integer("end_step", 2.5, at_least=1, others=(None,))
Traceback (most recent call last):
    ...
ValueError: `end_step` must be None or a positive integer. Received: end_step=2.5
"""

from __future__ import annotations

import json
import numbers
import operator
from collections.abc import Iterable
from typing import Any, NoReturn

__all__ = ["integer", "integers", "number", "one_of", "refuse"]

# What an interval without an end is called.
_OPEN = {
    "(-inf, inf)": "a finite number",
    "[0, inf)": "a number that is not negative",
    "(0, inf)": "a number over 0",
}


def refuse(name: str, rule: str, value: Any, advice: str = "") -> NoReturn:
    """Raises the error of an argument.

    Args:
        name: Name of the argument; a flag's begins with `--`.
        rule: What it must be, such as "must be a positive integer".
        value: What it is.
        advice: What to do, the end of the sentence.

    Raises:
        ValueError: always.
    """
    shown = name if name.startswith("--") else f"`{name}`"
    raise ValueError(f"{shown} {rule}. Received: {name}={value!r}" + (f"; {advice}" if advice else ""))


def integer(
    name: str,
    value: Any,
    at_least: int | None = None,
    at_most: int | None = None,
    *,
    others: tuple[Any, ...] = (),
    advice: str = "",
) -> Any:
    """Checks an integer, which may be one of NumPy's, but no boolean.

    Args:
        name: Name of the argument; a flag's begins with `--`.
        value: What was given.
        at_least: Smallest integer that is allowed; None (default) for no such.
        at_most: Largest; None (default) for no such.
        others: What else is allowed, such as `(None,)`.
        advice: What to do, the end of the sentence.

    Returns:
        The value, as an `int`.

    Raises:
        ValueError: if it is none, or out of range.
    """
    if _among(value, others):
        return value
    found = _index(value)
    if found is None or not _between(found, at_least, at_most):
        refuse(name, f"must be {_alternatives(name, others)}{_integers(at_least, at_most)}", value, advice)
    return found


def integers(name: str, value: Any, at_least: int = 1) -> list[int]:
    """Checks a list, or other iterable, of integers that are at least so large; returns a list.

    Raises:
        ValueError: if it is none.
    """
    try:
        return [integer(name, each, at_least) for each in value]
    except (TypeError, ValueError):
        refuse(name, f"must be a list of {_integers(at_least, None).partition(' ')[2]}s", value)


def number(
    name: str,
    value: Any,
    interval: str = "(-inf, inf)",
    *,
    meaning: str = "",
    others: tuple[Any, ...] = (),
    advice: str = "",
) -> Any:
    """Checks a real number, which may be one of NumPy's, but no boolean and not NaN.

    Args:
        name: Name of the argument; a flag's begins with `--`.
        value: What was given.
        interval: Where it must lie, as it is written in mathematics, such as `"[0, 1)"`.
        meaning: What the argument is, such as "is the fraction of zeros and"; default nothing.
        others: What else is allowed, such as `(None,)`.
        advice: What to do, the end of the sentence.

    Returns:
        The value.

    Raises:
        ValueError: if it is none, or out of range.
    """
    if _among(value, others):
        return value
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not _within(value, interval):
        what = _OPEN.get(interval, f"a number in {interval}")
        refuse(name, f"{meaning} must be {_alternatives(name, others)}{what}".lstrip(), value, advice)
    return value


def one_of(name: str, value: Any, choices: Iterable[Any], *, others: tuple[Any, ...] = ()) -> Any:
    """Checks that a value is one of several, and returns it.

    Raises:
        ValueError: if it is none of them.
    """
    choices = tuple(choices)
    if not _among(value, others) and not _among(value, choices):
        rule = f"must be {_alternatives(name, others)}one of {', '.join(map(str, choices))}"
        refuse(name, rule, value)
    return value


def _among(value, allowed):
    """Whether a value of any type, arrays included, is one of those allowed."""
    return any(type(value) is type(each) and value == each for each in allowed)


def _alternatives(name, others):
    if name.startswith("--"):  # a flag that is left out is None
        others = tuple(other for other in others if other is not None)
    return "".join(f"{json.dumps(other) if isinstance(other, str) else other} or " for other in others)


def _index(value):
    """An integer of any kind as an `int`; None for anything else, booleans included."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _between(value, low, high):
    return (low is None or value >= low) and (high is None or value <= high)


def _integers(low, high):
    """What integers of a range are called."""
    if low is None and high is None:
        return "an integer"
    if high is not None:
        return f"an integer of at most {high}" if low is None else f"an integer from {low} to {high}"
    return {0: "a non-negative integer", 1: "a positive integer"}.get(low, f"an integer of at least {low}")


def _within(value, interval):
    """Whether a number lies in an interval; NaN lies in none."""
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)
