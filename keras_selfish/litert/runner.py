"""Runs a LiteRT file in a process of its own: a runtime that is given a wrong file may end the process."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import numpy as np

ROOT = str(pathlib.Path(__file__).resolve().parents[2])


def run(path, inputs, threads=1):
    """What a LiteRT file computes, without a risk to this process.

    Args:
        path: The file.
        inputs: List of dicts from input name to NumPy array, one for each call. All have the same shapes; a
            name that one call leaves out takes what the output of that name was in the call before.
        threads: Number of threads. Default 1.

    Returns:
        A list of dicts from output name to NumPy array.

    Raises:
        RuntimeError: if the runtime refuses the file or the process ends.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        arrays = {
            f"{index}/{name}": array for index, call in enumerate(inputs) for name, array in call.items()
        }
        np.savez(folder / "inputs.npz", **arrays)
        _in_process(path, folder, threads)
        with np.load(folder / "outputs.npz") as stored:
            outputs = [{} for _ in inputs]
            for key in stored.files:
                index, name = key.split("/", 1)
                outputs[int(index)][name] = stored[key]
    return outputs


def check(path):
    """Has the runtime load and run a file once, on zeros, in a process of its own.

    Raises:
        RuntimeError: if it does not survive that or refuses the file.
    """
    _in_process(path)


def interpreter(path, threads=1, batch_size=None):
    """A LiteRT interpreter of a file, with its tensors allocated, and the signature runner of the file."""
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(model_path=str(path), num_threads=threads)
    if batch_size not in (None, 1):
        for detail in made.get_input_details():
            made.resize_tensor_input(detail["index"], [batch_size, *detail["shape"][1:]])
    made.allocate_tensors()
    (signature,) = made.get_signature_list()
    return made, made.get_signature_runner(signature)


def _in_process(*arguments):
    command = [sys.executable, "-m", __name__, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"LiteRT must run the file. Received: {_reason(done)}")


def _reason(done):
    if done.returncode < 0:
        return f"the process ended by {signal.Signals(-done.returncode).name}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {done.returncode}"


def _run_once(path):
    _, runner = interpreter(path)
    details = runner.get_input_details()
    runner(**{name: np.zeros(detail["shape"], detail["dtype"]) for name, detail in details.items()})


def _run_calls(path, folder, threads):
    folder = pathlib.Path(folder)
    with np.load(folder / "inputs.npz") as stored:
        calls = {}
        for key in stored.files:
            index, name = key.split("/", 1)
            calls.setdefault(int(index), {})[name] = stored[key]
    batch_size = len(next(iter(calls[0].values())))
    _, runner = interpreter(path, int(threads), batch_size)
    outputs, last = {}, {}
    for index, call in sorted(calls.items()):
        names = runner.get_input_details()
        last = {
            name: np.array(value)
            for name, value in runner(**{n: call.get(n, last.get(n)) for n in names}).items()
        }
        outputs |= {f"{index}/{name}": value for name, value in last.items()}
    np.savez(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    _run_once(*sys.argv[1:]) if len(sys.argv) == 2 else _run_calls(*sys.argv[1:])
