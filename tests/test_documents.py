"""The Python in the documents runs as it stands there."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_selfish.masks import masked_weights
from keras_selfish.rewiring import METHODS

DOCUMENTS = pathlib.Path(__file__).resolve().parents[1] / "docs"


def blocks(name, chapter=0):
    """The Python of one of a document's chapters."""
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    chapters = re.split(r"^# ", text, flags=re.MULTILINE)[1:]
    return re.findall(r"^```python\n(.*?)^```", chapters[chapter], re.MULTILINE | re.DOTALL)


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


@pytest.mark.backends("tensorflow", "jax")
def test_a_cell_of_ones_own_has_its_gradient():
    (block,) = blocks("extending.md", chapter=1)
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
