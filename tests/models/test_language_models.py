"""The language model: carried state, perplexity, presets, save and load."""

import keras
import numpy as np
import pytest

from keras_selfish import (
    SNTASGD,
    LanguageModel,
    Perplexity,
    SelfishRewiring,
    TokenCrossEntropy,
    masked_weights,
)
from keras_selfish.analysis import report
from keras_selfish.data import RandomWindows, Windows
from keras_selfish.models import PRESETS, language_model, preset, small_dense

VOCABULARY, COLUMNS = 17, 4
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, VOCABULARY, COLUMNS * 26)
VALIDATION = RNG.integers(0, VOCABULARY, COLUMNS * 20)


def small_model(**overrides):
    settings = {"units": 12, "dropout": 0.0, "batch_size": COLUMNS, "seed": 3, **overrides}
    model = LanguageModel(VOCABULARY, **settings)
    model.compile(
        SNTASGD(1.0, global_clipnorm=0.25),
        loss=TokenCrossEntropy(),
        metrics=[Perplexity()],
    )
    return model


def evaluate(model, time_steps, tokens=VALIDATION, columns=COLUMNS):
    windows = Windows(tokens, columns, time_steps)
    return model.evaluate(windows.dataset(), verbose=0, return_dict=True)


def whole_text_perplexity(model, tokens, columns=COLUMNS):
    """One window over all: no state is carried, so nothing can go wrong with it."""
    ((inputs, targets),) = Windows(tokens, columns, len(tokens))
    logits = keras.ops.convert_to_numpy(model(inputs, training=False)).astype("float64")
    log_sums = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return np.exp((log_sums - chosen).mean())


@pytest.mark.parametrize("time_steps", [1, 5, 7, 19])
def test_perplexity_does_not_depend_on_the_windows(time_steps):
    model = small_model()
    expected = whole_text_perplexity(model, VALIDATION)
    scores = evaluate(model, time_steps)
    assert scores["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert scores["loss"] == pytest.approx(np.log(expected), rel=1e-5)


def test_evaluation_is_the_same_before_during_and_after_training():
    """Nothing is learnt (learning rate 0), so all evaluations must agree, whatever was run between."""
    model = small_model()
    model.optimizer.learning_rate = 0.0
    expected = evaluate(model, 5)["perplexity"]
    train, validation = Windows(TRAIN, COLUMNS, 5), Windows(VALIDATION, COLUMNS, 5)
    history = model.fit(
        train.dataset(), validation_data=validation.dataset(), epochs=2, shuffle=False, verbose=0
    ).history
    assert history["val_perplexity"] == pytest.approx([expected] * 2, rel=1e-6)
    # Training starts from a zero state at each epoch, and validation between them does not show.
    assert history["perplexity"] == pytest.approx([whole_text_perplexity(model, TRAIN)] * 2, rel=1e-5)
    assert evaluate(model, 5)["perplexity"] == pytest.approx(expected, rel=1e-6)


def test_validation_leaves_the_training_state_alone():
    model = small_model()
    states = [v for v in model.variables if "training_state" in v.path]
    assert len(states) == 4
    model.fit(Windows(TRAIN, COLUMNS, 5).dataset(), shuffle=False, verbose=0)
    before = [keras.ops.convert_to_numpy(state).copy() for state in states]
    assert all(state.any() for state in before)
    evaluate(model, 5)
    for state, value in zip(states, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(state), value)


def test_fewer_columns_than_the_model_was_built_for():
    model = small_model()
    for columns in (1, 3):
        expected = whole_text_perplexity(model, VALIDATION, columns)
        assert evaluate(model, 6, columns=columns)["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_more_columns_are_refused():
    with pytest.raises(ValueError, match="at most `batch_size` columns, which is 4"):
        evaluate(small_model(), 6, columns=5)


def test_the_stepwise_model_computes_the_same():
    model = small_model()
    ((inputs, _),) = Windows(VALIDATION, COLUMNS, 100)
    expected = keras.ops.convert_to_numpy(model(inputs, training=False))
    stepwise = model.stepwise()
    states = [keras.ops.zeros((COLUMNS, 12))] * 4
    for t in range(inputs["tokens"].shape[1]):
        tokens = keras.ops.convert_to_tensor(inputs["tokens"][:, t : t + 1])
        logits, *states = stepwise([tokens, *states])
        np.testing.assert_allclose(logits[:, 0], expected[:, t], atol=1e-5)


CELLS = {
    "rhn": {"depth": 2, "recurrent_dropout": 0.3},
    "on_lstm": {"chunk_size": 4, "weight_drop": 0.4},
}


@pytest.mark.parametrize(
    ("cell", "tied"),
    [
        ("rhn", True),
        ("on_lstm", False),
        pytest.param("rhn", False, marks=pytest.mark.slow),
        pytest.param("on_lstm", True, marks=pytest.mark.slow),
    ],
)
def test_other_recurrent_layers(cell, tied, tmp_path):
    model = small_model(cell=cell, cell_options=CELLS[cell], tied=tied, sparsity=0.5)
    states = [v for v in model.variables if "training_state" in v.path]
    assert len(states) == {"rhn": 2, "on_lstm": 4}[cell]
    model.fit(Windows(TRAIN, COLUMNS, 5).dataset(), shuffle=False, verbose=0)
    assert all(keras.ops.convert_to_numpy(state).any() for state in states)
    expected = whole_text_perplexity(model, VALIDATION)
    assert evaluate(model, 7)["perplexity"] == pytest.approx(expected, rel=1e-5)

    ((inputs, _),) = Windows(VALIDATION, COLUMNS, 100)
    stepwise = model.stepwise()
    carried = [keras.ops.zeros((COLUMNS, 12))] * len(states)
    logits = stepwise([keras.ops.convert_to_tensor(inputs["tokens"]), *carried])[0]
    np.testing.assert_allclose(logits, model(inputs, training=False), atol=1e-5)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert evaluate(loaded, 7)["perplexity"] == pytest.approx(expected, rel=1e-5)
    same = small_model(cell=cell, cell_options=CELLS[cell], tied=tied, sparsity=0.5)
    same.fit(Windows(TRAIN, COLUMNS, 5).dataset(), shuffle=False, verbose=0)
    for weight, value in zip(same.trainable_weights, model.trainable_weights, strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)  # dropout follows the model's seed


def test_an_unknown_cell_is_refused():
    with pytest.raises(ValueError, match=r"`cell` must be one of lstm, rhn, on_lstm\. Received: cell='gru'"):
        LanguageModel(VOCABULARY, cell="gru")


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
        {},
        {"tied": True},
        {"distribution": "erk"},
        {"block_shape": (4, 1)},
        {"sparsity": 0.0},
        {"dtype": "mixed_bfloat16"},
    ],
    ids=str,
)
def test_save_and_load(settings, tmp_path):
    model = small_model(**{"units": 16, **settings})
    if settings.get("block_shape"):
        settings["units"] = 16
    model.fit(Windows(TRAIN, COLUMNS, 5).dataset(), shuffle=False, verbose=0)
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
    settings = preset("ptb_lstm")["model"]
    units, vocabulary = settings["units"], 10_000
    dense = 2 * vocabulary * units + settings["layers"] * 2 * units * 4 * units
    assert dense == pytest.approx(66e6, rel=0.01)
    assert (1 - settings["sparsity"]) * dense == pytest.approx(22e6, rel=0.02)


# In millions, dense and sparse, as published; where nothing sparse was published, that is ours.
PUBLISHED_PARAMETERS = {
    "ptb_lstm": (66, 22),
    "ptb_rhn": (23.5, 11.1),
    "ptb_onlstm": (25, 11.3),
    "wt2_awd_lstm": (33.5, None),
    "wt2_awd_lstm_mos": (35, 15.6),
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_presets_have_the_published_number_of_parameters(name):
    found = report(language_model(name)).parameters
    for number, published in zip((found.dense, found.sparse), PUBLISHED_PARAMETERS[name], strict=True):
        if published is not None:
            assert number == pytest.approx(1e6 * published, rel=0.03)


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
    settings = preset(name)
    assert set(settings["training"]) == set(preset("ptb_lstm")["training"])
    assert settings["model"].get("cell") == preset(name.removesuffix("_small"))["model"].get("cell")
    model = language_model(name, vocabulary_size=VOCABULARY, batch_size=COLUMNS, reference_length=10)
    model.compile(SNTASGD(1.0, global_clipnorm=0.25), loss=TokenCrossEntropy(), metrics=[Perplexity()])
    windows = RandomWindows(np.arange(400) % VOCABULARY, COLUMNS, 10)
    history = model.fit(
        windows.dataset(),
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[windows.callback(), SelfishRewiring(0.5)],
    ).history
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
    model = everything()
    model.fit(Windows(TRAIN, COLUMNS, 5).dataset(), shuffle=False, verbose=0)
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


@pytest.mark.parametrize("length", [4, 8, 16])
def test_steps_follow_the_length_of_the_windows(length):
    """One step of plain SGD from the same weights, of windows with the same content."""
    steps = []
    for reference in (None, 8):
        model = small_model(reference_length=reference, sparsity=0.0)
        model.compile(SNTASGD(1.0), loss=TokenCrossEntropy())
        before = keras.ops.convert_to_numpy(model.decoder.kernel).copy()
        windows = Windows(np.arange(2 * (length + 1)) % VOCABULARY, 2, length)
        model.fit(windows.dataset(), shuffle=False, verbose=0)
        steps.append(keras.ops.convert_to_numpy(model.decoder.kernel) - before)
    np.testing.assert_allclose(steps[1], steps[0] * length / 8, rtol=1e-4, atol=1e-7)


def test_scaled_steps_need_an_optimizer_that_can():
    model = small_model(reference_length=8)
    model.compile("adam", loss=TokenCrossEntropy())
    with pytest.raises(ValueError, match=r"`reference_length` needs an optimizer .* Received: Adam"):
        model.fit(Windows(TRAIN, COLUMNS, 5).dataset(), shuffle=False, verbose=0)


@pytest.mark.parametrize("name", ["quick", "ptb_onlstm_small", "wt2_awd_lstm_mos_small"])
def test_a_small_dense_model_has_as_many_parameters(name):
    settings = preset(name)["model"]
    sparse = report(LanguageModel(500, **settings)).parameters.sparse
    narrow = small_dense(500, **settings)
    dense = report(LanguageModel(500, **narrow)).parameters
    assert dense.dense == dense.sparse <= sparse
    assert dense.dense > 0.85 * sparse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"`sparsity` .* \[0, 1\). Received: sparsity=1.0"),
        ({"sparsity": float("nan")}, "Received: sparsity=nan"),
        ({"distribution": "gaussian"}, "`distribution` must be one of .*'gaussian'"),
        ({"block_shape": (5, 1)}, r"`block_shape` must divide"),
        ({"block_shape": (0, 1)}, r"`block_shape` must be two positive integers"),
        ({"units": 0}, "`units` must be a positive integer. Received: units=0"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\). Received: dropout=1.0"),
        ({"hidden_dropout": -0.1}, r"`hidden_dropout` must be in \[0, 1\). Received: hidden_dropout=-0.1"),
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


@pytest.mark.jax
def test_state_is_carried_on_jax(run_python):
    printed = run_python(
        """
        import keras, numpy as np
        from keras_selfish import LanguageModel, Perplexity, SNTASGD, SelfishRewiring
        from keras_selfish.data import Windows

        tokens = np.random.default_rng(0).integers(0, 17, 4 * 20)
        model = LanguageModel(17, units=12, dropout=0.0, batch_size=4)
        model.compile(
            SNTASGD(0.5, global_clipnorm=0.25),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[Perplexity()],
        )
        for time_steps in (19, 5, 1):
            data = Windows(tokens, 4, time_steps).pydataset()
            print(model.evaluate(data, verbose=0, return_dict=True)["perplexity"])
        data = Windows(tokens, 4, 5).pydataset()
        history = model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[SelfishRewiring()]).history
        print(history["perplexity"][-1] < history["perplexity"][0], len(history["sparsity"]))
        """,
        backend="jax",
    )
    *perplexities, trained = printed.strip().splitlines()
    numbers = [float(number) for number in perplexities]
    assert numbers == pytest.approx([numbers[0]] * 3, rel=1e-5)
    assert trained == "True 3"
