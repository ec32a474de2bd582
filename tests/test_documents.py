"""The Python in the documents runs as it stands there."""

import pathlib
import re

import pytest

DOCUMENTS = pathlib.Path(__file__).resolve().parents[1] / "docs"


def blocks(name):
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["extending.md"])
def test_blocks_run(name):
    found = blocks(name)
    assert found
    namespace = {}
    for block in found:
        exec(compile(block, f"{name}", "exec"), namespace)


def test_a_method_of_ones_own_is_short():
    assert blocks("extending.md")[0].count("\n") < 25
