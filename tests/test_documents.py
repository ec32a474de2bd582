"""The Python in the documents runs as it stands there."""

import ast
import csv
import importlib
import json
import operator
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_selfish
from benchmarks import run_table
from keras_selfish.data import Vocabulary
from keras_selfish.masks import masked_weights
from keras_selfish.models import RECURRENT_LAYERS, presets
from keras_selfish.rewiring import METHODS

DOCUMENTS = pathlib.Path(__file__).resolve().parents[1] / "docs"


def blocks(name, chapter=0):
    """The Python of one of a document's chapters."""
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    chapters = re.split(r"^# ", text, flags=re.MULTILINE)[1:]
    return re.findall(r"^```python\n(.*?)^```", chapters[chapter], re.MULTILINE | re.DOTALL)


def rows(name, chapter=0):
    """The code in each cell of the table of one of a document's chapters, a pair of lists a row."""
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    lines = re.split(r"^# ", text, flags=re.MULTILINE)[1:][chapter].splitlines()
    cells = [line.strip("|").split(" | ") for line in lines if line.startswith("|")][2:]
    return [tuple(re.findall(r"`([^`]+)`", cell) for cell in row) for row in cells]


PAGES = [
    *(DOCUMENTS.parent / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(DOCUMENTS.glob("*.md")),
]


def anchors(page):
    """What links may name in a page: its headings, as sites of repositories spell them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_first_page_runs(monkeypatch, tmp_path):
    """With a smaller model, and data of its size."""
    monkeypatch.chdir(tmp_path)
    text = (DOCUMENTS.parent / "README.md").read_text(encoding="utf-8")
    recurrent, dense = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for large, small in {"10_000": "20", "650": "4", "epochs=40": "epochs=1, verbose=0"}.items():
        assert large in recurrent
        recurrent = recurrent.replace(large, small)
    tokens = np.arange(48).reshape(8, 6) % 20
    namespace = {"train": tf_data(tokens), "valid": tf_data(tokens)}
    exec(compile(recurrent, "README.md", "exec"), namespace)
    assert sum(weight.active for weight in masked_weights(namespace["model"])) == 26 + 42 + 26
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8)])
    given = {"model": model, "x": np.zeros((2600, 16)), "y": np.zeros((2600, 8))}
    exec(compile(dense.replace("epochs=5", "epochs=5, verbose=0"), "README.md", "exec"), given)
    kernel, _ = keras.models.load_model("plain.keras").get_weights()
    assert np.mean(kernel == 0) == pytest.approx(0.8, abs=0.01)


def tf_data(tokens):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((tokens, np.roll(tokens, -1, axis=1))).batch(4)


def test_blocks_run(monkeypatch):
    name = "extending.md"
    found = blocks(name)
    assert found
    namespace = {"__name__": "document"}
    # What a document adds is taken away again.
    monkeypatch.setitem(METHODS, "noisy_rigl", None)
    for block in found:
        exec(compile(block, f"{name}", "exec"), namespace)
    assert METHODS["noisy_rigl"].callback is namespace["NoisyRigL"]


def test_a_trainer_runs_the_method_of_the_document(tmp_path):
    """And the preset, too."""
    program = tmp_path / "noisy_rigl.py"
    (preset,) = [block for block in blocks("extending.md", chapter=2) if "register_preset" in block]
    program.write_text("\n\n".join([preset, *blocks("extending.md")]), encoding="utf-8")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "text.txt").write_text(
        "one two three four five six seven eight nine ten\n" * 200, encoding="utf-8"
    )
    small = [
        "--dataset=text",
        f"--data_dir={corpus}",
        "--units=8",
        "--layers=1",
        "--bptt=5",
        "--batch_size=4",
    ]
    small += ["--preset=ptb_lstm_tiny", "--noexport"]
    run_program(program, "--method=noisy_rigl", f"--workdir={tmp_path / 'run'}", *small)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["method"], config["preset"], config["epochs"]) == ("noisy_rigl", "ptb_lstm_tiny", 2)


def run_program(*words):
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(DOCUMENTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_a_method_of_ones_own_is_short():
    assert blocks("extending.md")[0].count("\n") < 25


@pytest.fixture
def of_their_own():
    """Recurrent layers that a test registers are forgotten after it."""
    before = dict(RECURRENT_LAYERS)
    yield
    for name in RECURRENT_LAYERS.keys() - before:
        del RECURRENT_LAYERS[name]


@pytest.mark.backends("tensorflow", "jax")
def test_a_cell_of_ones_own_has_its_gradient(of_their_own):
    block, registering = blocks("extending.md", chapter=1)
    assert block.count("\n") < 60
    namespace = {"__name__": "document"}
    exec(compile(block, "extending.md", "exec"), namespace)
    draw = np.random.default_rng(0).normal
    sequences, wanted = draw(size=(4, 6, 3)), draw(size=(4, 6, 8))
    mask = np.arange(6) < np.array([[6], [4], [1], [5]])
    losses, weights = [], []
    for unroll in (False, True):  # Keras's loop has an automatic gradient
        inputs = keras.Input((6, 3)), keras.Input((6,), dtype="bool")
        layer = namespace["SparseMGU"](8, sparsity=0.5, mask_seed=1, return_sequences=True, unroll=unroll)
        model = keras.Model(inputs, layer(inputs[0], mask=inputs[1]))
        if weights:
            model.set_weights(weights)
        weights = model.get_weights()
        model.compile(keras.optimizers.SGD(1.0), "mse")
        history = model.fit([sequences, mask], wanted, epochs=3, batch_size=4, shuffle=False, verbose=0)
        losses.append([*history.history["loss"], *(weight.ravel() for weight in model.get_weights())])
    for by_hand, automatic in zip(*losses, strict=True):
        np.testing.assert_allclose(by_hand, automatic, rtol=1e-4, atol=1e-6)
    assert [weight.active for weight in masked_weights(model)] == [24, 32, 32]
    exec(compile(registering, "extending.md", "exec"), namespace)
    recurrent = namespace["model"].recurrent
    assert [type(layer).__name__ for layer in recurrent] == ["SparseMGU", "SparseMGU"]


def run_blocks(*chapters, **namespace):
    """The namespace after the blocks of some chapters of extending.md."""
    namespace["__name__"] = "document"
    for chapter in chapters:
        for block in blocks("extending.md", chapter):
            exec(compile(block, "extending.md", "exec"), namespace)
    return namespace


def test_a_model_of_ones_own_is_trained_and_exported(of_their_own, monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "PRESETS", dict(presets.PRESETS))
    namespace = run_blocks(1, 2)
    losses = namespace["history"].history["val_perplexity"]
    assert losses[-1] < losses[0] < 60  # of 50 tokens
    model = namespace["model"]
    assert [weight.active for weight in masked_weights(model)] == [264, 169, 85, 84, 264]
    model.save(tmp_path / "model.keras")
    tokens, state = np.array([[3, 4, 5]]), np.zeros((1, 16), "float32")
    outputs = keras.models.load_model(tmp_path / "model.keras").stepwise()([tokens, state])
    for one, other in zip(outputs, model.stepwise()([tokens, state]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    tiny = keras_selfish.language_model("ptb_lstm_tiny", 50)
    assert tiny.architecture.layer_units == (64, 64)
    pytest.importorskip("ai_edge_litert")
    keras_selfish.export.litert(model, tmp_path / "model.tflite")  # which compares it with Keras


@pytest.mark.backends("tensorflow", "jax")
def test_a_layer_of_ones_own_is_rewired_and_stripped():
    namespace = run_blocks(5)
    sparse, plain = namespace["sparse"], namespace["plain"]
    assert type(sparse.layers[0]).__name__ == "SparseGatedLinear"
    assert [weight.active for weight in masked_weights(sparse)] == [32, 32, 4]
    assert type(plain.layers[0]) is namespace["GatedLinear"]
    for kernel in plain.layers[0].get_weights():  # what was grown last may not have moved yet
        assert 16 < np.count_nonzero(kernel) <= 32
    x = namespace["x"]
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), sparse.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.backends("tensorflow", "jax")
def test_an_optimizer_of_ones_own_averages():
    optimizer = run_blocks(3)["AveragedSGD"](0.1)
    bias, steps = keras.Variable([1.0, 2.0]), np.array([[1, 2], [3, 4], [-5, 6], [7, 8]], "float32")
    moved = np.array([1.0, 2.0]) - 0.1 * np.cumsum(steps, axis=0)
    for number, step in enumerate(steps):
        if number == 1:
            optimizer.start_averaging()
        optimizer.apply([keras.ops.convert_to_tensor(step)], [bias])
    optimizer.exchange_averages()
    np.testing.assert_allclose(bias, moved[1:].mean(axis=0), rtol=1e-6)
    optimizer.exchange_averages()
    np.testing.assert_allclose(bias, moved[-1], atol=1e-6)


@pytest.mark.backends("tensorflow", "jax")
def test_an_optimizer_of_ones_own_trains_what_is_rewired():
    optimizer = run_blocks(3)["AveragedSGD"](0.05)
    layers = [keras.Input((8,)), keras_selfish.SparseDense(16, sparsity=0.75), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse")
    x, y = np.random.default_rng(0).normal(size=(64, 8)), np.ones((64, 2))
    callbacks = [keras_selfish.SelfishRewiring(0.5, frequency=1)]
    callbacks += [keras_selfish.NonMonotonicAveraging(patience=0)]
    # Validated on targets that it learns to be far from, so that averaging begins.
    model.fit(x, y, validation_data=(x, -y), epochs=4, batch_size=16, verbose=0, callbacks=callbacks)
    assert int(optimizer.trigger) > 0
    assert float(optimizer.averages_in) == 1
    (weight,) = masked_weights(model)
    mask = np.array(weight.mask)
    assert mask.sum() == 32
    for values in map(keras.ops.convert_to_numpy, (weight.weight, optimizer.averages[0])):
        assert np.all(values[~mask] == 0)
        assert np.any(values[mask] != 0)


def test_an_export_format_of_ones_own(monkeypatch, tmp_path):
    """Written by the program of the document, opened by the class in it."""
    from trainers import artifacts, formats

    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    monkeypatch.setattr(artifacts, "KINDS", list(artifacts.KINDS))
    model = keras_selfish.language_model("quick", 20, units=8)
    model.save(tmp_path / "final.keras")
    tokens = [f"word{index}" for index in range(20)]
    Vocabulary(tokens).save(tmp_path / "vocabulary.txt")
    program = tmp_path / "archive.py"
    program.write_text("\n\n".join(blocks("extending.md", chapter=4)), encoding="utf-8")
    run_program(program, "export", f"--workdir={tmp_path}", "--format=archive")
    run_blocks(4)
    artifact = artifacts.open_artifact(tmp_path / "model.npz")
    assert (artifact.kind, artifact.tokens) == ("NumPy archive", tokens)
    states = artifact.states(2)
    step = np.array([[3], [4]], "int32")
    logits, after = artifact.step(step, states)
    wanted = model.stepwise()([step, *states.values()])
    np.testing.assert_allclose(logits, wanted[0][:, -1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["h_1"], wanted[3], rtol=1e-5, atol=1e-6)


NOT_CODE = ('"constant"', "trainers.language_model --preset ptb_lstm")


def run_each(codes, namespace):
    """Runs each piece of code by itself; a keyword argument, an option or a bare name is none."""
    for code in codes:
        if code not in NOT_CODE and not re.fullmatch(r"\w+", code):
            exec(compile(code, code, "exec"), dict(namespace))


@pytest.mark.parametrize("chapter", [0, 1])
def test_each_call_of_ours_that_a_table_names_runs(chapter, tfmot, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    layers = [keras.Input((16,)), keras.layers.Dense(32, name="dense"), keras.layers.Dense(8, name="last")]
    x, y = np.zeros((8, 16)), np.zeros((8, 8))
    schedule = keras_selfish.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=400)
    given = {"model": keras.Sequential(layers), "x": x, "y": y, "schedule": schedule}
    given |= {"keras": keras, "tfmot": tfmot, "pruned": None}
    names = {name: getattr(keras_selfish, name) for name in keras_selfish.__all__}
    monkeypatch.setitem(names, "from_tfmot", lambda pruned: pruned)  # tests/conversion runs it
    for _, ours in rows("coming_from.md", chapter):
        run_each(ours, names | given)


def test_each_call_of_tfmot_that_the_table_names_exists(tfmot, monkeypatch, tmp_path):
    import tf_keras

    monkeypatch.chdir(tmp_path)

    def prune_some(layer):
        return tfmot.prune_low_magnitude(layer, schedule) if layer.name == "dense" else layer

    schedule = tfmot.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=400)
    found = rows("coming_from.md")
    assert len(found) == 12
    for theirs, _ in found:
        layers = [tf_keras.Input((16,)), tf_keras.layers.Dense(32, name="dense")]
        model = tf_keras.Sequential([*layers, tf_keras.layers.Dense(8, name="last")])
        names = {"tf_keras": tf_keras, "tfmot": tfmot, "schedule": schedule, "prune_some": prune_some}
        run_each(theirs, names | {"model": model})


def cells_of_comparison(column):
    """The code in a column of the tables of comparison.md, without arguments of calls."""
    text = (DOCUMENTS / "comparison.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            cell = line.strip("|").split(" | ")[column]
            yield from (code.partition("(")[0] for code in re.findall(r"`([^`]+)`", cell))


def test_what_the_comparison_says_that_we_have_exists():
    found = list(cells_of_comparison(1))
    assert len(found) > 15
    for name in found:
        if not name.startswith(("tf.", "keras.", ".")):  # of others, and endings of files
            assert name in dir(keras.layers) or operator.attrgetter(name)(keras_selfish), name


def test_what_the_comparison_says_that_tfmot_has_exists(tfmot):
    import tensorflow_model_optimization

    subpackages = ("sparsity.", "clustering.", "quantization.")
    found = [name for name in cells_of_comparison(2) if name.startswith(subpackages)]
    assert len(found) > 8
    for name in found:
        assert operator.attrgetter(name)(tensorflow_model_optimization), name


def test_programs_that_come_from_elsewhere_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document"}
    found = blocks("coming_from.md")
    assert len(found) == 2
    for block in found:
        exec(compile(block, "coming_from.md", "exec"), namespace)
    assert (tmp_path / "pruned.keras").exists()


def imports():
    """Which packages of ours each package imports."""
    found = {}
    for file in (DOCUMENTS.parent / "keras_selfish").rglob("*.py"):
        place = file.relative_to(DOCUMENTS.parent / "keras_selfish").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_selfish"):
                _, _, inside = node.module.partition(".")
                names = [inside] if inside else [alias.name for alias in node.names]
                found.setdefault(place, set()).update(name.partition(".")[0] for name in names)
    return found


def test_the_picture_of_the_architecture_shows_what_imports_what():
    text = (DOCUMENTS / "architecture.md").read_text(encoding="utf-8")
    nodes = set(re.findall(r"^    (\w+)\[", text, re.MULTILINE))
    arrows = {
        source: set(targets.split(" & "))
        for source, targets in re.findall(r"^    (\w+) --> (.*)", text, re.MULTILINE)
    }
    del arrows["trainers"]
    actual = {place: (names & nodes) - {place} for place, names in imports().items() if place in nodes}
    assert arrows == {place: names for place, names in actual.items() if names}
    folders = {path.parent.name for path in (DOCUMENTS.parent / "keras_selfish").glob("*/__init__.py")}
    assert nodes == folders | {"masks", "trainers"}


def test_what_the_glossary_names_is_there():
    text = (DOCUMENTS / "architecture.md").read_text(encoding="utf-8")
    package = DOCUMENTS.parent / "keras_selfish"
    for code in re.findall(r"`([\w./]+)`", text):
        if code.endswith((".py", "/")):
            assert list(package.rglob(code.rstrip("/"))), code
        elif re.fullmatch(r"[a-z]+(\.\w+)+", code) and (package / code.partition(".")[0]).exists():
            module, *names = code.split(".")
            thing = importlib.import_module(f"keras_selfish.{module}")
            for name in names:
                thing = getattr(thing, name)


def test_the_notebook_is_the_tutorial():
    subprocess.run([sys.executable, "-m", "tools.notebook", "--check"], cwd=DOCUMENTS.parent, check=True)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    """Every block, in order, in a process of its own, and what the text says of it."""
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("matplotlib")
    program = tmp_path / "tutorial.py"
    program.write_text("\n\n".join(blocks("tutorial.md")), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(DOCUMENTS.parent), "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    of = dict(re.findall(r"^(static|selfish|rigl|ours) +([\d.]+)$", result.stdout, re.MULTILINE))
    static, *moving = (float(of[name]) for name in ("static", "selfish", "rigl", "ours"))
    assert max(moving) < static
    c, f = (
        float(re.search(rf"/kernel/{gate} .* ([\d.]+)$", result.stdout, re.MULTILINE)[1]) for gate in "cf"
    )
    assert c > 0.4 > 0.3 > f
    assert float(re.search(r"^([\d.]+) MB", result.stdout, re.MULTILINE)[1]) < 0.5
    assert {"history.png", "model.tflite", "plain.keras"} <= {path.name for path in tmp_path.iterdir()}


MADE_TABLE = re.compile(r"<!-- run_table docs/(\S+) --table (\w+) -->\n((?:\|.*\n)+)")


def test_tables_of_runs_are_made_from_what_is_kept_of_them():
    found = MADE_TABLE.findall((DOCUMENTS / "results.md").read_text(encoding="utf-8"))
    assert found
    for folder, kind, table in found:
        kept = run_table.rows_of(DOCUMENTS / folder)
        assert table == run_table.TABLES[kind](kept) + "\n", f"make the {kind} table of {folder} again"
        for name, row in kept.items():
            epochs = list(
                csv.DictReader((DOCUMENTS / folder / f"{name}.csv").open(newline="", encoding="utf-8"))
            )
            best = min(epochs, key=lambda epoch: float(epoch["val_perplexity"]))
            assert (len(epochs), best["epoch"]) == (int(row["epochs"]), row["best_epoch"]), name
            assert float(best["val_perplexity"]) == pytest.approx(float(row["validation"]), rel=1e-4), name


HISTORIES = sorted((DOCUMENTS / "runs").rglob("*.csv"))


def tables(name):
    """The tables of a document: lists of rows, the head first, each a list of cells."""
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    found = re.findall(r"^((?:\|.*\n)+)", text, re.MULTILINE)
    return [
        [[cell.strip(" *") for cell in line.strip("|\n").split("|")] for line in lines if "---" not in line]
        for lines in (table.splitlines() for table in found)
    ]


def perplexities_of(path):
    """The validation perplexity of each epoch of a history, a dict; empty for a file of something else."""
    with path.open(newline="", encoding="utf-8") as file:
        epochs = [row for row in csv.DictReader(file) if row.get("val_perplexity")]
    return {int(row["epoch"]): float(row["val_perplexity"]) for row in epochs}


def test_perplexities_after_each_epoch_are_those_of_a_history():
    histories = [history for history in map(perplexities_of, HISTORIES) if history]
    compared = 0
    for (head, *epochs), *rows in tables("results.md"):
        if head != "validation perplexity after epoch":
            continue
        epochs = [int(epoch) for epoch in epochs if epoch.isdigit()]
        for label, *cells in rows:
            if label.startswith("published code"):  # another program, whose histories are not ours
                continue
            shown = {epoch: cell for epoch, cell in zip(epochs, cells, strict=False) if cell}
            assert any(
                shown.keys() <= history.keys()
                and all(
                    f"{history[epoch]:.{len(cell.partition('.')[2])}f}" == cell
                    for epoch, cell in shown.items()
                )
                for history in histories
            ), f"no history in docs/runs has the row {label!r}"
            compared += 1
    assert compared >= 20


def rows_under(*head):
    """The rows of the one table of results.md whose head begins with these cells."""
    (found,) = (rows for first, *rows in tables("results.md") if first[: len(head)] == list(head))
    return found


def test_the_table_of_blocks_of_16_is_that_of_its_runs():
    kept = run_table.rows_of(DOCUMENTS / "runs" / "front")
    names = [
        "single_90",
        "single_90_erk",
        "blocks_4_90",
        "blocks_16_all_90",
        "blocks_16_90",
        "blocks_16_90_erk",
        "blocks_16_90_rate_50",
        "blocks_16_90_erk_rate_50",
        "rigl_16_90",
        "single_80",
        "blocks_16_80",
        None,
        "blocks_16_67",
    ]
    rows = rows_under("sparsity", "run", "validation", "test", "validation after 4, 7, 10 epochs")
    assert set(filter(None, names)) <= kept.keys()
    for name, (sparsity, _, validation, test, after) in zip(names, rows, strict=False):
        if name is None:
            continue
        row = kept[name]
        history = perplexities_of(DOCUMENTS / "runs" / "front" / f"{name}.csv")
        assert float(sparsity) == pytest.approx(float(row["sparsity"]), abs=1e-3)
        assert (validation, test) == (f"{float(row['validation']):.1f}", f"{float(row['test']):.1f}")
        assert after == ", ".join(f"{history[epoch]:.1f}" for epoch in (4, 7, 10))


def test_the_table_of_topologies_is_that_of_its_file():
    with (DOCUMENTS / "runs" / "seeds_128" / "topology.csv").open(newline="", encoding="utf-8") as file:
        found = {
            (row["first"].split(" ")[0], row["second"].split(" ")[0], row["layer"].split("/")[0]): (
                f"{float(row['distance']):.3f}",
                f"{float(row['in_place']):.3f}",
            )
            for row in csv.DictReader(file)
        }
    rows = rows_under("method", "test perplexity, seeds 1 and 2")
    assert len(rows) >= 4
    for label, _, both, layer, within in rows:
        name = label.split()[0].lower()
        first, second = f"{name}_1", f"{name}_2"
        assert both == "{} ({})".format(*found[first, second, "network"])
        assert layer == "{} ({})".format(*found[first, second, "lstm_0_carried"])
        assert within == found[first, first, "network"][1]


def test_the_table_of_accuracies_is_that_of_its_file():
    with (DOCUMENTS / "runs" / "mnist.csv").open(newline="", encoding="utf-8") as file:
        kept = {
            (row["method"], float(row["wanted sparsity"])): f"{100 * float(row['test accuracy']):.2f}"
            for row in csv.DictReader(file)
            if row["network"] == "lenet_300_100"
        }
    names = {"gradual magnitude pruning": "gmp"}
    compared = 0
    for head, *rows in tables("results.md"):
        if head[0] != "method" or not head[1].endswith("%"):
            continue
        for label, *cells in rows:
            name = names.get(label, label.replace("`", "").lower())
            for sparsity, cell in zip(head[1:], cells, strict=True):
                assert cell == kept[name, float(sparsity[:-1]) / 100], (label, sparsity)
                compared += 1
    assert compared == 6 * 6 + 4 * 3
