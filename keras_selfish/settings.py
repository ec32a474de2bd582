"""Classes of settings: dataclasses whose fields say what they are.

A field that is a `setting` says, once, its default, what it is for and what it may be. Its checks follow from
that, and in the trainers the flags, their help and the files of a run. Importing this module loads neither
Keras nor a backend.

Example:

>>> @dataclasses.dataclass(frozen=True)
... class Training:
...     epochs: int = setting(10, "Epochs of training.", at_least=1)
...     rate: float = setting(0.5, "Fraction to drop.", within="[0, 1)")
...
...     def __post_init__(self):
...         check_settings(self)
>>> Training(epochs=3)
Training(epochs=3, rate=0.5)
>>> Training(rate=1.0)
Traceback (most recent call last):
    ...
ValueError: `rate` must be a number in [0, 1). Received: rate=1.0
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Collection
from typing import Any

from keras_selfish import checks

__all__ = ["Kind", "check_settings", "json_object", "kind_of", "setting", "whole_numbers"]


def setting(
    default: Any,
    help: str | Callable[[], str] = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    within: str | None = None,
    choices: Collection[Any] | None = None,
    check: Callable[[Any, str], Any] | None = None,
    words: Callable[[str, list[str]], Any] | None = None,
    text: Callable[[str, str], Any] | None = None,
) -> Any:
    """A field of a class of settings. What is not said here follows from the field's annotation.

    Args:
        default: The default.
        help: What it is for, a sentence for the help of a flag, or a function that returns it; a setting
            without help has no flag.
        at_least: Smallest number that is allowed.
        at_most: Largest number that is allowed.
        within: Interval of numbers that are allowed, as in `checks.number`.
        choices: Values that are allowed; those of a `Literal` by default.
        check: Function of the value and its name that raises `ValueError`, in place of all other checks.
        words: How a flag that is a list of words becomes a value: a function of its name and the words.
        text: How a flag that is a text becomes a value: a function of its name and the text.
    """
    rules = {"at_least": at_least, "at_most": at_most, "within": within, "choices": choices}
    metadata = {"help": help, "check": check, "words": words, "text": text, **rules}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the value of a field is.

    Attributes:
        type: `bool`, `int`, `float` or `str`; None for anything else.
        optional: Whether it may be None.
        choices: Values that are allowed; None for no such list.
    """

    type: type | None
    optional: bool
    choices: Collection[Any] | None


def kind_of(cls: type, field: dataclasses.Field[Any]) -> Kind:
    """What the annotation of a field of a class says, and its choices."""
    hint = _hints(cls)[field.name]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if is_union else (hint,)
    (inner, *more) = [member for member in members if member is not type(None)]
    choices = field.metadata.get("choices")
    if choices is None and typing.get_origin(inner) is typing.Literal:
        choices = typing.get_args(inner)
    plain = inner if inner in (bool, int, float, str) and not more else None
    return Kind(plain, type(None) in members, choices)


@functools.cache
def _hints(cls):
    return typing.get_type_hints(cls)


def check_settings(settings: Any, name: str = "{}") -> None:
    """Checks every field of a dataclass, which calls it in `__post_init__`.

    Args:
        settings: An object of a dataclass.
        name: How a setting is named in an error, a format string such as `"--{}"`.

    Raises:
        ValueError: for a value that is not what its field says.
    """
    for field in dataclasses.fields(settings):
        value = checked(type(settings), field, getattr(settings, field.name), name.format(field.name))
        object.__setattr__(settings, field.name, value)  # a frozen dataclass settles its own fields


def checked(cls: type, field: dataclasses.Field[Any], value: Any, name: str) -> Any:
    """A value of a field, once it is known to be what the field says.

    Args:
        cls: The dataclass.
        field: One of its fields.
        value: The value.
        name: How it is named in an error.

    Raises:
        ValueError: for another value.
    """
    kind, rules = kind_of(cls, field), field.metadata
    if kind.optional and value is None:
        return value
    if rules.get("check"):
        rules["check"](value, name)
        return value
    others = (None,) if kind.optional else ()  # for the message
    if kind.choices is not None:
        return checks.one_of(name, value, kind.choices, others=others)
    if kind.type is int:
        return checks.integer(name, value, rules.get("at_least"), rules.get("at_most"), others=others)
    if kind.type is float:
        value = checks.number(name, value, rules.get("within") or _interval(rules), others=others)
        return value if isinstance(value, int) else float(value)
    if kind.type is not None and not isinstance(value, kind.type):
        what = {bool: "True or False", str: "a text"}[kind.type]
        checks.refuse(name, f"must be {'None, ' if others else ''}{what}", value)
    return value


def _interval(rules):
    low, high = rules.get("at_least"), rules.get("at_most")
    return f"{'(-inf' if low is None else f'[{low:g}'}, {'inf)' if high is None else f'{high:g}]'}"


# How flags of other types become values.


def whole_numbers(rule: str, count: int | None = None) -> Callable[[str, list[str]], list[int]]:
    """Makes a function that reads a flag of whole numbers, for `words`.

    Args:
        rule: What the flag must be, such as "two whole numbers, such as 4,1".
        count: How many they must be; None (default) for any number.
    """

    def read(name, words):
        try:
            found = [int(word) for word in words]
        except ValueError:
            found = None
        if found is None or count not in (None, len(found)):
            raise ValueError(f"{name} must be {rule}. Received: {name}={','.join(words)}")
        return found

    return read


def json_object(name: str, text: str) -> dict[str, Any]:
    """Reads a flag that is a JSON object, for `text`."""
    try:
        found = json.loads(text, parse_constant=_no_number)
        if not isinstance(found, dict):
            raise TypeError("no dict")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f'{name} must be a JSON object, such as {{"depth": 10}}. Received: {name}={text}'
        ) from error
    return found


def _no_number(word):
    raise ValueError(f"{word} is no number")
