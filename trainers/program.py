"""The frame of a trainer: from the command line to an exit status, with errors of one sentence."""

import contextlib
import ctypes
import os
import pathlib
import platform
import sys
import time

from absl import app, flags, logging

from trainers import distribution_jax, signals
from trainers.distribution import Worker
from trainers.files import RunError, WriteError, no_memory, no_room, user_path
from trainers.workdir import SCHEDULE, Paused, Workdir

PAUSED = 75  # exit status of a run that stopped at its time limit: "try again later" in sysexits.h
TIME_LIMIT = (
    "Seconds after which training stops, at the end of its present step, with a checkpoint from which the "
    f"same command goes on; the exit status is then {PAUSED}. At least one step is made, and the tests after "
    "training are not limited."
)
LARGEST = 3.4e38  # of float32

# TensorFlow reads these when it is imported, later. Of itself it uses oneDNN's products and convolutions on
# processors with AVX-512 only, though they are faster on others as well (`docs/design.md`).
for variable, value in {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1"}.items():
    os.environ.setdefault(variable, value)


def command(kind, settings_from_flags, train, smaller, errors=()):
    """The main function of a trainer: reads the parsed flags, trains, and exits with a sentence on errors.

    Args:
        kind: What is trained, such as "language model".
        settings_from_flags: Function that returns the settings of the run, with `to_json` and `from_json`.
        train: Function of the settled settings and the `Workdir`.
        smaller: Flags by which a run takes less memory, in words.
        errors: Further exception classes whose message is for the user.
    """

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"arguments must be flags. Received: {' '.join(argv[1:])}")
        began = time.monotonic()
        workdir = None
        try:
            check_floats()
            settings = settings_from_flags()
            workdir = Workdir(flags.FLAGS.workdir, kind)
            if flags.FLAGS.time_limit is not None:
                workdir.time_limit = flags.FLAGS.time_limit
            # Of several processes the first one writes; the others read.
            strategy = getattr(settings, "strategy", "none")
            writes = Worker.of(strategy).is_chief and distribution_jax.is_first(strategy)
            opened = workdir.open() if writes else contextlib.nullcontext()
            with opened, signals.last_words(workdir.last_words):
                train(settled(settings, workdir), workdir)
        except Paused:
            signals.wait_for_end()
            print(
                f"Paused at --time_limit={flags.FLAGS.time_limit:g}: {workdir.kept()}, from which the same "
                "command goes on",
                file=sys.stderr,
            )
            sys.exit(PAUSED)
        except Exception as error:
            end(error, (RunError, ValueError, OSError, *errors), workdir, smaller)
        logging.info("Finished in %.0f s", time.monotonic() - began)

    main.__module__ = train.__module__
    return main


def settled(settings, workdir):
    """The settings that the run in a `Workdir` begins or goes on with; writes nothing.

    Raises:
        RunError: if the folder belongs to a run with other settings or to something else.
    """

    def as_today(content):
        today = type(settings).from_json(content).to_json()
        # A setting that the earlier version did not have yet is what it is by default: that changes nothing.
        return {name: value for name, value in today.items() if name in content or name != SCHEDULE}

    return settings.from_json(workdir.settle(settings.to_json(), as_today))


def run(main):
    """Runs the main function of a trainer as a program: parses the command line, logs, exits."""
    keep_memory()
    flags.mark_flag_as_required("workdir")
    _start(main)


def tool(function, smaller=None):
    """The main function of a program that trains nothing: errors, too, are one sentence.

    Args:
        function: What the program does with the parsed flags.
        smaller: As in `command`; None (default) where there is no such flag.
    """

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"arguments must be flags. Received: {' '.join(argv[1:])}")
        try:
            check_floats()
            function()
        except Exception as error:
            end(error, (RunError, ValueError, OSError, ImportError, RuntimeError), smaller=smaller)

    main.__module__ = function.__module__
    return main


def run_tool(main):
    """Runs the main function of a program that trains nothing: parses the command line, logs, exits."""
    _start(main)


def _start(main):
    signals.watch()
    logging.set_verbosity(logging.INFO)
    if main.__module__ != "__main__":  # a console script: --help is of the module that it calls
        sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__
        for flag in flags.FLAGS.get_key_flags_for_module(main.__module__):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main)


def end(error, for_user, workdir=None, smaller=None):
    """Ends the program with a sentence, where an error is for the user or came of a full disk or memory.

    Args:
        error: The exception.
        for_user: Exception classes whose message is for the user.
        workdir: The run's `Workdir`, where there is one yet.
        smaller: As in `command`.
    """
    if logging.get_verbosity() >= logging.DEBUG:
        raise error
    reason = None if isinstance(error, RunError) else no_room(error)
    if reason is not None:
        name = getattr(error, "filename", None) or (workdir.path if workdir else "a file")
        error = WriteError(pathlib.Path(name), reason)
    if isinstance(error, WriteError) and workdir is not None:
        whole = f"the last checkpoint is whole, after {workdir.place}"
        kept = whole if workdir.has_checkpoint else "nothing was saved yet"
        advice = f"{kept}, so make room and start again with the same --workdir"
        error = WriteError(error.path, error.reason, advice)
    missing = None if isinstance(error, RunError) else no_memory(error)
    if missing is not None:
        error = RunError(_of_memory(missing, workdir, smaller))
    if not isinstance(error, for_user):
        raise error
    sys.exit(f"error: {error}")


def _of_memory(missing, workdir, smaller):
    """The sentence for a program that ran out of memory."""
    advice = ["free memory, or take a larger machine"]
    if workdir is not None and workdir.has_checkpoint:
        advice = [f"{workdir.kept()}, from which the same command goes on with more memory"]
    if smaller:
        advice.append(f"less is taken with a smaller {smaller}" + (" in a new --workdir" if workdir else ""))
    return f"The program must fit into memory. Received: {missing}; {'; '.join(advice)}"


def path(flag):
    """The path that a flag gives, in which ~ stands for a home folder; None where it was not given."""
    text = getattr(flags.FLAGS, flag)
    return None if text is None else user_path(f"--{flag}", text)


def check_floats():
    """Refuses flags whose number is none, or too large to compute with."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, float) and not abs(value) <= LARGEST:
            raise ValueError(f"--{name} must be a finite number. Received: --{name}={value}")


def file_to_write(flag):
    """The path that a flag names, whose folder must be there."""
    file = path(flag)
    if not file.parent.is_dir():
        raise RunError(f"--{flag} must name a file in a folder that exists. Received: --{flag}={file}")
    return file


def check_backend(export, *folders):
    """Refuses a run that could not be exported at its end: only TensorFlow writes SavedModels.

    Args:
        export: Whether it will be exported.
        *folders: `pathlib.Path` of each export, where nothing else may stand.
    """
    import keras

    backend = keras.backend.backend()
    if export and backend != "tensorflow":
        raise RunError(
            f"--export needs Keras's TensorFlow backend. Received: backend {backend!r}; train with "
            "--noexport, and give the same command with --export and KERAS_BACKEND=tensorflow afterwards"
        )
    if export:
        from keras_selfish.export.folder import check_free

        for folder in folders:
            check_free(folder)


def keep_memory():
    """Has glibc keep what is freed for what comes next, where it would return it to the kernel.

    A training step frees and allocates the same large arrays again and again; to get their pages anew took a
    sixth of a step of 0.35 s (`docs/design.md`).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # of malloc.h
    libc = ctypes.CDLL(None)
    for option, value in ((trim_threshold, 2**31 - 1), (mmap_max, 0), (arena_max, 1)):
        libc.mallopt(option, value)
