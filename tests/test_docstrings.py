"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import os
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BACKENDS = ("tensorflow", "jax", "torch")


def modules_with_examples():
    for file in sorted((REPOSITORY / "keras_selfish").rglob("*.py")):
        if ">>> " in file.read_text(encoding="utf-8"):
            name = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
            yield name.removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples(name, tmp_path, monkeypatch, capsys):
    backend = name.rpartition("_")[2]
    if backend in BACKENDS and backend != os.environ["KERAS_BACKEND"]:
        pytest.skip(f"needs KERAS_BACKEND={backend}")
    monkeypatch.chdir(tmp_path)  # for examples that write files
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert results.attempted > 0
    assert results.failed == 0, capsys.readouterr().out
