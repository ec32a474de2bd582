"""Keras's own tests with this package's classes in place of Keras's.

`python -m tools.keras_tests KERAS_SOURCE`: the folder is an unpacked source distribution or a clone of Keras,
of the version that is installed. Its tests of the layers that have a sparse form, of optimizers and of
callbacks run on the backend that KERAS_BACKEND names, twice: with Keras's classes, and with the sparse ones
at sparsity 0 and SNTASGD for SGD. The table says for each file what passes; of what fails with the sparse
classes only, each test is named with the reason why that is meant, or stands under those that are not. The
exit status is 1 if there are any of the latter.

The tests are copied into a temporary folder, run there, and nothing of them is kept.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import keras

FILES = {
    "layers/attention": ("multi_head_attention",),
    "layers/convolutional": ("conv", "conv_transpose", "depthwise_conv", "separable_conv"),
    "layers/core": ("dense", "einsum_dense", "embedding", "reversible_embedding"),
    "layers/rnn": (
        "bidirectional",
        "gru",
        "lstm",
        "rnn",
        "simple_rnn",
        "stacked_rnn_cells",
        "time_distributed",
    ),
    "optimizers": ("optimizer", "optimizer_sparse", "sgd", "loss_scale_optimizer", "multi_optimizer"),
    "callbacks": (
        "backup_and_restore",
        "callback",
        "early_stopping",
        "lambda_callback",
        "learning_rate_scheduler",
        "model_checkpoint",
        "monitor_callback",
        "reduce_lr_on_plateau",
        "swap_ema_weights",
        "terminate_on_nan",
    ),
}
# A pattern of tests that fail, and why that is meant.
MEANT = {
    r"swap_ema|test_ema": "SNTASGD keeps averages of its own and refuses `use_ema`",
    r"sparse_gradients_(loss_scale_optimizer_)?sgd$": (
        "SNTASGD writes whole variables where SGD writes the rows of a sparse gradient"
    ),
    r"momentum|golden": "SNTASGD has no momentum",
    r"test_clip_(norm|value)|global_clip_norm": "they call a private method; SNTASGD clips in its update",
    r"sgd_test.*test_(config|single_step)": "they count SGD's variables and name its arguments",
    r"get_method|auto_naming|pickleable|loss_scale.*test_config|multi.*test_serialization": (
        "they name the class of SGD, or find it by its name"
    ),
}
OUTCOMES = "KERAS_TESTS_OUTCOMES"
SUBSTITUTED = "KERAS_TESTS_SUBSTITUTED"


def main():
    """Runs the tests twice and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=pathlib.Path, help="folder of Keras's source, which holds keras/src")
    parser.add_argument("--only", default="", help="part of the names of the files to run; all by default")
    parser.add_argument("--processes", default=2, type=int, help="how many processes run tests")
    options = parser.parse_args()
    check_version(options.source)
    outcomes = {}
    for substituted in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            copy_tests(options.source, pathlib.Path(folder), options.only)
            outcomes[substituted] = run(pathlib.Path(folder), substituted, options.processes)
    unexplained = report(outcomes[False], outcomes[True])
    sys.exit(1 if unexplained else 0)


def check_version(source):
    """Exits unless a folder is the source of the Keras that is installed."""
    path = source / "keras" / "src" / "version.py"
    if not path.exists():
        sys.exit(f"KERAS_SOURCE must be a folder that holds keras/src. Received: {source}")
    (version,) = re.findall(r'__version__ = "(.*)"', path.read_text())
    if version != keras.__version__:
        sys.exit(
            f"KERAS_SOURCE must be that of Keras {keras.__version__}, which is installed. Received: {version}"
        )


def copy_tests(source, folder, only):
    """Copies the tests to where Keras is imported from where it is installed."""
    for package, names in FILES.items():
        for name in names:
            if only in name:
                path = source / "keras" / "src" / package / f"{name}_test.py"
                shutil.copy(path, folder / f"{package.replace('/', '_')}_{name}_test.py")
    (folder / "pytest.ini").write_text("[pytest]\npython_files = *_test.py\n")


def run(folder, substituted, processes):
    """The outcome of each test, a dict of dicts by file and by test."""
    path = folder / "outcomes.jsonl"
    environment = {**os.environ, OUTCOMES: str(path), SUBSTITUTED: "1" if substituted else ""}
    environment["PYTHONPATH"] = str(pathlib.Path(__file__).parents[1])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tools.keras_tests", "--tb=short", "-rN"]
    command += ["-n", str(processes), "--dist", "worksteal"] if processes > 1 else []
    log = pathlib.Path(f"keras_tests_{keras.backend.backend()}_{'ours' if substituted else 'keras'}.log")
    print(f"running {len(list(folder.glob('*_test.py')))} files, log in {log}", flush=True)
    with log.open("w") as output:
        subprocess.run([*command, str(folder)], cwd=folder, env=environment, stdout=output, check=False)
    outcomes = collections.defaultdict(dict)
    for line in path.read_text().splitlines():
        file, test, outcome = json.loads(line)
        outcomes[file][test] = outcome
    return outcomes


def report(plain, ours):
    """Prints the table and what fails with the sparse classes only; returns what is not meant of that."""
    meant, unexplained = collections.defaultdict(list), []
    print("\n| file | tests | pass with Keras's classes | pass with ours | fail with ours only |")
    print("| --- | --- | --- | --- | --- |")
    totals = collections.Counter()
    for file, tests in sorted(ours.items()):
        failing = [
            t for t, outcome in tests.items() if outcome == "failed" and plain[file].get(t) == "passed"
        ]
        counts = (len(tests), passed(plain[file]), passed(tests), len(failing))
        print(f"| {file.removesuffix('_test.py')} |", " | ".join(map(str, counts)), "|")
        totals.update(dict(enumerate(counts)))
        for test in failing:
            reasons = [reason for pattern, reason in MEANT.items() if re.search(pattern, f"{file}::{test}")]
            if reasons:
                meant[reasons[0]].append(test)
            else:
                unexplained.append(f"{file}::{test}")
    print("| all |", " | ".join(str(totals[column]) for column in range(4)), "|")
    for reason, tests in meant.items():
        print(f"\n{reason} ({len(tests)}): {', '.join(tests)}")
    for test in unexplained:
        print(f"not meant: {test}")
    return unexplained


def passed(tests):
    """How many of the tests passed."""
    return sum(outcome == "passed" for outcome in tests.values())


# What follows runs in the processes of pytest, whose plugin this module is.


def pytest_configure(config):
    """Names the markers of Keras's tests, and puts our classes in the place of Keras's."""
    for name in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{name}: see Keras")
    if os.environ.get(SUBSTITUTED):
        substitute()


def pytest_runtest_logreport(report):
    """Writes what became of a test."""
    if "PYTEST_XDIST_WORKER" in os.environ or not (report.when == "call" or report.outcome != "passed"):
        return
    file, _, test = report.nodeid.partition("::")
    with open(os.environ[OUTCOMES], "a", encoding="utf-8") as outcomes:
        outcomes.write(json.dumps([file, test, report.outcome]) + "\n")


def substitute():
    """Has Keras's modules name the sparse layers, at sparsity 0 by default, and SNTASGD."""
    from keras_selfish import SNTASGD, mask_spec
    from keras_selfish.layers.forms import SPARSE_FORMS

    mask_spec.DEFAULT_SPARSITY = 0.0
    for keras_layer, sparse_layer in SPARSE_FORMS.items():
        setattr(keras.src.layers, keras_layer.__name__, sparse_layer)
        setattr(keras.layers, sparse_layer.__name__.removeprefix("Sparse"), sparse_layer)
    sgd = keras.src.optimizers.sgd
    sgd.SGD = keras.src.optimizers.SGD = keras.optimizers.SGD = SNTASGD


if __name__ == "__main__":
    main()
