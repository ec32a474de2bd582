"""The trainer of language models on real text."""

import csv
import json
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest
from keras import ops

from keras_selfish.models.presets import PRESETS
from keras_selfish.rewiring.registry import METHODS
from trainers.files import RunError, replace

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TINY = (
    "--dataset=text",
    "--units=16",
    "--batch_size=4",
    "--bptt=10",
    "--sparsity=0.5",
    "--epochs=3",
    "--learning_rate=5",
)
DENSITY_COLUMNS = 2 + 4 * 4  # embedding, decoder; two layers of two kernels with four gates


@pytest.fixture(scope="module")
def run(trainer):
    """A function that runs the trainer in this process on a folder, with flags."""
    return trainer("language_model").run


@pytest.fixture(scope="module")
def run_alone(trainer):
    """The same in a process of its own, as a user does."""
    return trainer("language_model").run_alone


def history(workdir):
    with open(workdir / "history.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_times(rows):
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")}
        for row in rows
    ]


@pytest.fixture(scope="module")
def whole_run(run_alone, corpus, tmp_path_factory):
    """One run from start to end, and what it printed."""
    workdir = tmp_path_factory.mktemp("run")
    result = run_alone(workdir, f"--data_dir={corpus}", *TINY)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_a_run_leaves_everything_it_promises(whole_run):
    workdir, result = whole_run
    config = json.loads((workdir / "config.json").read_text())
    assert (config["units"], config["dataset"], config["schedule_epochs"]) == (16, "text", 3)
    rows = history(workdir)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for column in ("loss", "perplexity", "val_loss", "val_perplexity", "sparsity", "seconds"):
        assert float(rows[0][column]) > 0
    assert float(rows[0]["tokens_per_second"]) > 0
    assert float(rows[-1]["sparsity"]) == pytest.approx(0.5, abs=0.01)
    assert sum(name.startswith("density/") for name in rows[0]) == DENSITY_COLUMNS
    assert {"best.keras", "final.keras", "saved_model", "tensorboard", "results.json"} <= {
        path.name for path in workdir.iterdir()
    }
    assert list(workdir.glob(".partial*")) == []
    assert "gate i" in result.stdout
    assert "test, one column" in result.stdout


def test_a_run_is_reported_with_its_first_and_last_masks(trainer, whole_run, tmp_path):
    """Those that were stored, and those of a run of an earlier version, which stored none."""
    from trainers.reporting.run import read_run

    folder = tmp_path / "run"
    shutil.copytree(whole_run[0], folder)
    result = trainer("report").run(folder)
    assert result.returncode == 0, result.stderr
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "finished: 3 of 3 epochs" in page
    assert "Not in this report" not in page
    stored, last = read_run(folder), history(folder)[-1]
    assert (stored.first.when, stored.last.when) == ("before training", "after epoch 3")
    for name, mask in stored.last.weights.items():
        for gate, part in mask.parts().items():
            assert part.mean() == pytest.approx(float(last[f"density/{name}/{gate}"]))
    (session,) = stored.sessions
    assert (session["first_epoch"], session["backend"]) == (1, "tensorflow")
    for name in ("masks-first.npz", "masks-last.npz", "environment.json"):
        (folder / name).unlink()
    earlier = read_run(folder)
    assert earlier.last.when == "of best.keras"
    assert list(earlier.first.weights) == list(stored.first.weights)
    for name, mask in stored.first.weights.items():
        assert (earlier.first.weights[name].mask == mask.mask).all()
        assert earlier.last.weights[name].parts().keys() == mask.parts().keys()
    (folder / "best.keras").write_bytes(b"PK")
    (folder / "report.html").unlink()
    result = trainer("report").run(folder)
    assert result.returncode == 1
    assert "best.keras in --workdir must hold a model, but is damaged or foreign" in result.stderr
    assert not (folder / "report.html").exists()


def test_training_learns(whole_run):
    workdir, _ = whole_run
    rows = history(workdir)
    assert float(rows[-1]["val_perplexity"]) < float(rows[0]["val_perplexity"])


def test_the_exported_model_serves_without_the_package(whole_run, run_python, tmp_path):
    workdir, _ = whole_run
    printed = run_python(
        """
        import sys
        sys.modules["keras_selfish"] = None
        import tensorflow as tf
        model = tf.saved_model.load(sys.argv[1])
        scores = model.signatures["score"](tf.constant([[1, 2, 3, 4]], tf.int32))
        print(sorted(model.signatures), sorted(scores))
        """,
        workdir / "saved_model",
        cwd=tmp_path,
    )
    assert "score" in printed
    assert "step" in printed


def test_a_finished_run_says_so_and_tests_again(run, whole_run, corpus):
    workdir, first = whole_run
    again = run(workdir, f"--data_dir={corpus}", *TINY, "--export_text")
    assert again.returncode == 0, again.stderr
    assert "nothing is left to train" in again.stderr
    assert again.stdout == first.stdout[first.stdout.index(again.stdout[:20]) :]
    assert len(history(workdir)) == 3
    tf, _ = pytest.importorskip("tensorflow"), pytest.importorskip("tensorflow_text")
    served = tf.saved_model.load(workdir / "text_model")
    assert served.score_text(["The statement.\n"])["tokens"].shape == (1, 4)  # as in the corpus


def test_a_killed_run_resumes_as_if_nothing_had_happened(trainer, whole_run, corpus, tmp_path):
    """Killed after its first checkpoint, in the middle of a later epoch."""
    reference, _ = whole_run
    language_model = trainer("language_model")
    flags = (f"--data_dir={corpus}", *TINY)
    with open(tmp_path / "log", "w") as log:
        command = language_model.command(tmp_path / "run", *flags)
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
        while not (tmp_path / "run" / "checkpoint.json").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = language_model.run_alone(tmp_path / "run", *flags)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming after epoch" in resumed.stderr
    assert without_times(history(tmp_path / "run")) == without_times(history(reference))
    results = [(folder / "results.json").read_text() for folder in (tmp_path / "run", reference)]
    assert results[0] == results[1]


def test_methods_and_options(run, corpus, tmp_path):
    one = (f"--data_dir={corpus}", *TINY, "--epochs=1", "--noexport")
    dense = run(tmp_path / "dense", *one, "--method=dense", "--sparsity=0")
    assert dense.returncode == 0, dense.stderr
    assert "sparsity" not in history(tmp_path / "dense")[0]
    flags = ("--method=static", "--precision=mixed_bfloat16", "--block_shape=4,1", "--distribution=erk")
    static = run(tmp_path / "static", *one, *flags)
    assert static.returncode == 0, static.stderr
    (row,) = history(tmp_path / "static")
    assert float(row["sparsity"]) == pytest.approx(0.5, abs=0.01)
    assert sum(name.startswith("density/") for name in row) == DENSITY_COLUMNS


@pytest.mark.parametrize(
    "method",
    [
        name if name == "rigl" else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
        if name not in ("selfish", "dense", "static")
    ],
)
def test_every_method(run, method, corpus, tmp_path):
    flags = (f"--data_dir={corpus}", *TINY, "--epochs=2", "--noexport", f"--method={method}")
    if method in ("rigl", "gse"):  # whose 100 steps are more than there are
        flags = (*flags, "--rewiring_steps=7")
    result = run(tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    rows = history(tmp_path)
    if method == "dense_small":
        assert "sparsity" not in rows[0]
    elif method != "gmp":
        assert float(rows[1]["sparsity"]) == pytest.approx(0.5, abs=0.01)
    else:
        assert float(rows[0]["sparsity"]) < float(rows[1]["sparsity"]) == pytest.approx(0.5, abs=0.01)
    # Resumed, it goes on; a run with other settings is another run.
    again = run(tmp_path, *flags, "--epochs=3")
    assert again.returncode == 0, again.stderr
    assert len(history(tmp_path)) == 3


def test_options_of_methods(run, corpus, tmp_path):
    flags = (f"--data_dir={corpus}", *TINY, "--epochs=1", "--noexport", "--n_of_m=2,4")
    result = run(tmp_path, *flags, "--method=rigl", "--rewiring_steps=7", "--schedule=constant")
    assert result.returncode == 0, result.stderr
    refused = run(tmp_path / "other", *flags, "--redistribution=magnitude")
    assert refused.returncode == 1
    assert "`n_of_m` fixes the number of connections" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in PRESETS if name.endswith("_small")])
def test_every_small_preset(run, preset, corpus, tmp_path):
    """The sizes are the preset's, the data a little: batches that it fills."""
    flags = (f"--data_dir={corpus}", "--dataset=text", "--batch_size=4", "--bptt=20", "--epochs=1")
    result = run(tmp_path, *flags, f"--preset={preset}")
    assert result.returncode == 0, result.stderr
    again = run(tmp_path, *flags[:-1], "--epochs=2", f"--preset={preset}")
    assert again.returncode == 0, again.stderr
    rows = history(tmp_path)
    assert float(rows[1]["perplexity"]) < float(rows[0]["perplexity"])


def test_an_architecture_by_flags(run, corpus, tmp_path):
    flags = (
        f"--data_dir={corpus}",
        *(flag for flag in TINY if not flag.startswith(("--units", "--epochs"))),
        "--units=20,12",
        "--embedding_units=8",
        "--cell=on_lstm",
        '--cell_options={"chunk_size": 4, "weight_drop": 0.2}',
        "--experts=2",
        "--tied",
        "--locked",
        "--random_lengths",
        "--epochs=2",
    )
    result = run(tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["units"], config["cell"], config["experts"]) == ([20, 12], "on_lstm", 2)
    assert len(history(tmp_path)) == 2


@pytest.mark.slow
def test_jax_alone_trains_and_tensorflow_exports(run_alone, corpus, tmp_path, jax_alone, monkeypatch):
    flags = (f"--data_dir={corpus}", *TINY)
    trained = run_alone(tmp_path, *flags, "--noexport")
    assert trained.returncode == 0, trained.stderr
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    exported = run_alone(tmp_path, *flags)
    assert exported.returncode == 0, exported.stderr
    assert len(history(tmp_path)) == 3
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


@pytest.mark.slow  # test_mirrored.py does it in one process
def test_replicas_train_as_one_device(run_alone, corpus, tmp_path):
    """Dropout differs between replicas, so without it."""
    flags = (f"--data_dir={corpus}", *TINY, "--epochs=2", "--dropout=0", "--noexport")
    rows = {}
    for name, strategy in {"one": (), "two": ("--strategy=mirrored", "--cpu_replicas=2")}.items():
        result = run_alone(tmp_path / name, *flags, *strategy)
        assert result.returncode == 0, result.stderr
        rows[name] = history(tmp_path / name)
    for one, two in zip(rows["one"], rows["two"], strict=True):
        for column in ("loss", "perplexity", "val_perplexity"):
            assert float(two[column]) == pytest.approx(float(one[column]), rel=1e-3)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in rows]
    assert results[1] == pytest.approx(results[0], rel=1e-3)


def test_a_full_disk_is_one_sentence(tmp_path):
    """/dev/full refuses every byte, as a full disk does."""
    target = tmp_path / "history.csv"

    def write(path):
        with open("/dev/full", "w") as file:
            file.write("row")

    with pytest.raises(RunError, match=r"history.csv could not be written: No space left on device"):
        replace(target, write)
    assert not target.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sparsity=1.2",), "Received: --sparsity=1.2"),
        (("--sparsity=nan",), "Received: --sparsity=nan"),
        *(
            ((f"--{name}={value}",), f"--{name} must be a finite number. Received: --{name}={value}")
            for name, value in {
                "learning_rate": "inf",
                "clipnorm": "nan",
                "dropout": "nan",
                "tar": "inf",
            }.items()
        ),
        (("--seed=4294967296",), "seed=4294967296"),
        (('--cell_options={"weight_drop": NaN}',), "--cell_options must be a JSON object"),
        (("--method=gmp", "--bptt=1000", "--epochs=1"), "--epochs must make at least 2 training steps"),
        (("--workdir=",), "--workdir must name a folder. Received: --workdir=''"),
        (("--distribution=gaussian",), "gaussian"),
        (("--distribution=erk", "--method=gmp"), "--distribution needs a method that begins sparse"),
        (("--block_shape=3,1",), "take 15 or 18"),
        (("--block_shape=four",), "--block_shape must be two whole numbers"),
        (("--n_of_m=2",), "--n_of_m must be two whole numbers, such as 2,4. Received: --n_of_m=2"),
        (("--n_of_m=4,2",), "`n_of_m` must be two integers (n, m) with 1 <= n < m"),
        (("--method=magic",), "magic"),
        (("--rewiring_steps=0",), "rewiring_steps"),
        (("--bias_vectors=3",), "bias_vectors"),
        (("--kernel_limit=outputs",), "outputs"),
        (("--restart_epochs=5,x",), "--restart_epochs must be positive whole numbers, such as 500,1000"),
        (("--evaluation_columns=0",), "evaluation_columns"),
        (("--dataset=imdb",), "imdb"),
        (("--preset=huge",), "huge"),
        (("--schedule=stepwise",), "stepwise"),
        (("--unitz=5",), "unitz"),
        (("--dropout=1.0",), "--dropout must be a number in [0, 1). Received: --dropout=1.0"),
        (
            ("--hidden_dropout=-1",),
            "--hidden_dropout must be a number in [0, 1). Received: --hidden_dropout=-1",
        ),
        (("--units=",), "`units` must be a positive integer"),
        (("--units=8,0",), "`units` must be a list of positive integers"),
        (("--units=many",), "--units must be a whole number or several"),
        (("--cell_options=[1]",), "--cell_options must be a JSON object"),
        (("--cell=mlp",), "gru"),
        (("--pruning_rate=1.5",), "Received: --pruning_rate=1.5"),
        (("--batch_size=100000",), "batch_size=100000"),
        (
            ("--units=2000000",),
            "--units must fit into memory. Received: --units=2000000, --layers=2, for",
        ),
        (("--embedding_units=20000000",), "--embedding_units must fit into memory"),
        (("--layers=1000000000",), "`layers` must be at most 150"),
        (("--cache_dir=/dev/null",), "`cache_dir` must be a folder that can be written"),
        (("--data_dir=/nowhere",), "/nowhere"),
        *(
            ((f"--{name}=~nosuchuser/x",), f"--{name} must not begin with ~ unless that is a home folder")
            for name in ("workdir", "data_dir", "cache_dir")
        ),
        (("--cpu_replicas=2",), "--cpu_replicas needs --strategy=mirrored"),
        (("--method=gmp", "--pruning_rate=0.3"), "--pruning_rate must be left out with --method=gmp"),
        (("--method=snip", "--schedule=linear"), "--schedule must be left out with --method=snip"),
        (("--method=static", "--rewiring_steps=5"), "--rewiring_steps must be left out with --method=static"),
        (("--method=dense", "--sparsity=0.9"), "--sparsity must be left out with --method=dense"),
        (("--n_of_m=2,4", "--sparsity=0.9"), "--sparsity must be left out with --n_of_m=2,4"),
        (("--noexport", "--export_text"), "--export_text needs --export"),
        (("stray",), "stray"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_flags_are_one_sentence(run, flags, message, corpus, tmp_path):
    result = run(tmp_path / "run", f"--data_dir={corpus}", *TINY, *flags)
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_in_the_published_way(run, corpus, tmp_path):
    """Two bias vectors, a tied decoder with a bias, validation in other columns, averages that begin anew.

    On ids that are mapped from the cache.
    """
    flags = ["--bias_vectors=2", "--tied", "--evaluation_columns=2", "--restart_epochs=2", "--patience=1"]
    flags += ["--layers=1", "--kernel_limit=inputs", "--ar=1", "--ar_before_dropout", "--noexport"]
    flags += [f"--cache_dir={tmp_path / 'cache'}"]
    result = run(tmp_path / "run", f"--data_dir={corpus}", *TINY, *flags)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    names = ["validation", "validation, 4 columns", "test", "test, 4 columns", "test, one column"]
    assert sorted(results) == sorted([*names, "unigram, test"])
    assert results["validation"] == pytest.approx(
        min(float(row["val_perplexity"]) for row in history(tmp_path / "run")), rel=1e-5
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    settings = config.get("settings", config)
    assert (settings["bias_vectors"], settings["restart_epochs"], settings["decoder_bias"]) == (2, [2], True)
    assert len(list((tmp_path / "cache" / "tokens").glob("text-*/train.ids"))) == 1


def test_other_settings_in_a_used_workdir(run, whole_run, corpus):
    workdir, _ = whole_run
    before = (workdir / "config.json").read_text()
    result = run(workdir, f"--data_dir={corpus}", *TINY, "--units=32")
    assert result.returncode == 1
    assert "units=32 (was 16)" in result.stderr
    assert (workdir / "config.json").read_text() == before


def test_a_corpus_of_unknown_words(run, tmp_path):
    (tmp_path / "text").mkdir()
    for name, text in {"train": "the cat sat\n", "valid": "x y z\n", "test": "the cat\n"}.items():
        (tmp_path / "text" / f"{name}.txt").write_text(text * 50)
    result = run(tmp_path / "run", f"--data_dir={tmp_path / 'text'}", *TINY)
    assert result.returncode == 1
    assert "whose validation split has unknown words only; take a longer text" in result.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_non_utf8_text(run, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"caf\xe9 au lait\n" * 100)
    result = run(tmp_path / "run", f"--data_dir={tmp_path / 'text'}", *TINY)
    assert result.returncode == 1
    assert "a.txt" in result.stderr
    assert "Traceback" not in result.stderr


def test_damaged_checkpoint(run, whole_run, corpus, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run[0], folder)
    (weights,) = folder.glob("checkpoint-*.npz")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    weights.write_bytes(content)
    result = run(folder, f"--data_dir={corpus}", *TINY, "--epochs=4")
    assert result.returncode == 1
    assert "damaged" in result.stderr
    assert len(history(folder)) == 3


def test_foreign_config(run, corpus, tmp_path):
    (tmp_path / "config.json").write_text('{"hello": "world"}')
    result = run(tmp_path, f"--data_dir={corpus}", *TINY)
    assert result.returncode == 1
    assert "config.json in --workdir must be from this trainer" in result.stderr
    assert (tmp_path / "config.json").read_text() == '{"hello": "world"}'


def test_workdir_that_cannot_be_written(run, corpus, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file" / "run", f"--data_dir={corpus}", *TINY)
    assert result.returncode == 1
    assert "--workdir must be a folder that can be written" in result.stderr


@pytest.mark.backends("tensorflow", "jax")
def test_too_little_memory_is_one_sentence(run, corpus, tmp_path, monkeypatch):
    """An array of more than there is, in the second epoch; with more memory the run goes on."""
    from trainers import callbacks

    class Greedy(callbacks.LanguageModelRecorder):
        def on_epoch_begin(self, epoch, logs=None):
            super().on_epoch_begin(epoch, logs)
            if epoch == 1:
                ops.zeros((2**21, 2**21))

    flags = (f"--data_dir={corpus}", *TINY, "--noexport")
    with monkeypatch.context() as patched:
        patched.setattr(callbacks, "LanguageModelRecorder", Greedy)
        result = run(tmp_path / "run", *flags)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert re.search(
        r"error: The program must fit into memory\. Received: O.*allocating .*[^.]; the check", message
    )
    assert "the checkpoint after epoch 1 is kept in" in message
    assert "a smaller --units, --layers, --batch_size or --bptt in a new --workdir" in message
    assert "Traceback" not in result.stderr
    assert run(tmp_path / "run", *flags).returncode == 0
    assert len(history(tmp_path / "run")) == 3


@pytest.mark.backends("tensorflow", "jax")
def test_nan_loss_stops_and_keeps_the_checkpoint(run, corpus, tmp_path):
    """Weights that grow without bound: no clipping and an absurd learning rate."""
    flags = (f"--data_dir={corpus}", *TINY, "--clipnorm=0", "--learning_rate=1e38", "--noexport")
    result = run(tmp_path, *flags)
    assert result.returncode == 1
    assert re.search(r"loss became (nan|inf) at step \d+: nothing was saved yet", result.stderr)
    assert not (tmp_path / "best.keras").exists()


def test_help_names_every_flag(run_alone):
    result = run_alone("unused", "--help")
    for method in METHODS:
        assert f"{method}: " in result.stdout
    for flag in ("--dataset", "--block_shape", "--[no]reset_regrown", "--precision", "--strategy"):
        assert flag in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--sparsity=1.2",), "Received: --sparsity=1.2"), (("--unitz=5",), "unitz")],
    ids=["of a flag", "of the command line"],
)
def test_the_program_ends_with_a_sentence(flags, message, run_alone, corpus, tmp_path):
    result = run_alone(tmp_path / "run", f"--data_dir={corpus}", *TINY, *flags)
    assert result.returncode == 1
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "config.json").exists()
