"""Models of KerasHub, small and untrained: made sparse, trained, saved, exported."""

import keras
import numpy as np
import pytest

from keras_selfish import SelfishRewiring, sparsify, strip
from keras_selfish.export import litert, onnx, saved_model
from keras_selfish.masks import masked_weights

hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")

pytestmark = pytest.mark.slow

STEPS = 8
TOKENS = np.random.default_rng(0).integers(1, 50, (4, STEPS)).astype("int32")
PADDING = np.repeat(np.arange(STEPS)[None] < 6, 4, axis=0).astype("int32")
TEXT = {"token_ids": TOKENS, "padding_mask": PADDING}
SEGMENTS = {"segment_ids": np.zeros_like(TOKENS)}
PAIR = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in TEXT.items()}
AUDIO = np.random.default_rng(1).normal(size=(4, 16, 8)).astype("float32")
IMAGES = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype("float32")

SIZES = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
HEADS = {**SIZES, "num_heads": 2}
PLACES = {**HEADS, "max_sequence_length": STEPS}
GROUPS = {**SIZES, "num_query_heads": 2, "num_key_value_heads": 1}
STAGES = {"image_shape": (32, 32, 3), "stackwise_num_repeats": [1, 1]}

# Name of the model: arguments, inputs, and how many matrices become sparse.
MODELS = {
    "AlbertBackbone": ({**PLACES, "embedding_dim": 8}, TEXT | SEGMENTS, 10),
    "BartBackbone": (PLACES, PAIR, 33),
    "BertBackbone": (PLACES, TEXT | SEGMENTS, 15),
    "BloomBackbone": (PLACES, TEXT, 13),
    "DenseNetBackbone": ({**STAGES, "compression_ratio": 0.5, "growth_rate": 4}, IMAGES, 6),
    "DistilBertBackbone": (PLACES, TEXT, 13),
    "FNetBackbone": ({**SIZES, "max_sequence_length": STEPS}, {"token_ids": TOKENS} | SEGMENTS, 8),
    "FalconBackbone": ({**SIZES, "num_attention_heads": 2}, TEXT, 13),
    "GPT2Backbone": (PLACES, TEXT, 13),
    "GemmaBackbone": ({**GROUPS, "head_dim": 8}, TEXT, 15),
    "MistralBackbone": ({**GROUPS, "sliding_window": 4}, TEXT, 16),
    "MixtralBackbone": ({**GROUPS, "num_experts": 2, "top_k": 1}, TEXT, 12),
    "OPTBackbone": (PLACES, TEXT, 13),
    "Phi3Backbone": (GROUPS, TEXT, 16),
    "QwenBackbone": (GROUPS, TEXT, 15),
    "RobertaBackbone": (PLACES, TEXT, 13),
    "T5Backbone": (HEADS, PAIR, 37),
    "WhisperBackbone": (
        {
            **HEADS,
            "num_layers": 1,
            "max_encoder_sequence_length": 16,
            "max_decoder_sequence_length": STEPS,
            "num_mels": 8,
        },
        {"encoder_features": AUDIO, "decoder_token_ids": TOKENS, "decoder_padding_mask": PADDING},
        19,
    ),
}
# ONNX has no complex numbers; layers of T5 return what is no tensor, and hold others of the same names.
NOT_IN_ONNX, NOT_IN_LITERT = ("FNetBackbone",), ("T5Backbone",)


def assert_same(one, other):
    for left, right in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_keras_hub(name, tmp_path):
    arguments, inputs, matrices = MODELS[name]
    model = getattr(hub.models, name)(**arguments)
    sparse = sparsify(model, 0.5, mask_seed=0)
    active = [(weight.active, int(np.prod(weight.shape)) // 2) for weight in masked_weights(sparse)]
    assert len(active) == matrices
    assert all(found == half for found, half in active)
    assert_same(strip(sparse).predict(inputs, verbose=0), sparse.predict(inputs, verbose=0))

    targets = keras.tree.map_structure(np.zeros_like, sparse.predict(inputs, verbose=0))
    sparse.compile("adam", "mse")
    sparse.fit(inputs, targets, verbose=0, callbacks=[SelfishRewiring()])
    assert [weight.active for weight in masked_weights(sparse)] == [found for found, _ in active]
    expected = sparse.predict(inputs, verbose=0)

    sparse.save(tmp_path / "model.keras")
    assert_same(keras.models.load_model(tmp_path / "model.keras").predict(inputs, verbose=0), expected)
    saved_model(sparse, tmp_path / "saved")
    if name not in NOT_IN_LITERT:
        litert(sparse, tmp_path / "model.tflite", time_steps=STEPS)  # compares what it writes
    if name not in NOT_IN_ONNX:
        onnx(sparse, tmp_path / "model.onnx")
