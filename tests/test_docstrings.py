"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BACKENDS = ("tensorflow", "jax", "torch")


def modules_with_examples():
    for file in sorted((REPOSITORY / "keras_selfish").rglob("*.py")):
        if ">>> " in file.read_text(encoding="utf-8"):
            name = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
            yield name.removesuffix(".__init__")


def examples():
    for name in modules_with_examples():
        backend = name.rpartition("_")[2]
        yield pytest.param(name, marks=pytest.mark.backends(backend if backend in BACKENDS else "tensorflow"))


@pytest.mark.parametrize("name", list(examples()))
def test_examples(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # for examples that write files
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert results.attempted > 0
    assert results.failed == 0, capsys.readouterr().out
