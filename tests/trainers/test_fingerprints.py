"""Fingerprints: the same for the same values however they are held, others for any other."""

import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from keras_selfish.data import Vocabulary
from trainers import fingerprints
from trainers.files import RunError, sha256
from trainers.workdir import Workdir


@pytest.mark.parametrize("dtype", ["uint16", "int32", ">i4", "int64"])
def test_a_file_in_place_of_memory_changes_nothing(tmp_path, dtype):
    tokens = np.random.default_rng(0).integers(0, 60_000, 100_001)
    tokens.astype(dtype).tofile(tmp_path / "tokens")
    mapped = np.memmap(tmp_path / "tokens", dtype, "r")
    expected = fingerprints.of_array(tokens.astype(np.int32))
    assert fingerprints.of_array(mapped) == expected
    assert fingerprints.of_array(mapped, chunk=777) == expected
    assert fingerprints.of_array(mapped[::-1]) != expected


def test_little_memory_is_taken(tmp_path):
    np.arange(2_000_000, dtype=np.uint16).tofile(tmp_path / "tokens")
    mapped = np.memmap(tmp_path / "tokens", np.uint16, "r")
    tracemalloc.start()
    try:
        fingerprints.of_array(mapped, chunk=10_000)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@hypothesis.given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4)), st.integers(1, 50), st.data()
)
def test_any_change_is_seen(array, chunk, data):
    before = fingerprints.of_array(array)
    assert fingerprints.of_array(array, chunk) == before
    changed = array.copy()
    changed.flat[data.draw(st.integers(0, array.size - 1))] ^= data.draw(st.integers(1, 255))
    assert fingerprints.of_array(changed, chunk) != before
    assert fingerprints.of_array(array[None], chunk) != before


def test_that_of_a_vocabulary_is_that_of_its_file(tmp_path):
    vocabulary = Vocabulary(["<eos>", "été", "a"])
    vocabulary.save(tmp_path / "vocabulary.txt")
    assert fingerprints.of_tokens(vocabulary.tokens) == sha256(tmp_path / "vocabulary.txt")


def begin(folder, data):
    workdir = Workdir(folder, "test")
    with workdir.open():
        settings = workdir.settle({"dataset": "text", "data_dir": "/data"})
        workdir.check_data(data, settings)
        workdir.checkpoint()
        workdir.begin(settings)


DATA = {"train split": "1" * 64, "test split": "2" * 64, "vocabulary": "3" * 64}


def test_other_data_are_refused_by_name_and_nothing_is_written(tmp_path):
    begin(tmp_path, DATA)
    begin(tmp_path, DATA)
    before = (tmp_path / "config.json").read_bytes()
    message = "Received: --data_dir=/data, of which the train split and vocabulary changed; "
    with pytest.raises(RunError, match=message):
        begin(tmp_path, {**DATA, "train split": "0" * 64, "vocabulary": "0" * 64})
    assert (tmp_path / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
