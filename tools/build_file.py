"""Writes BUILD from the tree: a target for each folder, program and test, with what its files import as deps.

Usage: python -m tools.build_file [--check]

With --check nothing is written: what differs is printed, and the exit status is 1 if anything does.

A folder of the package is a target, and so is each file of its top folder, with the `_tensorflow`, `_jax` and
`_torch` files beside it. Elsewhere a folder's files are one, but for programs and tests, each of which is a
target of its own. Modules that a string names count as imported: tests start programs and run snippets.
"""

import argparse
import ast
import dataclasses
import difflib
import os
import pathlib
import re
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("keras_selfish", "trainers", "examples", "benchmarks", "tools", "tests")
PACKAGE = "keras_selfish"
PYTEST_MAIN = "tools/pytest_main.py"
BACKEND = re.compile("_(tensorflow|jax|torch)$")  # of a file for one backend, beside the one for all

# In a string: `python -m trainers.report`, `from keras_selfish.layers import SparseLSTM`, trainers/report.py;
# and f"trainers.{name}", which may be any program of the folder.
NAME = re.compile(rf"\b(?:{'|'.join(FOLDERS)})(?:[./](?!py\b)\w+)+")
ANY = re.compile(rf"\b({'|'.join(FOLDERS)})\.$")

HEADER = """\
# Every Python file of the repository, in one target each. Written by `python -m tools.build_file`: run it
# after files or imports have changed.
#
#     bazel query //...
#     bazel test //:tests/test_masks
#     bazel run //:trainers/language_model -- --help
#
# Packages from PyPI (TensorFlow, Keras, ...) are no targets: they come from the site-packages of the
# Python that Bazel runs, so activate the environment of `pip install -e '.[test,plot]'` first.

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])
"""
SECTIONS = {
    "keras_selfish": "The package: a target per folder, and one per file of its top folder.",
    "trainers": "Trainers.",
    "examples": "Examples.",
    "benchmarks": "Benchmarks.",
    "tools": "Tools for those who work on the package.",
    "tests": "Tests: a target per file.",
}
DATA = {PACKAGE: ["keras_selfish/py.typed"], "tests/support": ["pyproject.toml"]}


@dataclasses.dataclass
class Target:
    """A target of BUILD: its rule, its files, and the names of the targets that it depends on."""

    rule: str
    srcs: list[str] = dataclasses.field(default_factory=list)
    deps: list[str] = dataclasses.field(default_factory=list)


def tree(root):
    """The Python files of the repository, sorted, relative to its root."""
    found = (path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return sorted(path.relative_to(root).as_posix() for path in found)


def target_of(file, text):
    """The name and the rule of the target that a file belongs to."""
    path = pathlib.PurePosixPath(file)
    folder, stem = path.parent.as_posix(), path.stem
    top = path.parts[0]
    if stem.startswith("test_"):
        return file.removesuffix(".py"), "py_test"
    if top == "tests":
        return f"{folder}/{'support' if stem == 'conftest' else 'programs'}", "py_library"
    if top == PACKAGE:
        if folder != PACKAGE or stem == "__init__":
            return folder, "py_library"
        return f"{PACKAGE}/{BACKEND.sub('', stem)}", "py_library"
    if top in ("trainers", "examples", "benchmarks") and "\nif __name__ == " in text:
        return file.removesuffix(".py"), "py_binary"
    return top, "py_library"


def imported_modules(file, text, modules):
    """Names of the modules of this repository that a file imports, anywhere in it, or names in a string.

    Args:
        file: The file, relative to the root.
        text: Its text.
        modules: Dict from the names of all modules to their files.
    """
    package = file.removesuffix(".py").split("/")[:-1]
    nodes = list(ast.walk(ast.parse(text, file)))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    reads_strings = package[0] != PACKAGE  # whose lazy names would make each part depend on all others
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # `from package import module` and `from module import name` look the same.
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif reads_strings and is_string(node) and node not in docstrings:
            names = [name.replace("/", ".") for name in NAME.findall(node.value)]
            yield from (name for name in names if module_of(name, modules))
            for folder in ANY.findall(node.value):
                yield from (name for name in modules if name.startswith(f"{folder}."))


def is_string(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def module_of(name, modules):
    """The module that a dotted name is, or that it is a name in; None if it is none of these."""
    return next((one for one in (name, name.rpartition(".")[0]) if one in modules), None)


def module_name(file):
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def targets_of(root=REPOSITORY):
    """The targets of a tree: a dict from name to `Target`, in the order of BUILD.

    Raises:
        SystemExit: if a file imports a module of the repository that does not exist, or targets need each
            other.
    """
    texts = {file: (root / file).read_text(encoding="utf-8") for file in tree(root)}
    modules = {module_name(file): file for file in texts}
    targets, owners = {}, {}
    for file, text in texts.items():
        if file == PYTEST_MAIN:
            continue
        name, rule = target_of(file, text)
        targets.setdefault(name, Target(rule)).srcs.append(file)
        owners[file] = name
    for name, target in targets.items():
        target.deps = sorted(dependencies(name, target, targets, owners, texts, modules))
    check_order(targets)
    return dict(sorted(targets.items(), key=lambda pair: sort_key(*pair)))


def dependencies(name, target, targets, owners, texts, modules):
    """The names of the targets that a target needs."""
    found = set()
    for file in target.srcs:
        for imported in imported_modules(file, texts[file], modules):
            if imported.split(".")[0] not in FOLDERS:
                continue
            module = module_of(imported, modules)
            if module is None:
                raise SystemExit(f"{file} imports {imported}, which no file of the tree is.")
            # Importing a module imports the packages around it, too.
            around = [".".join(module.split(".")[: k + 1]) for k in range(module.count("."))]
            found |= {owners.get(modules[one]) for one in (module, *around) if one in modules}
    if name == PACKAGE:  # whose names load their modules when they are used
        found = {one for one in targets if one.startswith(f"{PACKAGE}/")}
    elif name.startswith(f"{PACKAGE}/"):
        found -= {PACKAGE}  # each part would depend on all others
    if target.rule == "py_test":  # pytest loads these itself
        folders = [parent.as_posix() for parent in pathlib.PurePosixPath(name).parents]
        beside = {f"{folder}/support" for folder in folders} | {f"{folders[0]}/programs"}
        found |= beside & set(targets)
    return {one for one in found - {name, None} if targets[one].rule != "py_test"}


def check_order(targets):
    """Raises `SystemExit` if a target needs itself, by way of others."""

    def visit(name, path):
        if name in path:
            circle = [*path[path.index(name) :], name]
            raise SystemExit(f"These targets need each other: {' -> '.join(circle)}.")
        if name not in done:
            for dep in targets[name].deps:
                visit(dep, [*path, name])
            done.add(name)

    done = set()
    for name in targets:
        visit(name, [])


def closure(name, targets):
    """The target's name and those of all that it depends on."""
    return {name}.union(*(closure(dep, targets) for dep in targets[name].deps))


def sort_key(name, target):
    """By section, and in each libraries before programs before tests."""
    top = name.split("/")[0]
    rules = ("py_library", "py_binary", "py_test")
    return FOLDERS.index(top), rules.index(target.rule), name


def text_of(targets):
    """The text of BUILD."""
    parts = [HEADER]
    for folder in FOLDERS:
        of_folder = {name: target for name, target in targets.items() if name.split("/")[0] == folder}
        parts.append(f"\n# {SECTIONS[folder]}\n")
        parts += [rule_text(name, one) for name, one in of_folder.items() if one.rule != "py_test"]
        if tests := {name: one for name, one in of_folder.items() if one.rule == "py_test"}:
            parts.append(tests_text(tests))
    return "".join(parts)


def rule_text(name, target):
    lines = [f'\n{target.rule}(\n    name = "{name}",\n']
    if target.rule == "py_library" and name.split("/")[0] in ("tools", "tests"):
        lines.append("    testonly = True,\n")
    lines.append(list_text("srcs", target.srcs))
    lines.append(list_text("data", DATA.get(name, [])))
    if target.rule == "py_binary":
        lines.append(f'    main = "{target.srcs[0]}",\n')
    lines.append(list_text("deps", [f":{dep}" for dep in target.deps]))
    return "".join([*lines, ")\n"])


def list_text(attribute, values, assigned=" = ", indent="    "):
    if not values:
        return ""
    if len(values) == 1:
        return f'{indent}{attribute}{assigned}["{values[0]}"],\n'
    lines = "".join(f'{indent}    "{value}",\n' for value in values)
    return f"{indent}{attribute}{assigned}[\n{lines}{indent}],\n"


def tests_text(tests):
    """A dict from test files to what they need, and the rule that makes a target of each."""
    entries = (
        list_text(f'"{one.srcs[0]}"', [f":{dep}" for dep in one.deps], assigned=": ")
        for one in tests.values()
    )
    return f"""
TESTS = {{
{"".join(entries)}}}

PYTEST_MAIN = "{PYTEST_MAIN}"

[
    py_test(
        name = test[:-len(".py")],
        srcs = [
            test,
            PYTEST_MAIN,
        ],
        args = [test],
        main = PYTEST_MAIN,
        deps = deps,
    )
    for test, deps in TESTS.items()
]
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and say what differs")
    parser.add_argument("--root", type=pathlib.Path, default=REPOSITORY, help="the repository")
    options = parser.parse_args(arguments)
    file = options.root / "BUILD"
    text = text_of(targets_of(options.root))
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if not options.check:
        if text != before:
            beside = file.with_name("BUILD.new")
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, file)
        return 0
    lines = (before.splitlines(), text.splitlines())
    print("\n".join(difflib.unified_diff(*lines, "BUILD", "BUILD of the tree", lineterm="")))
    if text != before:
        print("BUILD differs from the tree: run `python -m tools.build_file`.")
    return int(text != before)


if __name__ == "__main__":
    sys.exit(main())
