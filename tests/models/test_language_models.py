"""The language model: carried state, perplexity, presets, save and load."""

import dataclasses
import re

import keras
import numpy as np
import pytest

from keras_selfish import (
    SNTASGD,
    LanguageModel,
    Perplexity,
    SelfishRewiring,
    SparseGRU,
    TokenCrossEntropy,
    masked_weights,
    strip,
)
from keras_selfish.analysis import report
from keras_selfish.data import RandomWindows, Windows
from keras_selfish.models import (
    PRESETS,
    RECURRENT_LAYERS,
    language_model,
    preset,
    register_recurrent_layer,
    small_dense,
)

on_jax_too = pytest.mark.backends("tensorflow", "jax")

VOCABULARY, COLUMNS = 17, 4
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, VOCABULARY, COLUMNS * 26)
VALIDATION = RNG.integers(0, VOCABULARY, COLUMNS * 20)


def small_model(graph=False, **overrides):
    """A model whose steps run eagerly, or in a graph, which takes seconds to make."""
    settings = {"units": 12, "dropout": 0.0, "batch_size": COLUMNS, "seed": 3, **overrides}
    model = LanguageModel(VOCABULARY, **settings)
    model.compile(
        SNTASGD(1.0, global_clipnorm=0.25),
        loss=TokenCrossEntropy(),
        metrics=[Perplexity()],
        run_eagerly=not graph,
    )
    return model


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor)


def batches(windows):
    return windows.dataset() if keras.backend.backend() == "tensorflow" else windows.pydataset()


def fit(model, windows=None, **options):
    windows = windows or Windows(TRAIN, COLUMNS, 5)
    return model.fit(batches(windows), shuffle=False, verbose=0, **options).history


def evaluate(model, time_steps, tokens=VALIDATION, columns=COLUMNS):
    windows = Windows(tokens, columns, time_steps)
    return model.evaluate(batches(windows), verbose=0, return_dict=True)


def whole_text_perplexity(model, tokens, columns=COLUMNS):
    """One window over all: no state is carried, so nothing can go wrong with it."""
    ((inputs, targets),) = Windows(tokens, columns, len(tokens))
    logits = keras.ops.convert_to_numpy(model(inputs, training=False)).astype("float64")
    log_sums = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return np.exp((log_sums - chosen).mean())


@pytest.fixture(scope="module")
def trained():
    """A model in graphs that learns nothing (learning rate 0): all it is asked must agree, in any order.

    Returns the model, its perplexity before training, and the history of its training.
    """
    model = small_model(graph=True)
    model.optimizer.learning_rate = 0.0
    before = evaluate(model, 5)["perplexity"]
    validation = batches(Windows(VALIDATION, COLUMNS, 5))
    return model, before, fit(model, validation_data=validation, epochs=2)


@on_jax_too
@pytest.mark.parametrize("time_steps", [1, 5, 7, 19])
def test_perplexity_does_not_depend_on_the_windows(trained, time_steps):
    model, *_ = trained
    expected = whole_text_perplexity(model, VALIDATION)
    scores = evaluate(model, time_steps)
    assert scores["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert scores["loss"] == pytest.approx(np.log(expected), rel=1e-5)


@on_jax_too
def test_evaluation_is_the_same_before_during_and_after_training(trained):
    model, before, history = trained
    assert history["val_perplexity"] == pytest.approx([before] * 2, rel=1e-6)
    # Training starts from a zero state at each epoch, and validation between them does not show.
    assert history["perplexity"] == pytest.approx([whole_text_perplexity(model, TRAIN)] * 2, rel=1e-5)
    assert evaluate(model, 5)["perplexity"] == pytest.approx(before, rel=1e-6)


@on_jax_too
def test_validation_leaves_the_training_state_alone(trained):
    model, *_ = trained
    states = [v for v in model.variables if "training_state" in v.path]
    assert len(states) == 4
    fit(model)  # without validation after it
    before = [keras.ops.convert_to_numpy(state).copy() for state in states]
    assert all(state.any() for state in before)
    evaluate(model, 5)
    for state, value in zip(states, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(state), value)


@pytest.mark.backends("jax")  # on TensorFlow see those of presets and of replicas
def test_training_learns_while_connections_are_rewired():
    model = small_model(graph=True, layers=1)
    history = fit(model, epochs=3, callbacks=[SelfishRewiring()])
    assert history["perplexity"][-1] < history["perplexity"][0]
    assert len(history["sparsity"]) == 3


@on_jax_too
def test_fewer_columns_than_the_model_was_built_for(trained):
    model, *_ = trained
    for columns in (1, 3):
        expected = whole_text_perplexity(model, VALIDATION, columns)
        assert evaluate(model, 6, columns=columns)["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_more_columns_are_refused():
    with pytest.raises(ValueError, match="at most `batch_size` columns, which is 4"):
        evaluate(small_model(), 6, columns=5)


@on_jax_too
def test_the_stepwise_model_computes_the_same():
    model = small_model()
    ((inputs, _),) = Windows(VALIDATION, COLUMNS, 100)
    expected = keras.ops.convert_to_numpy(model(inputs, training=False))
    stepwise = model.stepwise()
    states = [keras.ops.zeros((COLUMNS, 12))] * 4
    for t in range(inputs["tokens"].shape[1]):
        tokens = keras.ops.convert_to_tensor(inputs["tokens"][:, t : t + 1])
        logits, *states = stepwise([tokens, *states])
        np.testing.assert_allclose(keras.ops.convert_to_numpy(logits)[:, 0], expected[:, t], atol=1e-5)


CELLS = {
    "rhn": {"depth": 2, "recurrent_dropout": 0.3},
    "on_lstm": {"chunk_size": 4, "weight_drop": 0.4},
    "gru": {"weight_drop": 0.4},
    "simple_rnn": None,
}


@pytest.mark.parametrize(
    ("cell", "tied"),
    [
        ("rhn", True),
        ("on_lstm", False),
        ("gru", False),
        pytest.param("simple_rnn", True, marks=pytest.mark.slow),
        pytest.param("rhn", False, marks=pytest.mark.slow),
        pytest.param("on_lstm", True, marks=pytest.mark.slow),
    ],
)
def test_other_recurrent_layers(cell, tied, tmp_path):
    settings = {"cell": cell, "cell_options": CELLS[cell], "layers": 1, "tied": tied, "sparsity": 0.5}
    model = small_model(**settings)
    states = [v for v in model.variables if "training_state" in v.path]
    assert len(states) == RECURRENT_LAYERS[cell].states == (2 if cell == "on_lstm" else 1)
    fit(model)
    assert all(keras.ops.convert_to_numpy(state).any() for state in states)
    expected = whole_text_perplexity(model, VALIDATION)
    assert evaluate(model, 7)["perplexity"] == pytest.approx(expected, rel=1e-5)

    ((inputs, _),) = Windows(VALIDATION, COLUMNS, 100)
    stepwise = model.stepwise()
    carried = [keras.ops.zeros((COLUMNS, 12))] * len(states)
    logits = stepwise([keras.ops.convert_to_tensor(inputs["tokens"]), *carried])[0]
    np.testing.assert_allclose(logits, model(inputs, training=False), atol=1e-5)

    same = small_model(graph=True, **settings)
    fit(same)
    for weight, value in zip(same.trainable_weights, model.trainable_weights, strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)  # dropout follows the model's seed
    same.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == same.get_config()
    assert evaluate(loaded, 7)["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_an_unknown_cell_is_refused():
    with pytest.raises(ValueError, match=r"`cell` must be one of lstm, gru, .*\. Received: cell='mlp'"):
        LanguageModel(VOCABULARY, cell="mlp")


def test_a_gru_has_its_two_bias_vectors_anyway():
    with pytest.raises(
        ValueError, match=r"`bias_vectors` must be 1 with cell='gru', which has two of its own\."
    ):
        LanguageModel(VOCABULARY, cell="gru", bias_vectors=2)


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("lstm", SparseGRU, "`name` must be a word in letters, digits and _, and no recurrent layer of"),
        ("a b", SparseGRU, "Received: name='a b'"),
        ("mine", keras.layers.Dense, "`layer` must be a recurrent layer with a `cell_class`"),
    ],
)
def test_a_recurrent_layer_that_cannot_be_registered(name, layer, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        register_recurrent_layer(name)(layer)
    assert name == "lstm" or name not in RECURRENT_LAYERS


def test_published_initial_weights():
    model = LanguageModel(500, 64, sparsity=0.5, seed=1)
    limits = {"embedding": 0.1, "decoder": 0.1, "lstm": 64**-0.5}
    for masked_weight in masked_weights(model):
        weight = keras.ops.convert_to_numpy(masked_weight.weight)
        mask = keras.ops.convert_to_numpy(masked_weight.mask)
        limit = next(value for name, value in limits.items() if masked_weight.name.startswith(name))
        assert not weight[~mask].any()
        assert 0.95 * limit < abs(weight).max() <= limit
        assert abs(weight[mask].mean()) < 0.05 * limit
    assert not keras.ops.convert_to_numpy(model.decoder.bias).any()
    assert keras.ops.convert_to_numpy(model.recurrent[0].cell.bias).any()


def test_same_seed_same_model():
    first, second, other = small_model(), small_model(), small_model(seed=4)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    pairs = zip(masked_weights(first), masked_weights(other), strict=True)
    for a, b in pairs:
        assert (keras.ops.convert_to_numpy(a.mask) != keras.ops.convert_to_numpy(b.mask)).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity": 0.0, "tied": True},
        {"dtype": "mixed_bfloat16"},
        {"distribution": "erk", "block_shape": (4, 1)},
    ],
    ids=str,
)
def test_save_and_load(settings, tmp_path):
    model = small_model(units=16, **settings)
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert evaluate(loaded, 5) == evaluate(model, 5)


def test_a_whole_model_budget_is_exact():
    model = small_model(units=16, distribution="erdos_renyi", sparsity=0.7)
    weights = masked_weights(model)
    total = sum(np.prod(weight.shape) for weight in weights)
    assert sum(weight.active for weight in weights) == round(0.3 * total)
    densities = {weight.name: weight.active / np.prod(weight.shape) for weight in weights}
    assert len(set(densities.values())) > 1


def test_ptb_lstm_has_the_published_size():
    """66 million weights dense, 22 million sparse; counted from shapes, without making the arrays."""
    published = preset("ptb_lstm").architecture
    units, vocabulary = published.units, published.vocabulary_size
    dense = 2 * vocabulary * units + published.layers * 2 * units * 4 * units
    assert dense == pytest.approx(66e6, rel=0.01)
    assert (1 - published.sparsity) * dense == pytest.approx(22e6, rel=0.02)


def pytorch_modules(name):
    """The parameters of the published PyTorch modules, by hand: shapes of matrices, sizes of biases.

    Matrices that share a number of connections stand in one list. Second bias vectors, which our models have
    as a part of the first, are a list of their own.
    """
    v, w = 10_000, 33_278
    if name == "ptb_lstm":
        layer = [(1500, 6000)] * 2
        return [[(v, 1500)], layer, layer, [(1500, v)]], [6000, 6000, v], [6000, 6000]
    if name == "ptb_rhn":
        return [[(v, 830)], [(830, 1660)] * 11], [1660] * 10 + [v], [1660]
    sizes = {"ptb_onlstm": (v, 400, [1150, 1150, 400]), "wt2_awd_lstm": (w, 400, [1150, 1150, 400])}
    words, features, units = sizes.get(name, (w, 300, [1150, 1150, 650]))
    matrices, biases = [[(words, features)]], [words]
    for inputs, own in zip([features, *units], units, strict=False):
        width = 4 * own + (2 * own // 10 if name == "ptb_onlstm" else 0)
        matrices.append([(inputs, width), (own, width)])
        biases.append(width)
    second = biases[1:]
    if name == "wt2_awd_lstm_mos":
        matrices.append([(650, 15), (650, 15 * 300)])
        biases.append(15 * 300)
    return matrices, biases, second


# In millions, dense and sparse, as published; where nothing sparse was published, None.
PUBLISHED_PARAMETERS = {
    "ptb_lstm": (66, 22),
    "ptb_rhn": (23.5, 11.1),
    "ptb_onlstm": (25, 11.3),
    "wt2_awd_lstm": (33.5, None),
    "wt2_awd_lstm_mos": (35, 15.6),
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_presets_have_exactly_the_published_parameters(name):
    model = language_model(name)
    found = report(model).parameters
    matrices, biases, second = pytorch_modules(name)
    sizes = [sum(map(np.prod, shapes)) for shapes in matrices]
    assert found.dense == sum(sizes) + sum(biases)
    active = [round((1 - preset(name).architecture.sparsity) * size) for size in sizes]
    assert found.sparse == sum(active) + sum(biases)
    # The numbers in the papers are rounded, and so are the densities.
    for number, published in zip((found.dense, found.sparse), PUBLISHED_PARAMETERS[name], strict=True):
        if published is not None:
            assert number + sum(second) == pytest.approx(1e6 * published, rel=0.03)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("ptb_rhn_small", "wt2_awd_lstm_mos_small")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in PRESETS
        if name.endswith("_small")
    ],
)
def test_small_presets_train(name):
    assert preset(name).architecture.cell == preset(name.removesuffix("_small")).architecture.cell
    model = language_model(name, vocabulary_size=VOCABULARY, batch_size=COLUMNS, reference_length=10)
    model.compile(
        SNTASGD(1.0, global_clipnorm=0.25),
        loss=TokenCrossEntropy(),
        metrics=[Perplexity()],
        run_eagerly=name != "ptb_rhn_small",  # one in a graph, where XLA compiles the steps of large matrices
    )
    windows = RandomWindows(np.arange(100) % VOCABULARY, COLUMNS, 10)
    history = fit(model, windows, epochs=3, callbacks=[windows.callback(), SelfishRewiring(0.5)])
    assert history["perplexity"][-1] < history["perplexity"][0]
    assert history["loss"] == pytest.approx(np.log(history["perplexity"]), rel=1e-5)
    for masked_weight in masked_weights(model):
        weight, mask = (keras.ops.convert_to_numpy(v) for v in (masked_weight.weight, masked_weight.mask))
        assert not weight[~mask].any()
    expected = whole_text_perplexity(model, VALIDATION)
    assert evaluate(model, 7)["perplexity"] == pytest.approx(expected, rel=1e-4)


def everything(**overrides):
    """A model with every layer of the AWD-LSTM-MoS."""
    settings = {
        "units": [12, 8],
        "embedding_units": 6,
        "dropout": 0.1,
        "hidden_dropout": 0.3,
        "locked": True,
        "embedding_dropout": 0.2,
        "ar": 2.0,
        "tar": 1.0,
        "sparsity": 0.5,
        "tied": True,
        "cell_options": {"weight_drop": 0.3},
        "experts": 3,
        "latent_dropout": 0.1,
    }
    return small_model(**{**settings, **overrides})


def test_a_mixture_saved_and_stepwise(tmp_path):
    model = everything(graph=True)
    fit(model)
    expected = whole_text_perplexity(model, VALIDATION)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert loaded.decoder.embedding is loaded.embedding
    assert evaluate(loaded, 7)["perplexity"] == pytest.approx(expected, rel=1e-5)
    ((inputs, _),) = Windows(VALIDATION, COLUMNS, 100)
    states = [keras.ops.zeros((COLUMNS, units)) for units in (12, 12, 8, 8)]
    logits = loaded.stepwise()([keras.ops.convert_to_tensor(inputs["tokens"]), *states])[0]
    np.testing.assert_allclose(logits, loaded(inputs, training=False), atol=1e-5)


@on_jax_too
def test_a_tied_decoder_has_a_bias(tmp_path):
    model = small_model(tied=True)
    assert numbers(model.decoder_bias.bias).tolist() == [0.0] * VOCABULARY
    fit(model)
    bias = numbers(model.decoder_bias.bias)
    assert np.abs(bias).min() > 0
    ((inputs, _),) = Windows(VALIDATION, COLUMNS, 100)
    logits = numbers(model(inputs, training=False))
    model.decoder_bias.bias.assign(np.zeros(VOCABULARY))
    np.testing.assert_allclose(numbers(model(inputs, training=False)) + bias, logits, rtol=1e-4, atol=1e-5)
    model.decoder_bias.bias.assign(bias)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    states = [keras.ops.zeros((COLUMNS, 12)) for _ in range(4)]
    tokens = keras.ops.convert_to_tensor(inputs["tokens"])
    stripped = strip(model.stepwise())
    kinds = {type(layer).__module__.split(".")[0] for layer in stripped.layers}
    assert kinds == {"keras"}
    stripped.save(tmp_path / "plain.keras")
    for other in (stripped, keras.models.load_model(tmp_path / "plain.keras"), loaded.stepwise()):
        np.testing.assert_allclose(numbers(other([tokens, *states])[0]), logits, rtol=1e-4, atol=1e-5)

    assert small_model(tied=True, decoder_bias=False).decoder_bias is None
    assert not small_model(decoder_bias=False).decoder.use_bias
    # Files from before there was a choice hold tied models without one.
    config = {name: value for name, value in model.get_config().items() if name != "decoder_bias"}
    assert LanguageModel.from_config(config).decoder_bias is None
    assert LanguageModel.from_config({**config, "tied": False}).decoder.use_bias


@on_jax_too
@pytest.mark.parametrize(
    ("cell", "options", "summands"),
    [
        ("lstm", None, 2.0),
        ("on_lstm", {"chunk_size": 4}, 2.0),
        ("rhn", {"depth": 3, "transform_bias": None}, [[2.0], [1.0], [1.0]]),
    ],
)
def test_two_bias_vectors(cell, options, summands, tmp_path):
    settings = {"cell": cell, "cell_options": options, "units": 400, "embedding_units": 400, "layers": 1}
    two, one = (small_model(**settings, bias_vectors=number) for number in (2, 1))
    bias = two.recurrent[0].cell.bias
    np.testing.assert_array_equal(bias.summands, summands)
    values, single = numbers(bias), numbers(one.recurrent[0].cell.bias)
    rows = values if cell != "rhn" else values[:1]
    # The variance of a uniform number in ±a is a ** 2 / 3.
    assert np.var(rows) == pytest.approx(2 / 3 / 400, rel=0.15)
    assert np.var(single) == pytest.approx(1 / 3 / 400, rel=0.15)
    if cell == "rhn":
        assert np.var(values[1:]) == pytest.approx(1 / 3 / 400, rel=0.15)
    assert not hasattr(one.recurrent[0].cell.bias, "summands")
    two.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.recurrent[0].cell.bias.summands, summands)
    two.compile("sgd", loss=TokenCrossEntropy())
    with pytest.raises(ValueError, match=r"`bias_vectors` must be 1 .* optimizer=SGD"):
        fit(two)


def test_kernels_begin_within_the_limit_that_is_named():
    settings = {"units": [50, 20], "embedding_units": 10, "sparsity": 0.0}
    for limit, expected in (("units", (50, 20)), ("inputs", (10, 50))):
        model = small_model(**settings, kernel_limit=limit)
        for layer, count, units in zip(model.recurrent, expected, (50, 20), strict=True):
            largest = [np.abs(numbers(weight)).max() for weight in layer.cell.weights[:3]]
            np.testing.assert_allclose(largest, [count**-0.5, units**-0.5, units**-0.5], rtol=0.1)


def test_penalty_of_activations_before_or_after_dropout():
    """With all but one feature in a hundred dropped, those left are a hundred times as large."""
    ((inputs, _),) = Windows(VALIDATION, COLUMNS, 100)
    penalties = []
    for before in (True, False):
        model = small_model(ar=1.0, output_dropout=0.99, ar_before_dropout=before)
        model(inputs, training=True)
        penalties.append(float(model.losses[0]))
    features = keras.Model(model.inputs, model.get_layer("dropout_2").input)(inputs)
    assert penalties[0] == pytest.approx(np.mean(np.square(numbers(features))), rel=1e-5)
    assert penalties[1] > 5 * penalties[0]


def test_dropout_stands_where_it_is_said():
    rates = [(type(layer).__name__, layer.rate) for layer in everything(output_dropout=0.4).dropouts]
    assert rates == [("LockedDropout", 0.1), ("LockedDropout", 0.3), ("LockedDropout", 0.4)]
    assert [layer.rate for layer in small_model(dropout=0.2).dropouts] == [0.2] * 3


def test_penalties_are_of_training_only():
    model = everything(dropout=0.0, hidden_dropout=0.0, embedding_dropout=0.0, cell_options=None)
    ((inputs, _),) = Windows(VALIDATION, COLUMNS, 100)
    model(inputs, training=False)
    assert not model.losses
    model(inputs, training=True)
    assert len(model.losses) == 2


def test_steps_follow_the_length_of_the_windows():
    """Steps of plain SGD from the same weights, of windows with the same content; one graph scales all."""
    constant = small_model(layers=1, sparsity=0.0)
    scaled = small_model(layers=1, sparsity=0.0, reference_length=8)
    constant.compile(SNTASGD(1.0), loss=TokenCrossEntropy(), run_eagerly=True)
    scaled.compile(SNTASGD(1.0), loss=TokenCrossEntropy())
    weights = constant.get_weights()
    for length in (4, 8, 16):
        steps = []
        for model in (constant, scaled):
            model.set_weights(weights)
            before = keras.ops.convert_to_numpy(model.decoder.kernel).copy()
            fit(model, Windows(np.arange(2 * (length + 1)) % VOCABULARY, 2, length))
            steps.append(keras.ops.convert_to_numpy(model.decoder.kernel) - before)
        np.testing.assert_allclose(steps[1], steps[0] * length / 8, rtol=1e-4, atol=1e-7)


def test_scaled_steps_need_an_optimizer_that_can():
    model = small_model(reference_length=8)
    model.compile("adam", loss=TokenCrossEntropy())
    with pytest.raises(ValueError, match=r"`reference_length` needs an optimizer .* Received: Adam"):
        fit(model)


@pytest.mark.parametrize("name", ["quick", "ptb_onlstm_small", "wt2_awd_lstm_mos_small"])
def test_a_small_dense_model_has_as_many_parameters(name):
    wide = dataclasses.replace(preset(name).architecture, vocabulary_size=500)
    sparse = report(LanguageModel(**wide.get_config())).parameters.sparse
    dense = report(LanguageModel(**small_dense(wide).get_config())).parameters
    assert dense.dense == dense.sparse <= sparse
    assert dense.dense > 0.85 * sparse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"`sparsity` .* \[0, 1\). Received: sparsity=1.0"),
        ({"sparsity": float("nan")}, "Received: sparsity=nan"),
        ({"distribution": "gaussian"}, "`distribution` must be one of .*'gaussian'"),
        ({"block_shape": (5, 1)}, r"`units` must be a multiple of 5"),
        ({"block_shape": (0, 1)}, r"`block_shape` must be two positive integers"),
        ({"units": 0}, "`units` must be a positive integer. Received: units=0"),
        ({"units": []}, "`units` must be a positive integer"),
        ({"units": "many"}, "`units` must be a list of positive integers. Received: units='many'"),
        ({"layers": 1.0}, "`layers` must be None or a positive integer. Received: layers=1.0"),
        ({"locked": "yes"}, "`locked` must be True or False. Received: locked='yes'"),
        ({"bias_vectors": 3}, "`bias_vectors` must be one of 1, 2. Received: bias_vectors=3"),
        ({"tar": float("inf")}, "`tar` must be a number that is not negative. Received: tar=inf"),
        ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\). Received: dropout=1.0"),
        (
            {"hidden_dropout": -0.1},
            r"`hidden_dropout` must be None or a number in \[0, 1\). Received: hidden_dropout=-0.1",
        ),
        ({"tied": True, "embedding_units": 5}, "`embedding_units` must equal `units`"),
        ({"units": [4, 4], "layers": 3}, r"`layers` must be the length .* layers=3, units=\[4, 4\]"),
        ({"experts": 0}, "`experts` must be a positive integer. Received: experts=0"),
        (
            {"n_of_m": (2, 4), "tied": True},
            r"`n_of_m` needs a decoder of its own.*n_of_m=\(2, 4\), tied=True",
        ),
        ({"n_of_m": (2, 4), "experts": 2}, r"`n_of_m` needs a single softmax.*experts=2"),
        ({"n_of_m": (4, 2)}, r"`n_of_m` must be two integers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model(**arguments)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"`preset` must be one of ptb_lstm, .* Received: preset='large'"):
        language_model("large")
