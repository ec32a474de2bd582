"""Runs what is compared alternately, each time in a process of its own."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys

from trainers.records import processor

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHOWN_LINES = 15

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is loaded, here or in a process


def alternate(commands, rounds):
    """Runs `python -m` commands in turn, several rounds, so that what disturbs one disturbs all.

    Args:
        commands: Dict from a name to a list of a module and its arguments; it prints one JSON object as its
            last line.
        rounds: Number of rounds.

    Returns:
        A dict from name to the list of its results, one a round.

    Raises:
        SystemExit: if a process fails; the message has the end of what it wrote to stderr.
    """
    results = {name: [] for name in commands}
    for number in range(rounds):
        for name, (module, *arguments) in commands.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(_run(module, arguments))
    return results


def _run(module, arguments):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    try:
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        problem = f"ended with exit status {done.returncode}"
        if done.returncode < 0:
            problem = f"was killed by signal {-done.returncode}"
    except (IndexError, ValueError):
        problem = "printed no result"
    written = "\n".join(done.stderr.splitlines()[-SHOWN_LINES:]) or "(nothing)"
    raise SystemExit(
        f"error: python -m {' '.join([module, *arguments])} {problem}. The end of its stderr:\n{written}"
    )


def median(results, key):
    """The median over rounds."""
    return statistics.median(result[key] for result in results)


def extremes(results, key):
    """The least and the largest over rounds."""
    values = [result[key] for result in results]
    return min(values), max(values)


def peak_memory():
    """The most memory, in bytes, that this process has held so far, on the host."""
    # On Linux `ru_maxrss` is at least what the process that started this one held then.
    with contextlib.suppress(OSError):
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
            return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine():
    """One line that says where the figures are measured, and what else ran there in the last minute."""
    load = os.getloadavg()[0]  # before Keras is loaded, which is work too

    import keras

    libraries = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("tensorflow", "jax", "torch", "numpy")
        if importlib.util.find_spec(name) is not None
    ]
    return (
        f"{os.cpu_count()} cores, {', '.join([processor(), *_gpus()])}, load {load:.1f} at the start, "
        f"Python {platform.python_version()}, Keras {keras.__version__} on {keras.backend.backend()}, "
        f"{', '.join(libraries)}"
    )


def _gpus():
    """Names of the NVIDIA GPUs."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return []
