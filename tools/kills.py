"""Kills training runs at random moments until they finish, and compares what they leave with a run in peace.

Usage: python -m tools.kills FOLDER [--kinds tensorflow jax image] [--kills 10] [--signals KILL TERM INT]
    [--seed 0] [--json kills.json]

For each kind, one run is left in peace. Others are started again and again in the same --workdir, each
process killed at a moment drawn uniformly from the time that the first run took, until one process ends by
itself; then what is in the two folders is compared bit for bit, times of day and durations apart. When all
kills are spent, the last run is left to finish. A killed process is held to its exit status, 143 and 130
after SIGTERM and SIGINT, with one line and no traceback.
"""

import argparse
import collections
import csv
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

Kind = collections.namedtuple("Kind", "backend trainer flags")

LANGUAGE_MODEL = (
    *("--dataset=text", "--units=16", "--batch_size=4", "--bptt=10", "--sparsity=0.5", "--epochs=40"),
    *("--learning_rate=5", "--locked", "--random_lengths", "--patience=2"),
)
KINDS = {
    "tensorflow": Kind("tensorflow", "language_model", LANGUAGE_MODEL),
    "jax": Kind("jax", "language_model", (*LANGUAGE_MODEL, "--noexport")),
    "image": Kind(
        "tensorflow",
        "image_classifier",
        (
            *("--epochs=80", "--finetune_epochs=20", "--batch_size=32", "--width=0.3", "--sparsity=0.7"),
            *("--task_steps=10", "--switcher_steps=2", "--warmup_epochs=0.5"),
        ),
    ),
}
TIMES = ("seconds", "tokens_per_second")
# Signals that came before the interpreter had loaded the trainers.
TOO_EARLY = {"TERM": (-signal.SIGTERM,), "INT": (-signal.SIGINT, 1)}
STATUS = {"KILL": -signal.SIGKILL, "TERM": 143, "INT": 130}

Kill = collections.namedtuple("Kill", "kind run signal seconds done status as_promised")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="where the runs are made; must not exist yet")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--kills", type=int, default=10, help="of each kind (default: %(default)s)")
    parser.add_argument("--signals", nargs="+", choices=list(STATUS), default=["KILL"])
    parser.add_argument("--seed", type=int, default=0, help="of signals and moments")
    parser.add_argument("--json", type=pathlib.Path, help="file to write kills and comparisons to")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    corpus = make_corpus(options.folder)
    kills, runs = [], []
    for name in options.kinds:
        rng = random.Random(f"{options.seed} {name}")
        found = of_kind(name, options, corpus, rng)
        kills += found[0]
        runs += found[1]
        print_table(kills, runs)
        if options.json:
            content = {"kills": [kill._asdict() for kill in kills], "runs": runs}
            options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    wrong = [kill for kill in kills if not kill.as_promised] + [run for run in runs if run["differ"]]
    sys.exit(f"{len(wrong)} kills or runs did not go as promised" if wrong else 0)


def make_corpus(folder):
    """A little English: part of the text that Python carries."""
    import pydoc_data.topics

    corpus = folder / "corpus"
    corpus.mkdir()
    text = "\n".join(pydoc_data.topics.topics[name] for name in ("assert", "while", "with", "del", "pass"))
    (corpus / "text.txt").write_text(text, encoding="utf-8")
    return corpus


def of_kind(name, options, corpus, rng):
    """Kills of one kind and the runs that were compared."""
    kind = KINDS[name]
    peace = options.folder / f"{name}-in-peace"
    began = time.monotonic()
    process, log = start(kind, peace, corpus)
    if process.wait():
        sys.exit(f"the run in peace of {name} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    duration = time.monotonic() - began
    expected = state_of(peace)
    kills, runs = [], []
    while len(kills) < options.kills:
        folder = options.folder / f"{name}-{len(runs)}"
        killed = kill_until_done(name, folder, corpus, options, rng, duration, len(kills))
        kills += killed
        found = state_of(folder)
        differ = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        runs.append({"kind": name, "run": folder.name, "kills": len(killed), "differ": differ})
        if not differ:
            shutil.rmtree(folder)
    return kills, runs


def kill_until_done(name, folder, corpus, options, rng, duration, done):
    """Starts a run again and again until it ends by itself; returns the kills."""
    kills = []
    while True:
        process, log = start(KINDS[name], folder, corpus)
        seconds = rng.uniform(0.0, duration)
        try:
            process.wait(seconds if done + len(kills) < options.kills else None)
        except subprocess.TimeoutExpired:
            number = rng.choice(options.signals)
            process.send_signal(getattr(signal, f"SIG{number}"))
            process.wait(60)
            kills.append(
                Kill(
                    *(name, folder.name, number, round(seconds, 2), done_in(folder), process.returncode),
                    as_promised(number, process.returncode, log),
                )
            )
            continue
        if process.returncode:
            sys.exit(f"{folder} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        return kills


def start(kind, folder, corpus):
    flags = [*kind.flags, f"--workdir={folder}"]
    if kind.trainer == "language_model":
        flags.append(f"--data_dir={corpus}")
    log = folder.with_suffix(".log")
    environment = {
        **{"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"},
        **os.environ,
        "KERAS_BACKEND": kind.backend,
    }
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", f"trainers.{kind.trainer}", *flags],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            # A shell that runs this program behind others has it, and so its children, ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    return process, log


def as_promised(number, status, log):
    """Whether a killed process ended as it should."""
    text = log.read_text(errors="replace")
    if number != "KILL" and status in TOO_EARLY[number]:
        return "trainers/" not in text  # where it was
    lines = text.count("\nInterrupted by ") + text.startswith("Interrupted by ")
    return status == STATUS[number] and "Traceback" not in text and lines == (number != "KILL")


def done_in(folder):
    """The epochs of a run's checkpoint, and the steps of the next one if there are any: "3+12"."""
    path = folder / "checkpoint.json"
    state = json.loads(path.read_text()) if path.exists() else {"epochs_done": 0}
    return "+".join(
        str(number) for number in (state["epochs_done"], state.get("steps_done")) if number is not None
    )


def state_of(folder):
    """What a run leaves, as digests by file and part, without times of day and durations."""
    found = {name: digest((folder / name).read_bytes()) for name in ("config.json", "results.json")}
    for path in folder.glob("vocabulary.txt"):
        found[path.name] = digest(path.read_bytes())
    rows = list(csv.DictReader(io.StringIO((folder / "history.csv").read_text(encoding="utf-8"))))
    found["history.csv"] = [[value for key, value in row.items() if key not in TIMES] for row in rows]
    state = json.loads((folder / "checkpoint.json").read_text())
    found["checkpoint.json"] = [state["epochs_done"], state.get("best")]
    for path in folder.glob("*.keras"):
        with zipfile.ZipFile(path) as archive:
            for part in archive.namelist():
                if part != "metadata.json":  # which has the time of day
                    found[f"{path.name}: {part}"] = digest(archive.read(part))
    for path in folder.glob("checkpoint-*.npz"):
        with np.load(path) as stored:
            found |= {f"{path.name}: {key}": digest(stored[key].tobytes()) for key in stored}
    if (folder / "saved_model").exists():
        found["saved_model"] = tensors_of(folder / "saved_model")
    return found


def tensors_of(saved_model):
    """Digests of the values in a SavedModel, which TensorFlow writes in no certain order."""
    import tensorflow as tf

    stored = tf.train.load_checkpoint(str(saved_model / "variables" / "variables"))
    values = (stored.get_tensor(name) for name in stored.get_variable_to_dtype_map() if name[0] != "_")
    return sorted(digest(value.tobytes()) for value in values)


def digest(content):
    return hashlib.sha256(content).hexdigest()


def print_table(kills, runs):
    print("| kind | signal | kills | as promised | after epochs (+ steps) |")
    print("| --- | --- | --- | --- | --- |")
    groups = collections.defaultdict(list)
    for kill in kills:
        groups[kill.kind, kill.signal].append(kill)
    for (kind, number), group in groups.items():
        kept = sum(kill.as_promised for kill in group)
        done = " ".join(kill.done for kill in group)
        print(f"| {kind} | {number} | {len(group)} | {kept} | {done} |")
    for run in runs:
        differ = f"differ in {', '.join(run['differ'])}" if run["differ"] else "the same files"
        print(f"{run['run']}: {run['kills']} kills, {differ}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
