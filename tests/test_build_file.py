"""BUILD names every Python file of the tree once, under the right rule and with what it imports.

BUILD is Starlark, which as far as we use it is Python: it is executed here with functions that note
their arguments. That the real Bazel loads it is the last test.
"""

import ast
import collections
import os
import pathlib
import re
import shutil
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("keras_selfish", "trainers", "benchmarks", "examples", "tests", "tools")
PYTEST_MAIN = "tools/pytest_main.py"

pytestmark = pytest.mark.skipif(
    "TEST_SRCDIR" in os.environ, reason="inside Bazel a test sees only the files that it declares"
)

Target = collections.namedtuple("Target", "rule srcs deps main args")


def targets_of(text):
    """The targets that the text of a BUILD file makes: a dict from name to `Target`."""
    targets = {}

    def rule(kind):
        def make(name, srcs=(), deps=(), main=None, args=(), **attributes):
            assert name not in targets, f"BUILD has two targets {name!r}"
            deps = [label.removeprefix("//").removeprefix(":") for label in deps]
            targets[name] = Target(kind, list(srcs), deps, main, list(args))

        return make

    rules = {kind: rule(kind) for kind in ("py_library", "py_binary", "py_test")}
    others = {kind: lambda *args, **kwargs: None for kind in ("load", "package", "exports_files")}
    exec(compile(text, "BUILD", "exec"), {**rules, **others})
    return targets


def is_script(file):
    return "\nif __name__ == " in (REPOSITORY / file).read_text(encoding="utf-8")


def expected_rule(file):
    if pathlib.PurePath(file).name.startswith("test_"):
        return "py_test"
    if file.startswith(("trainers/", "benchmarks/", "examples/")) and is_script(file):
        return "py_binary"
    return "py_library"


def imported_modules(file):
    """Names of the modules of this repository that a file imports, anywhere in it."""
    package = file.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text(encoding="utf-8"), file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # `from package import module` and `from module import name` look the same.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def owner_of(module, owners):
    """The target that holds a module, a package or the module that a dotted name is taken from."""
    parts = module.split(".")
    if parts[0] not in FOLDERS:
        return None
    for length in (len(parts), len(parts) - 1):
        path = "/".join(parts[:length])
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if length and file in owners:
                return owners[file]
    raise AssertionError(f"no file of the tree is the module {module}")


def closure(name, targets, path=()):
    """The target's name and those of all that it depends on."""
    assert name not in path, f"BUILD has a cycle: {' -> '.join([*path, name])}"
    below = (closure(dep, targets, (*path, name)) for dep in targets[name].deps)
    return {name}.union(*below)


@pytest.fixture(scope="module")
def targets():
    return targets_of((REPOSITORY / "BUILD").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tree():
    files = (path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))
    return sorted(path.relative_to(REPOSITORY).as_posix() for path in files)


@pytest.fixture(scope="module")
def owners(targets):
    """A dict from file to the name of its target; the runner that all tests share has no owner."""
    return {file: name for name, target in targets.items() for file in target.srcs if file != PYTEST_MAIN}


def test_every_file_is_in_one_target(targets, tree):
    counts = collections.Counter(
        file for target in targets.values() for file in set(target.srcs) - {PYTEST_MAIN}
    )
    missing = [file for file in tree if file not in counts and file != PYTEST_MAIN]
    gone = sorted(set(counts) - set(tree))
    twice = sorted(file for file, count in counts.items() if count > 1)
    advice = [
        f'add "{file}" to the srcs of a {expected_rule(file)}, beside the files of its folder'
        for file in missing
    ]
    advice += [f'take "{file}" out: there is no such file' for file in gone]
    advice += [f'leave "{file}" in one target only' for file in twice]
    assert not advice, "In BUILD:\n" + "\n".join(advice)


def test_every_file_has_the_rule_of_its_kind(targets, owners, tree):
    wrong = {
        file: f"{targets[owners[file]].rule}, not {expected_rule(file)}"
        for file in owners.keys() & tree
        if targets[owners[file]].rule != expected_rule(file)
    }
    assert not wrong


def test_tests_run_their_own_file_with_pytest(targets):
    tests = {name: target for name, target in targets.items() if target.rule == "py_test"}
    assert tests
    for name, target in tests.items():
        file = f"{name}.py"
        assert target.srcs == [file, PYTEST_MAIN], name
        assert target.main == PYTEST_MAIN, name
        assert target.args == [file], name


def test_programs_run_a_file_of_theirs(targets):
    for name, target in targets.items():
        if target.rule == "py_binary":
            assert target.main in target.srcs, name


def test_dependencies_exist_and_have_no_cycle(targets):
    for name, target in targets.items():
        unknown = set(target.deps) - set(targets)
        assert not unknown, f"{name} depends on {unknown}, which BUILD does not have"
    for name in targets:
        closure(name, targets)


def test_the_package_target_has_all_of_the_package(targets):
    """`keras_selfish/__init__.py` loads its names when they are used: its imports do not tell."""
    parts = {name for name in targets if name.startswith("keras_selfish")}
    assert parts - closure("keras_selfish", targets) == set()


@pytest.mark.parametrize(
    ("user", "used"),
    [
        ("masks", "layers models rewiring optimizers export analysis data"),
        ("layers", "models rewiring optimizers export analysis data"),
        ("data", "masks layers models rewiring optimizers export analysis"),
        # These know masked weights through the protocol in masks.py, not the layers that have them.
        ("rewiring", "layers models data"),
        ("optimizers", "layers models data"),
        ("analysis", "layers models data"),
        # To rebuild a model in plain layers, export has to know the sparse ones.
        ("export", "models data"),
    ],
)
def test_layering(targets, user, used):
    if f"keras_selfish/{user}" not in targets:
        pytest.skip(f"there is no keras_selfish/{user}")
    below = closure(f"keras_selfish/{user}", targets)
    assert not below & {f"keras_selfish/{name}" for name in used.split()}


def test_the_package_does_not_use_the_programs(targets):
    assert all(name.startswith("keras_selfish") for name in closure("keras_selfish", targets))


def test_dependencies_cover_the_imports(targets, owners, tree):
    advice = set()
    for file in sorted(owners.keys() & tree):
        name = owners[file]
        available = closure(name, targets)
        for module in imported_modules(file):
            owner = owner_of(module, owners)
            if owner is not None and owner not in available:
                advice.add(f'"{name}" needs ":{owner}" in its deps: {file} imports {module}')
    assert not advice, "In BUILD:\n" + "\n".join(sorted(advice))


def test_the_check_sees_what_is_wrong():
    targets = targets_of(
        """
load("@rules_python//python:defs.bzl", "py_library", "py_test")
py_library(name = "a", srcs = ["a.py"], deps = [":b"])
py_library(name = "b", srcs = ["b.py"], deps = ["//:a"])
[py_test(name = test[:-3], srcs = [test]) for test in ["tests/test_c.py"]]
"""
    )
    assert targets["tests/test_c"].srcs == ["tests/test_c.py"]
    with pytest.raises(AssertionError, match="cycle: a -> b -> a"):
        closure("a", targets)


@pytest.mark.skipif(shutil.which("bazel") is None, reason="needs bazel")
def test_bazel_loads_it(targets, tmp_path):
    command = ["bazel", "--batch", f"--output_user_root={tmp_path}", "query", "//..."]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    # A Bazel without built-in Python rules fetches them from the registry of Bazel's modules.
    if result.returncode and re.search(r"Error accessing registry|bcr.bazel.build", result.stderr):
        pytest.skip("bazel could not reach the registry that has rules_python")
    assert result.returncode == 0, result.stderr
    assert {line.removeprefix("//:") for line in result.stdout.split()} == set(targets)
