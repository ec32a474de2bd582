import gc

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from keras_selfish import LanguageModel, SparseDense, SparseLSTM
from keras_selfish.export import saved_model
from keras_selfish.layers import SparseConv2D

VOCABULARY = [f"wörd{index}" for index in range(200)]
TOKENS = np.random.default_rng(0).integers(0, 200, (2, 70)).astype("int32")


@pytest.fixture(scope="module")
def model():
    return LanguageModel(200, units=64, embedding_units=96, layers=2, batch_size=2, seed=3)


@pytest.fixture(scope="module")
def dense_path(model, tmp_path_factory):
    return saved_model(model, tmp_path_factory.mktemp("dense") / "served", VOCABULARY)


@pytest.fixture(scope="module")
def packed_path(model, tmp_path_factory):
    """A packed SavedModel that was moved after its export."""
    path = saved_model(model, tmp_path_factory.mktemp("export") / "served", VOCABULARY, packed="float32")
    return path.rename(tmp_path_factory.mktemp("moved") / "away")


def forward_model():
    layers = [keras.layers.Bidirectional(SparseLSTM(64)), SparseDense(256, activation="relu")]
    return keras.Sequential([keras.Input((None, 64)), *layers, keras.layers.Dense(256)])


def values_of(served):
    """The packed weights of a loaded language model, by the first part of their files' names."""
    packed = served.packed
    every = tf.raw_ops.ReadVariableOp(resource=packed.resource_handle, dtype=tf.variant)
    return {
        asset.asset_path.numpy().decode().rpartition("/")[2].partition("_")[0]: tf.raw_ops.TensorListGetItem(
            input_handle=every, index=index, element_shape=-1, element_dtype=tf.float32
        ).numpy()
        for index, asset in enumerate(packed.assets)
    }


def test_outputs_are_the_same_bit_for_bit_where_the_package_cannot_be_imported(
    dense_path, packed_path, run_python
):
    """All signatures, by the loader of TensorFlow 2 and by that of sessions; twice each."""
    code = """
        import pathlib
        import sys

        sys.modules["keras_selfish"] = sys.modules["keras"] = None  # importing them raises

        import numpy as np
        import tensorflow as tf

        tokens = np.random.default_rng(0).integers(0, 200, (2, 70)).astype("int32")

        def by_function(path):
            served = tf.saved_model.load(path)
            signatures = served.signatures
            states = signatures["initial_state"](batch_size=tf.constant(2))
            results = {**signatures["score"](tokens=tf.constant(tokens))}
            for start in (0, 1, 5):
                step = signatures["step"](tokens=tf.constant(tokens[:, start : start + 4]), **states)
                states = {name: value for name, value in step.items() if name != "logits"}
            words = pathlib.Path(served.vocabulary.asset_path.numpy().decode()).read_text(encoding="utf-8")
            assert words.split()[199] == "wörd199"
            return {name: value.numpy() for name, value in {**results, **step}.items()}

        def by_session(path):
            with tf.compat.v1.Session(graph=tf.Graph()) as session:
                graph = tf.compat.v1.saved_model.load(session, ["serve"], path).signature_def
                def run(signature, feeds):
                    feeds = {graph[signature].inputs[name].name: value for name, value in feeds.items()}
                    outputs = {name: output.name for name, output in graph[signature].outputs.items()}
                    return session.run(outputs, feeds)
                states = run("initial_state", {"batch_size": 2})
                results = run("score", {"tokens": tokens})
                for start in (0, 1, 5):
                    step = run("step", {"tokens": tokens[:, start : start + 4], **states})
                    states = {name: value for name, value in step.items() if name != "logits"}
                return {**results, **step}

        for run in (by_function, by_session):
            expected = run(sys.argv[1])
            for results in (run(sys.argv[2]), run(sys.argv[2])):
                assert set(results) == {*expected}, set(results)
                for name, value in expected.items():
                    assert value.any()
                    np.testing.assert_array_equal(results[name], value, strict=True)
            print(len(expected))
    """
    assert run_python(code, dense_path, packed_path, env={"PYTHONPATH": ""}).split() == ["7", "7"]


def test_packed_files_take_the_place_of_the_weights(dense_path, packed_path):
    def size(path, folder):
        return sum(file.stat().st_size for file in (path / folder).glob("*"))

    weights = 4 * (200 * 96 + (96 + 3 * 64) * 256 + 64 * 200)
    density = 0.33
    assets = size(packed_path, "assets") - size(dense_path, "assets")
    assert assets == pytest.approx(weights * (density + 1 / 32), rel=0.01)
    assert size(packed_path, "variables") < size(dense_path, "variables") - weights + 1000
    graph = (packed_path / "saved_model.pb").stat().st_size - (dense_path / "saved_model.pb").stat().st_size
    assert graph < 6 * 24576  # what packing one weight must spare at least
    served = tf.saved_model.load(packed_path)
    assert {name: np.mean(value == 0) for name, value in values_of(served).items()} == pytest.approx(
        {"embedding": 0.67, "lstm": 0.67, "decoder": 0.67}, abs=0.01
    )


def test_blocks_make_the_files_smaller(tmp_path):
    sizes = {}
    for block_shape in ((1, 1), (16, 1)):
        layer = SparseDense(256, sparsity=0.75, block_shape=block_shape)
        model = keras.Sequential([keras.Input((256,)), layer])
        path = saved_model(model, tmp_path / "served", packed="int8")
        (file,) = (path / "assets").iterdir()
        sizes[block_shape] = file.stat().st_size
        served = tf.saved_model.load(path)  # kept: its functions do not keep its variables
        np.testing.assert_allclose(
            served.serve(tf.eye(256)), layer.kernel, atol=np.abs(layer.kernel).max() / 254 * 1.001
        )
    n = 256 * 256
    assert sizes == {(1, 1): n // 4 + n // 8 + 1024, (16, 1): n // 4 + n // 8 // 16 + 1024}


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_values_are_rounded_as_asked(form, model, tmp_path):
    served = tf.saved_model.load(saved_model(model, tmp_path / "served", packed=form))
    embedding, decoder = values_of(served)["embedding"], values_of(served)["decoder"]
    for value, weight in ((embedding, model.embedding.embeddings), (decoder, model.decoder.kernel)):
        weight = np.asarray(weight)
        assert value.shape == weight.shape
        if form == "int8":
            assert 0 < np.abs(value - weight).max() <= np.abs(weight).max() / 254 * 1.001
        else:
            expected = weight if form == "float32" else weight.astype(ml_dtypes.bfloat16).astype("float32")
            np.testing.assert_array_equal(value, expected)
    assert served.score(TOKENS)["log_probabilities"].shape == (2, 69)


def test_forward_models_are_packed_where_they_are_sparse(tmp_path):
    model = forward_model()
    features = tf.constant(np.random.default_rng(0).normal(size=(2, 5, 64)).astype("float32"))
    dense = tf.saved_model.load(saved_model(model, tmp_path / "dense"))
    path = saved_model(model, tmp_path / "export", packed=True).rename(tmp_path / "moved")
    packed = tf.saved_model.load(path)
    np.testing.assert_array_equal(packed.serve(features), dense.serve(features))
    np.testing.assert_array_equal(keras.layers.TFSMLayer(path)(features), dense.serve(features))
    assert len(list((path / "assets").iterdir())) == 5
    saved = dict(tf.train.list_variables(str(path / "variables" / "variables")))
    del saved["_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert sorted(map(tuple, saved.values())) == [(256,)] * 4 + [(256, 256)]


class Counter(keras.layers.Layer):
    """Multiplies by how often it was called."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.calls.assign_add(1)
        return inputs * self.calls


def test_kernels_of_any_rank_and_variables_that_change(tmp_path):
    inputs = keras.Input((8, 8, 32))
    model = keras.Model(inputs, Counter()(SparseConv2D(64, 3)(inputs)))
    images = tf.constant(np.random.default_rng(0).normal(size=(2, 8, 8, 32)).astype("float32"))
    served = tf.saved_model.load(saved_model(model, tmp_path / "served", packed="float32"))
    once = model.layers[1](images)
    for calls in (1, 2, 3):
        np.testing.assert_allclose(served.serve(images), calls * once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", ["rhn", "on_lstm"])
def test_cells_without_a_keras_parent(cell, tmp_path):
    options = {"depth": 2} if cell == "rhn" else {"chunk_size": 16}
    model = LanguageModel(200, units=64, layers=1, cell=cell, cell_options=options, dtype="mixed_bfloat16")
    dense = tf.saved_model.load(saved_model(model, tmp_path / "dense"))
    packed = tf.saved_model.load(saved_model(model, tmp_path / "packed", packed="float32"))
    for result, expected in zip(packed.score(TOKENS).values(), dense.score(TOKENS).values(), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_loaded_models_share_nothing(packed_path, model, tmp_path):
    other = saved_model(model, tmp_path / "other", packed="bfloat16")
    first, second, third = map(tf.saved_model.load, (packed_path, packed_path, other))
    expected, rounded = second.score(TOKENS)["loss"].numpy(), third.score(TOKENS)["loss"].numpy()
    handle = first.packed.resource_handle
    empty = tf.raw_ops.TensorListReserve(element_shape=-1, num_elements=0, element_dtype=tf.float32)
    tf.raw_ops.AssignVariableOp(resource=handle, value=empty)
    with pytest.raises(tf.errors.InvalidArgumentError):
        first.score(TOKENS)
    del first
    gc.collect()
    with pytest.raises(tf.errors.FailedPreconditionError):  # its memory was given back
        tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.variant)
    np.testing.assert_array_equal(second.score(TOKENS)["loss"], expected)
    np.testing.assert_array_equal(third.score(TOKENS)["loss"], rounded)


def test_another_device_may_call(packed_path):
    served = tf.saved_model.load(packed_path)
    expected = served.score(TOKENS)["log_probabilities"].numpy()
    with tf.device("CPU:1"):
        np.testing.assert_array_equal(served.score(TOKENS)["log_probabilities"], expected)


def test_a_loaded_model_can_be_saved_and_be_part_of_another(packed_path, tmp_path):
    served = tf.saved_model.load(packed_path)
    expected = served.score(TOKENS)["log_probabilities"].numpy()
    tf.saved_model.save(served, tmp_path / "again", signatures=served.signatures)
    again = tf.saved_model.load(tmp_path / "again")
    np.testing.assert_array_equal(again.score(TOKENS)["log_probabilities"], expected)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "again"))
        score = loaded.signature_def["score"]
        result = session.run(score.outputs["log_probabilities"].name, {score.inputs["tokens"].name: TOKENS})
    np.testing.assert_array_equal(result, expected)
    layer = keras.layers.TFSMLayer(packed_path, call_endpoint="score")
    np.testing.assert_array_equal(layer(TOKENS)["log_probabilities"], expected)


@pytest.mark.parametrize("damage", ["truncated", "flipped bit"])
def test_a_damaged_file_is_named(damage, tmp_path):
    model = keras.Sequential([keras.Input((256,)), SparseDense(256)])
    path = saved_model(model, tmp_path / "served", packed="float32")
    (file,) = (path / "assets").iterdir()
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content if damage == "flipped bit" else content[:1000])
    message = f"of {len(content)} bytes, is damaged.*{file.name}.*{file.stat().st_size}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}"):
        tf.saved_model.load(path)
    with (
        tf.compat.v1.Session(graph=tf.Graph()) as session,
        pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}"),
    ):
        tf.compat.v1.saved_model.load(session, ["serve"], str(path))


def infinite_model():
    model = forward_model()
    model.layers[1].kernel.assign(tf.where(model.layers[1].kernel == 0, 0.0, np.inf))
    return model


@pytest.mark.parametrize(
    ("make", "packed", "message"),
    [
        (
            forward_model,
            1,
            "`packed` must be None or False or True or one of float32, bfloat16, int8. Received: packed=1",
        ),
        (forward_model, "float16", "Received: packed='float16'"),
        (
            lambda: keras.Sequential([keras.Input((256,)), keras.layers.Dense(256)], name="full"),
            "float32",
            "`packed` needs a model with sparse weights.*model 'full', which has none",
        ),
        (infinite_model, "int8", "for weights that are not finite"),
    ],
)
def test_what_cannot_be_packed_is_refused_and_nothing_is_written(make, packed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        saved_model(make(), tmp_path / "served", packed=packed)
    assert list(tmp_path.iterdir()) == []
