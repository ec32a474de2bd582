"""A damaged folder of a run: refused in a sentence and left as it is, or the run goes on as it would have.

What a trainer does with a folder before it trains is done here with each damage, since it is on the state it
finds there that all that follows depends. Some go on to the end.
"""

import json
import math
import random
import shutil

import pytest

from trainers import history, program
from trainers.files import RunError, sha256
from trainers.workdir import Workdir

FLAGS = (
    *("--dataset=text", "--units=8", "--layers=1", "--batch_size=4", "--bptt=10", "--sparsity=0.5"),
    *("--learning_rate=5", "--schedule=linear", "--noexport", "--epochs=2"),
)
FILES = (
    *("config.json", "checkpoint.json", "history.csv", "results.json", "vocabulary.txt", "best.keras"),
    *("final.keras", "checkpoint-00002.npz"),
)
SEED = 0
TIMES = 25  # of each random damage


@pytest.fixture(scope="module")
def run(trainer):
    return trainer("language_model").run


@pytest.fixture(scope="module")
def whole(run, corpus, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    result = run(folder, f"--data_dir={corpus}", *FLAGS)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return folder


@pytest.fixture(scope="module")
def paused(run, corpus, tmp_path_factory):
    """The folder of a run that stopped within its second epoch."""
    folder = tmp_path_factory.mktemp("paused")
    flags = (f"--data_dir={corpus}", *FLAGS)
    assert run(folder, *flags, "--epochs=1").returncode == 0
    (folder / "results.json").unlink()
    assert run(folder, *flags, "--time_limit=0").returncode == 75
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return folder


@pytest.fixture(scope="module")
def settings(trainer, corpus):
    return trainer("language_model").settings(f"--data_dir={corpus}", *FLAGS)


@pytest.fixture(scope="module")
def data(whole):
    """The fingerprints of the corpus."""
    return json.loads((whole / "config.json").read_text())["data_sha256"]


@pytest.fixture(scope="module")
def earlier(whole, tmp_path_factory):
    """The same folder as an earlier version has left it."""
    folder = tmp_path_factory.mktemp("earlier") / "run"
    shutil.copytree(whole, folder)
    for name, added in {
        "config.json": ["data_sha256"],
        "checkpoint.json": ["checksum", "history", "best_sha256", "schedule_epochs"],
    }.items():
        content = json.loads((folder / name).read_text())
        for key in added:
            del content[key]
        (folder / name).write_text(json.dumps(content))
    return folder


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def opened(folder, settings, data):
    """What a trainer finds in a folder, up to the moment at which it begins to write."""
    workdir = Workdir(folder, "language model")
    with workdir.open():
        settled = program.settled(settings, workdir).to_json()
        workdir.check_data(data, settled)
        found = workdir.checkpoint()
        digest = sha256(found.pop("weights"))
        workdir.begin(settled)
    written = [path.read_bytes() if path.exists() else None for path in (workdir.history, workdir.best)]
    return (
        settled,
        {name: found.get(name) for name in ("epochs_done", "steps_done", "best", "rows")},
        digest,
        written,
    )


VALUES = (
    *(None, True, -1, 0, 3, 7.5, math.inf, math.nan, 2**70, "", "x", "checkpoint-00001.npz", [], {}, [1]),
    *("../checkpoint-00002.npz", "/etc/passwd", "0" * 64),
)


def flipped(content, rng):
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def with_noise(content, rng):
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.randrange(1, 20)) + content[place:]


def without_a_part(content, rng):
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.randrange(1, 50) :]


def with_a_value(content, rng):
    changed = json.loads(content)
    changed[rng.choice(sorted(changed))] = rng.choice(VALUES)
    return json.dumps(changed).encode()


def without_a_key(content, rng):
    changed = json.loads(content)
    del changed[rng.choice(sorted(changed))]
    return json.dumps(changed).encode()


def with_other_lines(content, rng):
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    line = lines[place].rstrip(b"\r\n").split(b",")
    lines[place : place + 1] = rng.choice(
        [
            [],
            [lines[place]] * 2,
            [b",".join(line[:-1]) + b"\r\n"],
            [b",".join([*line, b"1.0"]) + b"\r\n"],
            [b",".join([b"other", *line[1:]]) + b"\r\n"],
            [b",".join([*line[:-1], b"1e999"]) + b"\r\n"],
            [b",".join([*line[:-1], b"\xff"]) + b"\r\n"],
        ]
    )
    return b"".join(lines)


RANDOM = (flipped, cut, with_noise, without_a_part)
CONSTANT = (
    *(b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"NaN", b"1e999", b"\0"),
    *(b'{"format": "keras_selfish language model run, version 1"}', b'{"format": 1}'),
)


def damages(name, content, times=TIMES):
    """What a file may become; None if it is gone."""
    yield None
    yield from CONSTANT
    rng = random.Random(f"{SEED} {name}")
    kinds = list(RANDOM)
    kinds += [with_a_value, without_a_key] if name.endswith(".json") else []
    kinds += [with_other_lines] if name.endswith((".csv", ".txt")) else []
    for kind in kinds:
        for _ in range(times):
            yield kind(content, rng)


def damaged(folder, copy, name, content):
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    return content_of(copy)


def check_sentence(error):
    message = str(error)
    assert "\n" not in message
    assert "Received: " in message
    assert len(message) < 1200
    assert "Traceback" not in message


def times_refused(folder, settings, data, copy, name):
    """Damages a file of a folder in many ways; how often that is refused. Else it must change nothing."""
    damaged(folder, copy, name, (folder / name).read_bytes())
    expected = opened(copy, settings, data)
    refused = 0
    for content in damages(name, (folder / name).read_bytes()):
        before = damaged(folder, copy, name, content)
        try:
            found = opened(copy, settings, data)
        except RunError as error:
            check_sentence(error)
            assert content_of(copy) == before
            refused += 1
        else:
            assert found == expected
    return refused


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_or_changes_nothing(whole, settings, data, tmp_path, name):
    refused = times_refused(whole, settings, data, tmp_path / "run", name)
    if name in ("results.json", "vocabulary.txt", "final.keras"):  # which are only written
        assert refused == 0
    else:
        assert refused > TIMES


@pytest.mark.parametrize("name", ["checkpoint.json", "best.keras", "checkpoint-00001-00000001.npz"])
def test_damage_within_an_epoch_is_refused_or_changes_nothing(paused, settings, data, tmp_path, name):
    assert times_refused(paused, settings, data, tmp_path / "run", name) > TIMES


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("results.json", "final.keras")])
def test_damage_in_the_folder_of_an_earlier_version_is_no_crash(earlier, settings, data, tmp_path, name):
    """It has no checksums of all that it says, so that some damage cannot be told."""
    copy = tmp_path / "run"
    for content in damages(name, (earlier / name).read_bytes(), times=10):
        before = damaged(earlier, copy, name, content)
        try:
            opened(copy, settings, data)
        except RunError as error:
            check_sentence(error)
            assert content_of(copy) == before


def test_a_run_of_an_earlier_version_goes_on_and_gets_fingerprints(earlier, run, corpus, whole, tmp_path):
    shutil.copytree(earlier, tmp_path / "run")
    result = run(tmp_path / "run", f"--data_dir={corpus}", *FLAGS)
    assert result.returncode == 0, result.stderr
    for name in ("config.json", "results.json", "history.csv", "vocabulary.txt"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config.json",
            {"format": "keras_selfish language model run, version 2"},
            "config.json in --workdir must be of this version of the trainer or an earlier one",
        ),
        ("checkpoint.json", {"format": "keras_selfish language model run, version 2"}, "or an earlier one"),
        ("checkpoint.json", None, "--workdir has a checkpoint but no checkpoint.json. Received: "),
        ("config.json", None, "--workdir has a checkpoint but no config.json. Received: "),
        ("history.csv", "epoch,loss\r\n1,2.0\r\n", "history.csv in --workdir must be as the run has written"),
        ("best.keras", None, "give --best_from_checkpoint to have the model after epoch 2 take its place"),
    ],
)
def test_the_trainer_says_so(run, corpus, whole, tmp_path, name, content, message):
    content = content if content is None or isinstance(content, str) else json.dumps(content)
    before = damaged(whole, tmp_path / "run", name, None if content is None else content.encode())
    result = run(tmp_path / "run", f"--data_dir={corpus}", *FLAGS)
    assert result.returncode == 1
    assert message in result.stderr
    assert content_of(tmp_path / "run") == before


def test_an_export_that_cannot_take_its_place_is_refused_before_all_else(run, corpus, whole, tmp_path):
    before = damaged(whole, tmp_path / "run", "saved_model", b"a file of somebody")
    result = run(tmp_path / "run", f"--data_dir={corpus}", *FLAGS, "--export")
    assert result.returncode == 1
    assert "`path` must be free or a SavedModel, which is replaced. Received: " in result.stderr
    assert content_of(tmp_path / "run") == before


def test_a_damaged_model_is_not_exported(trainer, whole, tmp_path):
    content = (whole / "final.keras").read_bytes()
    before = damaged(whole, tmp_path / "run", "final.keras", content[:-100])
    result = trainer("export").run(tmp_path / "run")
    assert result.returncode == 1
    assert "final.keras, which is damaged; start the trainer again with the same --workdir" in result.stderr
    assert content_of(tmp_path / "run") == before


def test_a_lost_history_is_written_anew(run, corpus, whole, tmp_path):
    damaged(whole, tmp_path / "run", "history.csv", None)
    result = run(tmp_path / "run", f"--data_dir={corpus}", *FLAGS)
    assert result.returncode == 0, result.stderr
    for name in ("results.json", "history.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_the_checkpoint_takes_the_place_of_a_lost_best_model(run, corpus, whole, tmp_path):
    damaged(whole, tmp_path / "run", "best.keras", b"PK")
    result = run(tmp_path / "run", f"--data_dir={corpus}", *FLAGS, "--best_from_checkpoint")
    assert result.returncode == 0, result.stderr
    # The last epoch of this run is its best.
    assert (tmp_path / "run" / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    again = run(tmp_path / "run", f"--data_dir={corpus}", *FLAGS)
    assert again.returncode == 0, again.stderr


def test_the_next_epoch_takes_the_place_of_a_best_model_that_is_lost_within_it(run, corpus, paused, tmp_path):
    flags = (f"--data_dir={corpus}", *FLAGS)
    damaged(paused, tmp_path / "run", "best.keras", b"PK")
    result = run(tmp_path / "run", *flags)
    assert "give --best_from_checkpoint to have the model after epoch 2 take its place" in result.stderr
    result = run(tmp_path / "run", *flags, "--best_from_checkpoint")
    assert result.returncode == 0, result.stderr
    rows = history.from_csv((tmp_path / "run" / "history.csv").read_text())
    best = json.loads((tmp_path / "run" / "checkpoint.json").read_text())["best"]
    assert best == float(rows[1]["val_perplexity"])


@pytest.mark.parametrize("changed", ["train split", "test split", "vocabulary"])
def test_another_corpus_of_as_many_words_is_refused(run, corpus, whole, tmp_path, changed):
    text, word = (corpus / "text.txt").read_text(), "statement"
    place = text.index(word) if changed == "train split" else text.rindex(word)
    other = text[:place] + "assert" + text[place + len(word) :]
    if changed == "vocabulary":
        other = text.replace(word, "phrase")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.txt").write_text(other)
    before = damaged(whole, tmp_path / "run", "results.json", b"{}")
    result = run(tmp_path / "run", f"--data_dir={tmp_path / 'corpus'}", *FLAGS)
    assert result.returncode == 1
    message = "The data must be those that the run in --workdir began with. Received: --data_dir="
    assert message + str(tmp_path / "corpus") in result.stderr
    assert changed in result.stderr
    assert content_of(tmp_path / "run") == before


def test_another_corpus_in_the_folder_of_an_earlier_version(run, corpus, earlier, tmp_path):
    text = (corpus / "text.txt").read_text().replace("statement", "phrase")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.txt").write_text(text)
    before = damaged(earlier, tmp_path / "run", "results.json", b"{}")
    result = run(tmp_path / "run", f"--data_dir={tmp_path / 'corpus'}", *FLAGS)
    assert result.returncode == 1
    assert "the vocabulary changed" in result.stderr
    assert content_of(tmp_path / "run") == before
