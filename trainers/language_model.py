"""Trains a sparse recurrent language model, tests it and exports it for serving.

Everything the run writes is in --workdir; started again with the same --workdir it goes on where it
stopped. Settings not given come from --preset.

Example:
    python -m trainers.language_model --dataset ptb --data_dir ptb/ --preset ptb_lstm --workdir runs/ptb
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import sys

import numpy as np
from absl import flags, logging

from keras_selfish import masks
from keras_selfish.data import DATASETS, RandomWindows, Windows, load_corpus
from keras_selfish.models.architecture import CELLS, KERNEL_LIMITS, Architecture
from keras_selfish.models.memory import check_memory
from keras_selfish.models.presets import PRESETS, preset
from keras_selfish.rewiring.registry import METHODS, REWIRING_OPTIONS
from keras_selfish.rewiring.rules import REDISTRIBUTION_RULES
from trainers import distribution_jax, fingerprints, program
from trainers.distribution import Worker, Workers
from trainers.files import replace, write_json, writing
from trainers.mask_updates import check_distribution, check_options, check_steps, mask_updates

FLAGS = flags.FLAGS

flags.DEFINE_enum("preset", "quick", sorted(PRESETS), "Settings to begin from.")
flags.DEFINE_string("workdir", None, "Folder of the run: settings, history, checkpoints, exported model.")
flags.DEFINE_enum(
    "dataset",
    None,
    sorted(DATASETS),
    "Corpus; text is all UTF-8 files in --data_dir, python_docs needs none.",
)
flags.DEFINE_string("data_dir", None, "Folder with the corpus's files; without it, they are downloaded.")
flags.DEFINE_string(
    "cache_dir", None, "Folder of downloads and of the token ids of large corpora; by default Keras's."
)
flags.DEFINE_list(
    "units", None, "Units of each recurrent layer, one number or one for each, such as 256,200."
)
flags.DEFINE_integer("layers", None, "Number of recurrent layers.", lower_bound=1)
flags.DEFINE_integer("embedding_units", None, "Features of a token; --units by default.", lower_bound=1)
flags.DEFINE_bool("tied", None, "Whether the decoder is the transposed embedding.")
flags.DEFINE_enum("cell", None, CELLS, "Kind of the recurrent layers.")
flags.DEFINE_string(
    "cell_options",
    None,
    'Further arguments of the recurrent layers, as JSON: {"depth": 10}, {"weight_drop": 0.5}.',
)
flags.DEFINE_integer("experts", None, "Number of softmaxes that are mixed.", lower_bound=1)
flags.DEFINE_float("dropout", None, "Fraction of inputs of each layer dropped in training, in [0, 1).")
flags.DEFINE_float("input_dropout", None, "--dropout after the embedding.")
flags.DEFINE_float("hidden_dropout", None, "--dropout between recurrent layers.")
flags.DEFINE_float("output_dropout", None, "--dropout before the decoder.")
flags.DEFINE_bool("locked", None, "Whether dropout takes the same features at all time steps.")
flags.DEFINE_float("embedding_dropout", None, "Fraction of the words that a step does without, in [0, 1).")
flags.DEFINE_float("latent_dropout", None, "Fraction of the experts' features dropped, in [0, 1).")
flags.DEFINE_float("ar", None, "Penalty of large activations.", lower_bound=0.0)
flags.DEFINE_bool("ar_before_dropout", None, "Whether --ar is of the activations before --output_dropout.")
flags.DEFINE_float("tar", None, "Penalty of changing activations.", lower_bound=0.0)
flags.DEFINE_bool("decoder_bias", None, "Whether the decoder, tied or not, adds a bias.")
flags.DEFINE_enum(
    "bias_vectors", None, ["1", "2"], "2: biases of recurrent layers train as PyTorch's two vectors do."
)
flags.DEFINE_enum(
    "kernel_limit", None, KERNEL_LIMITS, "What bounds the initial input kernels, uniform in ±1/sqrt of it."
)
flags.DEFINE_float("sparsity", None, "Fraction of zeros in every weight matrix, in [0, 1).")
flags.DEFINE_enum("distribution", None, masks.DISTRIBUTIONS, "How the matrices share the connections.")
flags.DEFINE_list("block_shape", None, "Input weights and units of a block of connections, such as 4,1.")
flags.DEFINE_list(
    "n_of_m", None, "Connections among consecutive input weights, such as 2,4: two of each four."
)
flags.DEFINE_enum(
    "method",
    "selfish",
    list(METHODS),
    "How connections change in training.\n" + "\n".join(f"{k}: {m.summary}." for k, m in METHODS.items()),
)
flags.DEFINE_enum(
    "redistribution",
    None,
    sorted(REDISTRIBUTION_RULES),
    "What the matrices share the connections that come by; by default as --method says.",
)
flags.DEFINE_float(
    "pruning_rate",
    None,
    "Fraction of connections moved by the first rewiring, in (0, 1); by default as --preset says for "
    "--method=selfish, and as published for the other methods.",
)
flags.DEFINE_integer(
    "rewiring_steps", None, "Training steps between rewirings; by default as --method says.", lower_bound=1
)
flags.DEFINE_enum(
    "schedule",
    None,
    ["cosine", "linear", "constant"],
    "Decay of the pruning rate; by default as --method says.",
)
flags.DEFINE_bool(
    "reset_regrown",
    None,
    "Whether a weight dropped and regrown at once restarts at zero; by default as --method says.",
)
flags.DEFINE_integer("epochs", None, "Epochs of training, in all.", lower_bound=1)
flags.DEFINE_integer("batch_size", None, "Columns the corpus is read in, over all replicas.", lower_bound=1)
flags.DEFINE_integer("bptt", None, "Time steps of a window, through which gradients flow.", lower_bound=1)
flags.DEFINE_bool("random_lengths", None, "Whether windows vary in length, and learning rates with them.")
flags.DEFINE_float("learning_rate", None, "Learning rate of SNT-ASGD.", lower_bound=0.0)
flags.DEFINE_float("clipnorm", None, "Largest global norm of the gradient; 0 does not clip.", lower_bound=0.0)
flags.DEFINE_enum(
    "clip_norm_of",
    None,
    ["dense", "active"],
    "Gradient whose norm is clipped: that of all positions, as published, or of the active ones.",
)
flags.DEFINE_enum(
    "averaged_rate",
    None,
    ["current", "first"],
    "Learning rate of averaged steps with random lengths: the step's own, or that of the first averaged one.",
)
flags.DEFINE_float("weight_decay", None, "L2 penalty, added to the gradient.", lower_bound=0.0)
flags.DEFINE_integer(
    "patience", None, "Epochs without a better validation before averaging begins.", lower_bound=1
)
flags.DEFINE_list("restart_epochs", None, "Epochs after which averaging begins anew, such as 500,1000.")
flags.DEFINE_integer(
    "evaluation_columns",
    None,
    "Columns that validation and test are read in, over all replicas; by default --batch_size.",
    lower_bound=1,
)
flags.DEFINE_bool("averaging", True, "Whether the weights are averaged once validation stops improving.")
flags.DEFINE_enum("precision", "float32", ["float32", "mixed_bfloat16"], "Type of the computations.")
flags.DEFINE_integer(
    "seed", 0, "Seed of weights, masks, dropout and rewiring.", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_enum(
    "strategy",
    "none",
    ["none", "mirrored", "multi_worker", *distribution_jax.STRATEGIES],
    "mirrored: tf.distribute over all visible GPUs. multi_worker: over the GPUs, or else CPUs, of all "
    "processes that the environment variable TF_CONFIG names. They are started with the same flags. "
    "--workdir must be a folder that all of them see, such as one on a network drive; only the "
    "first one writes to it. On JAX, over all devices: data_parallel divides batches, model_parallel every "
    "matrix.",
)
flags.DEFINE_float(
    "worker_timeout",
    600.0,
    "With --strategy multi_worker: seconds that a worker waits for the others, first until they are there, "
    "then for each step; the first step includes compilation.",
    lower_bound=1.0,
)
flags.DEFINE_integer("cpu_replicas", 0, "With --strategy mirrored: replicas on as many CPU devices.")
flags.DEFINE_bool("export", True, "Whether to export a SavedModel at the end.")
flags.DEFINE_bool(
    "best_from_checkpoint",
    False,
    "Whether the model of the last checkpoint takes the place of a best.keras that is lost or damaged.",
)
flags.DEFINE_bool(
    "export_text", False, "Whether to export a second SavedModel, which scores and generates text."
)

# Of the vocabulary's size and the reference length the data decides.
_MODEL_FLAGS = tuple(
    field.name
    for field in dataclasses.fields(Architecture)
    if field.name not in ("vocabulary_size", "reference_length")
)
_TRAINING_FLAGS = (
    "dataset",
    "epochs",
    "batch_size",
    "bptt",
    "random_lengths",
    "learning_rate",
    "clipnorm",
    "weight_decay",
    "pruning_rate",
    "patience",
    "restart_epochs",
    "evaluation_columns",
)
_RUN_FLAGS = (
    "preset",
    "data_dir",
    "method",
    "schedule",
    "redistribution",
    "rewiring_steps",
    "reset_regrown",
    "clip_norm_of",
    "averaged_rate",
    "averaging",
    "precision",
    "seed",
    "strategy",
    "cpu_replicas",
)


def settings_from_flags():
    """All settings of the run in one dict: the preset's, overridden by the flags given."""
    parts = preset(FLAGS.preset)
    defaults = {field.name: field.default for field in dataclasses.fields(Architecture)}
    settings = {name: defaults[name] for name in _MODEL_FLAGS} | parts["model"] | parts["training"]
    for name in (*_MODEL_FLAGS, *_TRAINING_FLAGS):
        value = getattr(FLAGS, name)
        if value is not None:
            settings[name] = value
    settings.update({name: getattr(FLAGS, name) for name in _RUN_FLAGS})
    if settings["method"] != "selfish":  # whose published rate the preset's is
        settings["pruning_rate"] = FLAGS.pruning_rate
    if settings["data_dir"] is not None:
        settings["data_dir"] = os.path.abspath(settings["data_dir"])
    settings["units"] = _units(settings["units"])
    settings["restart_epochs"] = _epochs(settings["restart_epochs"])
    settings["bias_vectors"] = int(settings["bias_vectors"])
    settings["cell_options"] = _cell_options(settings["cell_options"])
    settings["block_shape"] = list(masks.check_block_shape(_pair("block_shape", settings["block_shape"])))
    if settings["n_of_m"]:
        settings["n_of_m"] = list(masks.check_n_of_m(_pair("n_of_m", settings["n_of_m"])))
    _check(settings)
    _check_flags(settings)
    if settings["strategy"] == "multi_worker":
        settings["workers"] = Worker.of(settings).number
    return {**settings, "schedule_epochs": settings["epochs"]}


def _check_flags(settings):
    """Refuses flags that say nothing to each other, or the opposite."""
    check_options({name: getattr(FLAGS, name) for name in REWIRING_OPTIONS}, settings["method"])
    if settings["method"] == "dense" and FLAGS.sparsity:
        raise ValueError(
            "--sparsity must be left out with --method=dense, which has all connections. "
            f"Received: --sparsity={FLAGS.sparsity}"
        )
    if settings["n_of_m"] and FLAGS.sparsity is not None:
        n, m = settings["n_of_m"]
        if abs(FLAGS.sparsity - (1 - n / m)) > 1e-9:
            raise ValueError(
                f"--sparsity must be left out with --n_of_m={n},{m}, which makes it {1 - n / m}. "
                f"Received: --sparsity={FLAGS.sparsity}"
            )
    if FLAGS.export_text and not FLAGS.export:
        raise ValueError("--export_text needs --export. Received: --noexport --export_text")


def _units(words):
    if isinstance(words, int):
        return words
    try:
        units = [int(word) for word in words]
    except ValueError as error:
        raise ValueError(
            "--units must be a whole number or several, such as 256,200. "
            f"Received: --units={','.join(map(str, words))}"
        ) from error
    return units[0] if len(units) == 1 else units


def _epochs(words):
    try:
        epochs = [int(word) for word in words]
    except ValueError:
        epochs = [0]
    if not all(epoch > 0 for epoch in epochs):
        raise ValueError(
            "--restart_epochs must be positive whole numbers, such as 500,1000. "
            f"Received: --restart_epochs={','.join(map(str, words))}"
        )
    return epochs


def _cell_options(options):
    if not isinstance(options, str):
        return options
    try:
        options = json.loads(options, parse_constant=_no_number)
        if not isinstance(options, dict):
            raise TypeError("no dict")
    except (ValueError, TypeError) as error:
        raise ValueError(
            '--cell_options must be a JSON object, such as {"depth": 10}. '
            f"Received: --cell_options={options}"
        ) from error
    return options


def _no_number(word):
    raise ValueError(f"{word} is no number")


def _pair(flag, words):
    try:
        first, second = (int(word) for word in words)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"--{flag} must be two whole numbers, such as {'4,1' if flag == 'block_shape' else '2,4'}. "
            f"Received: --{flag}={','.join(map(str, words))}"
        ) from error
    return first, second


def _check(settings):
    masks.check_sparsity(settings["sparsity"], "--sparsity")
    # Any number of tokens that blocks divide: how many there are is not known yet.
    tokens = settings["block_shape"][1]
    check_memory(_architecture(settings, tokens), name="--{}")
    if settings["method"] != "dense" and not settings["sparsity"]:
        raise ValueError(
            f"--sparsity must be over 0 with --method={settings['method']}. Received: --sparsity=0.0; "
            "use --method=dense for a model with all connections"
        )
    check_distribution(settings, METHODS)
    if settings["pruning_rate"] is not None and not 0.0 < settings["pruning_rate"] < 1.0:
        raise ValueError(
            f"--pruning_rate must be in (0, 1). Received: --pruning_rate={settings['pruning_rate']}"
        )
    if settings["cpu_replicas"] and settings["strategy"] != "mirrored":
        raise ValueError(
            f"--cpu_replicas needs --strategy=mirrored. Received: --strategy={settings['strategy']}"
        )


def _architecture(settings, vocabulary_size):
    return Architecture(vocabulary_size, **{name: settings[name] for name in _MODEL_FLAGS})


def _check_memory(settings, vocabulary_size, train):
    """Refuses a model that cannot fit, now that all sizes but the number of GPUs are known."""
    sizes = {"precision": settings["precision"], "name": "--{}"}
    if settings["strategy"] == "none":
        sizes["batch_size"] = settings["batch_size"]
        sizes["time_steps"] = min(settings["bptt"], train.columns.shape[1] - 1)
    check_memory(_architecture(settings, vocabulary_size), **sizes)


def make_strategy(settings, workers):
    """The tf.distribute strategy of the run, or None."""
    if settings["strategy"] == "multi_worker":
        return workers.join()
    if settings["strategy"] != "mirrored":
        return None
    import tensorflow as tf

    replicas = settings["cpu_replicas"]
    if not replicas:
        return tf.distribute.MirroredStrategy()
    devices = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        devices[0], [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
    )
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])


def model_arguments(settings, vocabulary_size):
    """The model's arguments; those of a dense method with all connections, and units to fit."""
    arguments = {name: settings[name] for name in _MODEL_FLAGS}
    if settings["random_lengths"]:
        arguments["reference_length"] = settings["bptt"]
    if settings["method"] == "dense_small":
        from keras_selfish.models import small_dense

        arguments = small_dense(vocabulary_size, **arguments)
    if METHODS[settings["method"]].source is None:
        arguments["sparsity"] = 0.0
    return arguments


def make_model(settings, vocabulary_size, replicas):
    """The compiled model."""
    from keras_selfish.models import LanguageModel, Perplexity, TokenCrossEntropy
    from keras_selfish.optimizers import SNTASGD

    distribution_jax.check_columns(settings, replicas)
    columns = max(settings["batch_size"], settings["evaluation_columns"] or 0)
    model = LanguageModel(
        vocabulary_size,
        batch_size=columns // replicas,
        seed=settings["seed"],
        dtype=settings["precision"],
        name="language_model",
        **model_arguments(settings, vocabulary_size),
    )
    options = {name: settings[name] for name in ("clip_norm_of", "averaged_rate") if settings[name]}
    model.compile(
        SNTASGD(
            float(settings["learning_rate"]),
            global_clipnorm=settings["clipnorm"] or None,
            weight_decay=settings["weight_decay"] or None,
            **options,
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

    callbacks = [
        Hearing(workers),
        StopOnNaN(workdir, "a smaller --learning_rate or --clipnorm"),
        RemainingTime(["perplexity", "val_perplexity"], progress_bar=True),
    ]
    if settings["random_lengths"]:
        callbacks.append(train.callback())
    callbacks += mask_updates(
        settings["method"],
        sparsity=settings["sparsity"],
        pruning_rate=settings["pruning_rate"],
        total_steps=len(train) * settings["schedule_epochs"],
        data=train,
        seed=settings["seed"],
        frequency=settings["rewiring_steps"],
        **{name: settings[name] for name in ("schedule", "reset_regrown", "redistribution")},
    )
    if settings["averaging"]:
        callbacks.append(
            NonMonotonicAveraging(
                monitor="val_perplexity",
                patience=settings["patience"],
                restart_epochs=settings["restart_epochs"],
            )
        )
    if not workers.worker.is_chief:
        return callbacks
    callbacks += tensorboard(workdir)
    best = checkpoint["best"] if checkpoint else None
    rows = checkpoint["rows"] if checkpoint else ()
    callbacks.append(LanguageModelRecorder(workdir, train.predictions, best=best, rows=rows))
    return [*callbacks, ProgressBar(verbose=1 if sys.stdout.isatty() else 2)]


def train(settings, workdir):
    """Runs a whole training, from wherever it stands, and returns the results as a dict."""
    # Data and checkpoint first: what is wrong with them is said before a backend is loaded.
    corpus = load_corpus(settings["dataset"], data_dir=settings["data_dir"], cache_dir=FLAGS.cache_dir)
    check_words(corpus, settings)
    data = fingerprints.of_corpus(corpus)
    workdir.check_data(data, settings)
    windows = all_windows(corpus, settings)
    check_steps(settings, settings["schedule_epochs"] * len(windows["train"]))
    _check_memory(settings, len(corpus.vocabulary), windows["train"])
    checkpoint = workdir.checkpoint(FLAGS.best_from_checkpoint)
    exports = [workdir.saved_model, workdir.text_model][: 1 + FLAGS.export_text]
    program.check_backend(FLAGS.export, *exports)
    workers = Workers(settings, FLAGS.worker_timeout, workdir)
    with workers.together():
        agreed = settings | {"data_dir": None}, data, checkpoint and checkpoint["sha256"]
        return _train(settings, workdir, corpus, windows, checkpoint, workers, agreed)


def _train(settings, workdir, corpus, windows, checkpoint, workers, agreed):
    import keras

    from keras_selfish.analysis import report

    keras.utils.set_random_seed(settings["seed"])
    distribution_jax.check_backend(settings["strategy"])
    if settings["strategy"] in distribution_jax.STRATEGIES:
        size = len(corpus.vocabulary)
        architecture = Architecture(size, **model_arguments(settings, size))
        workdir = distribution_jax.begin(settings, architecture, workdir)
    strategy = make_strategy(settings, workers)
    workers.check_agreement(*agreed)
    if strategy is None:
        model = make_model(settings, len(corpus.vocabulary), 1)
    else:
        with strategy.scope():
            model = make_model(settings, len(corpus.vocabulary), strategy.num_replicas_in_sync)
    if checkpoint:
        logging.info(
            "Resuming after epoch %d of %d from %s",
            checkpoint["epochs_done"],
            settings["epochs"],
            checkpoint["weights"],
        )
        workdir.restore(model, checkpoint)
    if workers.worker.is_chief:
        workdir.begin(settings)
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
            at = f"--data_dir={settings['data_dir']}" if settings["data_dir"] else ""
            raise ValueError(
                f"--dataset={settings['dataset']} must hold words that its training split repeats, in every "
                f"split. Received: {at} whose {split} split has unknown words only; take a longer text"
            )


def replace_best(model, workdir, checkpoint):
    """Has the model of the checkpoint take the place of a best.keras that is lost."""
    rows = checkpoint["rows"]
    checkpoint["best"] = float(rows[-1]["val_perplexity"]) if rows else None
    workdir.stage_best(model)
    workdir.save_checkpoint(model, checkpoint["epochs_done"], rows, best=checkpoint["best"])
    workdir.wait()
    logging.warning("best.keras is now the model after epoch %d", checkpoint["epochs_done"])


def all_windows(corpus, settings):
    """What the model is trained on, what is validated in training, and what the best model is tested on."""
    columns, bptt = settings["evaluation_columns"] or settings["batch_size"], settings["bptt"]
    windows = {
        "train": training_windows(corpus.train, settings),
        "validation": Windows(corpus.validation, columns, bptt),
        "test": Windows(corpus.test, columns, bptt),
        "test, one column": Windows(corpus.test, 1, 10 * bptt),
    }
    if columns != settings["batch_size"]:
        for split in ("validation", "test"):
            name = f"{split}, {settings['batch_size']} columns"
            windows[name] = Windows(getattr(corpus, split), settings["batch_size"], bptt)
    return windows


def training_windows(tokens, settings):
    """The windows that a model is trained on, of one length or of random ones."""
    if not settings["random_lengths"]:
        return Windows(tokens, settings["batch_size"], settings["bptt"])
    # JAX compiles a step for each length, which can take longer than an epoch of steps.
    multiple = 10 if os.environ.get("KERAS_BACKEND") == "jax" else 1
    return RandomWindows(tokens, settings["batch_size"], settings["bptt"], settings["seed"], multiple)


def fit(model, windows, settings, workdir, checkpoint, workers):
    """Trains the epochs that are left."""
    done = checkpoint["epochs_done"] if checkpoint else 0
    if done >= settings["epochs"]:
        logging.info("All %d epochs are done; nothing is left to train", settings["epochs"])
        return
    model.fit(
        windows["train"].batches(),
        validation_data=windows["validation"].batches(),
        epochs=settings["epochs"],
        initial_epoch=done,
        callbacks=make_callbacks(settings, workdir, windows["train"], checkpoint, workers),
        shuffle=False,
        verbose=0,  # `ProgressBar` is among the callbacks
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


main = program.command("language model", settings_from_flags, train)


def run():
    """Entry point."""
    program.run(main)


if __name__ == "__main__":
    run()
