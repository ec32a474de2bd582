"""Type checkers see what the package is: its names, the arguments of its layers, and mistakes in them."""

import ast
import collections
import dataclasses
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import types
import zipfile

import keras
import pytest

from keras_selfish import layers, masks, models, rewiring
from keras_selfish.layers import options
from keras_selfish.layers.forms import PLAIN_FORMS, SPARSE_FORMS
from keras_selfish.mask_spec import MASK_ARGUMENTS
from keras_selfish.models.options import ArchitectureOptions, LanguageModelOptions
from keras_selfish.rewiring.options import RewiringOptions

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PACKAGE = REPOSITORY / "keras_selfish"
# What users name: all packages that export names but that of the data, and the module of masks.
PUBLIC = ("", ".analysis", ".conversion", ".data", ".export", ".layers", ".masks", ".models")
PUBLIC += (".optimizers", ".recurrence", ".rewiring", ".switcher")

pytestmark = pytest.mark.skipif(
    "TEST_SRCDIR" in os.environ, reason="inside Bazel a test sees only the files that it declares"
)


def checked_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


# The lazy names.


def lazy_packages():
    for file in sorted(PACKAGE.rglob("__init__.py")):
        if "lazy_attributes(" in file.read_text(encoding="utf-8"):
            yield ".".join(file.parent.relative_to(REPOSITORY).parts)


@pytest.mark.parametrize("name", list(lazy_packages()))
def test_lazy_names_are_those_that_type_checkers_read(name):
    package = importlib.import_module(name)
    tree = ast.parse(pathlib.Path(package.__file__).read_text(encoding="utf-8"))
    imports = [node for block in filter(checked_only, tree.body) for node in block.body]
    sources = {alias.name: node.module for node in imports for alias in node.names}
    missing = sorted(set(package.__all__) - set(sources) - {"__version__"})
    assert not missing, f"import {', '.join(missing)} under `if TYPE_CHECKING` of {package.__file__}"
    for attribute, module in sources.items():
        assert getattr(package, attribute) is getattr(importlib.import_module(module), attribute), attribute


# What is annotated.


def functions_of(value):
    """A function, or the public ones and the constructor of a class and of its bases in this package."""
    if isinstance(value, types.FunctionType):
        yield value
    for base in value.__mro__ if inspect.isclass(value) else ():
        if base.__module__.startswith("keras_selfish"):
            for name, member in vars(base).items():
                if name in ("__init__", "__call__") or not name.startswith("_"):
                    parts = (member.fget, member.fset) if isinstance(member, property) else (member,)
                    yield from (getattr(part, "__func__", part) for part in parts if part)


def public_functions():
    found = {}
    for suffix in PUBLIC:
        module = importlib.import_module(f"keras_selfish{suffix}")
        for name in module.__all__:
            for function in map(inspect.unwrap, filter(callable, functions_of(getattr(module, name)))):
                # Dataclasses write some of their methods themselves.
                if isinstance(function, types.FunctionType) and os.path.isfile(function.__code__.co_filename):
                    found[f"{function.__module__}.{function.__qualname__}"] = function
    return {name: f for name, f in found.items() if name.startswith("keras_selfish.")}


def test_every_public_function_is_annotated():
    functions = public_functions()
    assert len(functions) > 300
    missing = []
    for name, function in functions.items():
        signature = inspect.signature(function)
        if signature.return_annotation is signature.empty:
            missing.append(f"{name}: what it returns")
        for index, parameter in enumerate(signature.parameters.values()):
            is_self = index == 0 and parameter.name in ("self", "cls")
            if parameter.annotation is parameter.empty and not is_self:
                missing.append(f"{name}: {parameter.name}")
    assert missing == []


# Arguments that are handed on: their names stand in the annotations once more.


def parameters_of(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)} - {"self"}


def constructor(cls):
    """The `__init__` of a class that type checkers read, as a node."""
    for base in cls.__mro__:
        if base.__module__.startswith("keras_selfish"):
            tree = ast.parse(pathlib.Path(inspect.getfile(base)).read_text(encoding="utf-8"))
            (found,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == base.__name__)
            blocks = [*(node.body for node in filter(checked_only, found.body)), found.body]
            for node in (node for block in blocks for node in block):
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    return node
    raise AssertionError(f"{cls} has no constructor")


def declared(cls):
    """The names of all arguments that type checkers admit."""
    node = constructor(cls)
    named = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)} - {"self"}
    handed_on = re.fullmatch(r"Unpack\[(\w+)\]", ast.unparse(node.args.kwarg.annotation))[1]
    return named | set(getattr(options, handed_on).__annotations__)


OF_KERAS = [plain_class for plain_class in SPARSE_FORMS if plain_class.__module__.startswith("keras.")]


@pytest.mark.parametrize("keras_layer", OF_KERAS, ids=lambda layer: layer.__name__)
def test_sparse_layers_declare_the_arguments_of_keras(keras_layer):
    sparse_class = SPARSE_FORMS[keras_layer]
    accepted = parameters_of(keras_layer.__init__) | set(PLAIN_FORMS[sparse_class].without)
    for base in keras_layer.__mro__:
        if base in (keras.layers.RNN, keras.layers.Embedding, keras.layers.Layer):  # which get the rest
            accepted |= parameters_of(base.__init__)
    assert declared(sparse_class) == accepted - {"cell"}


@pytest.mark.parametrize(
    "layer",
    [
        layers.ActivationRegularization(),
        layers.LockedDropout(0.5),
        layers.MixtureOfSoftmaxes(8, 2, 4),
        layers.SparseONLSTM(8, 4),
        layers.SparseONLSTMCell(8, 4),
        layers.SparseRHN(8),
        layers.SparseRHNCell(8),
        layers.SwitchedDense(8),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_declare_what_their_config_holds(layer):
    assert set(layer.get_config()) <= declared(type(layer))


def test_options_are_the_arguments_they_stand_for():
    fields = {field.name for field in dataclasses.fields(models.Architecture)}
    assert set(RewiringOptions.__annotations__) == parameters_of(rewiring.Rewiring) - {"pruning_rate"}
    assert set(ArchitectureOptions.__annotations__) == fields - {"vocabulary_size", "units"}
    assert tuple(options.MaskOptions.__annotations__) == MASK_ARGUMENTS
    own = parameters_of(models.LanguageModel.__init__)
    assert set(LanguageModelOptions.__annotations__) == (fields | own) - {"vocabulary_size"}
    assert set(masks.DISTRIBUTIONS) == set(options.Distribution.__args__)


# What a checker says.


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """What mypy reports of the package and the programs here: a dict from file to pairs (line, code)."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("needs mypy, which the extra `test` installs")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--no-error-summary",
        "--cache-dir",
        tmp_path_factory.mktemp("mypy"),
    ]
    files = ["keras_selfish", HERE / "user_program.py", HERE / "mistakes.py"]
    result = subprocess.run([*command, *files], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert not result.stderr
    found = collections.defaultdict(list)
    for line in result.stdout.splitlines():
        if match := re.match(r"(.+?):(\d+): error: .*\[([a-z-]+)\]$", line):
            found[pathlib.Path(match[1]).name].append((int(match[2]), match[3]))
        else:
            assert ": note: " in line, line
    return found


def test_mypy_finds_nothing_in_the_package_and_in_a_program_that_uses_it(errors):
    assert {file: found for file, found in errors.items() if file != "mistakes.py"} == {}


def test_mypy_finds_the_mistakes(errors):
    lines = (HERE / "mistakes.py").read_text(encoding="utf-8").splitlines()
    marked = [(number, re.search(r"  # ([a-z-]+)$", line)) for number, line in enumerate(lines, 1)]
    assert errors["mistakes.py"] == [(number, match[1]) for number, match in marked if match]


def test_the_program_runs(capsys):
    runpy.run_path(str(HERE / "user_program.py"), run_name="__main__")
    assert capsys.readouterr().out.endswith("done\n")


def test_a_wheel_says_that_it_is_typed(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "keras_selfish", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "keras_selfish/py.typed" in zipfile.ZipFile(wheel).namelist()
