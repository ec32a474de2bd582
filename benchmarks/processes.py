"""Runs the variants of a benchmark alternately, each in a process of its own."""

import json
import os
import platform
import statistics
import subprocess
import sys


def alternate(module, variants, arguments, rounds):
    """Runs `python -m module --variant NAME` for each variant in turn, several rounds.

    Args:
        module: Module to run; with `--variant` it prints one JSON object as its last line.
        variants: Names of the variants.
        arguments: Further command-line arguments.
        rounds: Number of rounds.

    Returns:
        A dict from variant to the list of its results, one a round.
    """
    results = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            command = [sys.executable, "-m", module, "--variant", variant, *arguments]
            environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
            printed = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            results[variant].append(json.loads(printed.strip().splitlines()[-1]))
    return results


def median(results, key):
    """The median over rounds."""
    return statistics.median(result[key] for result in results)


def machine():
    """One line that says where the figures were measured."""
    import keras
    import numpy

    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"Keras {keras.__version__} on {keras.backend.backend()}, NumPy {numpy.__version__}"
    )
