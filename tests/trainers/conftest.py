"""Running a trainer: in this process, which saves an import of Keras, or as a user does in one of its own."""

import collections
import contextlib
import importlib
import io
import logging as python_logging
import os
import pathlib
import subprocess
import sys

import pytest
from absl import app, flags, logging

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = [
    f"trainers.{name}"
    for name in (
        "language_model",
        "image_classifier",
        "export",
        "evaluate",
        "generate",
        "report",
        "pack",
        "unpack",
    )
]

Ended = collections.namedtuple("Ended", "returncode stdout stderr")


@contextlib.contextmanager
def loaded(trainer):
    """The module of a program with flags that were never parsed; several have a --workdir."""
    flag_values = flags.FLAGS
    for name in PROGRAMS:
        for flag in list(flag_values.flags_by_module_dict().get(name, ())):
            if flag.name in flag_values:
                delattr(flag_values, flag.name)
        sys.modules.pop(name, None)
    parsed = flag_values.is_parsed()
    verbosity = logging.get_verbosity()
    try:
        yield importlib.import_module(f"trainers.{trainer}")
    finally:
        logging.set_verbosity(verbosity)
        if not parsed:
            flag_values.unparse_flags()


def run_here(trainer, workdir, *arguments):
    """Runs a trainer in this process: what `python -m trainers.NAME` does after parsing the command line.

    Args:
        trainer: "language_model", "image_classifier", or a program for what they made.
        workdir: The run's folder; None for a program without one.
        *arguments: Further flags.

    Returns:
        Exit status, standard output, and the log with the message of an error.
    """
    log, output = io.StringIO(), io.StringIO()
    handler = python_logging.StreamHandler(log)
    logger = logging.get_absl_logger()
    logger.addHandler(handler)
    returncode = 0
    try:
        with loaded(trainer) as module, contextlib.redirect_stdout(output):
            rest = flags.FLAGS(command(trainer, workdir, *arguments)[2:])
            logging.set_verbosity(logging.INFO)
            module.main(rest)
    except (flags.Error, app.UsageError) as error:
        returncode = 1
        log.write(str(error))
    except SystemExit as exit:
        returncode = exit.code if isinstance(exit.code, int) else 1
        log.write(str(exit.code))
    finally:
        logger.removeHandler(handler)
    return Ended(returncode, output.getvalue(), log.getvalue())


def command(trainer, workdir, *arguments):
    """The command line of a trainer in a process of its own."""
    of_workdir = [] if workdir is None else [f"--workdir={workdir}"]
    return [sys.executable, "-m", f"trainers.{trainer}", *of_workdir, *arguments]


def run_alone(trainer, workdir, *arguments):
    """Runs a trainer in a process of its own."""
    return subprocess.run(
        command(trainer, workdir, *arguments),
        cwd=REPOSITORY,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


Trainer = collections.namedtuple("Trainer", "run run_alone command settings flags")


@pytest.fixture(scope="session")
def trainer():
    """A function from a trainer's name to ways of using it, a `Trainer`."""

    def named(name):
        def of_name(function):
            return lambda *arguments: function(name, *arguments)

        def settings(*arguments):
            with loaded(name) as module:
                flags.FLAGS([name, *arguments])
                return module.settings_from_flags()

        def of_help():
            with loaded(name) as module:
                return flags.FLAGS.get_key_flags_for_module(module)

        return Trainer(of_name(run_here), of_name(run_alone), of_name(command), settings, of_help)

    return named


@pytest.fixture(scope="session")
def largest_file():
    """A context, for a number of bytes, in which no file of this process can grow over it."""

    @contextlib.contextmanager
    def limited(size):
        resource = pytest.importorskip("resource")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A little English: part of the text that Python carries."""
    import pydoc_data.topics

    folder = tmp_path_factory.mktemp("corpus")
    text = "\n".join(pydoc_data.topics.topics[name] for name in ("assert", "while", "with", "del", "pass"))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return folder
