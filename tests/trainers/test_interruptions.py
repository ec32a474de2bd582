"""Signals, a second process, a disk that is full: one line, and the last checkpoint whole."""

import concurrent.futures
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from keras import ops

from trainers.files import RunError, WriteError, no_memory, no_room, replace
from trainers.program import settled
from trainers.workdir import Workdir

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FLAGS = (
    *("--dataset=text", "--units=8", "--layers=1", "--batch_size=4", "--bptt=10", "--sparsity=0.5"),
    *("--learning_rate=5", "--epochs=2"),
)


def started(code, *arguments):
    """A Python snippet in a process of its own, which has printed "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "ready\n"
    return process


HOLDING = """
    import sys, time
    from trainers.workdir import Workdir
    workdir = Workdir(sys.argv[1], "test")
    workdir.prepare()
    print("ready", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_uses_a_folder(tmp_path):
    process = started(HOLDING, tmp_path)
    with pytest.raises(RunError, match="--workdir must be used by one run at a time") as raised:
        Workdir(tmp_path, "test").prepare()
    assert f"process {process.pid} on {socket.gethostname()} trains" in str(raised.value)
    process.kill()
    process.communicate()
    workdir = Workdir(tmp_path, "test")
    workdir.prepare()
    holder = json.loads((tmp_path / ".lock").read_text())
    assert holder["pid"] == os.getpid()
    workdir.close()
    assert list(tmp_path.iterdir()) == []


def test_many_want_one_folder_and_one_at_a_time_has_it(tmp_path):
    """Also while its holder gives it back and removes the file."""
    inside = []

    def use(index):
        while True:
            workdir = Workdir(tmp_path, "test")
            try:
                workdir.prepare()
            except RunError:
                continue
            inside.append(index)
            assert inside == [index]
            inside.remove(index)
            workdir.close()
            return index

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(use, range(40))) == list(range(40))


# A long computation in C, during which Python runs no handler of its main thread.
BUSY = """
    import hashlib, sys, time
    from trainers import signals
    signals.watch()
    def last_words(seconds):
        time.sleep(float(sys.argv[1]))
        return f"waited {sys.argv[1]} of {seconds:g} s"
    with signals.last_words(last_words):
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha512", b"", b"", 10**9)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line(number, status):
    process = started(BUSY, 0)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors == f"Interrupted by {number.name}: waited 0 of 10 s\n"


def test_a_second_signal_ends_at_once():
    process = started(BUSY, 500)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "")


def test_what_a_program_is_started_to_ignore_stays_ignored():
    code = """
        import signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from trainers import signals
        signals.watch()
        print("ready", flush=True)
        time.sleep(600)
    """
    process = started(code)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


class TestLastWords:
    @pytest.fixture
    def workdir(self, tmp_path):
        return Workdir(tmp_path, "test")

    def seconds(self, workdir, most):
        began = time.monotonic()
        words = workdir.last_words(most)
        return time.monotonic() - began, words

    def test_nothing_to_wait_for(self, workdir):
        workdir.expect_epoch(1000.0)
        seconds, words = self.seconds(workdir, 60.0)
        assert seconds < 1
        assert words == f"nothing was saved yet in {workdir.path}"

    def test_a_checkpoint_that_is_being_written(self, workdir):
        workdir.epochs_done = 3
        with concurrent.futures.ThreadPoolExecutor(1) as pool:

            def write():
                time.sleep(0.3)
                workdir.epochs_done = 4

            workdir._writing = pool.submit(write)
            _, words = self.seconds(workdir, 60.0)
        assert words.startswith("the checkpoint after epoch 4 is kept")

    def test_a_training_that_can_stop_after_its_step(self, workdir):
        workdir.epochs_done, workdir.can_pause = 3, True
        workdir.expect_epoch(1000.0)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:

            def train():
                assert workdir.wants_pause.wait(60.0)
                workdir.steps_done = 7

            pool.submit(train)
            _, words = self.seconds(workdir, 60.0)
        assert words.startswith("the checkpoint after step 7 of epoch 4 is kept")

    def test_an_epoch_that_is_about_to_end(self, workdir):
        workdir.epochs_done = 3
        workdir.expect_epoch(0.1)
        seconds, words = self.seconds(workdir, 0.5)
        assert seconds >= 0.5
        assert words.startswith("the checkpoint after epoch 3 is kept")


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_trainer_that_is_interrupted_goes_on_where_it_stopped(trainer, corpus, tmp_path, number, status):
    language_model = trainer("language_model")
    flags = (f"--data_dir={corpus}", *FLAGS, "--epochs=300", "--noexport")
    command = language_model.command(tmp_path / "run", *flags)
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while not (tmp_path / "run" / "checkpoint.json").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == status
    lines = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(
        rf"Interrupted by {number.name}: the checkpoint after (step \d+ of )?epoch \d+ is kept in .*/run, "
        "from which the same command goes on",
        lines[-1],
    )
    assert not any("Traceback" in line for line in lines)
    workdir = Workdir(tmp_path / "run", "language model")
    with workdir.open():
        settled(language_model.settings(*flags), workdir)
        workdir.checkpoint()
        assert f"the checkpoint after {workdir.place} is kept" in lines[-1]


def test_a_trainer_whose_files_find_no_room(largest_file, trainer, corpus, tmp_path):
    """As the limit rises, another file is the first that does not fit."""
    run = trainer("language_model").run
    flags = (f"--data_dir={corpus}", *FLAGS)
    for size, name, standing in (
        (100, "config.json", "nothing was saved yet"),
        (30_000, "best.keras", "nothing was saved yet"),
        (85_000, "saved_model", "the last checkpoint is whole, after epoch 2"),
    ):
        with largest_file(size):
            result = run(tmp_path / "run", *flags)
        assert result.returncode == 1
        assert f"error: {name} could not be written: File too large. Received: " in result.stderr
        assert f"; {standing}, so make room and start again with the same --workdir" in result.stderr
        assert not (tmp_path / "run" / name).exists()
        assert list((tmp_path / "run").glob(".*")) == []
    result = run(tmp_path / "run", *flags)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "saved_model" / "saved_model.pb").exists()
    with largest_file(30_000):
        result = trainer("export").run(tmp_path / "run", f"--output={tmp_path / 'served'}")
    assert result.returncode == 1
    assert re.search(r"error: served could not be written: File too large\. Received: ", result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_that_does_not_fit_leaves_the_one_before(largest_file, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with largest_file(1000), pytest.raises(WriteError, match="file could not be written: File too large"):
        replace(path, lambda place: place.write_bytes(bytes(2000)))
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"before"]


def test_a_full_disk_is_known_by_what_came_of_it():
    error = ValueError("Can't close the ZIP file while there is an open writing handle on it.")
    error.__context__ = OSError(28, "No space left on device")
    assert no_room(error) == "No space left on device"
    assert no_room(RuntimeError("h5py: errno = 28, error message = 'No space left on device'"))
    assert no_room(PermissionError(13, "Permission denied")) is None
    assert no_room(MemoryError("OOM when allocating tensor")) is None


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize(
    "take",
    [
        lambda: np.empty(2**50),
        # TensorFlow tries for ten seconds, as it does in the trainer's test.
        pytest.param(lambda: ops.zeros((2**21, 2**21)), marks=pytest.mark.slow),
    ],
    ids=["host", "device"],
)
def test_too_little_memory_is_known_by_what_came_of_it(take):
    with pytest.raises(Exception, match="llocat") as caught:
        take()
    error = ValueError("in a layer of yours")
    error.__cause__ = caught.value
    assert re.fullmatch(
        "(Unable to allocate|OOM when allocating|Out of memory allocating) .*[^.]", no_memory(error)
    )
    assert no_memory(MemoryError()) == "out of memory"
    assert no_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.")) == (
        "Out of memory while trying to allocate 8 bytes"
    )
    assert no_memory(OSError(28, "No space left on device")) is None
    assert no_memory(ValueError("`units` must fit into memory")) is None
