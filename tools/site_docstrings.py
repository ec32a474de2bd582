"""Reads what docstrings have and Griffe does not know: examples at the margin, sections of one sentence."""

import re
import textwrap

import griffe

TITLES = "Args|Attributes|Call arguments|Raises|Reference|Returns|Yields"
SENTENCE = re.compile(rf"^({TITLES}): (\S.*(?:\n    .*)*)", re.MULTILINE)
EXAMPLE = re.compile(rf"^Example:\n(.*?)(?=^\S*(?:{TITLES}):|\Z)", re.MULTILINE | re.DOTALL)


def readable(text):
    """A docstring in Google's form, of a form that Griffe knows."""
    text = EXAMPLE.sub(_indented, text)
    text = SENTENCE.sub(lambda match: f"**{match[1]}:** " + match[2].replace("\n    ", "\n"), text)
    return re.sub(r"^Call arguments:$", "Other Parameters: Call arguments", text, flags=re.MULTILINE)


def _indented(match):
    return "Examples:\n" + textwrap.indent(match[1].strip("\n"), "    ") + "\n\n"


class KerasSections(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj, **kwargs):
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
