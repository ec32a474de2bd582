"""From classes of settings (`keras_selfish.settings`) to flags and back, and to the files of runs."""

import dataclasses
import json

from absl import flags

from keras_selfish.settings import checked, kind_of

FLAGS = flags.FLAGS

flags.disclaim_key_flags()  # they are those of the program that defines them


def flagged(cls):
    """The fields of a class that have a flag."""
    return [field for field in dataclasses.fields(cls) if field.metadata.get("help")]


def define_flags(*classes, defaults=True):
    """Defines a flag for each setting.

    Args:
        *classes: Dataclasses of settings.
        defaults: Whether a flag that is not given has the default of its field, or else none.
    """
    for cls in classes:
        for field in flagged(cls):
            _define(cls, field, field.default if defaults else None)


def _define(cls, field, default):
    kind, rules = kind_of(cls, field), field.metadata
    text = rules["help"]() if callable(rules["help"]) else rules["help"]
    bounds = {"lower_bound": rules.get("at_least"), "upper_bound": rules.get("at_most")}
    if rules["words"]:
        flags.DEFINE_list(field.name, default, text)
    elif kind.choices is not None:
        flags.DEFINE_enum(field.name, default, list(map(str, kind.choices)), text)
    elif kind.type is bool:
        flags.DEFINE_bool(field.name, default, text)
    elif kind.type is int:
        flags.DEFINE_integer(field.name, default, text, **bounds)
    elif kind.type is float:
        flags.DEFINE_float(field.name, default, text, **bounds)
    else:
        flags.DEFINE_string(field.name, default, text)


def given(cls):
    """The settings that flags give, a dict by name; those of a flag without a value are left out.

    Args:
        cls: A dataclass of settings.

    Raises:
        ValueError: for a flag that is not what its field says.
    """
    values = {field: getattr(FLAGS, field.name) for field in flagged(cls)}
    return {field.name: _value(cls, field, value) for field, value in values.items() if value is not None}


def _value(cls, field, value):
    name, choices, rules = f"--{field.name}", kind_of(cls, field).choices, field.metadata
    if rules["words"]:
        value = rules["words"](name, value)
    elif rules["text"]:
        value = rules["text"](name, value)
    elif choices is not None:
        value = next(choice for choice in choices if str(choice) == value)
    return checked(cls, field, value, name)


def to_json(settings):
    """Settings as a dict of JSON values, in which those that are settings themselves are not nested."""
    content = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            content |= {inner.name: getattr(value, inner.name) for inner in flagged(type(value))}
        else:
            content[field.name] = value
    return json.loads(json.dumps(content))


def split(content, *classes):
    """Divides a dict of settings among classes, for each of which a dict is returned.

    Args:
        content: Dict, as from `to_json`.
        *classes: Dataclasses of settings.

    Raises:
        ValueError: for a name that none of them has.
    """
    parts = []
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls)}
        parts.append({name: value for name, value in content.items() if name in names})
    unknown = sorted(set(content).difference(*parts))
    if unknown:
        raise ValueError(f"there is no setting {', '.join(unknown)}")
    return parts
