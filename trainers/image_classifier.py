"""Trains an image classifier with sparse dense layers, tests it and exports it for serving.

Everything the run writes is in --workdir; started again with the same --workdir it goes on where it stopped.

Example:
    python -m trainers.image_classifier --network lenet_300_100 --dataset mnist --method switcher --workdir
    runs/lenet
"""

import importlib.util

from absl import flags, logging

from keras_selfish import masks
from keras_selfish.data import load_images
from trainers import distribution_jax, fingerprints, program
from trainers.files import replace, write_json, writing
from trainers.image_batches import check_augmentation, feed, shuffled_batches
from trainers.image_methods import METHODS
from trainers.image_settings import Settings, settings_from_flags
from trainers.methods import check_steps
from trainers.settings import define_flags

FLAGS = flags.FLAGS

define_flags(Settings)
flags.DEFINE_string("workdir", None, "Folder of the run: settings, history, checkpoints, exported model.")
flags.DEFINE_float("time_limit", None, program.TIME_LIMIT, lower_bound=0.0)
flags.DEFINE_bool("export", True, "Whether to export a SavedModel at the end.")


def split(images, settings):
    """Training and validation images in an order drawn from the seed: files may be sorted by class."""
    import numpy as np

    order = np.random.default_rng(settings.seed).permutation(len(images.x_train))
    held = int(len(order) * settings.validation_fraction)
    parts = (order[held:], order[:held])
    return [(images.x_train[part], images.y_train[part]) for part in parts]


def make_model(settings, images, steps_per_epoch):
    """The compiled model."""
    import keras

    from keras_selfish.models import image_classifier
    from keras_selfish.switcher import SparsityConstraint, SwitchedModel, SwitcherNetwork

    method = METHODS[settings.method]
    hidden, output = method.layers(settings)
    model = image_classifier(
        settings.network,
        images.x_train.shape[1:],
        images.classes,
        hidden,
        output,
        width=settings.width,
    )
    if settings.distribution != "uniform":
        masks.redraw_masks(model, settings.sparsity, settings.distribution, settings.seed)
    steps = settings.schedule_epochs * steps_per_epoch
    arguments = {}
    if method.switched:
        constraint, turns = None, settings.turns(steps_per_epoch)
        if settings.sparsity >= 0:
            constraint = SparsityConstraint(
                settings.sparsity, ramp_steps=turns.ramp, name="sparsity_constraint"
            )
        hidden_layer = next(layer for layer in model.layers if hasattr(layer, "granularity"))
        model = SwitchedModel(
            model,
            SwitcherNetwork(
                settings.architecture,
                granularity=hidden_layer.granularity,
                initial_logit=2.0 if constraint else 0.0,
                seed=settings.seed,
                name="switcher",
            ),
            task_steps=settings.task_steps,
            switcher_steps=settings.switcher_steps,
            warmup_steps=turns.warmup,
            target_sparsity=constraint,
            estimator=settings.estimator,
            seed=settings.seed,
        )
        arguments = {"switcher_optimizer": keras.optimizers.Adam(settings.switcher_learning_rate)}
        steps = turns.task
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps, alpha=0.01)
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **arguments,
    )
    if not method.switched:
        model.optimizer.build(model.trainable_variables)
    return model


def train(settings, workdir):
    """Trains, tests and exports; goes on from the folder's checkpoint if there is one."""
    images = load_images(settings.dataset, settings.data_dir)
    workdir.check_data(fingerprints.of_images(images), settings.to_json())
    check_epochs(settings)
    check_augmentation(settings.augmentation, images.x_train.shape[1:])
    training, validation = split(images, settings)
    steps_per_epoch = -(-len(training[0]) // settings.batch_size)
    method = METHODS[settings.method]
    least, what = method.least_steps, f"of which --method={settings.method} needs as many"
    if method.switched:
        least, what = settings.turn, "a turn of the network and one of the switcher"
    check_steps(settings.schedule_epochs * steps_per_epoch, least, what, settings)
    checkpoint = workdir.checkpoint()
    if method.switched and checkpoint is None:
        check_warmup(settings, steps_per_epoch)
    program.check_backend(FLAGS.export, workdir.saved_model)
    distribution_jax.check_alone(settings.strategy)
    distribution_jax.check_backend(settings.strategy)

    import keras

    from trainers import pausing
    from trainers.callbacks import ClassifierRecorder, RemainingTime, StopOnNaN, tensorboard
    from trainers.pausing import Pause

    keras.utils.set_random_seed(settings.seed)
    if settings.strategy in distribution_jax.STRATEGIES:
        workdir = distribution_jax.begin(settings, None, workdir)
    replicas = distribution_jax.replicas()
    model = make_model(settings, images, steps_per_epoch)
    done = checkpoint["epochs_done"] if checkpoint else 0
    begun = checkpoint["steps_done"] if checkpoint else 0
    structured, metrics = settings.schedule_epochs, []
    if done + bool(begun) > structured and method.switched:
        model.freeze()
    if checkpoint:
        logging.info("Resuming after %s", workdir.place)
        metrics = workdir.restore(model, checkpoint)
    workdir.begin(settings.to_json())
    epochs = settings.epochs + settings.finetune_epochs
    before = {name: checkpoint.get(name) for name in ("rows", "seconds")} if checkpoint else {}
    recorder = ClassifierRecorder(workdir, **before)
    pause = Pause(workdir, recorder)
    watching = [
        StopOnNaN(workdir, "a smaller --learning_rate"),
        recorder,
        *tensorboard(workdir),
        RemainingTime(["loss", "accuracy", "val_accuracy", "sparsity"], epochs),
    ]
    steps = structured * steps_per_epoch
    validation = [part[: len(part) // replicas * replicas] for part in validation]

    def batches(epoch, batch=0):
        options = {"augmentation": settings.augmentation, "first": batch, "multiple": replicas}
        return shuffled_batches(*training, settings.batch_size, settings.seed, epoch, **options)

    def fit(first, last, callbacks):
        within = (begun, metrics) if first == done else (0, [])
        pausing.fit(
            model,
            lambda epoch, batch: feed(batches(epoch, batch)),
            steps_per_epoch,
            first,
            last,
            *within,
            [pause, *callbacks, *watching],
            validation_data=validation if len(validation[0]) else None,
            validation_batch_size=1000 // replicas * replicas,
        )

    fit(done, structured, method.callbacks(settings, steps, batches(0)))
    if method.switched and done + bool(begun) <= structured:
        model.freeze()
    fit(max(done, structured), epochs, [])
    return finish(model, images, settings, workdir)


def check_warmup(settings, steps_per_epoch):
    """Refuses to begin a run in which the switcher never has its turn."""
    after = settings.turns(steps_per_epoch).after
    if after < settings.turn:
        raise ValueError(
            f"--warmup_epochs must leave at least {settings.turn} training steps, a turn of the network and "
            f"one of the switcher. Received: --warmup_epochs={settings.warmup_epochs} "
            f"--epochs={settings.epochs}, of {steps_per_epoch} steps each; begin earlier or train longer"
        )


def check_epochs(settings):
    """Refuses to end a run before its schedules do."""
    if settings.epochs < settings.schedule_epochs:
        raise ValueError(
            f"--epochs must be at least {settings.schedule_epochs}, as when the run in --workdir began, "
            f"and more of them add to --finetune_epochs. Received: --epochs={settings.epochs}"
        )


def predict(model, images):
    """The model's outputs for images, which need not divide among devices."""
    import numpy as np

    replicas = distribution_jax.replicas()
    filled = np.concatenate([images, images[: -len(images) % replicas]])
    return model.predict(filled, batch_size=1000 // replicas * replicas, verbose=0)[: len(images)]


def finish(model, images, settings, workdir):
    """Tests the model and its stripped copy, saves and exports it, and prints what came out."""
    import keras
    import numpy as np

    from keras_selfish.analysis import report
    from keras_selfish.export import strip

    sparsity = masks.overall_sparsity(masks.masked_weights(model))
    as_trained = predict(model, images.x_test)
    with distribution_jax.undivided_batches():
        stripped = strip(model)
        predicted = predict(stripped, images.x_test)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    results = {
        "test_accuracy": float((predicted.argmax(1) == images.y_test).mean()),
        "test_loss": float(loss(images.y_test, predicted)),
        "sparsity": sparsity,
        "difference": float(np.abs(predicted - as_trained).max()),
    }
    replace(workdir.final, stripped.save)
    if FLAGS.export:
        from keras_selfish.export.saved_model import saved_model

        with writing(workdir.saved_model):
            saved_model(stripped, workdir.saved_model)
        logging.info("Exported a SavedModel to %s", workdir.saved_model)
    write_json(workdir.path / "results.json", results)
    if importlib.util.find_spec("matplotlib") is not None:
        from keras_selfish.analysis.plots import plot_classifier_history

        replace(workdir.path / "history.png", lambda path: plot_classifier_history(workdir.history, path))
    print(report(stripped).table())
    print(f"\n{settings.network} on {settings.dataset}, {settings.method}:")
    print(f"  test accuracy               {results['test_accuracy']:.2%}")
    print(f"  sparsity of masked weights  {sparsity:.2%}")
    print(f"\nEverything is in {workdir.path}")
    return results


main = program.command(
    "image classifier",
    settings_from_flags,
    train,
    smaller="--width or --batch_size",
    errors=[ModuleNotFoundError],
)


def run():
    """Entry point."""
    program.run(main)


if __name__ == "__main__":
    run()
