"""What a model takes is told before it is made, and nothing that cannot fit is begun."""

import dataclasses
import math
import resource
import subprocess
import sys

import pytest

from keras_selfish import SparseGRU, masked_weights
from keras_selfish.models import (
    PRESETS,
    Architecture,
    LanguageModel,
    check_memory,
    memory,
    register_recurrent_layer,
    training_bytes,
)
from keras_selfish.optimizers import SNTASGD

SETTINGS = [
    {"units": 24},
    {"units": [20, 30], "embedding_units": 10},
    {"units": 24, "tied": True, "decoder_bias": False},
    {"units": 24, "sparsity": 0.0, "bias_vectors": 2},
    {"units": 20, "embedding_units": 12, "experts": 3},
    {"units": 20, "embedding_units": 12, "experts": 3, "tied": True},
    {"units": 16, "cell": "rhn", "cell_options": {"depth": 3}},
    {"units": 16, "cell": "rhn", "layers": 1, "cell_options": {"depth": 2, "coupled": False}},
    {"units": 20, "cell": "on_lstm", "cell_options": {"chunk_size": 5}},
    {"units": 20, "cell": "on_lstm", "layers": 3},
    {"units": [20, 12], "cell": "gru"},
    {"units": 20, "cell": "simple_rnn", "bias_vectors": 2},
    {"units": 20, "cell": "of_my_own", "embedding_units": 12},
]


# A recurrent layer of a user's own; the GRU's cell does what the test needs.
@register_recurrent_layer("of_my_own", arguments={"reset_after": False})
class OfMyOwn(SparseGRU):
    pass


def number_of(variables):
    return sum(math.prod(variable.shape) for variable in variables)


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_bytes_are_those_of_a_model_that_is_made(settings):
    model = LanguageModel(50, batch_size=4, **settings)
    optimizer = SNTASGD(0.1)
    optimizer.build(model.trainable_variables)
    slots = [*optimizer.averages, *(births for births in optimizer.births if births is not None)]
    weights = number_of(model.trainable_variables)
    assert training_bytes(Architecture(50, **settings), batch_size=4, time_steps=7) == {
        "weights": 4 * weights,
        "masks": number_of(weight.mask for weight in masked_weights(model)),
        "optimizer": 4 * number_of(slots),
        "states": 4 * number_of(v for v in model.non_trainable_variables if "_state_" in v.path),
        "logits": 4 * 4 * 7 * 50,
        "gradients": 4 * weights,
    }


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_fits_into_16_gigabytes(name):
    training = PRESETS[name].training
    architecture = dataclasses.replace(PRESETS[name].architecture, vocabulary_size=33_278)
    check_memory(architecture, training.batch_size, training.bptt, available=16 * 10**9)


@pytest.mark.parametrize(
    ("settings", "sizes", "message"),
    [
        (
            {"units": 2_000_000},
            {},
            r"`units` must fit into memory\. Received: units=2000000, layers=2, a voc",
        ),
        (
            {"units": [10**9, 5]},
            {},
            r"`units` .*units=1000000000,5, layers=2, .* take [\d,.]+ TB of the 8\.0",
        ),
        ({"units": 9, "cell": "rhn", "cell_options": {"depth": 10**9}}, {}, "`units` must"),
        ({"embedding_units": 10**7}, {}, "`embedding_units` .*=10000000, a vocabulary of 1,000, for which"),
        ({"experts": 10**7}, {}, "`experts` must fit into memory"),
        ({"units": 10**7, "tied": True, "layers": 1}, {}, "`units` must"),
        ({}, {"batch_size": 5_000_000}, "`batch_size` must .*batch_size=5000000, a vocabulary of 1,000, for"),
        (
            {},
            {"batch_size": 9, "time_steps": 10**7, "name": "--{}"},
            "--bptt .* --batch_size=9, windows of 10,0",
        ),
    ],
)
def test_sizes_that_cannot_fit(settings, sizes, message):
    with pytest.raises(ValueError, match=message):
        check_memory(Architecture(1000, **settings), available=8 * 10**9, **sizes)


def test_what_is_needed_and_no_more_is_enough():
    architecture = Architecture(1000)
    sizes = training_bytes(architecture)
    needed = sum(sizes.values()) - sizes["gradients"]
    check_memory(architecture, available=needed)
    with pytest.raises(ValueError, match="`units` must fit into memory"):
        check_memory(architecture, available=needed - 1)


def test_a_model_that_cannot_fit_takes_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"`units` must fit into memory\. Received: units=2000000, layers=2"):
        LanguageModel(1000, units=2_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000


def test_layers_beyond_number():
    with pytest.raises(ValueError, match=r"`layers` must be at most 150\. Received: layers=1000000000"):
        Architecture(10, units=4, layers=10**9)


def test_the_limit_of_the_process_counts():
    code = "from keras_selfish.models.memory import host_memory; print(host_memory())"
    command = f"ulimit -v 4000000 && exec {sys.executable} -c '{code}'"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 4_096_000_000


@pytest.mark.parametrize(
    ("entry", "file"),
    [("0::/a/b\n", "a/memory.max"), ("5:cpu:/x\n4:memory:/a/b\n", "memory/a/b/memory.limit_in_bytes")],
)
def test_the_limit_of_a_control_group_counts(tmp_path, entry, file):
    (tmp_path / "own").write_text(entry)
    limited = tmp_path / file
    limited.parent.mkdir(parents=True)
    limited.write_text("123456789\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert list(memory.control_groups(tmp_path, tmp_path / "own")) == [123456789]
