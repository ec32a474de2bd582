"""Trains an image classifier with sparse dense layers, tests it and exports it for serving.

Everything the run writes is in --workdir; started again with the same --workdir it goes on where it stopped.

Example:
    python -m trainers.image_classifier --network lenet_300_100 --dataset mnist --method switcher --workdir
    runs/lenet
"""

import importlib.util
import os

from absl import flags, logging

from keras_selfish import masks
from keras_selfish.data import IMAGE_DATASETS, load_images
from trainers import fingerprints, program
from trainers.files import replace, write_json, writing
from trainers.image_methods import METHODS
from trainers.mask_updates import check_distribution, check_options, check_steps

FLAGS = flags.FLAGS
_NETWORKS = ("lenet_300_100", "lenet_5", "vgg_16", "resnet_18", "resnet_34", "mobilenet")

flags.DEFINE_string("workdir", None, "Folder of the run: settings, history, checkpoints, exported model.")
flags.DEFINE_enum("network", "lenet_300_100", _NETWORKS, "The network.")
flags.DEFINE_enum("dataset", "digits", sorted(IMAGE_DATASETS), "The images; digits come with scikit-learn.")
flags.DEFINE_string("data_dir", None, "Folder with the data set's files, or an .npz file; else downloaded.")
flags.DEFINE_enum(
    "method", "switcher", list(METHODS), "; ".join(f"{name}: {one.summary}" for name, one in METHODS.items())
)
flags.DEFINE_float("width", 1.0, "Factor of all numbers of filters and units, over 0.")
flags.DEFINE_float("sparsity", 0.9, "Fraction of zeros in the dense layers; negative: the loss decides.")
flags.DEFINE_enum(
    "distribution",
    "uniform",
    masks.DISTRIBUTIONS,
    "How the dense layers share the connections of a method that is sparse from its first step.",
)
flags.DEFINE_integer(
    "epochs",
    None,
    "Epochs of training; by default 20, of digits 60. Raised afterwards, it adds --finetune_epochs.",
    lower_bound=1,
)
flags.DEFINE_integer("finetune_epochs", 2, "Epochs with a fixed structure after them.", lower_bound=0)
flags.DEFINE_integer("batch_size", None, "Images of a step; by default 128, of digits 32.", lower_bound=1)
flags.DEFINE_float(
    "learning_rate",
    2e-3,
    "Initial rate of AdamW; it falls to a hundredth along a cosine.",
    lower_bound=0.0,
)
flags.DEFINE_float("weight_decay", 0.02, "Weight decay of AdamW.", lower_bound=0.0)
flags.DEFINE_float("switcher_learning_rate", 1e-3, "Learning rate of the switcher's Adam.", lower_bound=0.0)
flags.DEFINE_integer("task_steps", 40, "Steps of a turn of the network.", lower_bound=1)
flags.DEFINE_integer("switcher_steps", 4, "Steps of a turn of the switcher.", lower_bound=1)
flags.DEFINE_float("warmup_epochs", 1.0, "Epochs before the first turn of the switcher.", lower_bound=0.0)
flags.DEFINE_float("ramp", 0.4, "Part of training in which --sparsity is approached, in [0, 1].")
flags.DEFINE_enum(
    "architecture",
    "contextual",
    ["contextual", "attention", "convolution", "weight"],
    "What the switcher sees of a weight's surroundings.",
)
flags.DEFINE_enum(
    "estimator", "straight_through", ["straight_through", "hard_concrete"], "The switches' gradient."
)
flags.DEFINE_float(
    "pruning_rate",
    None,
    "Fraction of connections moved by the first rewiring, in (0, 1); by default the method's.",
)
flags.DEFINE_float("validation_fraction", 0.1, "Part of the training images to validate on, in [0, 1).")
flags.DEFINE_integer(
    "seed",
    0,
    "Seed of weights, masks, the order of images and rewiring.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
flags.DEFINE_bool("export", True, "Whether to export a SavedModel at the end.")

_SETTINGS = (
    *("network", "dataset", "data_dir", "method", "width", "sparsity", "epochs", "finetune_epochs"),
    *("batch_size", "learning_rate", "weight_decay", "switcher_learning_rate", "task_steps"),
    *("switcher_steps", "warmup_epochs", "ramp", "architecture", "estimator", "pruning_rate"),
    *("distribution", "validation_fraction", "seed"),
)


# The digits are only some 1500 training images: without more and smaller steps nothing is learned of them.
_DEFAULTS = {"digits": {"epochs": 60, "batch_size": 32}}
_OTHER_DEFAULTS = {"epochs": 20, "batch_size": 128}


def settings_from_flags():
    """All settings of the run in one dict."""
    settings = {name: getattr(FLAGS, name) for name in _SETTINGS}
    for name, value in _DEFAULTS.get(settings["dataset"], _OTHER_DEFAULTS).items():
        settings[name] = value if settings[name] is None else settings[name]
    if settings["data_dir"] is not None:
        settings["data_dir"] = os.path.abspath(settings["data_dir"])
    if settings["sparsity"] >= 0 or not METHODS[settings["method"]].switched:
        masks.check_sparsity(settings["sparsity"], "--sparsity")
    for name, (low, high) in {"ramp": (0.0, 1.0), "validation_fraction": (0.0, 0.9)}.items():
        if not low <= settings[name] <= high:
            raise ValueError(f"--{name} must be in [{low}, {high}]. Received: --{name}={settings[name]}")
    check_distribution(settings, METHODS)
    check_options({"pruning_rate": settings["pruning_rate"]}, settings["method"])
    if settings["method"] == "switcher_neuron" and settings["network"] in _NETWORKS[3:]:
        raise ValueError(
            "--method=switcher_neuron needs a network with hidden dense layers, a LeNet or VGG-16. Received: "
            f"--network={settings['network']}"
        )
    return {**settings, "schedule_epochs": settings["epochs"]}


def split(images, settings):
    """Training and validation images in an order drawn from the seed: files may be sorted by class."""
    import numpy as np

    order = np.random.default_rng(settings["seed"]).permutation(len(images.x_train))
    held = int(len(order) * settings["validation_fraction"])
    parts = (order[held:], order[:held])
    return [(images.x_train[part], images.y_train[part]) for part in parts]


def make_model(settings, images, steps_per_epoch):
    """The compiled model."""
    import keras

    from keras_selfish.models import image_classifier
    from keras_selfish.switcher import SparsityConstraint, SwitchedModel, SwitcherNetwork

    method = METHODS[settings["method"]]
    hidden, output = method.layers(settings)
    model = image_classifier(
        settings["network"],
        images.x_train.shape[1:],
        images.classes,
        hidden,
        output,
        width=settings["width"],
    )
    if settings["distribution"] != "uniform":
        masks.redraw_masks(model, settings["sparsity"], settings["distribution"], settings["seed"])
    steps = settings["schedule_epochs"] * steps_per_epoch
    arguments = {}
    if method.switched:
        turn = settings["task_steps"] + settings["switcher_steps"]
        constraint = None
        if settings["sparsity"] >= 0:
            ramp = int(settings["ramp"] * steps * settings["switcher_steps"] / turn)
            constraint = SparsityConstraint(settings["sparsity"], ramp_steps=ramp, name="sparsity_constraint")
        hidden_layer = next(layer for layer in model.layers if hasattr(layer, "granularity"))
        model = SwitchedModel(
            model,
            SwitcherNetwork(
                settings["architecture"],
                granularity=hidden_layer.granularity,
                initial_logit=2.0 if constraint else 0.0,
                seed=settings["seed"],
                name="switcher",
            ),
            task_steps=settings["task_steps"],
            switcher_steps=settings["switcher_steps"],
            warmup_steps=int(settings["warmup_epochs"] * steps_per_epoch),
            target_sparsity=constraint,
            estimator=settings["estimator"],
            seed=settings["seed"],
        )
        arguments = {"switcher_optimizer": keras.optimizers.Adam(settings["switcher_learning_rate"])}
        steps = int(steps * settings["task_steps"] / turn)
    schedule = keras.optimizers.schedules.CosineDecay(settings["learning_rate"], steps, alpha=0.01)
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=settings["weight_decay"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **arguments,
    )
    if not method.switched:
        model.optimizer.build(model.trainable_variables)
    return model


def shuffled_batches(images, labels, batch_size, seed, epoch):
    """Batches in an order of its own for each epoch, the same for a run that is resumed there."""
    import keras
    import numpy as np

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return -(-len(images) // batch_size)

        def __getitem__(self, index):
            chosen = self.order[index * batch_size : (index + 1) * batch_size]
            return images[chosen], labels[chosen]

        def begin(self, epoch):
            self.epoch = epoch
            self.order = np.random.default_rng([seed, epoch]).permutation(len(images))

        def on_epoch_end(self):
            self.begin(self.epoch + 1)

    batches = Batches()
    batches.begin(epoch)
    return batches


def feed(batches):
    """Batches in the form that suits the backend."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    from keras_selfish.data.prefetching_tensorflow import prefetched

    def epoch():
        yield from (batches[index] for index in range(len(batches)))
        batches.on_epoch_end()

    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in batches[0])
    dataset = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    return prefetched(dataset.apply(tf.data.experimental.assert_cardinality(len(batches))))


def train(settings, workdir):
    """Trains, tests and exports; goes on from the folder's checkpoint if there is one."""
    images = load_images(settings["dataset"], settings["data_dir"])
    workdir.check_data(fingerprints.of_images(images), settings)
    check_epochs(settings)
    training, validation = split(images, settings)
    steps_per_epoch = -(-len(training[0]) // settings["batch_size"])
    switched = METHODS[settings["method"]].switched
    turn = settings["task_steps"] + settings["switcher_steps"] if switched else 0
    check_steps(settings, settings["schedule_epochs"] * steps_per_epoch, turn)
    checkpoint = workdir.checkpoint()
    program.check_backend(FLAGS.export, workdir.saved_model)

    import keras

    from trainers.callbacks import ClassifierRecorder, RemainingTime, StopOnNaN, tensorboard

    keras.utils.set_random_seed(settings["seed"])
    model = make_model(settings, images, steps_per_epoch)
    done = checkpoint["epochs_done"] if checkpoint else 0
    structured = settings["schedule_epochs"]
    if done > structured and switched:
        model.freeze()
    if checkpoint:
        logging.info("Resuming after epoch %d", done)
        workdir.restore(model, checkpoint)
    workdir.begin(settings)
    epochs = settings["epochs"] + settings["finetune_epochs"]
    watching = [
        StopOnNaN(workdir, "a smaller --learning_rate"),
        ClassifierRecorder(workdir, checkpoint["rows"] if checkpoint else ()),
        *tensorboard(workdir),
        RemainingTime(["loss", "accuracy", "val_accuracy", "sparsity"], epochs),
    ]
    steps = structured * steps_per_epoch

    def fit(first, last, callbacks):
        if first < last:
            model.fit(
                feed(shuffled_batches(*training, settings["batch_size"], settings["seed"], first)),
                validation_data=validation if len(validation[0]) else None,
                validation_batch_size=1000,
                shuffle=False,
                initial_epoch=first,
                epochs=last,
                callbacks=[*callbacks, *watching],
                verbose=0,
            )

    data = shuffled_batches(*training, settings["batch_size"], settings["seed"], 0)
    fit(done, structured, METHODS[settings["method"]].callbacks(settings, steps, data))
    if switched and done <= structured:
        model.freeze()
    fit(max(done, structured), epochs, [])
    return finish(model, images, settings, workdir)


def check_epochs(settings):
    """Refuses to end a run before its schedules do."""
    if settings["epochs"] < settings["schedule_epochs"]:
        raise ValueError(
            f"--epochs must be at least {settings['schedule_epochs']}, as when the run in --workdir began, "
            f"and more of them add to --finetune_epochs. Received: --epochs={settings['epochs']}"
        )


def finish(model, images, settings, workdir):
    """Tests the model and its stripped copy, saves and exports it, and prints what came out."""
    import keras
    import numpy as np

    from keras_selfish.analysis import report
    from keras_selfish.export import strip

    sparsity = masks.overall_sparsity(masks.masked_weights(model))
    stripped = strip(model)
    predicted = stripped.predict(images.x_test, batch_size=1000, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    results = {
        "test_accuracy": float((predicted.argmax(1) == images.y_test).mean()),
        "test_loss": float(loss(images.y_test, predicted)),
        "sparsity": sparsity,
        "difference": float(
            np.abs(predicted - model.predict(images.x_test, batch_size=1000, verbose=0)).max()
        ),
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
    print(f"\n{settings['network']} on {settings['dataset']}, {settings['method']}:")
    print(f"  test accuracy               {results['test_accuracy']:.2%}")
    print(f"  sparsity of masked weights  {sparsity:.2%}")
    print(f"\nEverything is in {workdir.path}")
    return results


main = program.command("image classifier", settings_from_flags, train, errors=[ModuleNotFoundError])


def run():
    """Entry point."""
    program.run(main)


if __name__ == "__main__":
    run()
