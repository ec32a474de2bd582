"""What a run takes where no flag says anything."""

import keras
import pytest

from keras_selfish.models.presets import PRESETS
from keras_selfish.optimizers import NonMonotonicAveraging
from keras_selfish.rewiring.registry import METHODS
from trainers.callbacks import LanguageModelRecorder, ProgressBar, RemainingTime, StopOnNaN
from trainers.mask_updates import mask_updates


@pytest.fixture
def settings(trainer):
    """A function from a trainer's name and flags to the settings of its run."""
    return lambda name, *flags: trainer(name).settings(*flags)


def test_a_presets_pruning_rate_is_that_of_the_selfish_method(settings):
    found = settings("language_model", "--preset=ptb_lstm")
    assert found["pruning_rate"] == PRESETS["ptb_lstm"]["training"]["pruning_rate"] == 0.8
    assert settings("language_model", "--preset=ptb_lstm", "--method=set")["pruning_rate"] is None
    given = settings("language_model", "--preset=ptb_lstm", "--method=set", "--pruning_rate=0.6")
    assert given["pruning_rate"] == 0.6


def test_the_digits_get_more_and_smaller_steps(settings):
    chosen = [
        {name: found[name] for name in ("epochs", "batch_size")}
        for found in (
            settings("image_classifier"),
            settings("image_classifier", "--batch_size=64"),
            settings("image_classifier", "--dataset=mnist"),
        )
    ]
    assert chosen == [
        {"epochs": 60, "batch_size": 32},
        {"epochs": 60, "batch_size": 64},
        {"epochs": 20, "batch_size": 128},
    ]


GIVEN = {"sparsity": 0.5, "pruning_rate": None, "total_steps": 1000, "data": [], "seed": 0}


def callback(method, **options):
    (made,) = mask_updates(method, **{**GIVEN, **options})
    return made


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"dense", "dense_small", "gmp", "snip"}))
def test_a_method_keeps_the_defaults_it_was_published_with(name):
    published = METHODS[name].callback(gradient_data=[])
    made = callback(name, schedule=None, frequency=None, reset_regrown=None, redistribution=None)
    for attribute in ("pruning_rate", "schedule", "frequency", "reset_regrown", "redistribution"):
        assert getattr(made, attribute) == getattr(published, attribute), attribute


def test_what_is_given_replaces_a_default():
    made = callback("set", pruning_rate=0.6, schedule="linear", frequency=7, reset_regrown=False)
    assert (made.pruning_rate, made.frequency, made.reset_regrown) == (0.6, 7, False)
    assert made.schedule(500, 1000) == pytest.approx((0.6 + 0.005) / 2)


def waits_for_each_step(callback):
    """Whether Keras, on JAX, reads the loss of every step for this callback before it begins the next."""
    hooks = ("on_batch_end", "on_train_batch_end")
    kept = all(getattr(type(callback), hook) is getattr(keras.callbacks.Callback, hook) for hook in hooks)
    return not kept and not getattr(callback, "async_safe", False)


@pytest.mark.parametrize("name", METHODS)
def test_no_method_waits_for_each_step(name):
    assert not any(map(waits_for_each_step, mask_updates(name, **GIVEN)))


def test_no_callback_of_a_run_waits_for_each_step():
    run = [
        StopOnNaN(None, "less"),
        RemainingTime([]),
        NonMonotonicAveraging(),
        LanguageModelRecorder(None, 1),
        ProgressBar(verbose=2),
    ]
    assert [each for each in run if waits_for_each_step(each)] == []
    assert waits_for_each_step(ProgressBar(verbose=1))  # which shows each step
