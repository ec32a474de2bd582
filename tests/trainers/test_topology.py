"""Distances between runs, by the program that reads their folders."""

import csv
import re
import subprocess
import sys

import numpy as np
import pytest

from trainers import records
from trainers.workdir import write_json

GATES = dict.fromkeys(("i", "f", "c", "o"), 8)
RNN = "lstm_0_carried/lstm_0/lstm_cell"
SETTINGS = {"format": "keras_selfish language model run, version 1", "method": "selfish", "epochs": 3}


def masks_of(seed):
    """Masks of a language model of 8 units and 20 words."""
    draw = np.random.default_rng(seed).random
    return [
        records.StoredMask("embedding/embeddings", draw((20, 8)) < 0.3),
        records.StoredMask(f"{RNN}/kernel", draw((8, 32)) < 0.3, GATES),
        records.StoredMask(f"{RNN}/recurrent_kernel", draw((8, 32)) < 0.3, GATES),
        records.StoredMask("decoder/kernel", draw((8, 20)) < 0.3),
    ]


def make_run(folder, first, last, epoch=3):
    """Writes the files of a run that begins and ends with the masks of two seeds; None for none."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", SETTINGS)
    for name, seed, when in ((records.FIRST_MASKS, first, 0), (records.LAST_MASKS, last, epoch)):
        if seed is not None:
            records.write_masks(folder / name, masks_of(seed), when)
    return folder


def measure(*arguments):
    """Runs the program, and returns its exit status, what it prints and what it logs."""
    command = [sys.executable, "-m", "trainers.topology", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return result.returncode, result.stdout, result.stderr


def tables(printed):
    """What was printed: a dict from the heading of each pair to its rows, by name of the layer."""
    found = {}
    for block in printed.strip().split("\n\n"):
        heading, _, *rows = block.split("\n")
        cells = [re.split(r"\s{2,}", row) for row in rows]
        found[heading] = {name: (float(matched), float(placed)) for name, *_, matched, placed in cells}
    return found


def test_runs_in_pairs(tmp_path):
    """Of three, of which two end with the same masks."""
    runs = [make_run(tmp_path / name, 0, seed) for name, seed in (("a", 1), ("b", 2), ("c", 1))]
    output = tmp_path / "topology.csv"
    status, printed, said = measure(*(f"--workdir={run}" for run in runs), f"--output={output}")
    assert status == 0, said
    found = tables(printed)
    assert list(found) == [f"{x} after epoch 3 and {y} after epoch 3" for x, y in ("ab", "ac", "bc")]
    first, same, last = found.values()
    assert list(first) == ["embedding", RNN, "decoder", "network"]
    assert set(same.values()) == {(0.0, 0.0)}
    assert first == last
    assert all(0.3 < distance < 1 for layer in first.values() for distance in layer)
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == list(first) * 3
    assert f"{float(rows[0]['distance']):.4f}" == f"{first['embedding'][0]:.4f}"
    # They began with the same masks.
    status, printed, said = measure(*(f"--workdir={run}" for run in runs[:2]), "--first")
    assert status == 0, said
    ((heading, layers),) = tables(printed).items()
    assert heading == "a before training and b before training"
    assert layers["network"] == (0.0, 0.0)


def test_one_run_from_its_beginning_and_files_of_masks(tmp_path):
    run = make_run(tmp_path / "run", 0, 1)
    status, printed, said = measure(f"--workdir={run}")
    assert status == 0, said
    ((heading, layers),) = tables(printed).items()
    assert heading == "run before training and run after epoch 3"
    status, printed, said = measure(f"--workdir={run / records.FIRST_MASKS}", f"--workdir={run}")
    assert status == 0, said
    ((heading, same),) = tables(printed).items()
    assert heading == "masks-first.npz (epoch 0) and run after epoch 3"
    assert same == layers
    status, printed, said = measure(f"--workdir={run}", "--match=none")
    assert status == 0, said
    ((_, in_place),) = tables(printed).items()
    assert in_place == {name: (distance, distance) for name, (_, distance) in layers.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir={run}", "--first"], "--workdir must be given twice, or once for a folder.*--first"),
        (["--workdir={run}/masks-last.npz"], "--workdir must be given twice, or once for a folder"),
        (["--workdir={run}"] * 17, "--workdir must be given up to 16 times. Received: 17"),
        (["--workdir={run}", "--workdir={run}/none"], "--workdir must be the folder of a run"),
        (["--workdir={run}", "--workdir={empty}"], "--workdir must have masks. Received.*not known"),
        (["--workdir={run}", "--workdir={run}/config.json"], "config.json in --workdir must hold masks"),
        (
            ["--workdir={run}", "--output={run}/none/t.csv"],
            "--output must name a file in a folder that exists",
        ),
        (
            ["--workdir={run}", "--workdir={other}"],
            "`a` and `b` must have weights of the same kinds and shapes",
        ),
    ],
)
def test_what_is_refused(arguments, message, tmp_path):
    run, empty = make_run(tmp_path / "run", 0, 1), make_run(tmp_path / "empty", None, None)
    other = make_run(tmp_path / "other", 0, None)
    records.write_masks(other / records.LAST_MASKS, masks_of(1)[:2], 3)
    names = {"run": run, "empty": empty, "other": other}
    output = tmp_path / "topology.csv"
    given = [argument.format(**names) for argument in arguments]
    if not any(argument.startswith("--output") for argument in given):
        given.append(f"--output={output}")
    status, printed, said = measure(*given)
    assert status == 1
    assert not printed
    assert re.search(f"^error: .*{message}", said, re.MULTILINE), said
    assert not output.exists()
