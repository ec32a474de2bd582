"""Random damage: whatever a file or a server says, a reader returns or raises a documented error.

`tools/fuzz_readers.py` does it; here it takes a few inputs of each reader, with `-m slow` thousands.
"""

import json
import time

import absl.logging
import numpy as np
import pytest

from tools import fuzz_readers

READERS = list(fuzz_readers.readers())


@pytest.fixture
def fed(tmp_path, monkeypatch):
    """Feeds readers and returns what the tool counted."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    verbosity = absl.logging.get_verbosity()

    def feed(name, inputs):
        status = fuzz_readers.main(
            [f"--readers={name}", f"--inputs={inputs}", "--seed=7", f"--json={tmp_path / 'counts.json'}"]
        )
        counts = json.loads((tmp_path / "counts.json").read_text())["readers"][name]
        assert status == (counts["undocumented"] > 0)
        return counts

    yield feed
    absl.logging.set_verbosity(verbosity)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("inputs", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_damage_is_read_or_told(fed, name, inputs):
    counts = fed(name, inputs)
    assert counts["findings"] == []
    assert counts["inputs"] == counts["read"] + counts["refused"] == inputs
    assert counts["read"] >= 1  # what is valid
    assert counts["refused"] >= inputs // 5


def raise_lines():
    raise ValueError("one line\nand another")


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda *_: None, "read"),
        (lambda *_: int("one"), "refused"),
        (lambda *_: {}["key"], "KeyError: 'key'"),
        (lambda *_: b"\xff".decode(), "UnicodeDecodeError: 'utf-8' codec can't"),
        (lambda *_: json.loads("["), "JSONDecodeError: "),
        (lambda *_: raise_lines(), "ValueError with a message that is no sentence: "),
        (lambda *_: time.sleep(50), "overdue: "),
        (lambda *_: np.ones(10**7), "memory: "),
    ],
)
def test_the_tool_notices(monkeypatch, read, outcome):
    # The peak of a process that has run other tests says nothing of this one.
    monkeypatch.setattr(fuzz_readers, "peak_memory", current_memory)
    kept = []
    reader = fuzz_readers.Reader("one", lambda *arguments: kept.append(read(*arguments)), [], (ValueError,))
    tally = fuzz_readers.Tally(reader, longest=2.0, most_memory=50.0)
    tally.feed(b"input")
    summary = tally.summary()
    if outcome in ("read", "refused"):
        assert (summary[outcome], summary["findings"]) == (1, [])
    else:
        assert summary["undocumented"] == 1
        assert summary["findings"][0]["outcome"].startswith(outcome)
        assert bytes.fromhex(summary["findings"][0]["input"]) == b"input"


def current_memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def test_the_same_seed_gives_the_same_inputs():
    seeds = fuzz_readers.answers()
    inputs = [
        [fuzz_readers.changed(seeds[0], seeds, fuzz_readers.random.Random(seed)) for seed in range(50)]
        for _ in range(2)
    ]
    assert inputs[0] == inputs[1]
    assert len(set(inputs[0])) > 45
