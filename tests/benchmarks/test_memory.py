"""What a model needs on each device, on paper, by hand."""

import pytest

from benchmarks.memory import on_paper, shapes_of
from benchmarks.task import Sizes
from keras_selfish.models import LanguageModel

SIZES = Sizes(units=8, layers=1, vocabulary=16, batch=4, time_steps=3)
# Embedding and decoder 8 × 16 each, two kernels 8 × 32; vectors of 32 and 16.
MATRICES, VECTORS = 2 * 128 + 2 * 256, 48


@pytest.mark.parametrize(
    ("way", "weights", "masks", "states", "activations"),
    [
        ("one", MATRICES + VECTORS, MATRICES, 4 * 4 * 8, 4 * 3 * (11 * 8 + 2 * 16)),
        ("data", MATRICES + VECTORS, MATRICES, 2 * 4 * 8, 2 * 3 * (11 * 8 + 2 * 16)),
        ("model", MATRICES // 2 + VECTORS, MATRICES // 2, 4 * 4 * 8, 4 * 3 * (11 * 8 + 16)),
    ],
)
def test_on_paper(way, weights, masks, states, activations):
    assert on_paper(SIZES, way, devices=2) == {
        "weights": 4 * weights,
        "masks": masks,
        "births": 4 * masks,
        "averages": 4 * weights,
        "states": 4 * states,
        "gradients": 4 * weights,
        "activations": 4 * activations,
    }


def test_the_shapes_are_the_models():
    model = LanguageModel(SIZES.vocabulary, units=8, layers=1, batch_size=4)
    assert shapes_of(SIZES) == {variable.path: variable.shape for variable in model.trainable_variables}
