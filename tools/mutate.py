"""Whether the tests notice when the package is broken: puts in one mutant after the other and runs them.

    python -m tools.mutate                 # all of tools/mutants.py against the tests named beside each
    python -m tools.mutate --whole 3 17    # these two against the whole default suite
    python -m tools.mutate --tree=FOLDER   # against the tests of another checkout

It works on a copy of the tree and prints a line for each mutant, at the end the number caught. A mutant whose
own tests do not catch it is tried against the whole suite of its backend with --whole.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from tools.mutants import MUTANTS

# Seconds. A mutant that makes a test run for ever is noticed, too.
TIMEOUT = 1800

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def copied(tree, folder):
    """A copy of the files that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=tree,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (tree / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, folder / name)


def run_tests(folder, mutant, whole):
    """Runs tests until the first failure; returns pytest's exit status and the name of what failed."""
    tests = [] if whole else [f"tests/{name}" for name in mutant.tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    if mutant.backend != "tensorflow":
        command += ["-m", "backends and not slow"]
    env = {**os.environ, "KERAS_BACKEND": mutant.backend, "PYTHONPATH": str(folder), "CI": "true"}
    env.setdefault("KERAS_SELFISH_SHARED", str(REPOSITORY.parent / "shared"))
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no end within {TIMEOUT} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, failed[0][:110] if failed else ""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="which mutants, by number; default all")
    parser.add_argument("--whole", action="store_true", help="run the whole default suite for each")
    parser.add_argument("--tree", type=pathlib.Path, default=REPOSITORY, help="the checkout to break")
    options = parser.parse_args(arguments)
    caught, numbers = 0, options.numbers or range(1, len(MUTANTS) + 1)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        copied(options.tree, folder)
        for number in numbers:
            mutant = MUTANTS[number - 1]
            path = folder / "keras_selfish" / mutant.file
            text = path.read_text(encoding="utf-8")
            if text.count(mutant.old) != 1:
                parser.exit(
                    2,
                    f"{mutant.file} must hold {mutant.old!r} once; it does {text.count(mutant.old)} times\n",
                )
            began = time.perf_counter()
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
            status, failed = run_tests(folder, mutant, options.whole)
            path.write_text(text, encoding="utf-8")
            if status not in (0, 1):
                parser.exit(2, f"pytest ended with status {status} for mutant {number}\n")
            caught += status
            verdict = "caught  " if status else "survived"
            seconds = time.perf_counter() - began
            print(
                f"{number:2} {verdict} {seconds:4.0f} s  {mutant.file}: {mutant.new.strip()[:50]}  {failed}",
                flush=True,
            )
    print(f"{caught} of {len(numbers)} caught")


if __name__ == "__main__":
    main()
