"""What all tests share: a small repeatable machine, shared data, snippets in other processes."""

import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import textwrap

import hypothesis
import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# What JAX needs in order to run tests on a CPU, where most of the time is compilation of what runs once.
JAX_ON_CPU = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}

# The libraries read these when they are imported, so they stand before any import of them. What is
# already set wins: `CUDA_VISIBLE_DEVICES=0 python -m pytest` runs the suite on a GPU.
for variable, value in {
    "CUDA_VISIBLE_DEVICES": "-1",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_NUM_INTEROP_THREADS": "2",
    "TF_NUM_INTRAOP_THREADS": "2",
}.items():
    os.environ.setdefault(variable, value)

# Tracing makes objects by the hundred thousand that are needed for long: collected seldom, they take a tenth
# less of the time.
gc.set_threshold(200_000, 20, 20)

BACKENDS = ("tensorflow", "jax", "torch")
BACKEND = os.environ["KERAS_BACKEND"]
if BACKEND == "jax" and os.environ["CUDA_VISIBLE_DEVICES"] == "-1":
    for variable, value in JAX_ON_CPU.items():
        os.environ.setdefault(variable, value)

hypothesis.settings.register_profile(
    "local",
    deadline=None,  # the first example also traces and compiles
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("local"), derandomize=True, database=None
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config):
    """Divides TensorFlow's CPU in two, before a test module that is collected runs anything on it."""
    # The process that only hands tests to others needs no TensorFlow.
    hands_out = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if BACKEND != "tensorflow" or hands_out:
        return
    import tensorflow as tf

    # Both devices share one pool of threads.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )


def pytest_ignore_collect(collection_path):
    """On another backend a file in which no test is marked for it is not read: it may import TensorFlow."""
    if BACKEND == "tensorflow" or not collection_path.match("test_*.py"):
        return None
    return True if "mark.backends(" not in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(config, items):
    """Leaves the tests that run on this backend: those marked for it, and on TensorFlow those not marked."""
    chosen = {True: [], False: []}
    for item in items:
        marker = item.get_closest_marker("backends")
        names = marker.args if marker else BACKENDS[:1]
        if not names or not set(names) <= set(BACKENDS):
            raise pytest.UsageError(
                f"{item.nodeid}: `backends` must name some of {', '.join(BACKENDS)}. Received: {names}"
            )
        chosen[BACKEND in names].append(item)
    if chosen[False]:
        config.hook.pytest_deselected(items=chosen[False])
        items[:] = chosen[True]


@pytest.fixture(autouse=True)
def fresh_keras():
    """The same random numbers for each test, and no names or policies left by the one before."""
    keras = sys.modules.get("keras")
    if keras is None:  # a test of files only: importing Keras would cost more than the test
        yield
        return
    keras.utils.clear_session(free_memory=False)
    if BACKEND == "tensorflow":
        keras.utils.set_random_seed(1)
    else:  # that function would import TensorFlow to seed it, too; a new session draws its seeds from this
        random.seed(1)
    yield
    keras.utils.clear_session(free_memory=False)


@pytest.fixture(scope="session")
def since_keras():
    """A function that skips a test of what Keras has since a version: `since_keras("3.14")`."""

    def skip_before(version):
        installed = importlib.metadata.version("keras")
        if tuple(map(int, installed.split(".")[:2])) < tuple(map(int, version.split("."))):
            pytest.skip(f"needs Keras {version}. Installed: {installed}")

    return skip_before


@pytest.fixture(scope="session")
def two_replicas():
    """A `tf.distribute.MirroredStrategy` over two logical CPU devices.

    It sums on one device: TensorFlow numbers its collective operations anew for each strategy, and two
    strategies with different models in one process then take each other's.
    """
    if BACKEND != "tensorflow":
        pytest.skip("tf.distribute needs Keras's TensorFlow backend")
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())


@pytest.fixture
def cluster():
    """A function from a number of workers to the environments of their processes, which train together."""

    def environments(number):
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
        tasks = [{"type": "worker", "index": index} for index in range(number)]
        configs = [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        return [{**os.environ, "TF_CONFIG": config, "PYTHONPATH": path} for config in configs]

    return environments


@pytest.fixture(scope="session")
def shared():
    """The folder with the real corpora and golden numbers, which the repository does not hold."""
    folder = pathlib.Path(os.environ.get("KERAS_SELFISH_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data: no folder {folder} (set KERAS_SELFISH_SHARED)")
    return folder


@pytest.fixture(scope="session")
def run_python():
    """A function that runs a Python snippet in a process of its own and returns what it printed.

    `run_python(code, *arguments, backend="tensorflow", cwd=None, env=None, timeout=300)` dedents
    `code`, runs it under the Keras backend on the CPU with `arguments` in `sys.argv[1:]`, and fails
    the test with all its output if it exits with anything but 0. It skips the test where the
    backend's library is not installed.
    """

    def run(code, *arguments, backend="tensorflow", cwd=None, env=None, timeout=300):
        if importlib.util.find_spec(backend) is None:
            pytest.skip(f"needs {backend}")
        path = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            cwd=cwd,
            env={
                **os.environ,
                "CUDA_VISIBLE_DEVICES": "-1",
                "KERAS_BACKEND": backend,
                **(JAX_ON_CPU if backend == "jax" else {}),
                "PYTEST_ADDOPTS": "",  # a snippet that runs pytest is not the run whose options these are
                "PYTHONPATH": os.pathsep.join(filter(None, path)),
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if result.returncode != 0:
            pytest.fail(
                f"the snippet exited with {result.returncode} under {backend}\n"
                f"--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}",
                pytrace=False,
            )
        return result.stdout

    return run


@pytest.fixture
def jax_alone(tmp_path_factory, monkeypatch):
    """New processes run Keras on JAX and find no TensorFlow, as on a machine where it is not installed."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("needs jax")
    folder = tmp_path_factory.mktemp("jax_alone")
    code = """
        from importlib.machinery import PathFinder
        find_spec = PathFinder.find_spec

        def found(cls, name, path=None, target=None):
            return None if name.partition(".")[0] == "tensorflow" else find_spec(name, path, target)

        PathFinder.find_spec = classmethod(found)
    """
    (folder / "sitecustomize.py").write_text(textwrap.dedent(code), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="module")
def reused():
    """A function `reused(make, **arguments)`: what `make(**arguments)` makes, each time in its first state.

    `make` returns a compiled and built model. The model of the same arguments is the same one for all tests
    of a file, so that its training step is traced and compiled once; its variables and those of its
    optimizer are set back.
    """
    from keras import ops

    models = {}

    def model_of(make, **arguments):
        key = make, repr(sorted(arguments.items()))
        if key not in models:
            model = make(**arguments)
            model.optimizer.build(model.trainable_variables)
            variables = [*model.variables, *model.optimizer.variables]
            values = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
            models[key] = model, list(zip(variables, values, strict=True))
        model, first = models[key]
        for variable, value in first:
            variable.assign(value.copy())  # which JAX may take for its own
        return model

    return model_of


@pytest.fixture(scope="session")
def tfmot():
    """What TensorFlow Model Optimization has for sparsity."""
    pytest.importorskip("tf_keras")
    environment = dict(os.environ)
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    # It asks the whole process for Keras 2 wherever TensorFlow's own Keras is meant.
    os.environ.clear()
    os.environ.update(environment)
    return tfmot.sparsity.keras
