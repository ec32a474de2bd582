"""Runs the tests on several versions of Python, Keras, TensorFlow and JAX, each in an environment of its own.

Usage: python -m tools.compatibility [--quick] [--rows oldest newest] [--tests tests/layers] [--output FILE]

Each row of ROWS is installed as setup.cfg asks for it, with these versions; one that its ranges do not admit
is reported as such. With uv on the PATH an environment takes seconds, else pip's minutes. The table that is
printed says how many tests passed, failed and were skipped on each backend; the exit status is 1 if any
failed. Environments stay in --environments for the next time; each takes 3 GB, which uv shares in part.
"""

import argparse
import configparser
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BACKENDS = ("tensorflow", "jax")
QUICK = ("layers", "rewiring", "optimizers", "export", "test_package.py", "test_keras_internals.py")
# Those that look at the repository and at tools, not at what is installed.
ALWAYS_LEFT_OUT = ("tests/typing", "tests/test_build_file.py", "tests/test_documents.py")


@dataclasses.dataclass(frozen=True)
class Row:
    """Versions that are tested together; those that are not named are the newest that fit."""

    name: str
    python: str
    keras: str
    tensorflow: str
    text: str
    jax: str
    numpy: str

    @property
    def folder(self):
        """Its name as that of a folder."""
        return re.sub(r"[^\w.]+", "-", self.name)

    def pins(self):
        """What pip is to be constrained to, a list of requirements."""
        minor = self.tensorflow.rpartition(".")[0]
        exact = {
            "keras": self.keras,
            "tensorflow": self.tensorflow,
            "tensorflow-text": self.text,
            "jax": self.jax,
            "numpy": self.numpy,
        }
        return [*(f"{name}=={version}" for name, version in exact.items()), f"tf_keras=={minor}.*"]


ROWS = (
    Row("oldest", "3.11", "3.12.0", "2.19.0", "2.19.0", "0.7.0", "2.0.2"),
    Row("3.13", "3.11", "3.13.2", "2.19.1", "2.19.0", "0.8.3", "2.1.3"),
    Row("3.14", "3.12", "3.14.1", "2.20.0", "2.20.1", "0.9.2", "2.2.6"),
    Row("old TensorFlow", "3.12", "3.15.1", "2.19.1", "2.19.0", "0.11.2", "2.1.3"),
    Row("old Keras", "3.13", "3.12.4", "2.21.0", "2.21.1", "0.10.2", "2.3.5"),
    Row("newest", "3.13", "3.15.1", "2.21.0", "2.21.1", "0.12.0.1", "2.5.5"),
)


@dataclasses.dataclass
class Result:
    """What the tests of a row said on one backend."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    problem: str = ""

    def __str__(self):
        if self.problem:
            return self.problem
        counts = {"passed": self.passed, "failed": self.failed, "skipped": self.skipped}
        shown = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "passed")
        return f"{shown} ({self.seconds:.0f} s)"


def requirements(extra="test", path=REPOSITORY / "setup.cfg"):
    """What the package and an extra require, a list of lines."""
    config = configparser.ConfigParser()
    config.read(path, encoding="utf-8")
    text = config["options"]["install_requires"] + config["options.extras_require"][extra]
    return [line.partition("#")[0].strip() for line in text.split("\n") if line.strip()]


def interpreter(version):
    """The path of a Python of this minor version; None if none is found."""
    of_pyenv = sorted(pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True)
    for candidate in (shutil.which(f"python{version}"), *of_pyenv, sys.executable):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        if candidate is not None:
            told = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
            if told.stdout.strip() == version:
                return candidate
    return None


def make_environment(row, folder):
    """Makes the virtual environment of a row, unless it is there; returns its Python and what went wrong."""
    home = folder / row.folder
    python = home / "bin" / "python"
    done = home / "installed.txt"
    wanted = "\n".join([*requirements(), *row.pins()])
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return python, ""
    base = interpreter(row.python)
    if base is None:
        return None, f"no Python {row.python}"
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    constraints = folder / f"{home.name}.txt"
    constraints.write_text("\n".join(row.pins()), encoding="utf-8")
    uv = shutil.which("uv")
    make = [uv, "venv", "--quiet", "--python", base, home] if uv else [base, "-m", "venv", home]
    pip = (
        [uv, "pip", "install", "--quiet", "--python", python]
        if uv
        else [python, "-m", "pip", "install", "-q"]
    )
    for command in (make, [*pip, "--constraint", constraints, *requirements()]):
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            (folder / f"{home.name}.log").write_text(ran.stdout + ran.stderr, encoding="utf-8")
            return None, f"not installable, see {folder / f'{home.name}.log'}"
    done.write_text(wanted, encoding="utf-8")
    return python, ""


def run_tests(python, backend, tests, workers, log):
    """Runs pytest in an environment; its output goes to a file."""
    options = ["-q", "-n", str(workers), "-p", "no:cacheprovider"]
    options += [f"--ignore={path}" for path in ALWAYS_LEFT_OUT]
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    environment = {**os.environ, "KERAS_BACKEND": backend, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    start = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        ran = subprocess.run(
            [python, "-m", "pytest", *options, *tests],
            cwd=REPOSITORY,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    result = result_of(log.read_text(encoding="utf-8", errors="replace"))
    result.seconds = time.monotonic() - start
    if ran.returncode not in (0, 1) and not result.failed:
        result.problem = f"pytest ended with {ran.returncode}, see {log}"
    return result


def result_of(output):
    """The counts of pytest's last line."""
    lines = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    counts = (
        {word: int(count) for count, word in re.findall(r"(\d+) ([a-z]+?)s?\b", lines[-1])} if lines else {}
    )
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return Result(counts.get("passed", 0), failed, counts.get("skipped", 0))


def table(rows):
    """A table in Markdown of pairs (row, dict from backend to result)."""
    lines = ["| Python | Keras | TensorFlow | JAX | NumPy | on TensorFlow | on JAX |", "| --- " * 7 + "|"]
    for row, results in rows:
        versions = (row.python, row.keras, row.tensorflow, row.jax, row.numpy)
        cells = [*versions, *(str(results.get(backend, "")) for backend in BACKENDS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tests", nargs="+", default=["tests"], help="what pytest is given")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="names of rows")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--workers", type=int, default=2, help="of pytest-xdist")
    parser.add_argument("--environments", type=pathlib.Path, default=pathlib.Path("/tmp/compatibility"))
    parser.add_argument("--output", type=pathlib.Path, help="where to write the table, too")
    options = parser.parse_args(arguments)
    tests = [f"tests/{name}" for name in QUICK] if options.quick else options.tests
    done = []
    for row in ROWS:
        if options.rows and row.name not in options.rows:
            continue
        python, problem = make_environment(row, options.environments)
        results = {}
        for backend in options.backends:
            log = options.environments / f"{row.folder}-{backend}.log"
            results[backend] = (
                Result(problem=problem)
                if python is None
                else run_tests(python, backend, tests, options.workers, log)
            )
            print(f"{row.name}, {backend}: {results[backend]}", file=sys.stderr)
        done.append((row, results))
    print(table(done))
    if options.output:
        options.output.write_text(f"{table(done)}\n", encoding="utf-8")
    return int(any(one.failed or one.problem for _, results in done for one in results.values()))


if __name__ == "__main__":
    sys.exit(main())
