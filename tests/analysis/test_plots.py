import math
import sys

import pytest

from keras_selfish.analysis import plot_history
from keras_selfish.analysis.plots import gate_densities, read_history

HISTORY = """\
epoch,loss,perplexity,val_perplexity,sparsity,density/lstm/kernel/i,density/lstm/kernel/f,density/out/all
1,5.7,300.5,280,0.67,0.33,0.33,0.33
2,5.3,200.25,190,0.67,0.35,0.31,0.33
"""


@pytest.fixture
def history(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(HISTORY)
    return path


def shape_of(png):
    image = pytest.importorskip("matplotlib.image")
    return image.imread(png).shape


def test_history_is_read_by_column(history):
    columns = read_history(history)
    assert columns["epoch"] == [1, 2]
    assert columns["perplexity"] == [300.5, 200.25]
    # A weight without gates has a density that never changes.
    assert gate_densities(columns) == {"lstm/kernel": {"i": [0.33, 0.35], "f": [0.33, 0.31]}}


def test_missing_entries_and_repeated_epochs(history):
    history.write_text(HISTORY + "2,5.2,190.0,NA,0.67,,0.31,0.33\n3,5.1,180.0\n")
    columns = read_history(history)
    assert columns["epoch"] == [1, 2, 3]
    assert columns["loss"] == [5.7, 5.2, 5.1]
    assert columns["val_perplexity"][0] == 280
    assert all(math.isnan(value) for value in columns["val_perplexity"][1:])
    assert math.isnan(columns["density/lstm/kernel/i"][1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"with 0 rows and the columns \(none\)"),
        ("epoch,loss\n", "with 0 rows and the columns epoch, loss"),
        ("step,loss\n1,2\n", "must have a column `epoch`"),
        ("epoch,accuracy\n1,2\n", "one of `perplexity` and `loss`"),
        ("epoch,loss\n1,low\n", "must hold numbers. Received: 'low' in column 'loss'"),
    ],
)
def test_other_files_are_refused_before_anything_is_written(text, message, tmp_path):
    pytest.importorskip("matplotlib")
    history, png = tmp_path / "history.csv", tmp_path / "history.png"
    history.write_text(text)
    png.write_text("the picture before")
    with pytest.raises(ValueError, match=message):
        plot_history(history, png)
    assert png.read_text() == "the picture before"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`csv_path` must be a training history.*none\.csv"):
        read_history(tmp_path / "none.csv")


def test_pictures_grow_with_what_there_is_to_draw(history, tmp_path):
    pytest.importorskip("matplotlib")
    png = tmp_path / "history.png"
    assert plot_history(history, png) == png
    with_gates = shape_of(png)
    history.write_text("epoch,loss,val_loss\n0,5.7,5.6\n1,5.3,NA\n")
    plot_history(history, png)
    assert shape_of(png)[0] < with_gates[0]
    lines = HISTORY.splitlines()
    speeds = ["tokens_per_second", "15000", "15100"]
    history.write_text("".join(f"{line},{speed}\n" for line, speed in zip(lines, speeds, strict=True)))
    plot_history(str(history), str(png))
    assert shape_of(png)[0] > with_gates[0]
    assert shape_of(png)[1] == with_gates[1] == 1500


def test_without_matplotlib_the_extra_is_named(history, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # importing it raises
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras_selfish\[plot\]'"):
        plot_history(history, tmp_path / "history.png")
