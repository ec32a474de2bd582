"""What only a GPU can show: `CUDA_VISIBLE_DEVICES=0 python -m pytest -m gpu`, with KERAS_BACKEND=jax too."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import SNTASGD, LanguageModel, TokenCrossEntropy
from keras_selfish.data import Windows
from keras_selfish.layers import SparseLSTM, SparseONLSTM, SparseRHN
from keras_selfish.masks import masked_weights
from keras_selfish.recurrence import on_gpu
from keras_selfish.rewiring import device_arrays, host_arrays, rules
from keras_selfish.rewiring.matrix_change import read_matrix
from keras_selfish.rewiring.model_change import choose_changes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.backends("tensorflow", "jax"),
    pytest.mark.skipif(not on_gpu(), reason="needs a GPU that Keras's backend sees"),
]


def test_mixed_bfloat16_trains_as_float32():
    tokens = np.tile(np.random.default_rng(0).integers(0, 50, 40), 200)
    losses = {}
    for dtype in ("float32", "mixed_bfloat16"):
        model = LanguageModel(50, 100, batch_size=8, sparsity=0.67, dtype=dtype, seed=1)
        model.compile(SNTASGD(40.0, global_clipnorm=0.25), loss=TokenCrossEntropy())
        windows = Windows(tokens, 8, 35)
        losses[dtype] = model.fit(windows.batches(), epochs=12, shuffle=False, verbose=0).history["loss"]
    assert losses["float32"][-1] < 0.5 * losses["float32"][0]
    assert losses["mixed_bfloat16"][-1] == pytest.approx(losses["float32"][-1], rel=0.1, abs=0.05)


def gradients_of(layer, sequences):
    values = [ops.convert_to_tensor(weight) for weight in layer.trainable_weights]
    if keras.backend.backend() == "jax":
        import jax

        def loss(values):
            mapping = list(zip(layer.trainable_weights, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return ops.sum(ops.square(layer(sequences) - 0.5))

        return jax.grad(loss)(values)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = ops.sum(ops.square(layer(sequences) - 0.5))
    return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])


@pytest.mark.parametrize("units", [64, 100])  # 100 is padded
def test_own_path_and_cudnn_agree(units):
    sequences = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(4, 9, 24)), "float32")
    layers = []
    for use_cudnn in (True, False):
        layers.append(SparseLSTM(units, return_sequences=True, mask_seed=1, use_cudnn=use_cudnn))
        layers[-1].build(sequences.shape)
        layers[-1].set_weights(layers[0].get_weights())
    np.testing.assert_allclose(*(ops.convert_to_numpy(layer(sequences)) for layer in layers), atol=2e-3)
    # Products are of TensorFloat-32 precision, ten bits.
    for found, expected in zip(*(gradients_of(layer, sequences) for layer in layers), strict=True):
        found, expected = ops.convert_to_numpy(found), ops.convert_to_numpy(expected)
        np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    "make",
    [lambda **o: SparseRHN(100, depth=3, **o), lambda **o: SparseONLSTM(100, chunk_size=10, **o)],
    ids=["RHN", "ON-LSTM"],
)
def test_padded_units_give_the_gradients_of_kerass_loop(make):
    sequences = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(4, 9, 24)), "float32")
    layers = []
    for unroll in (False, True):
        layers.append(make(return_sequences=True, mask_seed=1, unroll=unroll))
        layers[-1].build(sequences.shape)
        layers[-1].set_weights(layers[0].get_weights())
    for found, expected in zip(*(gradients_of(layer, sequences) for layer in layers), strict=True):
        found, expected = ops.convert_to_numpy(found), ops.convert_to_numpy(expected)
        np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"drop": rules.magnitude_by_sign, "reset_regrown": True},
        {"drop": rules.sensitivity},
        {"drop_scope": "model", "redistribution": rules.nonzeros},
    ],
    ids=lambda options: "-".join(options) or "magnitude",
)
def test_rewiring_on_the_device_is_that_of_the_host(options):
    layer = SparseLSTM(300, sparsity=0.67, mask_seed=1)
    layer.build((None, None, 300))
    weights = masked_weights(layer)
    gradients = [np.random.default_rng(2).normal(size=one.shape).astype("float32") for one in weights]
    changes = []
    for arrays in (host_arrays, device_arrays):
        matrices = [
            read_matrix(*pair, arrays=arrays)
            for pair in zip(weights, [None] * len(weights), gradients, strict=True)
        ]
        options = {"rate": 0.3, "drop": rules.magnitude, "grow": rules.gradient, **options}
        changes.append(choose_changes(matrices, **options))
    for expected, found in zip(*changes, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(found.mask), expected.mask)
        np.testing.assert_array_equal(ops.convert_to_numpy(found.grown), expected.grown)
