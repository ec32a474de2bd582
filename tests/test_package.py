import ast
import configparser
import importlib.metadata
import pathlib
import re

import pytest
from packaging.requirements import Requirement

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
HEAVY = "tensorflow tensorflow_text tensorflow_model_optimization tensorboard torch"


def setup_cfg():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return config


def requirements(text):
    return [Requirement(line) for line in text.split("\n") if line.strip()]


def module_level_imports(file):
    """Top names of what importing the file imports at once: not inside a function, not under an if."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_importing_the_package_is_light_and_lets_keras_load_its_models(run_python, tmp_path):
    """It imports neither TensorFlow on JAX, whatever is used, nor any backend before one is used.

    Keras knows its classes, in whatever order the two are imported.
    """
    from keras_selfish import SNTASGD, Perplexity, TokenCrossEntropy, language_model

    model = language_model("quick", 20, units=4)
    model.compile(SNTASGD(), TokenCrossEntropy(), metrics=[Perplexity()])
    model.save(tmp_path / "model.keras")
    code = f"""
        import sys
        import keras_selfish
        print([name for name in {["keras", "jax", *HEAVY.split()]} if name in sys.modules])
        import keras
        print(keras.models.load_model(sys.argv[1]).optimizer.name)
        for name in [name for name in sys.modules if name.partition(".")[0] == "keras_selfish"]:
            del sys.modules[name]
        import keras_selfish
        print(keras.models.load_model(sys.argv[1]).optimizer.name)
        for name in keras_selfish.__all__:
            getattr(keras_selfish, name)
        print([name for name in {HEAVY.split()} if name in sys.modules])
    """
    assert run_python(code, tmp_path / "model.keras", backend="jax") == "[]\nsnt_asgd\nsnt_asgd\n[]\n"


@pytest.mark.parametrize("script", setup_cfg()["options.entry_points"]["console_scripts"].split("\n")[1:])
def test_console_scripts_have_the_help_of_their_programs(script, run_python):
    name, module, function = re.fullmatch(r"([\w-]+) = ([\w.]+):(\w+)", script).groups()
    code = f"""
        import sys
        from {module} import {function}
        sys.argv[0] = "{name}"
        try:
            {function}()
        except SystemExit as done:
            sys.exit(done.code != 1)  # what absl ends with after --help
    """
    printed = run_python(code, "--help")
    source = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert printed.strip().startswith(ast.get_docstring(ast.parse(source)).partition("\n")[0])
    (flag,) = [flag for flag in ("--workdir", "--model") if f'"{flag[2:]}", None' in source]
    assert f"  {flag}: " in printed


@pytest.mark.parametrize("trainer", ["language_model", "image_classifier"])
def test_a_trainer_knows_its_flags_and_methods_without_keras(trainer, run_python):
    """`--help` takes a third of a second; with Keras and a backend it would take seconds."""
    code = f"""
        import sys
        from trainers import {trainer}
        help = {trainer}.FLAGS["method"].help
        print("rigl: " in help, [name for name in {["keras", "jax", *HEAVY.split()]} if name in sys.modules])
    """
    assert run_python(code) == "True []\n"


def test_version_is_the_same_everywhere():
    import keras_selfish

    module = (REPOSITORY / "MODULE.bazel").read_text(encoding="utf-8")
    assert re.search(r'^    version = "(.*)"', module, re.M)[1] == keras_selfish.__version__
    try:
        installed = importlib.metadata.version("keras_selfish")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("keras_selfish is not installed here")
    assert installed == keras_selfish.__version__


def test_public_names_exist_and_are_described():
    import keras_selfish

    assert len(set(keras_selfish.__all__)) == len(keras_selfish.__all__) > 0
    for name in keras_selfish.__all__:
        value = getattr(keras_selfish, name)
        if not isinstance(value, str):
            assert value.__doc__, name


def test_every_folder_of_a_package_is_found_by_setuptools():
    """`packages = find:` passes over a folder without `__init__.py`, and an install lacks it."""
    files = (path for top in ("keras_selfish", "trainers") for path in REPOSITORY.glob(f"{top}/**/*.py"))
    folders = {file.parent for file in files}
    assert folders
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize(
    ("section", "option"),
    [("options", "install_requires"), ("options.extras_require", "jax")]
    + [("options.extras_require", extra) for extra in ("test", "plot", "bench", "tfmot", "onnx")],
)
def test_the_ranges_admit_what_is_tested(section, option):
    for requirement in requirements(setup_cfg().get(section, option)):
        assert requirement.specifier, f"{requirement.name} has no range"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            assert option != "install_requires", f"{requirement.name} is not installed"
            continue
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)


def test_tensorflow_is_imported_by_export_and_by_files_named_for_it_only():
    package = REPOSITORY / "keras_selfish"
    offenders = [
        file.relative_to(REPOSITORY).as_posix()
        for file in package.rglob("*.py")
        if file.parent.name != "export"
        and not file.stem.endswith("_tensorflow")
        and any(name.startswith("tensorflow") for name in module_level_imports(file))
    ]
    assert offenders == []
