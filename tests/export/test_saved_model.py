import concurrent.futures
import json
import operator
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import keras
import numpy as np
import pytest

import keras_selfish
from keras_selfish import (
    LanguageModel,
    Perplexity,
    SparseDense,
    SparseEmbedding,
    SparseGRU,
    SparseLSTM,
    sparsify,
    strip,
)
from keras_selfish.data import Windows
from keras_selfish.export import saved_model, text_model
from keras_selfish.layers import CarriedState
from keras_selfish.masks import masked_weights

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

WORDS = ("<eos>", "<unk>", "the", "cat", "sat", ".", "...", "don't", "it", "s")
VOCABULARY = [f"wörd{index}" for index in range(50)]


def language_model(**settings):
    settings = {"vocabulary_size": 50, "units": 8, "dropout": 0.0, "batch_size": 4, "seed": 3, **settings}
    model = LanguageModel(**settings)
    model.compile(
        keras.optimizers.SGD(1.0, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[Perplexity()],
        run_eagerly=True,  # a few steps cost less than a graph of them; what is served is a graph
    )
    return model


def tokens(length, seed=0):
    return np.random.default_rng(seed).integers(0, 50, length)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model, and the folder to which it was exported."""
    model = language_model(embedding_units=6)
    model.fit(Windows(tokens(100), 4, 8).dataset(), verbose=0, shuffle=False)
    return model, saved_model(model, tmp_path_factory.mktemp("export") / "served", vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def with_text(tmp_path_factory):
    from keras_selfish.data.tokenization_tensorflow import tokenizer

    model = LanguageModel(len(WORDS), units=8, layers=1, dropout=0.0, seed=1)
    return text_model(model, tmp_path_factory.mktemp("text") / "served", WORDS, tokenizer("whitespace"))


@pytest.fixture(scope="module")
def served(trained):
    return tf.saved_model.load(trained[1])


def perplexity(served, windows):
    result = served.score(windows.columns)
    assert result["log_probabilities"].shape == (windows.batch_size, windows.columns.shape[1] - 1)
    return float(np.exp(np.sum(result["loss"]) / windows.predictions))


def outputs_of(path):
    """Number of outputs of the one dense layer of four inputs that is served."""
    served = tf.saved_model.load(path)  # kept: TensorFlow's functions do not keep their variables
    return served.serve(tf.ones((1, 4))).shape[1]


def evaluate(model, windows):
    return model.evaluate(windows.dataset(), verbose=0, return_dict=True)["perplexity"]


def saved_shapes(path):
    variables = tf.train.list_variables(str(path / "variables" / "variables"))
    return sorted(tuple(shape) for name, shape in variables if name != "_CHECKPOINTABLE_OBJECT_GRAPH")


def test_files_serve_where_the_package_cannot_be_imported(
    trained, with_text, everything, run_python, tmp_path
):
    """Language models without Keras, too, of text as well; and stripped models in Keras."""
    model, path = trained
    windows = Windows(tokens(400, seed=1), 2, 35)
    np.save(tmp_path / "columns.npy", windows.columns)
    with_text.rename(tmp_path / "text")  # the vocabulary goes with it
    sparse = everything(shared_by_models=False)  # which Keras 3.15 saves, but cannot load
    strip(sparse).save(tmp_path / "stripped.keras")
    inputs = {
        "tokens": np.array([[1, 2, 3, 4, 5], [9, 8, 0, 0, 0]], "int32"),
        "x": np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32"),
    }
    outputs = {name: np.asarray(value) for name, value in sparse(inputs).items()}
    np.savez(tmp_path / "data.npz", **inputs, **outputs)
    code = """
        import pathlib
        import sys

        sys.modules["keras_selfish"] = sys.modules["keras"] = None  # importing them raises

        import numpy as np
        import tensorflow as tf

        served = tf.saved_model.load(sys.argv[1])
        columns = np.load("columns.npy")
        result = served.signatures["score"](tokens=tf.constant(columns))
        print(float(np.exp(-np.mean(result["log_probabilities"]))))

        states = served.signatures["initial_state"](batch_size=tf.constant(2))
        for start in (0, 1, 5):  # one token, then several
            stop = 1 if start == 0 else start + 4
            result = served.signatures["step"](tokens=tf.constant(columns[:, start:stop]), **states)
            logits = result.pop("logits")
            states = result
        print(*tf.nn.log_softmax(logits).numpy()[:, 7])
        print(pathlib.Path(served.vocabulary.asset_path.numpy().decode()).read_text(encoding="utf-8").split()[49])

        served = tf.saved_model.load("text")
        print(served.signatures["score_text"](texts=tf.constant(["the cat"]))["tokens"].numpy())

        del sys.modules["keras"]
        import keras

        model = keras.models.load_model("stripped.keras", safe_mode=False)
        data = np.load("data.npz")
        outputs = model({"tokens": data["tokens"], "x": data["x"]})
        np.testing.assert_array_equal(outputs["last"], data["last"])
        np.testing.assert_array_equal(outputs["sequence"], data["sequence"])
        print("equal")
    """
    output = run_python(code, path, cwd=tmp_path, env={"PYTHONPATH": ""})
    (tmp_path / "text").rename(with_text)
    measured, log_probabilities, token, words, stripped = output.splitlines()
    assert float(measured) == pytest.approx(evaluate(model, windows), rel=1e-5)
    assert token == "wörd49"
    first = {"tokens": windows.columns[:, :9], "first": np.ones(2, bool)}
    expected = np.log(keras.ops.softmax(model(first))[:, -1, 7])
    assert [float(number) for number in log_probabilities.split()] == pytest.approx(expected, rel=1e-4)
    assert words == "[[b'the' b'cat' b'<eos>']]"
    assert stripped == "equal"


def test_any_number_of_time_steps_within_time_distributed(tmp_path):
    """Keras counts examples instead, in a graph that does not know the number of steps."""

    class Real(keras.layers.Layer):
        def call(self, inputs, mask=None):
            return inputs * keras.ops.cast(mask, "float32")[:, None]

        def compute_output_shape(self, input_shape):
            return input_shape

    x = keras.Input((None, 6))
    y = keras.layers.TimeDistributed(SparseDense(3, activation="relu"))(x)
    model = keras.Model(x, keras.layers.TimeDistributed(Real())(keras.layers.Masking(0.0)(y)))
    served = keras.layers.TFSMLayer(saved_model(model, tmp_path / "model"))
    for shape in ((4, 5, 6), (2, 7, 6), (5, 2, 6)):
        inputs = np.random.default_rng(0).normal(size=shape).astype("float32")
        inputs[0, 1] = 0.0
        (outputs,) = keras.tree.flatten(served(inputs))
        np.testing.assert_allclose(outputs, model(inputs), rtol=1e-5, atol=1e-6)


def test_models_whose_blocks_were_made_sparse(tmp_path):
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = keras.layers.Dense(6)

        def call(self, x):
            return x + self.dense(x)

    model = sparsify(keras.Sequential([keras.Input((5, 6), name="x"), Block()]), 0.5)
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    served = keras.layers.TFSMLayer(saved_model(model, tmp_path / "model"))
    (output,) = keras.tree.flatten(served(x))
    np.testing.assert_allclose(output, model(x), rtol=1e-6)


def test_sparse_layers_within_layers_of_ones_own(layers_within, tmp_path):
    model = layers_within()
    served = tf.saved_model.load(saved_model(model, tmp_path / "served"))
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    np.testing.assert_allclose(served.serve(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["rhn", "on_lstm"])
def test_cells_without_a_keras_parent(cell, tmp_path):
    options = {"depth": 2} if cell == "rhn" else {"chunk_size": 4}
    model = language_model(cell=cell, cell_options=options, layers=1)
    served = tf.saved_model.load(saved_model(model, tmp_path / "served"))
    windows = Windows(tokens(50), 2, 8)
    assert perplexity(served, windows) == pytest.approx(evaluate(model, windows), rel=1e-5)
    states = served.initial_state(2)
    assert set(states) == {f"{name}_0" for name in ("h" if cell == "rhn" else "hc")}
    whole = served.step(windows.columns[:, :6], **states)["logits"]
    half = served.step(windows.columns[:, :3], **states)
    half.pop("logits")
    np.testing.assert_allclose(served.step(windows.columns[:, 3:6], **half)["logits"], whole, atol=1e-5)


def test_log_probabilities_are_those_of_the_next_tokens(trained, served):
    model, _ = trained
    ids = tokens(30).reshape(3, 10)
    logits = np.asarray(model({"tokens": ids[:, :-1], "first": np.ones(3, bool)}), np.float64)
    everything = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [[everything[row, time, ids[row, time + 1]] for time in range(9)] for row in range(3)]
    result = served.score(ids)
    np.testing.assert_allclose(result["log_probabilities"], expected, rtol=1e-5)
    np.testing.assert_allclose(result["loss"], -np.sum(expected, 1), rtol=1e-6)


def test_tokens_of_hardly_any_probability_have_a_log_probability(tmp_path):
    """Of e**-250, which no float32 is, beside others."""
    model = language_model()
    bias = np.zeros(50)
    bias[7], bias[9] = 250.0, -40.0
    model.decoder.bias.assign(bias)
    served = tf.saved_model.load(str(saved_model(model, tmp_path / "served")))
    ids = np.array([[1, 7, 7, 2, 7, 9, 7]])
    logits = np.asarray(model({"tokens": ids[:, :-1], "first": np.ones(1, bool)}), np.float64)[0]
    shifted = logits - logits.max(-1, keepdims=True)
    expected = (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))[np.arange(6), ids[0, 1:]]
    assert expected.min() < -200
    np.testing.assert_allclose(served.score(ids)["log_probabilities"][0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_text_is_scored_in_one_go_as_step_by_step(served, dtype):
    ids = tf.constant(tokens(300).reshape(2, 150), dtype)  # longer than two of score's windows
    states, expected = served.initial_state(2), []
    for time_step in range(149):
        result = served.step(ids[:, time_step : time_step + 1], **states)
        logits = result.pop("logits")
        states = result
        expected.append(tf.gather(tf.nn.log_softmax(logits), ids[:, time_step + 1], batch_dims=1))
    shapes = {name: tuple(state.shape) for name, state in states.items()}
    assert shapes == dict.fromkeys(("h_0", "c_0", "h_1", "c_1"), (2, 8))
    actual = served.score(ids)["log_probabilities"]
    np.testing.assert_allclose(actual, np.stack(expected, 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 1), (1, 2), (5, 65), (5, 66)])
def test_score_takes_any_shape(served, shape):
    result = served.score(np.zeros(shape, "int32"))
    assert result["log_probabilities"].shape == (shape[0], shape[1] - 1)
    np.testing.assert_allclose(result["loss"], -np.sum(result["log_probabilities"], 1), rtol=1e-6)


LENGTHS = [70, 1, 149, 0, 12, 12, 3, 150]


@pytest.mark.parametrize("padding", [0, -100, 50])
def test_padding_counts_for_nothing(served, padding):
    ids = tokens(8 * 150).reshape(8, 150)
    is_token = np.arange(150) < np.array(LENGTHS)[:, np.newaxis]
    result = served.score(np.where(is_token, ids, padding), lengths=LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone = served.score(ids[row : row + 1, :length])
        scores = result["log_probabilities"][row]
        np.testing.assert_allclose(scores[: max(length - 1, 0)], alone["log_probabilities"][0], rtol=1e-4)
        assert not np.any(scores[max(length - 1, 0) :])
        np.testing.assert_allclose(result["loss"][row], alone["loss"][0], rtol=1e-6)
    signature = served.signatures["score_lengths"]
    for dtype in (tf.int32, tf.int64):
        again = served.score(tf.constant(ids, dtype), tf.constant(LENGTHS, dtype))
        np.testing.assert_array_equal(again["loss"], result["loss"])
    by_name = signature(tokens=tf.constant(ids, tf.int32), lengths=tf.constant(LENGTHS, tf.int32))
    np.testing.assert_array_equal(by_name["log_probabilities"], result["log_probabilities"])


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        (
            [[3, 50, 4]],
            None,
            "must be ids from 0 to 49, below the size of the vocabulary, 50. Received: ids from 3 to 50",
        ),
        ([[3, -1]], None, "Received: ids from -1 to 3"),
        (np.array([[3, 2**32 + 1]]), None, "Received: ids from 3 to 4294967297"),
        ([[3, 50, 4]], [2], "Received: ids from 3 to 50"),
        (
            [[3, 2, 4]],
            [4],
            "`lengths` must be from 0 to the number of columns of `tokens`, 3. Received: lengths from 4 to 4",
        ),
        ([[3, 2], [1, 2]], [-1, 2], "Received: lengths from -1 to 2"),
        ([[3, 2, 4]], [3, 3], "`lengths` must have one entry for each row of `tokens`. Received: 2 for 1"),
    ],
)
def test_what_is_no_id_or_length_is_one_sentence(tokens, lengths, message, served):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"\[.*{re.escape(message)}\]"):
        served.score(tokens, lengths) if lengths else served.score(tokens)


def test_step_refuses_what_is_no_id(served):
    states = served.initial_state(1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"from 0 to 49.* Received: ids from -2 to 50\]"):
        served.step([[50, 1, -2]], **states)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`tokens` must have at least one column"):
        served.step(np.zeros((1, 0), "int32"), **states)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_step_refuses_states_of_another_batch(rows, served):
    tokens, states = tf.zeros((3, 2), tf.int32), served.initial_state(3)
    for name in states:
        others = states | {name: states[name][:1] if rows == 1 else tf.zeros((rows, states[name].shape[1]))}
        with pytest.raises(
            tf.errors.InvalidArgumentError,
            match=rf"\[.*`{name}` must have a row for each row of `tokens`. Received: {rows} for 3; .*\]",
        ):
            served.step(tokens, **others)


@pytest.mark.parametrize("signature", ["score", "score_lengths", "step", "generate"])
def test_the_model_waits_for_the_checks(signature, served, with_text):
    """Or a busy machine may answer with the error of an operation that ran before the sentence."""
    model = served if signature in served.signatures else tf.saved_model.load(with_text)
    some = 0
    definition = model.signatures[signature].graph.as_graph_def()
    for function in operator.attrgetter("library.function")(definition):
        nodes = {node.name: node for node in function.node_def}
        checks = {name for name, node in nodes.items() if node.op == "Assert"}
        readers = [node for node in function.node_def if node.op in ("StatefulPartitionedCall", "While")]
        if checks and readers:
            assert checks <= before(readers, nodes)
            some += 1
    assert some


def before(last, nodes):
    """Names of what a graph runs before all of some nodes, other than through constants, which may not."""
    found, left = set(), list(last)
    while left:
        for name in left.pop().input:
            name = name.removeprefix("^").partition(":")[0]
            if name in nodes and name not in found and nodes[name].op != "Const":
                found.add(name)
                left.append(nodes[name])
    return found


def test_signatures_have_dynamic_sizes_and_a_default(served):
    signatures = served.signatures
    assert set(signatures) == {"score", "score_lengths", "step", "initial_state", "serving_default"}
    _, inputs = signatures["step"].structured_input_signature
    assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in inputs.items()} == {
        "tokens": ([None, None], tf.int32),
        **dict.fromkeys(("h_0", "c_0", "h_1", "c_1"), ([None, 8], tf.float32)),
    }
    assert set(signatures["serving_default"].structured_outputs) == {"log_probabilities", "loss"}


@pytest.mark.parametrize("kind", ["tokens", "text"])
def test_signatures_obey_the_rules_of_servers(kind, served, with_text):
    """What TensorFlow Serving asks of a signature that it batches, and of rows in JSON.

    Inputs and outputs have the batch first and unknown, so that requests can be put together and answers
    taken apart, and no type that JSON lacks.
    """
    model = served if kind == "tokens" else tf.saved_model.load(with_text)
    batched = set(model.signatures) - {"initial_state"}
    assert len(batched) == 4
    for name in batched:
        _, inputs = model.signatures[name].structured_input_signature
        for spec in [*inputs.values(), *model.signatures[name].structured_outputs.values()]:
            assert spec.shape.rank > 0, name
            assert spec.shape[0] is None, name
            assert spec.dtype in (tf.int32, tf.float32, tf.string), name


def test_requests_are_batched(served):
    """By TensorFlow's own kernel for it, which has TensorFlow Serving's rules."""
    score = served.signatures["score_lengths"]
    names = sorted(score.structured_outputs)

    @tf.nondifferentiable_batch_function(2, 8, 10_000_000, allowed_batch_sizes=[4, 8])
    def batched(ids, lengths):
        results = score(tokens=ids, lengths=lengths)
        return [results[name] for name in names]

    ids = tf.constant(tokens(8 * 20).reshape(8, 20), tf.int32)
    lengths = tf.constant([20, 3, 5, 20, 1, 2, 19, 20])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: batched(ids[i : i + 2], lengths[i : i + 2]), range(0, 8, 2)))
    expected = score(tokens=ids, lengths=lengths)
    for name, *rows in zip(names, *parts, strict=True):
        assert [len(part) for part in rows] == [2] * 4
        np.testing.assert_allclose(np.concatenate(rows), expected[name], rtol=1e-5)


@pytest.mark.parametrize("kind", ["tokens", "text"])
def test_keras_makes_a_layer_of_it(kind, trained, with_text):
    path, given = (trained[1], [[3, 1, 4], [1, 5, 9]]) if kind == "tokens" else (with_text, ["the cat", "it"])
    given = tf.constant(given)
    layer = keras.layers.TFSMLayer(path)
    inputs = keras.Input((None,) * (given.shape.rank - 1), dtype=given.dtype.name)
    model = keras.Model(inputs, layer(inputs)["loss"])
    expected = tf.saved_model.load(path).signatures["serving_default"](given)["loss"]
    np.testing.assert_allclose(model(given), expected, rtol=1e-6)


ZEROS = [[0.0] * 8]
REQUESTS = {
    "score": {"tokens": [[3, 1, 4]]},
    "serving_default": {"tokens": [[3, 1, 4]]},
    "score_lengths": {"tokens": [[3, 1, 4]], "lengths": [2]},
    "step": {"tokens": [[3]], **dict.fromkeys(("h_0", "c_0", "h_1", "c_1"), ZEROS)},
    "initial_state": {"batch_size": 2},
    "score_text": {"texts": ["the cat"]},
    "next_words": {"texts": ["the cat"], "k": [2]},
    "generate": {
        "prompts": ["the cat"],
        "length": [3],
        "temperature": [1.0],
        "top_k": [0],
        "top_p": [1.0],
        "seed": [7],
    },
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "generate" else pytest.mark.slow) for name in REQUESTS]
)
def test_the_command_line_runs_every_signature(name, trained, with_text, tmp_path):
    path = with_text if name in ("score_text", "next_words", "generate") else trained[1]
    script = pathlib.Path(sys.executable).with_name("saved_model_cli")
    command = [script, "run", "--dir", str(path), "--tag_set", "serve", "--signature_def", name]
    values = ";".join(f"{key}={value!r}" for key, value in REQUESTS[name].items())
    subprocess.run([*command, "--input_exprs", values, "--outdir", str(tmp_path)], check=True, cwd=tmp_path)
    expected = tf.saved_model.load(path).signatures[name](
        **{key: tf.constant(value) for key, value in REQUESTS[name].items()}
    )
    assert {file.stem for file in tmp_path.iterdir()} == set(expected)
    for key, value in expected.items():
        found = np.load(tmp_path / f"{key}.npy", allow_pickle=True)
        if value.dtype == tf.string:
            np.testing.assert_array_equal(found, value.numpy())
        else:
            np.testing.assert_allclose(found, value, rtol=1e-5)


def test_the_model_is_described(trained, with_text):
    model, path = trained
    described = json.loads(pathlib.Path(path, "assets", "model.json").read_text(encoding="utf-8"))
    served = tf.saved_model.load(path)
    assert served.metadata.asset_path.numpy().decode() == str(path / "assets" / "model.json")
    assert described["keras_selfish"] == keras_selfish.__version__
    assert (described["vocabulary_size"], described["units"], described["cell"]) == (50, [8, 8], "lstm")
    assert described["states"] == dict.fromkeys(("h_0", "c_0", "h_1", "c_1"), 8)
    assert described["sparsity"] == pytest.approx(0.67, abs=0.005)
    assert described["block_shape"] == [1, 1]
    assert [weight["shape"] for weight in described["weights"]] == [
        list(weight.shape) for weight in masked_weights(model)
    ]
    of_text = json.loads(pathlib.Path(with_text, "assets", "model.json").read_text(encoding="utf-8"))
    assert (of_text["unknown_token"], of_text["generate_unknown"]) == ("<unk>", False)


def test_only_what_serves_is_saved(trained, served):
    _, path = trained
    kernels = [(6, 32), (8, 32), (8, 32), (8, 32)]
    assert saved_shapes(path) == sorted([(50, 6), *kernels, (32,), (32,), (8, 50), (50,)])
    (data,) = (path / "variables").glob("variables.data-*")
    size = 4 * (50 * 6 + (6 + 3 * 8) * 32 + 2 * 32 + 8 * 50 + 50)
    assert data.stat().st_size < size + 10_000  # the rest is the graph of objects
    weights = [weight for weight in served.weights if weight.shape.rank == 2]
    assert [np.mean(weight == 0) for weight in weights] == pytest.approx([0.67] * 6, abs=0.005)


def test_no_operation_needs_a_gpu(trained):
    model, path = trained
    assert b"Cudnn" not in (path / "saved_model.pb").read_bytes()
    assert [layer.use_cudnn for layer in model.recurrent] == ["auto", "auto"]  # the model's own is left


def test_a_tied_dense_model_has_the_same_perplexity(tmp_path):
    model = language_model(tied=True, layers=1, sparsity=0.0)
    windows = Windows(tokens(200), 2, 16)
    served = tf.saved_model.load(saved_model(model, tmp_path / "served"))
    assert perplexity(served, windows) == pytest.approx(evaluate(model, windows), rel=1e-5)


def test_mixed_precision_gives_float32(tmp_path):
    model = language_model(dtype="mixed_bfloat16", layers=1)
    windows = Windows(tokens(200), 2, 16)
    served = tf.saved_model.load(saved_model(model, tmp_path / "served"))
    assert perplexity(served, windows) == pytest.approx(evaluate(model, windows), rel=1e-2)
    results = {**served.score(windows.columns), **served.step(windows.columns, **served.initial_state(2))}
    assert {name: result.dtype for name, result in results.items()} == dict.fromkeys(
        ("log_probabilities", "loss", "logits", "h_0", "c_0"), tf.float32
    )
    assert {weight.dtype for weight in served.weights} == {tf.float32}


def test_a_saved_model_or_empty_folder_is_replaced(tmp_path):
    path = tmp_path / "served"
    path.mkdir()
    for units in (2, 3):
        model = keras.Sequential([keras.Input((4,)), SparseDense(units)])
        assert saved_model(model, path) == path
        assert outputs_of(path) == units
    link = tmp_path / "link"
    link.symlink_to(path)
    saved_model(keras.Sequential([keras.Input((4,)), SparseDense(5)]), link)
    assert outputs_of(path) == 5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "served"]


@pytest.mark.parametrize("kind", ["file", "folder", "more than a SavedModel", "broken link"])
def test_anything_else_is_refused_and_kept(kind, trained, tmp_path):
    path = tmp_path / "thesis"
    if kind == "file":
        path.write_text("work of years")
    elif kind == "broken link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        (path / "chapter").write_text("work of years")
        if kind == "more than a SavedModel":
            (path / "saved_model.pb").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=r"`path` must be free or a SavedModel.*thesis"):
        saved_model(trained[0], path)
    assert sorted(tmp_path.rglob("*")) == before


def test_forward_pass_of_any_model(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((None, 8), name="features"),
            keras.layers.Bidirectional(SparseLSTM(4)),
            keras.layers.Dropout(0.5),
            keras.layers.BatchNormalization(),
            SparseDense(3),
        ]
    )
    model.compile("adam", "mse", run_eagerly=True)
    features = np.random.default_rng(0).normal(size=(4, 5, 8)).astype("float32")
    model.fit(features, np.ones((4, 3)), verbose=0)
    path = saved_model(model, tmp_path / "new" / "served")
    served = tf.saved_model.load(path)
    np.testing.assert_allclose(served.serve(features), model(features), rtol=1e-5)
    (result,) = served.signatures["serving_default"](features=tf.constant(features[:2, :3])).values()
    assert result.shape == (2, 3)
    directions = [(8, 16), (4, 16), (16,)] * 2
    assert saved_shapes(path) == sorted([*directions, *[(8,)] * 4, (8, 3), (3,)])


def test_forward_pass_with_named_inputs_and_outputs(tmp_path):
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    half = {"dtype": "mixed_bfloat16"}
    outputs = {"sum": SparseDense(4, **half)(left) + SparseDense(4, **half)(right), "right": right}
    model = keras.Model({"left": left, "right": right}, outputs)
    served = tf.saved_model.load(saved_model(model, tmp_path / "served"))
    inputs = {"left": tf.constant([[1.0, 2.0, 3.0]]), "right": tf.constant([[4.0, 5.0]])}
    for results in (served.serve(inputs), served.signatures["serve"](**inputs)):
        assert results["sum"].dtype == tf.float32
        np.testing.assert_allclose(results["sum"], tf.cast(model(inputs)["sum"], tf.float32), rtol=1e-2)
        np.testing.assert_array_equal(results["right"], inputs["right"])


def test_forward_pass_with_a_lookup_table(tmp_path):
    layers = [
        keras.layers.TextVectorization(vocabulary=["sparse", "dense"]),
        SparseEmbedding(4, 3),
        SparseGRU(2),
    ]
    model = keras.Sequential([keras.Input((), dtype="string"), *layers])
    text = tf.constant(["sparse dense words", "dense"])
    served = tf.saved_model.load(saved_model(model, tmp_path / "served"))
    np.testing.assert_allclose(served.serve(text), model(text), rtol=1e-6)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (VOCABULARY[:-1], "each of the model's 50 ids. Received: 49 tokens"),
        ([*VOCABULARY[:-1], "two\nlines"], r"one line each. Received: 'two\\nlines' as token 49"),
        ([*VOCABULARY[:-1], ""], "Received: '' as token 49"),
        (range(50), "Received: 0 as token 0"),
        ([*VOCABULARY[:-1], "wörd7"], "distinct tokens. Received: 'wörd7' as tokens 7 and 49"),
    ],
)
def test_vocabulary_must_fit(vocabulary, message, trained, tmp_path):
    with pytest.raises(ValueError, match=message):
        saved_model(trained[0], tmp_path / "served", vocabulary=vocabulary)
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_served_are_refused(tmp_path):
    plain = keras.Sequential([keras.Input((4,)), SparseDense(2)])
    with pytest.raises(ValueError, match="`vocabulary` goes with a language model"):
        saved_model(plain, tmp_path / "served", vocabulary=["a", "b"])
    inputs = [keras.Input((None, 3)), keras.Input((), dtype="bool")]
    recurrent = SparseLSTM(2, return_sequences=True, return_state=True)
    stateful = keras.Model(inputs, CarriedState(recurrent, batch_size=1)(*inputs))
    with pytest.raises(ValueError, match="`model` must not carry hidden state"):
        saved_model(stateful, tmp_path / "served")
    with pytest.raises(ValueError, match="`model` must be built"):
        saved_model(keras.Sequential([SparseDense(2)]), tmp_path / "served")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backends("tensorflow", "jax")
def test_other_backends_are_told_the_way_out(monkeypatch, tmp_path):
    model = LanguageModel(10, units=4)
    monkeypatch.setattr(sys.modules[saved_model.__module__], "BACKEND", "jax")
    with pytest.raises(RuntimeError, match=r"^`saved_model` needs Keras to run on TensorFlow.*\Z"):
        saved_model(model, tmp_path / "served")
    with pytest.raises(RuntimeError, match=r"^`text_model` needs Keras to run on TensorFlow.*\Z"):
        text_model(model, tmp_path / "served", ["<eos>"], str.split)
    assert not (tmp_path / "served").exists()


@pytest.mark.slow
def test_a_killed_export_leaves_what_was_there(tmp_path):
    path, part = tmp_path / "served", tmp_path / ".served.part"
    model = keras.Sequential([keras.Input((4,)), SparseDense(2)])
    saved_model(model, path)
    code = """
        import sys
        import keras
        from keras_selfish import SparseDense
        from keras_selfish.export import saved_model, text_model

        model = keras.Sequential([keras.Input((4,)), SparseDense(3)])
        while True:
            saved_model(model, sys.argv[1])
    """
    repository = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(path)], env=environment)
    try:
        while not part.exists():
            assert process.poll() is None
            time.sleep(0.001)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert part.exists()
    assert outputs_of(path) == 2
    saved_model(model, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["served"]


def test_a_model_of_text_is_served_with_its_table(tmp_path):
    words = keras.layers.TextVectorization(output_sequence_length=4)
    words.adapt(["the cat sat on the mat"])
    text = keras.Input((1,), dtype="string")
    model = keras.Model(text, SparseDense(2)(keras.layers.Flatten()(SparseEmbedding(12, 8)(words(text)))))
    served = tf.saved_model.load(str(saved_model(model, tmp_path / "served")))
    given = tf.constant([["the cat"], ["a mat"]])
    np.testing.assert_allclose(served.serve(given), model(given), rtol=1e-5)
