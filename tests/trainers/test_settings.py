"""What a run takes where no flag says anything."""

import dataclasses
import json

import keras
import pytest

from keras_selfish.models.presets import PRESETS
from keras_selfish.optimizers import NonMonotonicAveraging
from keras_selfish.rewiring import rules
from keras_selfish.rewiring.registry import METHODS
from trainers import program
from trainers.callbacks import LanguageModelRecorder, ProgressBar, RemainingTime, StopOnNaN
from trainers.files import RunError, write_json
from trainers.workdir import Workdir


@pytest.fixture
def settings(trainer):
    """A function from a trainer's name and flags to the settings of its run."""
    return lambda name, *flags: trainer(name).settings(*flags)


# Of each trainer: flags without a default, and those with one. Scripts name them.
FLAGS = {
    "language_model": (
        "ar ar_before_dropout averaged_rate batch_size bias_vectors block_shape bptt cache_dir cell "
        "cell_options clip_norm_of clipnorm data_dir dataset decoder_bias distribution drop dropout "
        "embedding_dropout embedding_units epochs evaluation_columns experts gradient_batches grow "
        "hidden_dropout input_dropout kernel_limit latent_dropout layers learning_rate locked n_of_m "
        "output_dropout patience prune_embeddings pruning_rate random_lengths redistribution reset_regrown "
        "restart_epochs rewiring_steps schedule sparsity tar tied time_limit units weight_decay workdir",
        {
            "averaging": True,
            "best_from_checkpoint": False,
            "cpu_replicas": 0,
            "export": True,
            "export_text": False,
            "method": "selfish",
            "precision": "float32",
            "preset": "quick",
            "seed": 0,
            "strategy": "none",
            "worker_timeout": 600.0,
        },
    ),
    "image_classifier": (
        "batch_size data_dir epochs pruning_rate time_limit warmup_epochs workdir",
        {
            "architecture": "contextual",
            "augmentation": "none",
            "dataset": "digits",
            "distribution": "uniform",
            "estimator": "straight_through",
            "export": True,
            "finetune_epochs": 2,
            "learning_rate": 0.002,
            "method": "switcher",
            "network": "lenet_300_100",
            "ramp": 0.4,
            "seed": 0,
            "sparsity": 0.9,
            "strategy": "none",
            "switcher_learning_rate": 0.001,
            "switcher_steps": 4,
            "task_steps": 40,
            "validation_fraction": 0.1,
            "weight_decay": 0.02,
            "width": 1.0,
        },
    ),
}


@pytest.mark.parametrize("name", FLAGS)
def test_the_flags_and_their_defaults(name, trainer):
    without, defaults = FLAGS[name]
    found = trainer(name).flags()
    assert {flag.name: flag.default for flag in found} == dict.fromkeys(without.split()) | defaults
    assert [flag.name for flag in found if not flag.help.strip().endswith(".")] == []


CASES = [
    ("language_model", ()),
    ("language_model", ("--preset=ptb_onlstm", "--restart_epochs=5,9")),
    ("language_model", ("--n_of_m=2,4", "--method=rigl", "--pruning_rate=0.2")),
    ("language_model", ("--units=20,12", '--cell_options={"weight_drop": 0.2}', "--bias_vectors=2")),
    ("image_classifier", ()),
    ("image_classifier", ("--sparsity=-1", "--dataset=mnist", "--ramp=1")),
]


@pytest.mark.parametrize(("name", "flags"), CASES)
def test_settings_are_made_again_from_their_json(name, flags, settings):
    found = settings(name, *flags)
    content = json.loads(json.dumps(found.to_json()))
    assert type(found).from_json(content).to_json() == found.to_json()
    with pytest.raises(ValueError, match="there is no setting magic"):
        found.from_json({**content, "magic": 1})
    for wrong in ({"seed": "x"}, {"seed": -1}, {"epochs": 1.5}, {"method": "magic"}):
        (setting,) = wrong
        with pytest.raises(ValueError, match=f"--{setting} must be .* Received: --{setting}="):
            found.from_json({**content, **wrong})


def test_a_run_of_an_earlier_version_goes_on(settings, tmp_path):
    """Which wrote the sparsity of the preset where an n-of-m pattern makes it another one."""
    found = settings("language_model", "--n_of_m=2,4")
    workdir = Workdir(tmp_path, "language model")
    earlier = {**found.to_json(), "sparsity": 0.67}
    del earlier["workers"]
    write_json(workdir.config, {"format": workdir.format, **earlier})
    assert program.settled(found, workdir).architecture == found.architecture
    for name, value in {"units": 7, "sparsity": "x", "magic": 1}.items():
        write_json(workdir.config, {"format": workdir.format, **earlier, name: value})
        with pytest.raises(RunError, match=rf"a run with other settings\. Received: .*\(was {value!r}\)"):
            program.settled(found, workdir)


def test_a_run_of_a_version_without_a_setting_goes_on(settings, tmp_path):
    """It is what it is by default; a default that was another one is that of the run."""
    found = settings("image_classifier", "--dataset=cifar10")
    workdir = Workdir(tmp_path, "image classifier")
    earlier = {**found.to_json(), "warmup_epochs": 1.0}
    del earlier["augmentation"], earlier["schedule_epochs"]
    write_json(workdir.config, {"format": workdir.format, **earlier})
    assert program.settled(found, workdir) == dataclasses.replace(found, warmup_epochs=1.0)
    for flag, received in {
        "--augmentation=crop_flip": r"augmentation='crop_flip' \(was 'none'\)",
        "--warmup_epochs=3": r"warmup_epochs=3.0 \(was 1.0\)",
    }.items():
        with pytest.raises(RunError, match=f"Received: {received};"):
            program.settled(settings("image_classifier", "--dataset=cifar10", flag), workdir)


def test_the_switcher_begins_after_an_epoch_or_a_small_part_of_training(settings):
    """And the ramp ends with training at the latest; the network's steps are counted."""

    def turns(*flags):
        return settings("image_classifier", "--dataset=mnist", "--epochs=40", *flags).turns(110)

    assert turns() == (110, 4290, 160, 110 + 3900)
    assert turns("--epochs=10") == (55, 1045, 40, 55 + 950)
    assert turns("--warmup_epochs=0", "--ramp=1") == (0, 4400, 400, 4000)
    assert turns("--warmup_epochs=30") == (3300, 1100, 100, 3300 + 1000)
    assert turns("--warmup_epochs=30.5", "--ramp=0", "--task_steps=9", "--switcher_steps=1")[:3] == (
        3355,
        1045,
        0,
    )


def test_a_presets_pruning_rate_is_that_of_the_selfish_method(settings):
    found = settings("language_model", "--preset=ptb_lstm")
    assert found.pruning_rate == PRESETS["ptb_lstm"].training.pruning_rate == 0.8
    assert settings("language_model", "--preset=ptb_lstm", "--method=set").pruning_rate is None
    given = settings("language_model", "--preset=ptb_lstm", "--method=set", "--pruning_rate=0.6")
    assert given.pruning_rate == 0.6


def test_the_digits_get_more_and_smaller_steps(settings):
    chosen = [
        (found.epochs, found.batch_size)
        for found in (
            settings("image_classifier"),
            settings("image_classifier", "--batch_size=64"),
            settings("image_classifier", "--dataset=mnist"),
        )
    ]
    assert chosen == [(60, 32), (60, 64), (20, 128)]


GIVEN = {"sparsity": 0.5, "pruning_rate": None, "total_steps": 1000, "data": [], "seed": 0}
WITH_OPTIONS = [name for name, method in METHODS.items() if "pruning_rate" in method.options]


def callback(method, **options):
    (made,) = METHODS[method].for_run(**{**GIVEN, **options})
    return made


@pytest.mark.parametrize("name", [*WITH_OPTIONS, "static"])
def test_a_method_keeps_the_defaults_it_was_published_with(name):
    published = METHODS[name].callback(gradient_data=[])
    made = callback(name, schedule=None, frequency=None, reset_regrown=None, redistribution=None)
    for attribute in ("pruning_rate", "schedule", "frequency", "reset_regrown", "redistribution"):
        assert getattr(made, attribute) == getattr(published, attribute), attribute


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_what_is_given_replaces_a_default(name):
    made = callback(name, pruning_rate=0.6, schedule="linear", frequency=7, reset_regrown=False)
    assert (made.pruning_rate, made.frequency, made.reset_regrown) == (0.6, 7, False)
    assert made.schedule(0, 1000) == pytest.approx(0.6)
    assert made.schedule(500, 1000) == pytest.approx((0.6 + made.schedule(1000, 1000)) / 2)


def test_the_options_of_snip():
    made = callback("snip", gradient_batches=3, prune_embeddings=True, schedule=None)
    assert (made._gradient_batches, made.prune_embeddings) == (3, True)
    published = callback("snip", gradient_batches=None, prune_embeddings=None)
    assert (published._gradient_batches, published.prune_embeddings) == (1, False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method=set", "--gradient_batches=3"), "--gradient_batches must be left out with --method=set"),
        (("--method=gmp", "--noprune_embeddings"), "--prune_embeddings must be left out with --method=gmp"),
        (
            ("--method=snip", "--redistribution=none"),
            "takes --gradient_batches, --prune_embeddings. Received",
        ),
    ],
)
def test_options_of_other_methods_are_refused(flags, message, settings):
    with pytest.raises(ValueError, match=message):
        settings("language_model", *flags)


def test_rules_may_be_another_methods(settings):
    found = settings("language_model", "--drop=magnitude_and_gradient", "--grow=gradient")
    made = callback("selfish", drop=found.drop, grow=found.grow)
    assert (made.drop, made.grow) == (rules.magnitude_and_gradient, rules.gradient)


def test_redistribution_may_be_none(settings):
    found = settings("language_model", "--method=snfs", "--redistribution=none")
    assert callback("snfs", redistribution=found.redistribution).redistribution is None


def test_a_run_of_gradual_pruning_is_done_after_three_quarters():
    schedule = callback("gmp").schedule
    assert float(schedule(1)[1]) < 0.01
    assert float(schedule(750)[1]) == pytest.approx(0.5)
    assert schedule.end_step == 750


def waits_for_each_step(callback):
    """Whether Keras, on JAX, reads the loss of every step for this callback before it begins the next."""
    hooks = ("on_batch_end", "on_train_batch_end")
    kept = all(getattr(type(callback), hook) is getattr(keras.callbacks.Callback, hook) for hook in hooks)
    return not kept and not getattr(callback, "async_safe", False)


@pytest.mark.parametrize("name", METHODS)
def test_no_method_waits_for_each_step(name):
    assert not any(map(waits_for_each_step, METHODS[name].for_run(**GIVEN)))


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
