import keras
import numpy as np
import pytest

from keras_selfish import LanguageModel, SparseDense, SparseLSTM, masked_weights, strip
from keras_selfish.analysis import Comparison, report
from keras_selfish.masks import active_counts

pytestmark = pytest.mark.backends("tensorflow", "jax")


def small_model():
    """Two inputs, an LSTM of two units, a dense layer of three; with masks set by hand."""
    model = keras.Sequential(
        [
            keras.Input((None, 2)),
            SparseLSTM(2, sparsity=0.5, name="lstm"),
            SparseDense(3, sparsity=0.5, name="decoder"),
        ],
        name="small",
    )
    kernel, recurrent, decoder = masked_weights(model)
    # Columns are units, two for each of the gates i, f, c, o.
    kernel.mask.assign(np.array([[1, 1, 0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 1]], bool))
    recurrent.mask.assign(np.eye(2, 8, dtype=bool))
    decoder.mask.assign(np.ones((2, 3), bool))
    for masked_weight in (kernel, recurrent, decoder):
        masked_weight.project()
    return model


def test_weights_and_gates():
    weights = report(small_model()).weights
    assert [(weight.shape, weight.non_zeros, weight.masked) for weight in weights] == [
        ((2, 8), 6, True),
        ((2, 8), 2, True),
        ((2, 3), 6, True),
    ]
    assert [weight.sparsity for weight in weights] == [1 - 6 / 16, 1 - 2 / 16, 0.0]
    kernel, recurrent, decoder = weights
    assert [(gate.name, gate.shape, gate.non_zeros) for gate in kernel.gates] == [
        ("i", (2, 2), 4),
        ("f", (2, 2), 0),
        ("c", (2, 2), 1),
        ("o", (2, 2), 1),
    ]
    assert [gate.sparsity for gate in recurrent.gates] == [0.5, 1.0, 1.0, 1.0]
    assert decoder.gates == ()


def test_totals():
    result = report(small_model())
    biases = 8 + 3
    assert result.parameters == Comparison(16 + 16 + 6 + biases, 6 + 2 + 6 + biases)
    assert result.inference_flops == Comparison(2 * 38, 2 * 14)
    assert result.training_flops == Comparison(6 * 38, 6 * 14)
    assert result.sparsity == 1 - 14 / 38
    assert result.name == "small"


def test_table():
    expected = """\
weight                                 shape  non-zeros  sparsity
small/lstm/lstm_cell/kernel            2 × 8          6    62.50%
  gate i                               2 × 2          4     0.00%
  gate f                               2 × 2          0   100.00%
  gate c                               2 × 2          1    75.00%
  gate o                               2 × 2          1    75.00%
small/lstm/lstm_cell/recurrent_kernel  2 × 8          2    87.50%
  gate i                               2 × 2          2    50.00%
  gate f                               2 × 2          0   100.00%
  gate c                               2 × 2          0   100.00%
  gate o                               2 × 2          0   100.00%
small/decoder/kernel                   2 × 3          6     0.00%
all matrices                              38         14    63.16%

                               dense  sparse   ratio
parameters                        49      25  51.02%
training FLOPs per time step     228      84  36.84%
inference FLOPs per time step     76      28  36.84%"""
    result = report(small_model())
    assert result.table() == expected
    assert str(result) == expected


def test_numbers_are_those_of_the_masks_of_a_language_model():
    model = LanguageModel(1000, units=12, layers=1, sparsity=0.9)
    result = report(model)
    (embedding,) = active_counts([(1000, 12)], 0.9)
    assert result.weights[0].non_zeros == embedding == 1200
    assert sum(weight.non_zeros for weight in result.weights) == sum(w.active for w in masked_weights(model))
    assert result.parameters.dense == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert "inference FLOPs per token" in result.table()
    assert "1,200" in result.table()


def test_models_without_masks():
    result = report(LanguageModel(10, units=4, layers=1, sparsity=0.0))
    assert [(weight.shape, weight.sparsity, weight.masked) for weight in result.weights] == [
        ((10, 4), 0.0, False),
        ((4, 16), 0.0, False),
        ((4, 16), 0.0, False),
        ((4, 10), 0.0, False),
    ]
    assert result.parameters.ratio == 1.0
    layers = [keras.layers.PReLU(), keras.layers.LayerNormalization(axis=(1, 2))]
    no_matrix = report(keras.Sequential([keras.Input((4, 5)), *layers]))
    assert (no_matrix.weights, no_matrix.sparsity) == ((), 0.0)
    assert no_matrix.parameters == Comparison(60, 60)
    assert no_matrix.training_flops == Comparison(0, 0)
    assert "FLOPs per example" in no_matrix.table()


@pytest.mark.backends("tensorflow")
def test_a_stripped_model_has_the_same_figures():
    model = LanguageModel(50, units=4, sparsity=0.5)
    sparse, stripped = report(model), report(strip(model.stepwise()))
    assert stripped.sparsity == sparse.sparsity
    assert stripped.parameters == sparse.parameters
    assert stripped.training_flops == sparse.training_flops


def test_an_unbuilt_model_is_an_error():
    with pytest.raises(ValueError, match=r"`model` must be built.*model='untouched'"):
        report(keras.Sequential([SparseDense(3)], name="untouched"))


def test_masks_of_a_seed_are_the_same_on_every_backend():
    result = report(LanguageModel(100, units=8, sparsity=0.75))
    gates = {weight.name: [gate.non_zeros for gate in weight.gates] for weight in result.weights}
    assert gates == {
        "embedding/embeddings": [],
        "lstm_0_carried/lstm_0/lstm_cell/kernel": [14, 20, 14, 16],
        "lstm_0_carried/lstm_0/lstm_cell/recurrent_kernel": [18, 9, 14, 23],
        "lstm_1_carried/lstm_1/lstm_cell/kernel": [17, 20, 13, 14],
        "lstm_1_carried/lstm_1/lstm_cell/recurrent_kernel": [13, 18, 16, 17],
        "decoder/kernel": [],
    }
    assert [weight.non_zeros for weight in result.weights] == [200, 64, 64, 64, 64, 200]
    assert result.parameters == Comparison(2788, 820)
    assert result.training_flops == Comparison(10944, 2736)
    assert result.inference_flops == Comparison(3648, 912)
