"""ONNX files: what they hold, that they compute what Keras does, and what is refused."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_selfish import LanguageModel, SparseConv2D, SparseDense, SparseGRU, SparseLSTM, sparsify
from keras_selfish.export import onnx

ABSENT = [name for name in ("tf2onnx", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(ABSENT), reason=f"needs {', '.join(ABSENT)} (the extra `onnx`)")


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path)


def axes(values):
    return {value.name: value.shape for value in values}


@keras.saving.register_keras_serializable(package="tests")
class Calling(layers.Layer):
    """A layer that computes what one of these functions does."""

    functions = {}

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.functions[self.function](inputs)

    def get_config(self):
        return {**super().get_config(), "function": self.function}


def of_function(function, name="own"):
    """A model of four features and one layer that calls a function."""
    Calling.functions[name] = function
    inputs = keras.Input((4,))
    return keras.Model(inputs, Calling(name, name=name)(inputs))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A language model and its file."""
    model = LanguageModel(50, units=8, layers=2, tied=True, batch_size=2, seed=3)
    model.decoder_bias.bias.assign(np.linspace(-1, 1, 50))
    return model, onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx")


@needs_extra
def test_a_language_model_takes_tokens_and_states_by_name(exported):
    served = session(exported[1])
    state = {"h_0": ["batch", 8], "c_0": ["batch", 8], "h_1": ["batch", 8], "c_1": ["batch", 8]}
    assert axes(served.get_inputs()) == {"tokens": ["batch", "time"], **state}
    outputs = axes(served.get_outputs())
    assert list(outputs) == ["logits", "next_h_0", "next_c_0", "next_h_1", "next_c_1"]
    assert outputs == {"logits": ["batch", "time", 50], **{f"next_{name}": state[name] for name in state}}


@needs_extra
def test_a_tied_embedding_is_stored_once(tmp_path):
    model = LanguageModel(2000, units=16, layers=1, tied=True, batch_size=1, seed=3)
    size = onnx(model, tmp_path / "model.onnx").stat().st_size
    assert size < 1.4 * 4 * 2000 * 16  # the LSTM, the biases and the graph are a tenth of the table


@needs_extra
def test_step_by_step_it_says_what_the_model_says(exported, run_python, tmp_path):
    """Where neither Keras nor this package can be imported."""
    model, path = exported
    tokens = np.random.default_rng(0).integers(0, 50, (2, 30)).astype("int32")
    expected = ops.convert_to_numpy(model({"tokens": tokens, "first": np.ones(2, "int32")}))
    np.save(tmp_path / "tokens.npy", tokens)
    code = """
        import sys

        sys.modules["keras_selfish"] = sys.modules["keras"] = sys.modules["tensorflow"] = None

        import numpy as np
        import onnxruntime

        served = onnxruntime.InferenceSession(sys.argv[1])
        states = {name: np.zeros((2, 8), "float32") for name in ("h_0", "c_0", "h_1", "c_1")}
        logits = []
        for token in np.load("tokens.npy").T[:, :, None]:
            output, *new = served.run(None, {"tokens": token, **states})
            states = dict(zip(states, new))
            logits.append(output)
        np.save("logits.npy", np.concatenate(logits, axis=1))
    """
    run_python(code, path, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-5, atol=1e-5)


@needs_extra
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"cell": "rhn"}, {"cell": "on_lstm", "cell_options": {"chunk_size": 4}}, {"experts": 3}],
    ids=str,
)
def test_other_language_models(settings, tmp_path):
    # The export compares the file with the model itself.
    path = onnx(LanguageModel(50, units=8, layers=1, **settings), tmp_path / "model.onnx")
    assert "next_h_0" in axes(session(path).get_outputs())


def forward_models():
    image = keras.Input((8, 8, 3), name="image")
    yield (
        "image",
        keras.Sequential([image, SparseConv2D(4, 3), layers.Flatten(), SparseDense(3, name="classes")]),
    )
    tokens, x = keras.Input((None,), dtype="int32", name="tokens"), keras.Input((4,), name="x")
    h = SparseLSTM(4)(layers.Embedding(10, 6)(tokens))
    outputs = {"sum": layers.Add()([h, x]), "h": SparseDense(2, name="last")(h)}
    yield "dicts", keras.Model({"x": x, "tokens": tokens}, outputs)
    normalization = layers.Normalization(mean=[1.0, 2, 3, 4], variance=[4.0, 3, 2, 1])
    shared = SparseDense(4, name="shared")
    normalized = normalization(x)
    yield (
        "gelu",
        keras.Sequential([x, SparseDense(4, activation="gelu", name="inner"), SparseDense(2, name="last")]),
    )
    yield "elementwise", keras.Model(x, {"y": ops.log1p(ops.expm1(ops.abs(x))) + ops.celu(x)})
    product = ops.tensordot(x + ops.linspace(0.0, 1.0, 4), ops.ones((4, 3)), 1)
    yield "constants", keras.Model(x, {"y": product})
    yield (
        "groups",
        keras.Sequential(
            [
                image,
                layers.RandomFlip(),
                layers.Conv2D(6, 3, groups=3, activation="relu"),
                layers.Reshape((36, 6)),
                layers.Conv1D(4, 2, groups=2, padding="causal", use_bias=False, name="last"),
            ]
        ),
    )
    yield (
        "transposed",
        keras.Sequential(
            [
                image,
                layers.Conv2DTranspose(4, 2, strides=3, padding="same", bias_initializer="normal"),
                layers.Conv2DTranspose(2, 3, strides=2, output_padding=1, name="last"),
            ]
        ),
    )
    flipped = layers.RandomFlip(name="flipped")(image)
    yield "augmented", keras.Model(image, {"a": flipped, "another/b": layers.Flatten()(flipped)})
    yield "twice", keras.Model(x, [shared(normalized), shared(shared(normalized))])


NAMES = {
    "image": (["image"], ["classes"]),
    "dicts": (["tokens", "x"], ["h", "sum"]),
    "gelu": (["x"], ["last"]),
    "elementwise": (["x"], ["y"]),
    "constants": (["x"], ["y"]),
    "groups": (["image"], ["last"]),
    "transposed": (["image"], ["last"]),
    "augmented": (["image"], ["a", "another/b"]),
    "twice": (["x"], ["shared_0", "shared_1"]),
}


@needs_extra
@pytest.mark.parametrize("kind", NAMES)
def test_other_models_keep_their_names_and_outputs(kind, tmp_path):
    model = dict(forward_models())[kind]
    served = session(onnx(model, tmp_path / "model.onnx"))
    names = sorted(axes(served.get_inputs())), sorted(axes(served.get_outputs()))
    assert names == NAMES[kind]
    generator = np.random.default_rng(5)
    inputs = {
        tensor.name: generator.integers(0, 10, (3, 7)).astype("int32")
        if tensor.name == "tokens"
        else generator.normal(size=(3, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    }
    outputs = served.run(names[1], inputs)
    given = inputs if kind == "dicts" else next(iter(inputs.values()))
    expected = keras.tree.flatten(model(given, training=False))
    for output, value in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, ops.convert_to_numpy(value), rtol=1e-5, atol=1e-5)


@needs_extra
def test_sparse_layers_within_layers_of_ones_own(layers_within, tmp_path):
    model = layers_within()
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    (output,) = session(onnx(model, tmp_path / "model.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(output, ops.convert_to_numpy(model(x)), rtol=1e-5, atol=1e-5)


class Places(layers.Layer):
    """Has places for no more than five steps."""

    def build(self, input_shape):
        self.places = self.add_weight(shape=(5, input_shape[-1]), initializer="uniform")

    def call(self, x):
        return x + ops.slice(self.places, (0, 0), (ops.shape(x)[1], x.shape[-1]))


@needs_extra
def test_models_with_places_for_a_few_steps(tmp_path):
    model = keras.Sequential([keras.Input((None, 6), name="x"), Places(), SparseDense(2)])
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    (output,) = session(onnx(model, tmp_path / "model.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(output, ops.convert_to_numpy(model(x)), rtol=1e-5, atol=1e-5)


@needs_extra
def test_models_whose_blocks_were_made_sparse(tmp_path):
    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(6)

        def call(self, x):
            return x + self.dense(x)

    model = sparsify(keras.Sequential([keras.Input((5, 6), name="x"), Block()]), 0.5)
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    (output,) = session(onnx(model, tmp_path / "model.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(output, ops.convert_to_numpy(model(x)), rtol=1e-5, atol=1e-5)


@needs_extra
@pytest.mark.slow
def test_wrapped_and_padded_layers(tmp_path):
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    embedded = layers.Embedding(10, 4, mask_zero=True)(tokens)
    model = keras.Model(tokens, layers.Bidirectional(SparseGRU(4), name="both")(embedded))
    served = session(onnx(model, tmp_path / "model.onnx"))
    padded = np.array([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0]], "int32")
    (output,) = served.run(None, {"tokens": padded})
    np.testing.assert_allclose(output, ops.convert_to_numpy(model(padded)), rtol=1e-5, atol=1e-5)


@needs_extra
def test_a_file_of_onnx_is_replaced_and_anything_else_is_not(exported, tmp_path):
    model = keras.Sequential([keras.Input((4,)), SparseDense(2)])
    path, link = tmp_path / "model.onnx", tmp_path / "link.onnx"
    path.write_bytes(exported[1].read_bytes())
    link.symlink_to(path)
    assert onnx(model, link) == link
    assert link.is_symlink()
    assert len(session(path).get_inputs()) == 1
    folder, text, empty = tmp_path / "folder", tmp_path / "notes.txt", tmp_path / "empty.onnx"
    folder.mkdir()
    text.write_text("no model at all")
    empty.touch()
    for taken in (folder, text, empty):
        with pytest.raises(FileExistsError, match=r"`path` must be free or a file of ONNX.* Received: path="):
            onnx(model, taken)
    with pytest.raises(
        FileNotFoundError, match=r"in a folder that exists\. Received: path='.*absent/model\.onnx'"
    ):
        onnx(model, tmp_path / "absent" / "model.onnx")
    assert text.read_text() == "no model at all"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "empty.onnx",
        "folder",
        "link.onnx",
        "model.onnx",
        "notes.txt",
    ]


def unsupported():
    import tensorflow as tf

    constant = tf.constant([1.0, 2.0, 3.0, 4.0])
    yield (
        ValueError,
        r"that ONNX has operations for\. Received: operation Svd of '.*decomposed.*'; export the model as",
        of_function(lambda x: tf.linalg.svd(x[:, :, None] * x[:, None])[0], "decomposed"),
    )
    yield (
        ValueError,
        r"inputs, variables and constants only\. Received: the tensor '.*captured.*', which",
        of_function(lambda x: x + constant, "captured"),
    )
    yield (
        RuntimeError,
        r"must compute what the model does, to 1e-05\. Received: model='.*', whose outputs differ by up to",
        of_function(lambda x: x + 1 if tf.executing_eagerly() else x, "two-faced"),
    )
    yield (
        ValueError,
        r"must compute in float32.* Received: layer '.*' with dtype='mixed_bfloat16'; make the model anew",
        LanguageModel(20, units=4, layers=1, dtype="mixed_bfloat16"),
    )
    yield (
        ValueError,
        r"must not keep states from call to call.* Received: layer 'kept' with stateful=True",
        keras.Sequential([keras.Input((3, 4), batch_size=2), layers.LSTM(2, stateful=True, name="kept")]),
    )
    texts = keras.Input((), dtype="string", name="texts")
    yield (
        ValueError,
        r"must take numbers.* Received: an input 'texts' of strings; export the model that takes their ids",
        keras.Model(texts, layers.Hashing(10)(texts)),
    )


@needs_extra
@pytest.mark.parametrize("index", range(6))
def test_what_cannot_be_exported_is_said_in_one_sentence_and_the_file_stays(index, exported, tmp_path):
    kind, message, model = list(unsupported())[index]
    path = tmp_path / "model.onnx"
    path.write_bytes(exported[1].read_bytes())
    with pytest.raises(kind, match=message) as caught:
        onnx(model, path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == exported[1].read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


@needs_extra
def test_states_in_variables_are_refused(tmp_path):
    model = LanguageModel(20, units=4, layers=1)
    with pytest.raises(ValueError, match=r"must not carry hidden state .* give it a method `stepwise\(\)`"):
        onnx(keras.Model(model.inputs, model.outputs), tmp_path / "model.onnx")


@pytest.mark.skipif(not ABSENT, reason="needs an environment without the extra `onnx`")
def test_a_missing_extra_is_named_before_anything_is_written(tmp_path):
    model = keras.Sequential([keras.Input((4,)), SparseDense(2)])
    with pytest.raises(
        ImportError, match=r"needs the packages tf2onnx and onnx\. .* pip install 'keras_selfish\[onnx\]'"
    ):
        onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backends("jax")
def test_another_backend_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,)), SparseDense(2)])
    with pytest.raises(RuntimeError, match=r"needs Keras to run on TensorFlow.* Received: backend 'jax'"):
        onnx(model, tmp_path / "model.onnx")
