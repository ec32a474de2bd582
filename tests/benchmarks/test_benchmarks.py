"""The benchmarks at tiny sizes: that they run and count rightly. Their times are nobody's business here."""

import csv
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

from benchmarks import accuracy_table, corpus, processes, run_table, scaling, training_step
from benchmarks.rewiring import sorted_change
from benchmarks.task import Sizes, result_of
from benchmarks.training_step import PEERS, VARIANTS
from keras_selfish.analysis.flops import training_flops
from keras_selfish.layers import SparseDense
from keras_selfish.masks import masked_weights
from keras_selfish.models import LanguageModel
from keras_selfish.rewiring import rules
from keras_selfish.rewiring.matrix_change import choose_change, read_matrix

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TINY = ("--units=16", "--vocabulary=50", "--batch=2", "--time_steps=5", "--rounds=1")
SIZES = {"units": "16", "layers": "2", "vocabulary": "50", "batch": "2", "time_steps": "5", "rounds": "1"}


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def figures(module, folder, *arguments, sizes=TINY):
    """What a benchmark printed, and the rows of its CSV file."""
    done = run(module, *sizes, f"--output={folder}", *arguments)
    assert done.returncode == 0, done.stderr
    with open(folder / f"{module}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if importlib.util.find_spec("matplotlib") is not None:
        assert (folder / f"{module}.png").read_bytes().startswith(b"\x89PNG")
    return done.stdout, rows


def check_sizes(row, **others):
    expected = {**SIZES, **others}
    assert {name: row[name] for name in expected} == expected
    assert row["machine"]


# The commands.


@pytest.mark.slow
def test_rewiring(tmp_path):
    printed, rows = figures("rewiring", tmp_path / "new" / "folder", "--steps=1", "--pruning_rate=0.5")
    assert [row["what"] for row in rows] == ["training step", "rewiring", "sorting"]
    by_name = {row["what"]: {key: row[key] for key in row} for row in rows}
    for name, row in by_name.items():
        check_sizes(row, pruning_rate="0.5")
        assert name in printed
        seconds = float(row["seconds"])
        assert 0 < float(row["seconds_least"]) <= seconds <= float(row["seconds_largest"])
        for other in ("training step", "sorting"):
            ratio = float(row[f"times_{other.replace(' ', '_')}"])
            assert ratio == pytest.approx(seconds / float(by_name[other]["seconds"]))


@pytest.mark.slow
def test_topology(tmp_path):
    arguments = ["--sizes=8,16", "--words=50", "--rounds=1", "--sparsity=0.5"]
    printed, rows = figures("topology", tmp_path, *arguments, sizes=[])
    assert [row["units"] for row in rows] == ["8", "16"]
    for row in rows:
        units = int(row["units"])
        assert row["units"] in printed
        assert float(row["masks_mb"]) * 1e6 == pytest.approx(2 * (2 * 50 * units + 16 * units**2))
        assert float(row["peak_mb"]) > float(row["masks_mb"])
        assert 0.3 < float(row["distance"]) < 1 - 0.5 / 1.5
        assert 0 < float(row["seconds_least"]) <= float(row["seconds"]) <= float(row["seconds_largest"])


@pytest.mark.slow
def test_unseen_pruning(tmp_path):
    generator = np.random.default_rng(0)
    parts = {"train": 512, "test": 128}
    np.savez(
        tmp_path / "mnist.npz",
        **{f"x_{part}": generator.integers(0, 256, (n, 28, 28)).astype("uint8") for part, n in parts.items()},
        **{f"y_{part}": generator.integers(0, 10, n).astype("uint8") for part, n in parts.items()},
    )
    arguments = [str(tmp_path / "mnist.npz"), "--epochs=2", "--seeds=1", "--rounds=1"]
    printed, rows = figures("unseen_pruning", tmp_path / "figures", *arguments, sizes=[])
    assert "alternation" in printed
    assert [(row["by"], float(row["sparsity"])) for row in rows] == [
        (by, sparsity)
        for sparsity in (0.8, 0.9, 0.95)
        for by in ("switcher", "switcher, logits", "magnitude, all", "magnitude, each")
    ]
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in ("dense", "pruned", "fine_tuned"))


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["ptb", "text"])
def test_corpus(dataset, tmp_path):
    arguments = ["--rounds=1", "--megabytes=2", "--whole_megabytes=2", "--words=900", f"--dataset={dataset}"]
    printed, rows = figures("corpus", tmp_path, *arguments, sizes=[])
    tokens = {row["way"]: int(row["tokens"]) for row in rows}
    assert set(tokens) == {"whole", "pieces", "cached", "feed", "feed, in memory"} == set(corpus.WAYS)
    assert tokens["whole"] == tokens["pieces"] == tokens["cached"] > 500_000
    # All training tokens but what fills no column, and the first of each.
    trained = 0.9 * tokens["whole"]
    assert tokens["feed"] == tokens["feed, in memory"] == pytest.approx(trained, rel=0.2)
    for row in rows:
        assert row["way"] in printed
        assert float(row["tokens_per_cpu_second"]) > 0
        assert int(row["peak_megabytes"]) > 10


def check_steps(printed, rows, variants):
    assert [row["variant"] for row in rows] == list(variants)
    by_name = {row["variant"]: row for row in rows}
    for name, row in by_name.items():
        check_sizes(row, steps="3")
        step = float(row["step_seconds"])
        assert step > 0
        assert name in printed
        assert row["peak_dtype"] == ("bfloat16" if name.endswith("bfloat16") else "float32")
        assert float(row["peak_teraflops"]) > 0
        assert float(row["tokens_per_second"]) == pytest.approx(10 / step)
        assert float(row["teraflops"]) == pytest.approx(Sizes(16, 2, 50, 2, 5).operations / step / 1e12)
        assert float(row["first_step_seconds"]) > 0
        assert float(row["peak_memory_bytes"]) > 1e8
        for peer in PEERS:
            if peer in variants:
                ratio = float(row[f"times_{peer}"])
                assert ratio == pytest.approx(step / float(by_name[peer]["step_seconds"]))
            else:
                assert row[f"times_{peer}"] == ""


@pytest.mark.slow
def test_training_step(tmp_path):
    variants = [variant for variant in VARIANTS if not variant.startswith("torch")]
    chosen = f"--variants={','.join(reversed(variants))}"
    check_steps(*figures("training_step", tmp_path, "--steps=3", "--peak_size=64", chosen), variants)


@pytest.mark.slow
def test_training_step_of_pytorch(tmp_path):
    pytest.importorskip("torch", reason="needs PyTorch, which is in the extra `bench`")
    variants = ("sparse", "torch", "torch_bfloat16")
    chosen = f"--variants={','.join(variants)}"
    found = figures("training_step", tmp_path, "--steps=3", "--peak_size=64", chosen)
    check_steps(*found, training_step.available(variants))


@pytest.mark.slow
def test_serving(tmp_path):
    """Each variant whose runtime is installed, with its size beside that of the dense model."""
    pytest.importorskip("ai_edge_litert")
    sizes = ("--units=64", "--vocabulary=500", "--rounds=1", "--seconds=0.1", "--sparsities=0.9")
    output, rows = figures("serving", tmp_path, sizes=sizes)
    found = {row["variant"]: row for row in rows}
    assert {"savedmodel", "litert_4", "litert_16_int8"} <= set(found)
    assert float(found["litert_4"]["bytes_of_dense"]) < 0.2
    assert float(found["savedmodel_packed"]["bytes_of_dense"]) < 0.7  # at this size half is the graph
    assert all(0 < float(row["p50_ms"]) <= float(row["p99_ms"]) for row in rows)
    assert "litert_16_int8" in output


@pytest.mark.slow
def test_front(tmp_path):
    """A run's model in both formats."""
    pytest.importorskip("ai_edge_litert")
    run_folder = tmp_path / "small"
    flags = ["--epochs=1", "--units=32", "--block_shape=16,1", "--noexport", f"--workdir={run_folder}"]
    command = [sys.executable, "-m", "trainers.language_model", *flags]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    arguments = (str(run_folder), "--dataset=python_docs", "--most_tokens=500", "--rounds=1")
    _, rows = figures("front", tmp_path, *arguments, sizes=())
    assert [row["values"] for row in rows] == ["float32", "int8"]
    assert float(rows[1]["perplexity"]) == pytest.approx(float(rows[0]["perplexity"]), rel=0.02)
    assert float(rows[1]["bytes"]) < float(rows[0]["bytes"])


@pytest.mark.slow
def test_files(tmp_path):
    """Masks as bits and the weights that exist, and no more, in each form."""
    sizes = ("--units=200", "--vocabulary=500", "--rounds=1", "--sparsities=0.8")
    printed, rows = figures("files", tmp_path, sizes=sizes)
    assert [row["form"] for row in rows[:4]] == [".weights.h5", ".keras", ".keras, optimizer", "checkpoint"]
    of_arrays = [float(row["file_mb"]) / float(row["arrays_mb"]) for row in rows]
    assert of_arrays == pytest.approx([1.0] * 4 + [0.22] * 4, abs=0.04)
    assert all(row["form"] in printed for row in rows)


@pytest.mark.slow
def test_cross_entropy(tmp_path):
    sizes = ("--tokens=8", "--vocabulary=1000", "--calls=2")
    variants = ["ours", "tensorflow", "score", "log_sum_exp"]
    printed, rows = figures(
        "cross_entropy", tmp_path, "--rounds=1", f"--variants={','.join(variants)}", sizes=sizes
    )
    assert [row["variant"] for row in rows] == variants
    assert all(0 < float(row["seconds"]) < 10 and row["variant"] in printed for row in rows)


@pytest.mark.slow
def test_text_scoring(tmp_path):
    sizes = (
        "--dataset=python_docs",
        "--units=8",
        "--tokens=400",
        "--batches=3",
        "--batch=2",
        "--time_steps=5",
    )
    printed, rows = figures("text_scoring", tmp_path, "--rounds=1", sizes=sizes)
    names = ["evaluate", "as they come", "sorted by length", "of one length"]
    assert [(row["texts"], row["texts_a_call"]) for row in rows] == list(zip(names, "2333", strict=True))
    rates = [float(row["tokens_per_second"]) for row in rows]
    assert [float(row["times_evaluate"]) for row in rows] == pytest.approx(
        [rate / rates[0] for rate in rates]
    )
    assert all(name in printed for name in names)


def test_pytorch_is_left_out_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(training_step.importlib.util, "find_spec", lambda name: None)
    assert training_step.available(["keras", "torch"]) == ["keras"]
    assert capsys.readouterr().out == (
        "Left out, for PyTorch is not installed: torch; it is in the extra `bench`.\n"
    )


@pytest.mark.slow
def test_scaling(tmp_path):
    printed, rows = figures("scaling", tmp_path, "--steps=3", "--axis=layers", "--values=2,1")
    assert [(row["axis"], row["value"], row["layers"]) for row in rows] == [
        ("layers", "1", "1"),
        ("layers", "2", "2"),
    ]
    times, operations = ([float(row[column]) for row in rows] for column in ("step_seconds", "operations"))
    assert operations == [Sizes(16, layers, 50, 2, 5).operations for layers in (1, 2)]
    for row in rows:
        check_sizes(row, layers=row["value"], steps="3")
        # Through two points the line goes exactly.
        assert float(row["time_exponent"]) == pytest.approx(np.log2(times[1] / times[0]))
        assert float(row["operations_exponent"]) == pytest.approx(np.log2(operations[1] / operations[0]))
    assert "exponent of" in printed


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("training_step", ["--variants=sparse,dense"], "Received: sparse,dense"),
        ("training_step", ["--steps=2"], "at least 3. Received: 2"),
        ("scaling", ["--values=3,4"], "with one --axis"),
        ("rewiring", ["--pruning_rate=1"], "in (0, 1). Received: 1"),
        ("rewiring", ["--output=pyproject.toml"], "--output must be a folder"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(module, arguments, message):
    done = run(module, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    "module", ["training_step", "rewiring", "scaling", pytest.param("matrix_peak", marks=pytest.mark.slow)]
)
def test_help(module):
    done = run(module, "--help")
    assert done.returncode == 0
    assert f"python -m benchmarks.{module}" in done.stdout


# What they share.


def test_processes_alternate(tmp_path, monkeypatch):
    log = tmp_path / "log"
    (tmp_path / "child.py").write_text(
        f"import sys; open({str(log)!r}, 'a').write(sys.argv[1]); print('noise'); print('{{\"a\": 1}}')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results = processes.alternate({"first": ["child", "x"], "second": ["child", "y"]}, rounds=2)
    assert results == {"first": [{"a": 1}] * 2, "second": [{"a": 1}] * 2}
    assert log.read_text() == "xyxy"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such thing')", "ended with exit status 1"),
        ("import sys; print('no such thing', file=sys.stderr)", "printed no result"),
        (
            "import os, signal, sys\nprint('no such thing', file=sys.stderr, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)",
            "was killed by signal 9",
        ),
    ],
)
def test_a_failing_process_is_told_with_the_end_of_its_stderr(code, message, tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match=f"python -m child --a=1 {message}.*\nno such thing$"):
        processes.alternate({"failing": ["child", "--a=1"]}, rounds=1)


def test_peak_memory_is_that_of_the_process_itself(run_python):
    """A large process starts a small one, whose own memory is what counts."""
    own = run_python(
        """
        import subprocess, sys
        held = b"x" * 400_000_000
        code = "from benchmarks.processes import peak_memory; print(peak_memory())"
        print(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout)
        """
    )
    assert 1e6 < int(own) < 2e8


def test_operations_are_those_that_the_analysis_counts():
    model = LanguageModel(50, 16, layers=3, sparsity=0.5, batch_size=2)
    assert Sizes(16, 3, 50, 2, 5).operations == 2 * 5 * training_flops(model).dense


def test_sizes_survive_the_command_line():
    from benchmarks.options import make_parser, parse, sizes_of

    sizes = Sizes(16, 3, 50, 2, 5)
    assert sizes_of(parse(make_parser("Docstring."), sizes.flags())) == sizes


def test_a_loss_that_is_no_number_is_no_measurement():
    with pytest.raises(ValueError, match="Received: nan"):
        result_of([1.0, 1.0, 1.0], float("nan"))


def test_result_leaves_out_the_steps_that_compile():
    result = result_of([9.0, 8.0, 1.0, 2.0, 5.0], 0.5)
    assert (result["first"], result["step"]) == (9.0, 2.0)


def test_exponent():
    values = np.array([1, 2, 4, 8])
    assert scaling.exponent(values, 3 * values**1.5) == pytest.approx(1.5)
    # By hand: with x and y = 0, 1, 2 and 0, 0, 3 the slope is sum(x' y') / sum(x' x') = 3 / 2.
    assert scaling.exponent([1, 2, 4], [1, 1, 8]) == pytest.approx(1.5)


def test_few_points():
    assert scaling.few([1, 2, 3, 4, 5]) == [1, 3, 5]
    assert scaling.few([1, 2]) == [1, 2]


def test_sorting_does_the_same_work_as_selection():
    """The same connections go; as many come, among the same places."""
    layer = SparseDense(40, sparsity=0.6, mask_seed=1)
    layer.build((None, 30))
    (masked_weight,) = masked_weights(layer)
    masked_weight.weight.assign(np.random.default_rng(1).normal(size=(30, 40)))
    masked_weight.project()
    matrix = read_matrix(masked_weight, generator=np.random.default_rng(2))
    ours = choose_change(matrix, 0.5, rules.magnitude, rules.random, True)
    sorting = sorted_change(matrix, 0.5, np.random.default_rng(2))
    mask = keras.ops.convert_to_numpy(masked_weight.mask)
    gone = mask & ~(ours.mask & ~ours.grown)  # with `reset_regrown`, all that went are not kept
    assert gone.sum() == 240  # half of 480
    assert np.count_nonzero(sorting.mask) == 480
    assert not (sorting.dropped & ~gone).any()
    assert not (gone & ~sorting.dropped & ~sorting.mask).any()
    assert np.array_equal(sorting.dropped, mask & ~sorting.mask)
    assert np.array_equal(sorting.grown, sorting.mask & ~mask)
    assert sorting.grown.sum() == sorting.dropped.sum() > 0


# The Penn Treebank runs.


def rows_of(run_folder):
    with open(run_folder / "history.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_penn_treebank(folder):
    """Files of the names of the Penn Treebank's, with random words."""
    words = np.random.default_rng(0).integers(0, 9, (3, 30, 8))
    for split, lines in zip(("train", "valid", "test"), words, strict=True):
        text = "\n".join(" ".join(f"word{word}" for word in line) for line in lines)
        (folder / f"ptb.{split}.txt").write_text(text)


def finished_run(folder, best, test, averaged=(0, 0, 0), **settings):
    """The folder of a finished run of three epochs, the second of which was the best."""
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"validation": best, "test": test}))
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "history.csv").write_text(
        "epoch,val_perplexity,sparsity,density/a/kernel/i,density/b/kernel/i,density/d/kernel/all,"
        "training_flops,seconds,averaged\n"
        f"1,101.0,0.5,0.4,0.6,0.5,0.5,10,{averaged[0]}\n2,{best},0.6,0.2,0.6,0.5,0.25,30,{averaged[1]}\n"
        f"3,102.0,0.6,0.3,0.5,0.5,0.3,20,{averaged[2]}\n"
    )


def test_a_table_of_runs(tmp_path, capsys):
    finished_run(tmp_path / "tiny", 100.04, 95.5, method="selfish", seed=7)
    (tmp_path / "unfinished").mkdir()
    run_table.main([str(tmp_path), "--output", str(tmp_path / "kept")])
    line = "| tiny | 100.0 | 95.5 | 2 | 0.60 | i 0.40 | 0.35 | 20 |"
    assert capsys.readouterr().out.splitlines()[2:] == [line]
    assert (tmp_path / "kept" / "tiny.csv").read_bytes() == (tmp_path / "tiny" / "history.csv").read_bytes()
    run_table.main([str(tmp_path / "kept")])
    assert capsys.readouterr().out.splitlines()[2:] == [line]
    # Another run is added to what is kept, and replaces one of its name.
    shutil.rmtree(tmp_path / "tiny")
    finished_run(tmp_path / "tiny", 99.0, 95.5)
    finished_run(tmp_path / "other", 90.0, 91.0)
    run_table.main([str(tmp_path), "oth", "--output", str(tmp_path / "kept")])
    run_table.main([str(tmp_path), "tiny", "--output", str(tmp_path / "kept")])
    capsys.readouterr()
    run_table.main([str(tmp_path / "kept")])
    assert [line[:15] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "| tiny | 99.0 |",
        "| other | 90.0 ",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="FOLDER must hold finished runs"):
        run_table.main([str(tmp_path / "empty")])


def test_a_table_of_seeds(tmp_path, capsys):
    for seed, best in enumerate((100.0, 102.0, 104.0)):
        finished_run(tmp_path / f"set_{seed}", best, best - 2)
    finished_run(tmp_path / "static_0", 110.0, 108.0)
    run_table.main([str(tmp_path), "--table", "seeds"])
    # A standard deviation of 2, divided by the root of 3.
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| set | 3 | 102.00 ± 1.15 | 100.00 ± 1.15 | i 0.40 |",
        "| static | 1 | 110.0 | 108.0 | i 0.40 |",
    ]


def test_a_table_of_published_figures(tmp_path, capsys):
    finished_run(tmp_path / "published_lstm_selfish_1111", 80.0, 78.0, averaged=(0, 1, 1), seed=1111)
    finished_run(tmp_path / "published_lstm_static_1111", 90.0, 88.0, seed=1111)
    run_table.main([str(tmp_path), "--table", "published"])
    lines = [line.split(" | ")[:7] for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines == [
        ["| published_lstm_selfish_1111", "73.79 / 71.65", "80.00 / 78.00", "1111", "3", "2", "101.0"],
        ["| published_lstm_static_1111", "–", "90.00 / 88.00", "1111", "3", "–", "–"],
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_published_runs_stop_at_a_time_limit_and_go_on(tmp_path):
    write_penn_treebank(tmp_path)
    runs = tmp_path / "runs"

    def script(*names, **environment):
        return subprocess.run(
            ["benchmarks/published.sh", tmp_path, runs, *names],
            cwd=REPOSITORY,
            env={**os.environ, "TRAINER_FLAGS": "--units=4 --batch_size=4 --epochs=2", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )

    names = ("lstm_128_set_1", "lstm_128_set_2")
    paused = script(*names, TIME_LIMIT="46")  # of which 45 s are for the tests
    assert paused.returncode == 75, paused.stderr
    assert not (runs / names[0] / "results.json").exists()
    done = script(*names, PARALLEL="2")
    assert done.returncode == 0, done.stderr
    with open(runs / "tables" / "runs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seed"], row["epochs"]) for row in rows] == [
        (names[0], "1", "2"),
        (names[1], "2", "2"),
    ]
    refused = script("nothing")
    assert refused.returncode == 1
    assert "unknown run nothing; known: " in refused.stderr
    for group in ("table", "better", "others", "seeds_256", "seeds_128"):
        assert group in refused.stderr


def test_a_table_of_accuracies(tmp_path, capsys):
    for seed, accuracy in enumerate((0.97, 0.98, 0.99)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        settings = {"network": "lenet_5", "method": "gmp", "sparsity": 0.9, "seed": seed}
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "results.json").write_text(json.dumps({"sparsity": 0.91, "test_accuracy": accuracy}))
    settings = {"network": "lenet_5", "method": "switcher", "sparsity": -1.0, "estimator": "hard_concrete"}
    (folder / "config.json").write_text(json.dumps(settings))
    accuracy_table.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| lenet_5 | gmp | 90 | 91.00 | 97.50 | 0.71 | 2 | 0.50 |" in printed
    assert "| lenet_5 | switcher, hard_concrete |  | 91.00 | 99.00 |  | 1 |  |" in printed
    assert (tmp_path / "accuracy.csv").read_text().count("\n") == 3
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "accuracy_lenet_5.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="RUNS_DIR must hold finished runs"):
        accuracy_table.main([str(tmp_path / "empty")])


def test_runs_that_differ_in_more_than_their_seeds_have_rows_of_their_own(tmp_path):
    runs = [
        {"augmentation": "crop_flip"},
        {"augmentation": "crop_flip", "seed": 1, "schedule_epochs": 3, "data_dir": "/elsewhere"},
        {"augmentation": "none"},
        {},  # of an earlier version
        {"augmentation": "crop_flip", "dataset": "cifar100"},
        {"method": "dense", "sparsity": 0.9, "augmentation": "crop_flip"},
        {"method": "dense", "sparsity": 0.5, "seed": 2, "augmentation": "crop_flip"},
        {"network": "resnet_34", "augmentation": "none", "architecture": "weight"},
    ]
    for index, settings in enumerate(runs):
        folder = tmp_path / str(index)
        folder.mkdir()
        common = {"network": "resnet_18", "method": "switcher", "sparsity": 0.9, "dataset": "cifar10"}
        (folder / "config.json").write_text(json.dumps({**common, **settings}))
        (folder / "results.json").write_text(json.dumps({"sparsity": 0.9, "test_accuracy": 0.01 * index}))
    assert [(*row[:3], row[6]) for row in accuracy_table.rows(tmp_path)] == [
        ("resnet_18", "dense", -1.0, 2),
        ("resnet_18", "switcher, dataset=cifar10, augmentation=crop_flip", 0.9, 2),
        ("resnet_18", "switcher, dataset=cifar10, augmentation=none", 0.9, 2),
        ("resnet_18", "switcher, dataset=cifar100, augmentation=crop_flip", 0.9, 1),
        ("resnet_34", "switcher, weight", 0.9, 1),
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_penn_treebank_runs_share_their_first_epochs(tmp_path):
    write_penn_treebank(tmp_path)
    runs = tmp_path / "runs"

    def script(*names, patience):
        done = subprocess.run(
            ["benchmarks/penn_treebank.sh", tmp_path, runs, *names],
            cwd=REPOSITORY,
            env={**os.environ, "TRAINER_FLAGS": f"--units=4 --batch_size=4 --patience={patience}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (runs / ".partial-no_averaging").mkdir(parents=True)  # as left by a kill
    printed = script("no_averaging", "averaging", patience=100)
    assert "no_averaging begins as a copy of second_1111" in printed
    shared = rows_of(runs / "second_1111")
    assert len(shared) == 10
    for name in ("no_averaging", "averaging"):
        rows = rows_of(runs / name)
        assert rows[:10] == shared  # the seconds too: these are the very epochs
        assert len(rows) == 25
        config = json.loads((runs / name / "config.json").read_text())
        assert config["averaging"] == (name == "averaging")
        assert (config["epochs"], config["schedule_epochs"]) == (25, 10)
    assert not list(runs.glob(".partial*"))

    # Had it begun to average in its last epoch, the other would have to be trained from its beginning.
    shutil.rmtree(runs / "no_averaging")
    config = json.loads((runs / "second_1111" / "config.json").read_text())
    (runs / "second_1111" / "config.json").write_text(json.dumps({**config, "patience": 1}))
    shared[-1]["val_perplexity"] = "1e9"
    with open(runs / "second_1111" / "history.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(shared[0]))
        writer.writeheader()
        writer.writerows(shared)
    printed = script("no_averaging", patience=1)
    assert "no_averaging is trained from its beginning: second_1111 averages since epoch" in printed
    rows = rows_of(runs / "no_averaging")
    assert len(rows) == 25
    assert rows[0]["seconds"] != shared[0]["seconds"]
    config = json.loads((runs / "no_averaging" / "config.json").read_text())
    assert (config["averaging"], config["epochs"], config["schedule_epochs"]) == (False, 25, 10)
