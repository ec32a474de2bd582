"""The programs that export, test and run what a training has made."""

import contextlib
import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from trainers.artifacts import log_softmax, sample

SETTINGS = ("--dataset=text", "--units=96", "--batch_size=4", "--bptt=10", "--epochs=2", "--learning_rate=5")
BLOCKS = ("--sparsity=0.8", "--block_shape=16,1", "--noexport")


@pytest.fixture(scope="module")
def workdir(trainer, corpus, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    done = trainer("language_model").run(folder, f"--data_dir={corpus}", *SETTINGS, *BLOCKS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def export(trainer):
    return trainer("export").run


@pytest.fixture
def evaluate(trainer, corpus):
    run = trainer("evaluate").run
    return lambda model, *flags: run(
        None, f"--model={model}", "--dataset=text", f"--data_dir={corpus}", *flags
    )


@pytest.fixture
def generate(trainer):
    run = trainer("generate").run
    return lambda model, *flags: run(None, f"--model={model}", "--tokenization=words_and_marks", *flags)


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


FORMATS = {
    "litert": ("model.tflite", "ai_edge_litert", 1e-4),
    "litert int8": ("model_int8.tflite", "ai_edge_litert", 1e-2),
    "litert float16": ("model_float16.tflite", "ai_edge_litert", 1e-3),
    "savedmodel": ("saved_model", "tensorflow", 1e-4),
    "packed": ("packed_model", "tensorflow", 1e-4),
    "packed bfloat16": ("packed_model_bfloat16", "tensorflow", 1e-3),
    "packed int8": ("packed_model_int8", "tensorflow", 1e-2),
    "onnx": ("model.onnx", "tf2onnx", 1e-4),
    "keras": ("final.keras", "keras", 1e-4),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_the_runs_perplexity(kind, workdir, export, evaluate, generate, tmp_path):
    """Each is exported, tested, and asked for a text, as a user does; greedy texts are those of Keras."""
    name, runtime, tolerance = FORMATS[kind]
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    if kind != "keras":
        what, *quantize = kind.split()
        done = export(workdir, f"--format={what}", *[f"--quantize={value}" for value in quantize])
        assert done.returncode == 0, done.stderr
    done = evaluate(workdir / name, "--columns=4", f"--json={tmp_path / 'figures.json'}")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["perplexity"] == pytest.approx(results(workdir)["test"], rel=tolerance)
    assert f"{figures['perplexity']:.2f} (test, 4 columns)" in done.stdout
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"]
    flags = ("--prompt=the statement", "--length=5", "--temperature=0")
    done = generate(workdir / name, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the statement ")
    if tolerance == 1e-4:
        assert done.stdout == generate(workdir / "final.keras", *flags).stdout


def test_texts_follow_from_the_seed(workdir, export, generate):
    assert export(workdir, "--format=litert").returncode == 0
    texts = [generate(workdir / "model.tflite", f"--seed={seed}", "--top_k=50").stdout for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert "<unk>" not in texts[0] + texts[2]


def test_a_file_brings_its_vocabulary(workdir, export, evaluate, generate, tmp_path):
    """A LiteRT file that is moved away alone can be tested and continue a text."""
    assert export(workdir, "--format=litert", f"--output={tmp_path / 'alone.tflite'}").returncode == 0
    done = generate(tmp_path / "alone.tflite", "--length=3")
    assert done.returncode == 0, done.stderr


def test_sampling_by_hand():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    generator = np.random.default_rng(0)
    assert sample(logits[::-1], generator, temperature=0) == 3

    def drawn(**options):
        counts = np.bincount([sample(logits, generator, **options) for _ in range(4000)], minlength=4)
        return counts / 4000

    np.testing.assert_allclose(drawn(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(drawn(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(drawn(top_p=0.6), [0.625, 0.375, 0, 0], atol=0.03)
    sharper = np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365
    np.testing.assert_allclose(drawn(temperature=0.5), sharper, atol=0.03)
    np.testing.assert_allclose(np.exp(log_softmax(logits[None])).sum(), 1.0)


def truncated(path, workdir):
    path.write_bytes((workdir / "model.tflite").read_bytes()[:5000])


def text_file(path, workdir):
    path.write_text("not a model")


def damaged_folder(path, workdir):
    path.mkdir()
    text_file(path / "saved_model.pb", workdir)


BAD_MODELS = {
    "nothing.tflite": (None, "nothing is there"),
    "notes.txt": (text_file, "which is something else"),
    "broken.tflite": (truncated, "must be a whole LiteRT model"),
    "text.tflite": (text_file, "must be a whole LiteRT model"),
    "text.keras": (text_file, "must be a whole Keras model"),
    "folder": (damaged_folder, "must be a whole SavedModel model"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models_are_one_sentence(name, workdir, export, evaluate, tmp_path):
    make, message = BAD_MODELS[name]
    assert export(workdir, "--format=litert").returncode == 0
    if make:
        make(tmp_path / name, workdir)
    done = evaluate(tmp_path / name)
    assert done.returncode == 1
    assert "error: --model must be" in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_requests_are_one_sentence(workdir, trainer, export, evaluate, generate, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "text.txt").write_text("one two three four five\n" * 40, encoding="utf-8")
    assert export(workdir, "--format=litert").returncode == 0
    model = workdir / "model.tflite"
    bare = tmp_path / "bare" / "model.keras"
    bare.parent.mkdir()
    shutil.copy(workdir / "final.keras", bare)
    for done, message in (
        (evaluate(model, f"--data_dir={other}"), "--model must have the vocabulary of --dataset=text"),
        (evaluate(bare, f"--data_dir={other}"), "--model must have the vocabulary of --dataset=text"),
        (evaluate(model, "--columns=2", f"--json={tmp_path / 'no' / 'x.json'}"), "--json must name a file"),
        (generate(bare), "--model must have its vocabulary with it"),
        (generate(model, "--top_p=0"), "--top_p must be a number in (0, 1]. Received: --top_p=0.0"),
        (export(tmp_path, "--format=litert"), "--workdir must be the folder of a run"),
        (export(workdir, "--format=savedmodel", "--quantize=int8"), "--quantize must be left out"),
        (
            export(workdir, "--format=packed", "--quantize=float16"),
            "--quantize must be one of int8, bfloat16",
        ),
        (export(workdir, "--format=savedmodel", "--time_steps=3"), "--time_steps goes with --format=litert"),
        (export(workdir, "--format=litert", "--output=model.bin"), "`path` must end in .tflite"),
        (export("~nosuchuser/x"), "--workdir must not begin with ~ unless"),
        (export(workdir, "--output=~nosuchuser/x"), "--output must not begin with ~ unless"),
        (evaluate("~nosuchuser/x"), "--model must not begin with ~ unless"),
        (evaluate(model, "--json=~nosuchuser/x"), "--json must not begin with ~ unless"),
        (generate("~nosuchuser/x"), "--model must not begin with ~ unless"),
    ):
        assert done.returncode == 1, message
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_missing_runtime_is_named(workdir, export, evaluate, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    (workdir / "unread.tflite").write_bytes(b"")
    done = evaluate(workdir / "unread.tflite")
    assert "needs the package ai-edge-litert, which is not installed" in done.stderr
    done = export(workdir, "--format=litert", f"--output={workdir / 'unwritten.tflite'}")
    assert "`litert` needs the package ai-edge-litert, which is not installed" in done.stderr
    assert not (workdir / "unwritten.tflite").exists()


DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "serving.md"


def blocks(language):
    """The examples of docs/serving.md in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.S | re.M)


@pytest.fixture(scope="module")
def document_folder(trainer, corpus, workdir, tmp_path_factory):
    """A folder with the runs that docs/serving.md speaks of."""
    folder = tmp_path_factory.mktemp("document")
    (folder / "runs").mkdir()
    shutil.copytree(workdir, folder / "runs" / "ptb")
    flags = (f"--data_dir={corpus}", *SETTINGS, "--epochs=1", "--export_text")
    done = trainer("language_model").run(folder / "runs" / "text", *flags)
    assert done.returncode == 0, done.stderr
    return folder


def run_commands(trainer, corpus, folder):
    """Runs the commands that export, test and generate; of those that train only the flags are read."""
    ran = []
    for line in "".join(blocks("bash")).splitlines():
        line = line.replace("--dataset ptb --data_dir ptb/", f"--dataset text --data_dir {corpus}")
        words = shlex.split(line.replace("runs/", f"{folder}/runs/"))
        has_onnx = importlib.util.find_spec("tf2onnx") is not None
        if words[:2] != ["python", "-m"] or ("onnx" in line and not has_onnx):
            continue
        program, *arguments = words[2:]
        name = program.removeprefix("trainers.")
        if name == "language_model":
            assert trainer(name).settings(*arguments).dataset == "text"
            continue
        with contextlib.chdir(folder):  # one writes beside runs/
            done = trainer(name).run(None, *arguments)
        assert done.returncode == 0, (line, done.stderr)
        ran.append(name)
    return ran


def test_the_documents_commands_and_programs(trainer, corpus, document_folder, monkeypatch):
    """In the order of the page, on a model of another corpus, which needs TensorFlow Text."""
    ran = run_commands(trainer, corpus, document_folder)
    assert {"export", "evaluate", "generate"} == set(ran)
    assert ran.count("export") >= 3
    monkeypatch.chdir(document_folder)
    pytest.importorskip("tensorflow_text")
    programs = blocks("python")
    assert len(programs) == 3
    for program in programs:
        found = {}
        exec(program, found)
        if "perplexities" in found:
            assert found["perplexities"].shape == (2,)
        if "step" in found:
            assert found["logits"].shape[0] == 1
            assert set(found["states"]) == {"h_0", "c_0", "h_1", "c_1"}


@pytest.mark.slow  # three programs of their own
def test_the_documents_shell_commands(trainer, corpus, document_folder):
    run_commands(trainer, corpus, document_folder)
    for line in "".join(blocks("bash")).splitlines():
        if line.startswith("saved_model_cli") and "text_model" not in line:
            done = subprocess.run(shlex.split(line), cwd=document_folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "loss" in done.stdout
