"""Training on several devices of one or more processes with JAX, by `keras.distribution`.

Several processes are started with the same command and Keras's variables `KERAS_DISTRIBUTION_JOB_ADDRESSES`,
`KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`. The first one writes the folder of the
run; to resume it all of them must be able to read that folder.
"""

import atexit
import contextlib
import os
import re
import shutil
import sys
import tempfile

from absl import logging

from trainers.files import RunError, beside

STRATEGIES = ("data_parallel", "model_parallel")
BACKENDS = {"mirrored": "tensorflow", **dict.fromkeys(STRATEGIES, "jax")}

SEVERAL_PROCESSES, PROCESS = "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_PROCESS_ID"


def is_first(strategy):
    """Whether this process is the first, or only, one of a run with this --strategy."""
    return strategy not in STRATEGIES or os.environ.get(PROCESS, "0").strip() == "0"


def is_alone(strategy):
    """Whether this process is the only one of a run with this --strategy."""
    return strategy != "multi_worker" and not (strategy in STRATEGIES and SEVERAL_PROCESSES in os.environ)


def check_alone(strategy):
    """Refuses several processes where a trainer has one."""
    if not is_alone(strategy):
        raise ValueError(
            f"{SEVERAL_PROCESSES} must be left out: image classifiers are trained by one process. Received: "
            f"{SEVERAL_PROCESSES}={os.environ[SEVERAL_PROCESSES]} --strategy={strategy}"
        )


def replicas():
    """The number of devices that a batch is divided among, 1 without a distribution."""
    import keras

    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def check_time_limit(strategy, seconds):
    """Refuses a time limit where several processes would have to stop at the same step."""
    if seconds is not None and not is_alone(strategy):
        raise ValueError(
            "--time_limit must be left out where a run has several processes, which would not stop at the "
            f"same step. Received: --time_limit={seconds:g} --strategy={strategy}; end the processes by a "
            "signal instead, and each epoch's checkpoint is kept"
        )


def check_backend(strategy):
    """Refuses a strategy that Keras's backend does not have."""
    import keras

    needed, backend = BACKENDS.get(strategy), keras.backend.backend()
    if needed not in (None, backend):
        raise ValueError(
            f"--strategy={strategy} needs Keras's backend {needed!r}. Received: backend {backend!r}; set "
            f"KERAS_BACKEND={needed}, or take another strategy"
        )


def check_columns(settings, replicas):
    """Refuses numbers of columns that cannot be divided among replicas."""
    for name in ("batch_size", "evaluation_columns"):
        columns = getattr(settings, name, None) or 0
        if columns % replicas:
            raise ValueError(
                f"--{name} must be a multiple of the number of replicas. Received: "
                f"--{name}={columns}, {replicas} replicas"
            )


def begin(settings, architecture, workdir):
    """Joins the other processes and has Keras divide what is made from now on among all devices.

    Args:
        settings: Settings of the run.
        architecture: The model's `Architecture`; None where only batches are divided.
        workdir: The run's `Workdir`.

    Returns:
        The `Workdir` to write to: that of the run in the first process, one that is thrown away in others.
    """
    _make_room_for_collectives()
    if SEVERAL_PROCESSES in os.environ:
        _join()
    import keras

    devices = keras.distribution.list_devices()
    strategy = _DISTRIBUTIONS[settings.strategy](settings, architecture, devices)
    keras.distribution.set_distribution(strategy)
    logging.info("%s over %d devices", settings.strategy, len(devices))
    return _workdir_of_process(workdir)


def _data_parallel(settings, architecture, devices):
    import keras

    check_columns(settings, len(devices))
    return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)


def _model_parallel(settings, architecture, devices):
    import keras

    from keras_selfish.models import layout_map

    if len(devices) == 1:
        raise ValueError(
            "--strategy=model_parallel needs several devices. Received: 1 device; take --strategy=none, or "
            "have more, on a CPU by XLA_FLAGS=--xla_force_host_platform_device_count=4"
        )
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
    layouts = layout_map(architecture, mesh)
    return keras.distribution.ModelParallel(layout_map=layouts, auto_shard_dataset=False)


_DISTRIBUTIONS = {"data_parallel": _data_parallel, "model_parallel": _model_parallel}


def _make_room_for_collectives():
    """Gives XLA threads enough where one processor stands for several devices.

    What the devices exchange blocks a thread of each until all have come. With one for each device two such
    exchanges at once wait for each other for ever.
    """
    count = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if count:
        os.environ.setdefault("NPROC", str(8 * int(count[1])))  # read when JAX first computes


def _join():
    import jax
    import keras

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        keras.distribution.initialize()
    except (RuntimeError, ValueError) as error:
        given = {name: value for name, value in os.environ.items() if name.startswith("KERAS_DISTRIBUTION_")}
        raise RunError(
            "The processes of a run must find each other by KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES "
            f"and _PROCESS_ID: {str(error).splitlines()[0]}. Received: {given}"
        ) from error


def _workdir_of_process(workdir):
    import jax

    if jax.process_index() == 0:
        return workdir
    logging.set_verbosity(logging.WARNING)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # What a killed run has left beside its place the first process moves there when it begins.
    source = next((path for path in (beside(workdir.best), workdir.best) if path.exists()), None)
    if source is not None:
        shutil.copy(source, os.path.join(folder, workdir.best.name))
    return workdir.elsewhere(folder)


@contextlib.contextmanager
def undivided_batches():
    """Within the block a batch may have fewer columns than there are devices that divide batches."""
    import keras

    distribution = keras.distribution.distribution()
    if not isinstance(distribution, keras.distribution.DataParallel):
        yield
        return
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)
