"""The rows of versions that the tests are run on, and what is made of a run."""

import re
import sys

import pytest
from packaging.requirements import Requirement

from keras_selfish import keras_internals, keras_internals_tensorflow
from tools.compatibility import ROWS, Result, interpreter, requirements, result_of, table


def required(name):
    (found,) = [one for one in map(Requirement, requirements()) if one.name == name]
    return found.specifier


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_ranges_admit_each_row(row):
    for pin in map(Requirement, row.pins()):
        version = re.sub(r"^==|\.\*$", "", str(pin.specifier))
        assert required(pin.name).contains(version), pin
    assert len({row.tensorflow.split(".")[1], row.text.split(".")[1]}) == 1


@pytest.mark.parametrize(
    ("name", "minors"),
    [("keras", keras_internals.LOOKED_AT), ("tensorflow", keras_internals_tensorflow.LOOKED_AT)],
)
def test_each_minor_version_has_a_row(name, minors):
    assert {getattr(row, name).rpartition(".")[0] for row in ROWS} == set(minors)


def test_a_row_has_the_oldest_and_one_the_newest_of_all():
    def number(version):
        return [int(part) for part in version.split(".")]

    for name in ("python", "keras", "tensorflow", "jax", "numpy"):
        versions = sorted((getattr(row, name) for row in ROWS), key=number)
        assert getattr(ROWS[0], name) == versions[0], name
        assert getattr(ROWS[-1], name) == versions[-1], name


def test_requirements_are_those_of_the_package_and_its_tests():
    names = {Requirement(line).name for line in requirements()}
    assert {"keras", "tensorflow-text", "tensorflow-model-optimization", "pytest", "jax", "tf2onnx"} <= names


def test_an_interpreter_is_of_the_version_that_is_asked_for():
    version = "{}.{}".format(*sys.version_info)
    assert interpreter(version) is not None
    assert interpreter("3.2") is None


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("...\n12 passed, 2 skipped, 40 warnings in 3.20s\n", Result(passed=12, skipped=2)),
        ("FAILED a\n1 failed, 3 passed, 1 error in 2s\ndone\n", Result(passed=3, failed=2)),
        ("2 errors in 0.5s", Result(failed=2)),
        ("Killed", Result()),
    ],
)
def test_counts_are_those_of_the_last_line(output, expected):
    assert result_of(output) == expected


def test_the_table():
    results = {
        "tensorflow": Result(passed=5, failed=1, seconds=61.2),
        "jax": Result(problem="no Python"),
    }
    lines = table([(ROWS[0], results)]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1].endswith("| 5 passed, 1 failed (61 s) | no Python |")
