"""Trains a sparse recurrent language model, tests it and exports it for serving.

Everything the run writes is in --workdir; started again with the same --workdir it goes on where it
stopped. Settings not given come from --preset.

Example:
    python -m trainers.language_model --dataset ptb --data_dir ptb/ --preset ptb_lstm --workdir runs/ptb
"""

import contextlib
import dataclasses
import importlib.util
import os
import sys

import numpy as np
from absl import flags, logging

from keras_selfish.data import RandomWindows, Windows, load_corpus
from keras_selfish.models.memory import check_memory
from keras_selfish.rewiring.registry import METHODS
from trainers import distribution_jax, fingerprints, program
from trainers.distribution import Workers
from trainers.files import replace, write_json, writing
from trainers.language_settings import OF_PRESETS, MethodSettings, RunSettings, settings_from_flags
from trainers.methods import check_steps
from trainers.settings import define_flags

FLAGS = flags.FLAGS

define_flags(*OF_PRESETS, defaults=False)
define_flags(MethodSettings, RunSettings)
flags.DEFINE_string("workdir", None, "Folder of the run: settings, history, checkpoints, exported model.")
flags.DEFINE_float("time_limit", None, program.TIME_LIMIT, lower_bound=0.0)
flags.DEFINE_bool("export", True, "Whether to export a SavedModel at the end.")
flags.DEFINE_string(
    "cache_dir", None, "Folder of downloads and of the token ids of large corpora; by default Keras's."
)
flags.DEFINE_float(
    "worker_timeout",
    600.0,
    "With --strategy multi_worker: seconds that a worker waits for the others, first until they are there, "
    "then for each step; the first step includes compilation.",
    lower_bound=1.0,
)
flags.DEFINE_bool(
    "best_from_checkpoint",
    False,
    "Whether the model of the last checkpoint takes the place of a best.keras that is lost or damaged.",
)
flags.DEFINE_bool(
    "export_text", False, "Whether to export a second SavedModel, which scores and generates text."
)


def _check_memory(settings, vocabulary_size, train):
    """Refuses a model that cannot fit, now that all sizes but the number of GPUs are known."""
    sizes = {"precision": settings.precision, "name": "--{}"}
    if settings.strategy == "none":
        sizes["batch_size"] = settings.batch_size
        sizes["time_steps"] = min(settings.bptt, train.columns.shape[1] - 1)
    check_memory(settings.architecture_for(vocabulary_size), **sizes)


def make_strategy(settings, workers):
    """The tf.distribute strategy of the run, or None."""
    if settings.strategy == "multi_worker":
        return workers.join()
    if settings.strategy != "mirrored":
        return None
    import tensorflow as tf

    replicas = settings.cpu_replicas
    if not replicas:
        return tf.distribute.MirroredStrategy()
    devices = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        devices[0], [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
    )
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])


def architecture(settings, vocabulary_size):
    """What is trained: of a dense method all connections, and units to fit."""
    wanted = settings.architecture_for(vocabulary_size)
    if settings.random_lengths:
        wanted = dataclasses.replace(wanted, reference_length=settings.bptt)
    if settings.method == "dense_small":
        from keras_selfish.models import small_dense

        wanted = small_dense(wanted)
    if METHODS[settings.method].source is None:
        wanted = dataclasses.replace(wanted, sparsity=0.0)
    return wanted


def make_model(settings, vocabulary_size, replicas):
    """The compiled model."""
    from keras_selfish.models import LanguageModel, Perplexity, TokenCrossEntropy
    from keras_selfish.optimizers import SNTASGD

    distribution_jax.check_columns(settings, replicas)
    columns = max(settings.batch_size, settings.evaluation_columns or 0)
    model = LanguageModel(
        **architecture(settings, vocabulary_size).get_config(),
        batch_size=columns // replicas,
        seed=settings.seed,
        dtype=settings.precision,
        name="language_model",
    )
    options = {"clip_norm_of": settings.clip_norm_of, "averaged_rate": settings.averaged_rate}
    model.compile(
        SNTASGD(
            float(settings.learning_rate),
            global_clipnorm=settings.clipnorm or None,
            weight_decay=settings.weight_decay or None,
            **{name: value for name, value in options.items() if value is not None},
        ),
        loss=TokenCrossEntropy(),
        metrics=[Perplexity()],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def make_callbacks(settings, workdir, train, checkpoint, workers):
    """The callbacks of the run; recorder and progress bar stand last and so see all statistics."""
    from keras_selfish.optimizers import NonMonotonicAveraging
    from trainers.callbacks import (
        Hearing,
        LanguageModelRecorder,
        ProgressBar,
        RemainingTime,
        StopOnNaN,
        tensorboard,
    )
    from trainers.pausing import Pause

    callbacks = [
        Hearing(workers),
        StopOnNaN(workdir, "a smaller --learning_rate or --clipnorm"),
        RemainingTime(["perplexity", "val_perplexity"], progress_bar=True),
    ]
    if settings.random_lengths:
        callbacks.append(train.callback())
    callbacks += METHODS[settings.method].for_run(
        sparsity=settings.architecture.sparsity,
        total_steps=len(train) * settings.schedule_epochs,
        data=train,
        seed=settings.seed,
        pruning_rate=settings.pruning_rate,
        frequency=settings.rewiring_steps,
        schedule=settings.schedule,
        reset_regrown=settings.reset_regrown,
        drop=settings.drop,
        grow=settings.grow,
        redistribution=settings.redistribution,
        gradient_batches=settings.gradient_batches,
        prune_embeddings=settings.prune_embeddings,
    )
    if settings.averaging:
        callbacks.append(
            NonMonotonicAveraging(
                monitor="val_perplexity",
                patience=settings.patience,
                restart_epochs=settings.restart_epochs,
            )
        )
    if not workers.worker.is_chief:
        return callbacks
    before = {name: checkpoint.get(name) for name in ("best", "rows", "seconds")} if checkpoint else {}
    recorder = LanguageModelRecorder(workdir, train.predictions, **before)
    bar = ProgressBar(verbose=1 if sys.stdout.isatty() else 2)
    callbacks += [*tensorboard(workdir), recorder, bar]
    if distribution_jax.is_alone(settings.strategy):
        callbacks.insert(0, Pause(workdir, recorder, within_epochs=settings.strategy != "mirrored"))
    return callbacks


def train(settings, workdir):
    """Runs a whole training, from wherever it stands, and returns the results as a dict."""
    # Data and checkpoint first: what is wrong with them is said before a backend is loaded.
    corpus = load_corpus(settings.dataset, data_dir=settings.data_dir, cache_dir=program.path("cache_dir"))
    check_words(corpus, settings)
    data = fingerprints.of_corpus(corpus)
    workdir.check_data(data, settings.to_json())
    windows = all_windows(corpus, settings)
    steps, least = settings.schedule_epochs * len(windows["train"]), METHODS[settings.method].least_steps
    check_steps(steps, least, f"of which --method={settings.method} needs as many", settings)
    _check_memory(settings, len(corpus.vocabulary), windows["train"])
    checkpoint = workdir.checkpoint(FLAGS.best_from_checkpoint)
    distribution_jax.check_time_limit(settings.strategy, FLAGS.time_limit)
    exports = [workdir.saved_model, workdir.text_model][: 1 + FLAGS.export_text]
    program.check_backend(FLAGS.export, *exports)
    workers = Workers(settings.strategy, FLAGS.worker_timeout, workdir)
    with workers.together():
        agreed = settings.to_json() | {"data_dir": None}, data, checkpoint and checkpoint["sha256"]
        return _train(settings, workdir, corpus, windows, checkpoint, workers, agreed)


def _train(settings, workdir, corpus, windows, checkpoint, workers, agreed):
    import keras

    from keras_selfish.analysis import report

    keras.utils.set_random_seed(settings.seed)
    distribution_jax.check_backend(settings.strategy)
    if settings.strategy in distribution_jax.STRATEGIES:
        divided = architecture(settings, len(corpus.vocabulary))
        workdir = distribution_jax.begin(settings, divided, workdir)
    strategy = make_strategy(settings, workers)
    workers.check_agreement(*agreed)
    if strategy is None:
        model = make_model(settings, len(corpus.vocabulary), 1)
    else:
        with strategy.scope():
            model = make_model(settings, len(corpus.vocabulary), strategy.num_replicas_in_sync)
    if checkpoint:
        logging.info(
            "Resuming after %s of %d epochs from %s", workdir.place, settings.epochs, checkpoint["weights"]
        )
        checkpoint["metrics"] = workdir.restore(model, checkpoint)
    if workers.worker.is_chief:
        workdir.begin(settings.to_json())
        if checkpoint and checkpoint["lost_best"]:
            replace_best(model, workdir, checkpoint)
        replace(workdir.path / "vocabulary.txt", corpus.vocabulary.save)
        logging.info("%r\n%s", corpus, report(model).table())
    fit(model, windows, settings, workdir, checkpoint, workers)
    best, results = test(model, windows, workdir, workers)
    workers.wait_patiently()
    if workers.worker.is_chief:
        finish(best, results, corpus, workdir)
    workers.meet()
    return results


def check_words(corpus, settings):
    """Refuses a corpus of which the vocabulary has no word, or none in one of the splits."""
    special = [corpus.vocabulary.eos_id, corpus.vocabulary.unk_id]
    for split in ("train", "validation", "test"):
        tokens = getattr(corpus, split)
        parts = (tokens[start : start + 2**20] for start in range(0, len(tokens), 2**20))
        if all(np.isin(part, special).all() for part in parts):
            at = f"--data_dir={settings.data_dir}" if settings.data_dir else ""
            raise ValueError(
                f"--dataset={settings.dataset} must hold words that its training split repeats, in every "
                f"split. Received: {at} whose {split} split has unknown words only; take a longer text"
            )


def replace_best(model, workdir, checkpoint):
    """Has the model of the checkpoint take the place of a best.keras that is lost."""
    if checkpoint["steps_done"]:  # whose weights are not those of a validation
        checkpoint["best"] = None
        return
    rows = checkpoint["rows"]
    checkpoint["best"] = float(rows[-1]["val_perplexity"]) if rows else None
    workdir.stage_best(model)
    workdir.save_checkpoint(model, checkpoint["epochs_done"], rows, best=checkpoint["best"])
    workdir.wait()
    logging.warning("best.keras is now the model after epoch %d", checkpoint["epochs_done"])


def all_windows(corpus, settings):
    """What the model is trained on, what is validated in training, and what the best model is tested on."""
    columns, bptt = settings.evaluation_columns or settings.batch_size, settings.bptt
    windows = {
        "train": training_windows(corpus.train, settings),
        "validation": Windows(corpus.validation, columns, bptt),
        "test": Windows(corpus.test, columns, bptt),
        "test, one column": Windows(corpus.test, 1, 10 * bptt),
    }
    if columns != settings.batch_size:
        for split in ("validation", "test"):
            name = f"{split}, {settings.batch_size} columns"
            windows[name] = Windows(getattr(corpus, split), settings.batch_size, bptt)
    return windows


def training_windows(tokens, settings):
    """The windows that a model is trained on, of one length or of random ones."""
    if not settings.random_lengths:
        return Windows(tokens, settings.batch_size, settings.bptt)
    # JAX compiles a step for each length, which can take longer than an epoch of steps.
    multiple = 10 if os.environ.get("KERAS_BACKEND") == "jax" else 1
    return RandomWindows(tokens, settings.batch_size, settings.bptt, settings.seed, multiple)


def fit(model, windows, settings, workdir, checkpoint, workers):
    """Trains the epochs that are left."""
    done = checkpoint["epochs_done"] if checkpoint else 0
    begun = checkpoint["steps_done"] if checkpoint else 0
    if done >= settings.epochs:
        logging.info("All %d epochs are done; nothing is left to train", settings.epochs)
        return
    from trainers import pausing

    pausing.fit(
        model,
        lambda epoch, first: windows["train"].batches(first),
        len(windows["train"]),
        done,
        settings.epochs,
        begun,
        checkpoint["metrics"] if checkpoint else (),
        make_callbacks(settings, workdir, windows["train"], checkpoint, workers),
        validation_data=windows["validation"].batches(),
    )


def test(model, windows, workdir, workers):
    """Tests the best model; returns it, on one device, and the perplexities as a dict."""
    import keras

    from keras_selfish.variables import to_numpy
    from trainers.callbacks import Hearing

    workers.meet()  # until the chief has written it
    with distribution_jax.undivided_batches():
        best = keras.models.load_model(workdir.best)
    for variable, value in zip(model.weights, best.weights, strict=True):
        variable.assign(to_numpy(value))  # one at a time: processes may hold parts of each
    results = {}
    # One column cannot be divided among replicas; the model that was loaded has one.
    for name in windows:
        if name == "train":
            continue
        one = name == "test, one column"
        with distribution_jax.undivided_batches() if one else contextlib.nullcontext():
            tested = best if one else model
            batches, callbacks = windows[name].batches(), [Hearing(workers)]
            scores = tested.evaluate(batches, verbose=0, callbacks=callbacks, return_dict=True)
        results[name] = float(scores["perplexity"])
    return best, results


def finish(best, results, corpus, workdir):
    """Saves and exports the best model, and prints what came out."""
    from keras_selfish.analysis import report

    results["unigram, test"] = corpus.unigram_perplexity("test")
    replace(workdir.final, best.save)
    if FLAGS.export:
        _export(best, corpus, workdir)
    write_json(workdir.path / "results.json", results)
    _plot(workdir)
    print(report(best).table())
    print(f"\nPerplexity of the best epoch ({corpus.name}):")
    for name, perplexity in results.items():
        print(f"  {name:22} {perplexity:9.2f}")
    print(f"\nEverything is in {workdir.path}")
    return results


def _export(model, corpus, workdir):
    from keras_selfish.export import saved_model, text_model

    with _quiet(), writing(workdir.saved_model):
        saved_model(model, workdir.saved_model, corpus.vocabulary)
    logging.info("Exported a SavedModel to %s", workdir.saved_model)
    if FLAGS.export_text:
        from keras_selfish.data.tokenization_tensorflow import tokenizer

        with _quiet(), writing(workdir.text_model):
            text_model(model, workdir.text_model, corpus.vocabulary, tokenizer(corpus.tokenization))
        logging.info("Exported a SavedModel that takes text to %s", workdir.text_model)


@contextlib.contextmanager
def _quiet():
    """Without TensorFlow's notes on what it writes, which share absl's log."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _plot(workdir):
    if importlib.util.find_spec("matplotlib") is None:
        logging.info("history.png was not drawn: install the extra `plot` for it")
        return
    from keras_selfish.analysis import plot_history

    replace(workdir.path / "history.png", lambda path: plot_history(workdir.history, path))


main = program.command(
    "language model",
    settings_from_flags,
    train,
    smaller="--units, --layers, --batch_size or --bptt",
)


def run():
    """Entry point."""
    program.run(main)


if __name__ == "__main__":
    run()
