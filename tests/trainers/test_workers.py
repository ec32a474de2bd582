"""The trainer of language models with several workers, processes of their own."""

import csv
import json
import pathlib
import re
import signal
import subprocess
import textwrap
import time

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TINY = (
    "--dataset=text",
    "--units=16",
    "--batch_size=4",
    "--bptt=10",
    "--sparsity=0.5",
    "--epochs=3",
    "--learning_rate=5",
    "--patience=1",
    "--noexport",
)


class Started:
    """The processes of a run.

    Args:
        command: Function from flags to a command line.
        environments: One for each worker.
        workdir: The run's folder.
        *flags: Those of all workers.
        of_each: For each worker those that it alone gets.
    """

    def __init__(self, command, environments, workdir, *flags, of_each=()):
        self.workdir = workdir
        self.logs = [workdir.parent / f"{workdir.name}.{index}.log" for index in range(len(environments))]
        self.processes = []
        for index, (environment, log) in enumerate(zip(environments, self.logs, strict=True)):
            own = of_each[index] if of_each else ()
            with open(log, "w") as file:
                process = subprocess.Popen(
                    command(workdir, *flags, *own), env=environment, cwd=REPOSITORY, stdout=file, stderr=file
                )
            self.processes.append(process)

    def wait(self, *indices):
        """The exit statuses of some workers, or all, and what they said last."""
        indices = indices or range(len(self.processes))
        statuses = [self.processes[index].wait(timeout=300) for index in indices]
        return statuses, [self.logs[index].read_text().splitlines()[-1] for index in indices]

    def wait_for_checkpoint(self):
        while not (self.workdir / "checkpoint.json").exists():
            assert all(process.poll() is None for process in self.processes), self.logs[0].read_text()
            time.sleep(0.01)

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def start(trainer, corpus, cluster):
    """A function that starts so many workers on a folder, with flags."""
    started = []

    def workers(number, workdir, *flags, environments=None, **options):
        command = trainer("language_model").command
        environments = environments or cluster(number)
        flags = (f"--data_dir={corpus}", *TINY, "--strategy=multi_worker", *flags)
        started.append(Started(command, environments, workdir, *flags, **options))
        return started[-1]

    yield workers
    for run in started:
        run.end()


def history(workdir):
    with open(workdir / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (None, "TF_CONFIG=''"),
        ("[", "TF_CONFIG='['"),
        ("{}", "TF_CONFIG='{}'"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG="),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', '"index": 1'),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}', "evaluator"),
        ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', '"worker": "a:1"'),
        ('{"cluster": ["a:1"], "task": {"type": "worker", "index": 0}}', '["a:1"]'),
    ],
)
def test_a_process_must_be_told_which_worker_it_is(config, shown, trainer, corpus, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    flags = (f"--data_dir={corpus}", *TINY, "--strategy=multi_worker")
    refused = trainer("language_model").run(tmp_path / "run", *flags)
    assert refused.returncode == 1
    assert "--strategy=multi_worker needs the environment variable TF_CONFIG" in refused.stderr
    assert shown in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("cluster", "task", "index"),
    [
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1}, 1),
        ({"chief": ["a:1"], "worker": ["b:1"]}, {"type": "chief", "index": 0}, 0),
        ({"chief": ["a:1"], "worker": ["b:1"]}, {"type": "worker", "index": 0}, 1),
    ],
)
def test_the_chief_is_the_first_worker(cluster, task, index, monkeypatch):
    from trainers.distribution import Worker

    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert Worker.of("multi_worker") == Worker(index, 2)
    assert Worker.of("none") == Worker(0, 1)
    assert Worker(index, 2).is_chief == (index == 0)


@pytest.mark.backends("jax")
def test_workers_need_tensorflow(trainer, corpus, tmp_path, monkeypatch):
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    flags = (f"--data_dir={corpus}", *TINY, "--strategy=multi_worker")
    refused = trainer("language_model").run(tmp_path / "run", *flags)
    assert refused.returncode == 1
    assert (
        "--strategy=multi_worker needs Keras's TensorFlow backend. Received: backend 'jax'" in refused.stderr
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture
def audited(tmp_path):
    """A function that has a process write down what it opens to write, makes, renames and removes."""
    code = """
        import os, sys
        log = os.open(os.environ["AUDIT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}

        def hook(event, arguments):
            writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or event in CHANGES:
                os.write(log, f"{event} {arguments[0]}\\n".encode())

        sys.addaudithook(hook)
    """
    folder = tmp_path / "audit"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(code), encoding="utf-8")

    def environment(before, log):
        return {**before, "PYTHONPATH": f"{folder}:{before['PYTHONPATH']}", "AUDIT": str(log)}

    return environment


@pytest.mark.slow
def test_two_workers_train_as_one_device_and_one_writes(trainer, start, corpus, cluster, audited, tmp_path):
    """Dropout differs between replicas, so without it; 60 steps."""
    environments = [audited(env, tmp_path / f"{i}.audit") for i, env in enumerate(cluster(2))]
    two = start(2, tmp_path / "two", "--epochs=2", "--dropout=0", "--export", environments=environments)
    assert two.wait()[0] == [0, 0], [log.read_text() for log in two.logs]
    flags = (f"--data_dir={corpus}", *TINY, "--epochs=2", "--dropout=0")
    one = trainer("language_model").run(tmp_path / "one", *flags)
    assert one.returncode == 0, one.stderr
    for first, second in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        for name in first:
            assert float(second[name]) == pytest.approx(float(first[name]), rel=1e-5), name
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert (tmp_path / "two" / "saved_model" / "saved_model.pb").exists()
    written = [(tmp_path / f"{index}.audit").read_text() for index in range(2)]
    assert f"{tmp_path}/two/" in written[0]
    assert f"{tmp_path}/two" not in written[1]
    # TensorFlow writes these.
    for split in ("train", "validation"):
        assert len(list((tmp_path / "two" / "tensorboard" / split).iterdir())) == 1


@pytest.mark.slow
def test_a_run_of_which_a_worker_was_killed_resumes_as_if_nothing_had_happened(start, tmp_path):
    """Bit for bit: on one machine the sums of the workers come out the same each time."""
    undisturbed = start(2, tmp_path / "undisturbed")
    assert undisturbed.wait()[0] == [0, 0], [log.read_text() for log in undisturbed.logs]
    for victim, survivor in ((0, 1), (1, 0)):
        workdir = tmp_path / f"killed {victim}"
        killed = start(2, workdir)
        killed.wait_for_checkpoint()
        killed.processes[victim].send_signal(signal.SIGKILL)
        (status,), (said,) = killed.wait(survivor)
        assert status == 1
        assert re.fullmatch(r"error: All 2 workers must run until the end\. Received: in worker \d, .*", said)
        assert "same --workdir" in said
        assert "Traceback" not in killed.logs[survivor].read_text()
        resumed = start(2, workdir)
        assert resumed.wait()[0] == [0, 0], [log.read_text() for log in resumed.logs]
        assert "Resuming after epoch" in resumed.logs[1].read_text()
        assert history(workdir) == history(tmp_path / "undisturbed")
        results = [(folder / "results.json").read_text() for folder in (workdir, tmp_path / "undisturbed")]
        assert results[0] == results[1]


@pytest.mark.slow
def test_a_worker_waits_for_a_stopped_one_as_long_as_a_flag_says(start, tmp_path):
    run = start(2, tmp_path / "run", "--worker_timeout=60", "--epochs=50")
    run.wait_for_checkpoint()
    run.processes[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    (status,), (said,) = run.wait(0)
    assert status == 1
    assert said.startswith("error: All 2 workers must run until the end. Received: in worker 0, ")
    assert time.monotonic() - began < 70  # and ended its process


@pytest.mark.slow
def test_a_worker_waits_for_one_that_never_comes_as_long_as_a_flag_says(start, cluster, tmp_path):
    run = start(1, tmp_path / "run", "--worker_timeout=2", environments=cluster(2)[:1])
    assert run.wait()[0] == [-signal.SIGKILL]
    said = run.logs[0].read_text()
    assert (
        "error: All 2 workers must run until the end. Received: in worker 0, others took over --worker"
        in said
    )
    assert "Traceback" not in said


@pytest.mark.slow
def test_workers_that_would_train_something_else_are_refused(start, tmp_path):
    run = start(2, tmp_path / "run", of_each=((), ("--seed=1",)))
    statuses, said = run.wait()
    assert statuses == [1, 1]
    assert any("All workers must get the same flags, the same corpus" in line for line in said)
    assert not (tmp_path / "run" / "config.json").exists()
