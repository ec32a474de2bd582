"""BUILD is what `tools/build_file.py` writes of the tree, and each part of the package uses only what it may.

That the real Bazel loads the file is the last test.
"""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from tools.build_file import PYTEST_MAIN, closure, main, targets_of, text_of, tree

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    "TEST_SRCDIR" in os.environ, reason="inside Bazel a test sees only the files that it declares"
)


@pytest.fixture(scope="module")
def targets():
    return targets_of()


@pytest.fixture
def small(tmp_path):
    """A function that writes files of a small tree, from a dict of their texts, and returns its root."""

    def write(texts):
        for name, text in texts.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return tmp_path

    return write


def loaded(text):
    """The targets that BUILD makes, a dict from name to attributes. What we write is Python as well."""
    made = {}

    def make(name, **attributes):
        assert name not in made
        made[name] = attributes

    rules = dict.fromkeys(("py_library", "py_binary", "py_test"), make)
    others = dict.fromkeys(("load", "package"), lambda *args, **kwargs: None)
    exec(compile(text, "BUILD", "exec"), {**rules, **others})
    return made


def test_it_is_that_of_the_tree(capsys):
    status = main(["--check"])
    assert status == 0, capsys.readouterr().out


def test_every_file_is_in_one_target(targets):
    made = loaded(text_of(targets))
    assert set(made) == set(targets)
    files = [file for attributes in made.values() for file in attributes["srcs"] if file != PYTEST_MAIN]
    assert sorted([*files, PYTEST_MAIN]) == tree(REPOSITORY)
    for name, attributes in made.items():
        assert [dep.removeprefix(":") for dep in attributes.get("deps", [])] == targets[name].deps
        if "main" in attributes:
            assert attributes["main"] in attributes["srcs"]


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
    below = closure(f"keras_selfish/{user}", targets)
    assert not below & {f"keras_selfish/{name}" for name in used.split()}


def test_the_package_does_not_use_the_programs(targets):
    parts = {name for name in targets if name.startswith("keras_selfish")}
    assert closure("keras_selfish", targets) == parts


def test_a_small_tree(small):
    program = "from trainers import files\nimport keras_selfish as k\n\nif __name__ == '__main__':\n    1"
    test = "'''Not trainers.files.'''\nrun('import keras_selfish.layers')\nrun('trainers/train.py')"
    root = small(
        {
            "keras_selfish/__init__.py": "",
            "keras_selfish/masks.py": "import keras_selfish.backend",
            "keras_selfish/backend.py": "",
            "keras_selfish/backend_jax.py": "import jax",
            "keras_selfish/layers/__init__.py": "from keras_selfish.masks import Mask",
            "keras_selfish/layers/dense.py": "from ..backend import BACKEND",
            "trainers/__init__.py": "",
            "trainers/files.py": "",
            "trainers/train.py": program,
            "tests/conftest.py": "",
            "tests/layers/conftest.py": "",
            "tests/layers/test_dense.py": test,
            "tests/test_all.py": "run(f'trainers.{name}')",
        }
    )
    found = {name: (one.rule, one.srcs, one.deps) for name, one in targets_of(root).items()}
    backend = ["keras_selfish/backend.py", "keras_selfish/backend_jax.py"]
    layers = ["keras_selfish/layers/__init__.py", "keras_selfish/layers/dense.py"]
    assert found == {
        "keras_selfish": (
            "py_library",
            ["keras_selfish/__init__.py"],
            ["keras_selfish/backend", "keras_selfish/layers", "keras_selfish/masks"],
        ),
        "keras_selfish/backend": ("py_library", backend, []),
        "keras_selfish/layers": ("py_library", layers, ["keras_selfish/backend", "keras_selfish/masks"]),
        "keras_selfish/masks": ("py_library", ["keras_selfish/masks.py"], ["keras_selfish/backend"]),
        "trainers": ("py_library", ["trainers/__init__.py", "trainers/files.py"], []),
        "trainers/train": ("py_binary", ["trainers/train.py"], ["keras_selfish", "trainers"]),
        "tests/layers/support": ("py_library", ["tests/layers/conftest.py"], []),
        "tests/support": ("py_library", ["tests/conftest.py"], []),
        "tests/layers/test_dense": (
            "py_test",
            ["tests/layers/test_dense.py"],
            [
                "keras_selfish",
                "keras_selfish/layers",
                "tests/layers/support",
                "tests/support",
                "trainers",
                "trainers/train",
            ],
        ),
        "tests/test_all": ("py_test", ["tests/test_all.py"], ["tests/support", "trainers", "trainers/train"]),
    }


def test_what_differs_is_said_and_then_written(small, capsys):
    root = small({f"keras_selfish/{name}.py": "" for name in ("__init__", "masks", "packing")})
    assert main(["--root", str(root)]) == 0
    assert main(["--root", str(root), "--check"]) == 0
    before = (root / "BUILD").read_text(encoding="utf-8")
    small({"keras_selfish/packing.py": "import keras_selfish.masks"})
    capsys.readouterr()
    assert main(["--root", str(root), "--check"]) == 1
    assert '+    deps = [":keras_selfish/masks"],' in capsys.readouterr().out
    assert (root / "BUILD").read_text(encoding="utf-8") == before
    assert main(["--root", str(root)]) == 0
    assert '    deps = [":keras_selfish/masks"],' in (root / "BUILD").read_text(encoding="utf-8")
    assert [path.name for path in root.iterdir() if path.is_file()] == ["BUILD"]


@pytest.mark.parametrize(
    ("imported", "message"),
    [
        ("packing", "need each other: keras_selfish/masks -> keras_selfish/packing -> keras_selfish/masks"),
        ("nothing", "keras_selfish/masks.py imports keras_selfish.nothing.one, which no file of the tree is"),
    ],
)
def test_what_no_build_file_can_say(small, imported, message):
    texts = {"masks": f"from keras_selfish.{imported} import one", "packing": "import keras_selfish.masks"}
    root = small({f"keras_selfish/{name}.py": text for name, text in {"__init__": "", **texts}.items()})
    with pytest.raises(SystemExit, match=message):
        main(["--root", str(root)])
    assert not (root / "BUILD").exists()


@pytest.mark.skipif(shutil.which("bazel") is None, reason="needs bazel")
def test_bazel_loads_it(targets, tmp_path):
    command = ["bazel", "--batch", f"--output_user_root={tmp_path}", "query", "//..."]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    # A Bazel without built-in Python rules fetches them from the registry of Bazel's modules.
    if result.returncode and re.search(r"Error accessing registry|bcr.bazel.build", result.stderr):
        pytest.skip("bazel could not reach the registry that has rules_python")
    assert result.returncode == 0, result.stderr
    assert {line.removeprefix("//:") for line in result.stdout.split()} == set(targets)
