"""Whether `tools/mutants.py` still names what stands in the package."""

import pathlib

import pytest

from tools.mutants import MUTANTS

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{mutant.file}-{mutant.old[:20]}" for mutant in MUTANTS])
def test_a_mutant_replaces_one_place(mutant):
    text = (REPOSITORY / "keras_selfish" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
    for name in mutant.tests.split():
        assert (REPOSITORY / "tests" / name).exists(), name
