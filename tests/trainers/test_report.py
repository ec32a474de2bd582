"""Reports of runs: what they say, of which runs, and that nothing in them can do harm."""

import csv
import fcntl
import html.parser
import json
import os
import re
import select
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest

from trainers import records
from trainers.reporting import charts, headings, markup, mask_section
from trainers.reporting.run import read_run
from trainers.reporting.style import STYLE
from trainers.workdir import RunError, write_json

SETTINGS = {
    "method": "selfish",
    "dataset": "text",
    "data_dir": "/home/somebody/corpora/text",
    "cell": "lstm",
    "layers": 1,
    "units": 8,
    "sparsity": 0.75,
    "learning_rate": 40.0,
    "block_shape": [1, 1],
    "cell_options": None,
    "seed": 0,
}
SESSION = {
    "first_epoch": 1,
    "began": "2026-01-02T03:04:05+00:00",
    "keras_selfish": "0.1.0",
    "backend": "tensorflow",
    "tensorflow": "2.21.0",
    "processor": "A processor",
    "cores": 4,
    "accelerators": [],
}
KERNEL = "lstm_0_carried/lstm_0/lstm_cell/kernel"
GATES = ("i", "f", "c", "o")


def make_run(folder, epochs=3, masks=True, results=True, sessions=True, kernel=(16, 8), **settings):
    """Writes the files of a run of a language model.

    Args:
        folder: `pathlib.Path` to make.
        epochs: Epochs done.
        masks: Whether the masks are there.
        results: Whether it is finished.
        sessions: Whether it says what it ran with.
        kernel: Shape of each gate of its one recurrent kernel.
        **settings: What differs from `SETTINGS`.
    """
    folder.mkdir(parents=True)
    settings = {"epochs": 3, **SETTINGS, **settings}
    write_json(folder / "config.json", {"format": "keras_selfish language model run, version 1", **settings})
    rows = [row_of(epoch, epochs) for epoch in range(1, epochs + 1)]
    if rows:
        with open(folder / "history.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if results:
        write_json(folder / "results.json", {"test": 123.45678, "test, one column": 120.5})
    if sessions:
        write_json(folder / "environment.json", {"format": records.ENVIRONMENT_FORMAT, "sessions": [SESSION]})
    if masks:
        for name, epoch in ((records.FIRST_MASKS, 0), (records.LAST_MASKS, epochs)):
            records.write_masks(folder / name, masks_of(epoch, kernel), epoch)
    return folder


def row_of(epoch, epochs):
    """A row of the history; the one before the last epoch is best."""
    perplexity = 800.0 / epoch
    validation = 700.0 / epoch if epoch < epochs else 900.0
    return {
        "epoch": epoch,
        "loss": float(np.log(perplexity)),
        "perplexity": perplexity,
        "val_loss": float(np.log(validation)),
        "val_perplexity": validation,
        "sparsity": 0.75,
        "density/decoder/kernel/all": 0.25,
        **{
            f"density/{KERNEL}/{gate}": 0.25 + epoch * step
            for gate, step in zip(GATES, (0, 0.01, -0.02, 0.01), strict=True)
        },
        "pruning_rate": 0.8 / epoch,
        "training_flops": 0.25,
        "tokens_per_second": 5000.0 + epoch,
        "seconds": 60.0,
    }


def masks_of(epoch, kernel):
    """Masks of a run after an epoch: a quarter of the connections."""
    draw = np.random.default_rng(epoch).random
    rows, columns = kernel
    return [
        records.StoredMask(KERNEL, draw((rows, 4 * columns)) < 0.25, dict.fromkeys(GATES, columns)),
        records.StoredMask("decoder/kernel", draw((columns, 20)) < 0.25),
    ]


VOID = ("meta", "br", "img")


class Page(html.parser.HTMLParser):
    """A parsed report.

    Attributes:
        tags: All start tags, pairs of the name and a dict of attributes.
        cells: Rows of tables, lists of texts.
        text: All text outside of the style.
        errors: Tags that do not match.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.errors, self._open, self._texts = [], [], [], [], []
        self.source = text
        self.feed(text)
        self.close()
        self.errors += self._open
        self.text = re.sub(r"\s+", " ", "".join(self._texts))
        self.svgs = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        if "style" in self._open:
            return
        self._texts.append(data)
        if self._open and self.cells and {"td", "th"} & set(self._open):
            self.cells[-1][-1] += data
        elif self._open and self._open[-1] in ("p", "li", "h1", "h2", "h3", "dt", "dd", "span", "figcaption"):
            self._texts.append(" ")

    def row(self, first):
        """The row of a table whose first cell begins with a text."""
        return next(row for row in self.cells if row and row[0].startswith(first))


@pytest.fixture(scope="module")
def run(trainer):
    """A function that runs the program in this process on a folder, with flags."""
    return trainer("report").run


@pytest.fixture(scope="module")
def report(run):
    """A function that reports folders and parses what was written."""

    def of(*folders, flags=()):
        result = run(folders[0], *(f"--workdir={folder}" for folder in folders[1:]), *flags)
        assert result.returncode == 0, result.stderr
        page = Page((folders[0] / "report.html").read_text(encoding="utf-8"))
        assert page.errors == []
        return page

    return of


def test_a_report_shows_the_figures_of_a_run(report, tmp_path):
    page = report(make_run(tmp_path / "run"))
    assert "finished: 3 of 3 epochs" in page.text
    for figure in ("123.5", "350", "epoch 2", "75%", "25%", "5,002", "3 min"):
        assert figure in page.text
    figures = ["5.9915", "400.00", "5.8579", "350.00", "75.00%", "40.00%", "25.00%", "5,002", "60.000"]
    assert page.row("2best") == ["2best", *figures]
    assert page.row("test, one column") == ["test, one column", "120.5"]
    assert page.row("TensorFlow") == ["TensorFlow", "2.21.0"]
    assert "…/text" in page.text
    assert "Not set, which leaves them to the method or the model: cell_options." in page.text
    assert "Not in this report" not in page.text


def test_charts_are_whole_and_described(report, tmp_path):
    page = report(make_run(tmp_path / "run"))
    titles = [svg.find("title").text for svg in page.svgs]
    of_history = ["Perplexity", "Sparsity", "Pruning rate", "Training FLOPs", "Tokens per second"]
    assert titles == [*of_history, "lstm_cell/kernel"]
    described = page.svgs[0].find("desc").text
    assert described == (
        "validation: 700 in epoch 1, 900 in epoch 3, best 350 in epoch 2; "
        "training: 800 in epoch 1, 266.7 in epoch 3."
    )
    hovers = [group.find("title").text for group in page.svgs[0].iter("g") if group.get("class") == "at"]
    assert hovers[1] == "epoch 2\nvalidation: 350\ntraining: 400"
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    for tag, attributes in page.tags:
        for name in attributes.get("aria-labelledby", "").split():
            assert name in identities
        if tag == "a":
            assert attributes["href"].removeprefix("#") in identities
        if tag == "img":
            assert attributes["alt"].startswith("mask ")


def test_a_line_is_drawn_where_its_values_are():
    line = charts.Line("name", "n", [1, 2, 3, 4], [0.0, 5.0, float("nan"), 10.0], color=1, best=1)
    svg = charts.chart("one", "One", [line], limits=(0.0, 20.0))
    scale = charts.Scale(0.0, 20.0, False)
    (group,) = [group for group in svg.iter("g") if group.get("class") == "c1 d0"]
    (path,) = group.iter("path")
    points = [tuple(map(float, point.split())) for point in path.get("d")[1:].split("L")]
    assert points[0][0] == charts.LEFT
    right = charts.WIDTH - 14 - charts.LETTER
    assert points[1][0] == pytest.approx(charts.LEFT + (right - charts.LEFT) / 3, abs=0.1)
    assert [y for _, y in points] == [pytest.approx(scale.place(y), abs=0.1) for y in (0.0, 5.0)]
    lone, best = group.iter("circle")
    assert float(lone.get("cx")) == right
    assert float(best.get("cx")) == pytest.approx(points[1][0])
    assert scale.place(0.0) - scale.place(10.0) == pytest.approx(scale.place(10.0) - scale.place(20.0))
    assert charts.Scale(1.0, 100.0, True).place(10.0) == pytest.approx(
        (charts.Scale(1.0, 100.0, True).place(1.0) + charts.Scale(1.0, 100.0, True).place(100.0)) / 2
    )


@pytest.mark.parametrize(
    "values",
    [
        [float("nan"), float("inf")],
        [1e308, -1e308],
        [1e300, 1.0],
        [5e-324, 0.0],
        [0.9, 0.9 + 1e-9],
        [1.0, 1.0 + 2**-52],
        [-3.0, -3.0],
        [0.0],
        [1e-9, 1e9],
    ],
)
@pytest.mark.parametrize("logarithmic", [True, False])
def test_any_values_can_be_drawn(values, logarithmic):
    line = charts.Line("name", "n", list(range(1, len(values) + 1)), values)
    svg = charts.chart("one", "One", [line], logarithmic=logarithmic)
    if all(np.isfinite(values)) and max(map(abs, values)) < 1e100:
        numbers = re.findall(r"-?\d+\.?\d*", " ".join(path.get("d") for path in svg.iter("path")))
        assert all(-1 <= float(one) <= charts.WIDTH for one in numbers)
        ticks = [float(text.get("y")) for text in svg.iter("text")]
        assert all(0 <= tick <= charts.HEIGHT for tick in ticks)
    else:
        assert svg is None or "nan" not in markup.document(svg)


def test_labels_do_not_cover_each_other():
    lines = [charts.Line("name", str(index), [1, 2], [0.0, 1.0 + index / 100]) for index in range(8)]
    svg = charts.chart("one", "One", [*lines, charts.Line("name", "low", [1, 2], [0.0, 0.0])])
    places = sorted(float(text.get("y")) for text in svg.iter("text") if "name" in text.get("class"))
    assert len(places) == 9
    assert min(np.diff(places)) > charts.LABEL_DISTANCE - 0.2
    assert places[-1] <= charts.HEIGHT - charts.BOTTOM + 5


def test_pictures_of_masks_show_the_density_of_their_cells():
    mask = np.zeros((12, 7), bool)
    mask[:4, :2] = True
    mask[4, 6] = True
    found = mask_section.cells(mask, 4)
    assert found.shape == (3, 4)  # cells of 4 × 2, the last ones of 4 × 1
    assert found.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0.25], [0, 0, 0, 0]]
    levels = np.arange(15).reshape(3, 5)
    assert decoded(markup.mask_picture(levels)).tolist() == levels.tolist()


def decoded(address):
    """The palette indices of a PNG of 4 bits, read as the specification says."""
    import base64

    png = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        chunks[kind] = content
        at += 12 + length
    width, height, depth, color = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, color) == (4, 3)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), "uint8").reshape(height, -1)
    assert not lines[:, 0].any()
    halves = np.stack([lines[:, 1:] >> 4, lines[:, 1:] & 15], -1)
    return halves.reshape(height, -1)[:, :width]


def test_the_table_of_masks_counts(report, tmp_path):
    folder = make_run(tmp_path / "run", masks=False)
    first, last = np.zeros((4, 8), bool), np.zeros((4, 8), bool)
    first[0, :4] = last[0, 2:4] = last[2, 4] = last[2, 0] = True
    for name, mask in ((records.FIRST_MASKS, first), (records.LAST_MASKS, last)):
        records.write_masks(
            folder / name, [records.StoredMask("dense/kernel", mask)], 0 if mask is first else 3
        )
    page = report(folder)
    assert page.row("dense/kernel") == ["dense/kernel", "4 × 8", "4", "12.5%", "12.5%", "50%", "2", "4"]
    assert "first: before training, last: after epoch 3" in page.text


def test_several_runs_are_compared(report, tmp_path):
    one = make_run(tmp_path / "a" / "run")
    other = make_run(tmp_path / "b" / "run", sparsity=0.9, units=16, momentum=0.5)
    page = report(one, other)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page.source)
    assert headings[:3] == ["What differs", "At a glance", "Curves"]
    assert page.row("sparsity") == ["sparsity", "0.75", "0.9"]
    assert page.row("units") == ["units", "8", "16"]
    assert page.row("momentum") == ["momentum", "–", "0.5"]
    assert page.row("A a/run")[1] == "3 of 3"
    assert page.row("B b/run")[1] == "3 of 3"
    assert "learning_rate" in page.text
    assert [svg.find("title").text for svg in page.svgs][:2] == [
        "Validation perplexity",
        "Training perplexity",
    ]


def test_the_same_settings_are_said_to_be_the_same(report, tmp_path):
    page = report(make_run(tmp_path / "one"), make_run(tmp_path / "two"))
    assert "The settings are the same in all runs." in page.text


HOSTILE = "<script>alert(1)</script>\"'&amp;<img src=x onerror=alert(1)>"


def test_nothing_of_a_run_becomes_markup(report, tmp_path):
    folder = make_run(
        tmp_path / "<script>alert(1)<img src=x onerror=alert(1)>\"'&\udcff\x07",
        cell=HOSTILE,
        **{HOSTILE: HOSTILE},
    )
    write_json(folder / "results.json", {HOSTILE: HOSTILE, "test": 1.0})
    history = (folder / "history.csv").read_text()
    (folder / "history.csv").write_text(history.replace("density/decoder", "density/<script>"))
    session = {"first_epoch": 1, HOSTILE: HOSTILE, "accelerators": [HOSTILE]}
    content = {"format": records.ENVIRONMENT_FORMAT, "sessions": [session]}
    (folder / "environment.json").write_text(json.dumps(content))
    stored = records.StoredMask(HOSTILE, np.eye(8, dtype=bool), {HOSTILE: 8})
    records.write_masks(folder / records.LAST_MASKS, [stored], 3)
    page = report(folder, make_run(tmp_path / "other"))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:image/png").startswith("data:image/png")
        assert tag != "img" or "class" not in attributes
    assert page.text.count("alert(1)") > 10
    assert page.row(HOSTILE) == [HOSTILE, HOSTILE, "–"]
    assert "\\udcff\\x07" in page.text


def test_a_report_needs_nothing_beside_it(report, tmp_path):
    page = report(make_run(tmp_path / "run"))
    assert not re.search(r"https?://|url\(|@import|<script|<link", page.source)
    (policy,) = [one["content"] for tag, one in page.tags if one.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_runs_that_go_on_are_reported(report, tmp_path):
    page = report(make_run(tmp_path / "run", epochs=2, results=False))
    assert "not finished: 2 of 3 epochs" in page.text
    assert "results.json, which has the test, is written at its end" in page.text
    continued = report(make_run(tmp_path / "continued", epochs=2))
    assert "results are from before it was continued" in continued.text
    dense = report(make_run(tmp_path / "dense", masks=False, method="dense"))
    assert "The model is dense: it has no masks." in dense.text
    none = report(make_run(tmp_path / "begun", epochs=0, results=False, sessions=False, masks=False))
    assert "not finished: 0 of 3 epochs" in none.text
    for sentence in ("there is no history", "has no environment.json", "first masks are not known"):
        assert sentence in none.text
    assert none.svgs == []


@pytest.mark.parametrize("figure", ["1e308", "-1e308", "inf", "nan", "", "1e-320", "0"])
def test_figures_of_any_size_are_reported(report, tmp_path, figure):
    folder = make_run(tmp_path / "run")
    header, *rows = (folder / "history.csv").read_text().splitlines()
    rows = [",".join([row.split(",")[0], *[figure] * header.count(",")]) for row in rows]
    (folder / "history.csv").write_text("\n".join([header, *rows]))
    (folder / "results.json").write_text(
        f'{{"test": {"9" * 400}, "other": -1e999, "none": null, "list": [1, {{}}]}}'
    )
    page = report(folder)
    assert page.row("other") == ["other", "−∞"]
    assert page.row("test")[1] == "1.0000e+400"
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL)).lower()


def test_runs_of_image_classifiers_are_reported(report, tmp_path):
    folder = make_run(tmp_path / "run", masks=False)
    settings = {
        "network": "lenet_5",
        "dataset": "mnist",
        "method": "switcher",
        "epochs": 2,
        "finetune_epochs": 1,
    }
    kind = {"format": "keras_selfish image classifier run, version 1"}
    write_json(folder / "config.json", {**kind, **settings})
    write_json(folder / "results.json", {"test_accuracy": 0.98765, "difference": 1e-6})
    (folder / "history.csv").write_text(
        "epoch,loss,accuracy,val_loss,val_accuracy,sparsity,seconds\n"
        "1,0.5,0.8,0.4,0.91,0.5,2\n2,0.4,0.9,0.3,0.93,0.7,2\n3,0.4,0.9,0.35,0.92,0.7,2\n"
    )
    page = report(folder)
    assert "lenet_5 on mnist, switcher" in page.text
    assert "finished: 3 of 3 epochs" in page.text
    for figure in ("98.77%", "validation accuracy", "93%", "best, epoch 2"):
        assert figure in page.text
    assert [svg.find("title").text for svg in page.svgs] == ["Accuracy", "Loss", "Sparsity"]
    assert page.row("2best")[1:4] == ["0.40000", "90.00%", "0.30000"]
    assert "The last masks are not known" in page.text


@pytest.mark.parametrize(
    ("name", "content", "must"),
    [
        ("config.json", b"{", "must hold the settings of a run"),
        ("config.json", b'{"hello": "world"}', "must hold the settings of a run"),
        ("config.json", b"[" * 100_000, "must hold the settings of a run"),
        ("config.json", b"\xff", "must hold the settings of a run"),
        ("config.json", None, "which has a config.json"),
        ("history.csv", b"epoch,loss\n1,x\n", "must hold a row of numbers for each epoch"),
        ("history.csv", b"epoch,loss\n1\n", "must hold a row of numbers for each epoch"),
        ("history.csv", b"epoch,loss\n1,2,3\n", "must hold a row of numbers for each epoch"),
        ("history.csv", b"loss\n1\n", "must hold a row of numbers for each epoch"),
        ("history.csv", b"epoch,loss\n1e400,1\n", "must hold a row of numbers for each epoch"),
        ("history.csv", b"epoch,loss\n" + b"9" * 400 + b",1\n", "must hold a row of numbers for each epoch"),
        ("history.csv", b"epoch,loss\n1,\xff\n", "must hold a row of numbers for each epoch"),
        ("results.json", b"[1]", "must hold the results of a run"),
        ("results.json", b'{"test": 1', "must hold the results of a run"),
        ("environment.json", b"{}", "must hold what the run ran with"),
        ("environment.json", b'{"format": 3, "sessions": [3]}', "must hold what the run ran with"),
        (
            "environment.json",
            b'{"format": "keras_selfish environment, version 1", "sessions": [{"first_epoch": 1e999}]}',
            "must hold what the run ran with",
        ),
        ("masks-first.npz", b"PK", "must hold masks"),
        ("masks-last.npz", b"", "must hold masks"),
    ],
)
def test_a_damaged_file_is_one_sentence_and_no_report(run, tmp_path, name, content, must):
    folder = make_run(tmp_path / "run")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    (folder / "report.html").write_text("the one before")
    result = run(folder)
    assert result.returncode == 1
    assert re.fullmatch(rf"error: [^\n]*{must}[^\n]*Received: [^\n]*run[^\n]*", result.stderr.strip()), (
        result.stderr
    )
    assert (folder / "report.html").read_text() == "the one before"
    assert list(folder.glob(".partial*")) == []


def test_every_flipped_byte_of_masks_is_refused_or_read(tmp_path):
    """No damage leads to another exception."""
    folder = make_run(tmp_path / "run")
    whole = (folder / records.LAST_MASKS).read_bytes()
    refused = 0
    for index in range(0, len(whole), 7):
        content = bytearray(whole)
        content[index] ^= 0x55
        (folder / records.LAST_MASKS).write_bytes(content)
        try:
            read_run(folder)
        except RunError:
            refused += 1
    assert refused > len(whole) // 7 // 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir={run}"], "for different folders. Received: 2 folders, "),
        (["--workdir={run}/../run"], "for different folders. Received: 2 folders, "),
        ([f"--workdir={{run}}/{index}" for index in range(8)], "up to 8 times"),
        (["--workdir={run}/no"], "must be the folder of a run"),
        (["--output={run}/no/report.html"], "--output must name a file in a folder that exists"),
        (["stray"], "stray"),
    ],
)
def test_bad_flags(run, tmp_path, flags, message):
    folder = make_run(tmp_path / "run")
    result = run(folder, *(flag.format(run=folder) for flag in flags))
    assert result.returncode == 1
    assert message in result.stderr
    assert not (folder / "report.html").exists()


def test_masks_can_be_left_out_and_the_output_named(run, tmp_path):
    folder = make_run(tmp_path / "run")
    result = run(folder, "--nomasks", f"--output={tmp_path / 'other.html'}")
    assert result.returncode == 0, result.stderr
    page = Page((tmp_path / "other.html").read_text(encoding="utf-8"))
    assert "Masks were left out" in page.text
    assert "img" not in dict(page.tags)
    assert not (folder / "report.html").exists()


def test_reports_of_long_and_large_runs_are_small(report, tmp_path):
    folders = [make_run(tmp_path / name, epochs=40, kernel=(512, 512)) for name in ("one", "two", "three")]
    assert len(report(folders[0]).source) < 400_000
    assert len(report(*folders).source) < 1_000_000
    long = report(make_run(tmp_path / "long", epochs=3000, masks=False))
    assert len(long.source) < 400_000
    assert "of 3000 epochs" in long.text
    assert page_has_best(long, 2999)


def page_has_best(page, epoch):
    return page.row(f"{epoch}best")[0] == f"{epoch}best"


def test_a_continued_run_shows_both_environments(report, tmp_path):
    folder = make_run(tmp_path / "run")
    sessions = records.read_sessions(folder / "environment.json")
    sessions += [
        {**sessions[0], "first_epoch": 2},
        {**sessions[0], "first_epoch": 3, "backend": "jax", "jax": "0.10.0"},
    ]
    write_json(folder / "environment.json", {"format": records.ENVIRONMENT_FORMAT, "sessions": sessions})
    page = report(folder)
    assert page.row("backend") == ["backend", "tensorflow", "jax"]
    assert page.row("JAX") == ["JAX", "–", "0.10.0"]
    assert "from epoch 1" in page.text
    assert "from epoch 3" in page.text


def test_names_of_weights_are_short_and_differ():
    names = [
        "a/lstm_0/cell/kernel",
        "b/lstm_1/cell/kernel",
        "b/lstm_1/cell/recurrent_kernel",
        "decoder/kernel",
        "kernel",
        "a/kernel",
    ]
    short = headings.short_names(names)
    assert len(set(short.values())) == len(names)
    assert short["a/lstm_0/cell/kernel"] == "lstm_0/kernel"
    assert short["kernel"] == "kernel"


def luminance(color):
    """Relative luminance as the Web Content Accessibility Guidelines define it."""
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read(dark):
    parts = re.split(r"@media screen and \(prefers-color-scheme: dark\)|@media print", STYLE)
    assert len(parts) == 3
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", parts[0]))
    if dark:
        colors.update(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", parts[1]))
    texts = ["ink", "quiet", "accent", *(f"c{index}" for index in range(charts.COLORS))]
    pairs = [(text, ground) for text in texts for ground in ("page", "card")]
    pairs += [("good", "good-tint"), ("wait", "wait-tint"), ("ink", "tint"), ("card", "accent")]
    for text, ground in pairs:
        low, high = sorted((luminance(colors[text]), luminance(colors[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


class Browser:
    """Chromium without a window, spoken to over its debugging pipe.

    Args:
        program: Path of the program.
        folder: Folder for its profile.
    """

    def __init__(self, program, folder):
        self.messages, self._number, self._rest = [], 0, b""
        reading, self._to = self._pipe()
        self._from, writing = self._pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-pipe",
        ]
        command = [program, *flags, f"--user-data-dir={folder}", "about:blank"]
        redirected = f'exec "$@" 3<&{reading} 4>&{writing}'  # the numbers that the browser reads and writes
        self.process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", *command],
            pass_fds=(reading, writing),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reading)
        os.close(writing)
        self.session = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    @staticmethod
    def _pipe():
        """A pipe with numbers that are not in the way of 3 and 4."""
        found = []
        for end in os.pipe():
            found.append(fcntl.fcntl(end, fcntl.F_DUPFD, 20))
            os.close(end)
        return found

    def __call__(self, method, **parameters):
        """Sends a command and returns its result; events meanwhile are kept in `messages`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], 60)
            assert ready, "the browser does not answer"
            received = os.read(self._from, 1 << 16)
            assert received, "the browser has ended"
            self._rest += received
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.messages.append(message)
        return message

    def open(self, path, width, dark):
        """Opens a file and waits until it is drawn."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.messages.clear()
        self("Page.navigate", url=path.as_uri())
        while not any(message["method"] == "Page.loadEventFired" for message in self.messages):
            self._receive()

    def value(self, expression):
        """The value of an expression of JavaScript."""
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self):
        self.session = None
        self("Browser.close")
        self.process.wait(timeout=30)
        os.close(self._to)
        os.close(self._from)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def reports(run, tmp_path_factory):
    """Files of reports: of one run, of three, and of one with long words."""
    folder = tmp_path_factory.mktemp("reports")
    runs = [make_run(folder / name, epochs=40, kernel=(128, 128)) for name in ("one", "two", "three")]
    long = make_run(folder / ("long_" * 40), epochs=2, results=False, cell="x" * 300, dataset="y" * 300)
    files = {}
    for name, chosen in {"one": runs[:1], "three": runs, "long": [long, *runs]}.items():
        files[name] = folder / f"{name}.html"
        result = run(chosen[0], *(f"--workdir={one}" for one in chosen[1:]), f"--output={files[name]}")
        assert result.returncode == 0, result.stderr
    return files


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["one", "three", "long"])
def test_a_report_fits_every_screen(browser, reports, name, width, dark):
    browser.open(reports[name], width, dark)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    # What scrolls by itself lies within the page, too.
    outside = "[...document.querySelectorAll('section, figure, .scroll, svg, h1, p')].filter(one => {"
    outside += "const box = one.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth + 0.5"
    assert browser.value(outside + "}).length") == 0
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(15, 18, 23)" if dark else "rgb(246, 247, 249)")
    assert browser.value("[...document.images].every(one => one.complete && one.naturalWidth > 1)")
    methods = [message["method"] for message in browser.messages]
    assert not {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"} & set(methods)
    addresses = [
        message["params"]["request"]["url"]
        for message in browser.messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert all(address.startswith(("file://", "data:image/png")) for address in addresses)


@pytest.mark.slow
def test_values_show_under_the_pointer(browser, reports):
    browser.open(reports["one"], 1280, False)
    browser.value("document.querySelector('svg').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = "document.querySelector('svg .at:nth-of-type(9)').getBoundingClientRect()"
    x, y = (
        browser.value(f"{box}.{edge} + {box}.{size} / 2") for edge, size in (("x", "width"), ("y", "height"))
    )
    visible = "one => getComputedStyle(one).visibility == 'visible'"
    shown = f"[...document.querySelectorAll('.at line')].filter({visible})"
    assert browser.value(f"{shown}.length") == 0
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.value(f"{shown}.length") == 1
    assert browser.value(f"{shown}[0].parentNode.querySelector('title').textContent").startswith("epoch ")
