"""The Python in the documents runs as it stands there."""

import os
import pathlib
import re
import subprocess
import sys

from keras_selfish.rewiring import METHODS

DOCUMENTS = pathlib.Path(__file__).resolve().parents[1] / "docs"


def blocks(name):
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


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
    program = tmp_path / "noisy_rigl.py"
    program.write_text("\n\n".join(blocks("extending.md")), encoding="utf-8")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "text.txt").write_text(
        "one two three four five six seven eight nine ten\n" * 200, encoding="utf-8"
    )
    small = ["--dataset=text", f"--data_dir={corpus}", "--units=8", "--layers=1", "--epochs=1", "--bptt=5"]
    small += ["--batch_size=4", "--preset=quick", "--noexport"]
    result = subprocess.run(
        [sys.executable, str(program), "--method=noisy_rigl", f"--workdir={tmp_path / 'run'}", *small],
        env={**os.environ, "PYTHONPATH": str(DOCUMENTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert '"method": "noisy_rigl"' in (tmp_path / "run" / "config.json").read_text()


def test_a_method_of_ones_own_is_short():
    assert blocks("extending.md")[0].count("\n") < 25
