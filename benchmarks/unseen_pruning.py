"""What a trained switcher is worth on networks it has not seen, against magnitude, and what it costs.

Usage: python -m benchmarks.unseen_pruning DATA_DIR [--epochs 10] [--seeds 3] [--output FOLDER]

A LeNet-300-100 is trained on MNIST with a switcher (seed 0). Dense LeNet-300-100s of other seeds are then
pruned by it (`SwitcherNetwork.prune`, layers' shares by magnitude or by its logits), by the magnitude of
all weights together and by the magnitude within each matrix, and tested: as they are, and after an epoch of
fine-tuning with a fixed structure. Before that, epochs of the two kinds of training alternate: `alternation`
is the time of one with the switcher's turns over that of one of the same network in plain dense layers.
"""

import argparse
import dataclasses
import pathlib
import statistics
import time

import numpy as np

from benchmarks.options import parse
from benchmarks.output import print_table, write_figures
from benchmarks.processes import machine
from trainers.image_settings import Settings

SPARSITIES = (0.8, 0.9, 0.95)
SETTINGS = Settings(dataset="mnist", warmup_epochs=1.0)


def make(images, epochs, seed, dense=None):
    """A compiled model: with a switcher as the trainer makes it, or with dense layers of a class."""
    import keras

    from keras_selfish.models import image_classifier
    from trainers.image_classifier import make_model

    keras.utils.set_random_seed(seed)
    steps = -(-len(images.x_train) // SETTINGS.batch_size)
    if dense is None:
        settings = dataclasses.replace(SETTINGS, schedule_epochs=epochs, seed=seed)
        return make_model(settings, images, steps)
    model = image_classifier(SETTINGS.network, images.x_train.shape[1:], images.classes, dense)
    schedule = keras.optimizers.schedules.CosineDecay(SETTINGS.learning_rate, epochs * steps, alpha=0.01)
    compile_dense(model, keras.optimizers.AdamW(schedule, weight_decay=SETTINGS.weight_decay))
    return model


def compile_dense(model, optimizer):
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])


def fit(model, images, epochs=1):
    """Trains; returns the seconds that it took."""
    began = time.perf_counter()
    model.fit(images.x_train, images.y_train, batch_size=SETTINGS.batch_size, epochs=epochs, verbose=0)
    return time.perf_counter() - began


def accuracy(model, images):
    return model.evaluate(images.x_test, images.y_test, batch_size=1000, verbose=0, return_dict=True)[
        "accuracy"
    ]


def alternation(images, rounds):
    """The cost of an epoch with the switcher's turns over that of a dense one: the median of some pairs."""
    import keras

    switched, dense = (make(images, rounds + 2, 0, layer) for layer in (None, keras.layers.Dense))
    for model in (switched, dense):
        fit(model, images, epochs=2)  # compiles both kinds of steps; the first epoch has no turns
    return statistics.median(fit(switched, images) / fit(dense, images) for _ in range(rounds))


def by_magnitude(layers, sparsity, together):
    """Switches off the smallest weights of all layers together, or of each."""
    kernels = [np.abs(np.asarray(layer.masked_weight.weight)) for layer in layers]
    everything = np.concatenate([kernel.ravel() for kernel in kernels])
    for layer, kernel in zip(layers, kernels, strict=True):
        layer.set_switches(kernel > np.quantile(everything if together else kernel, sparsity))


def compare(switcher, images, epochs, seed):
    """Test accuracies of one dense network after each way of pruning, as a list of dicts."""
    import keras

    from keras_selfish.layers import SwitchedDense
    from keras_selfish.switcher.model import switched_layers

    model = make(images, epochs, seed, SwitchedDense)
    fit(model, images, epochs)
    trained = model.get_weights()
    dense = accuracy(model, images)
    found = []
    for sparsity in SPARSITIES:
        for name, prune in {
            "switcher": lambda wanted: switcher.prune(model, wanted),
            "switcher, logits": lambda wanted: switcher.prune(model, wanted, layer_shares="logits"),
            "magnitude, all": lambda wanted: by_magnitude(switched_layers(model), wanted, True),
            "magnitude, each": lambda wanted: by_magnitude(switched_layers(model), wanted, False),
        }.items():
            model.set_weights(trained)
            prune(sparsity)
            # A layer that is off multiplies its gradient by its mask, so the structure stays as it is.
            compile_dense(model, keras.optimizers.AdamW(2e-4, weight_decay=SETTINGS.weight_decay))
            pruned = accuracy(model, images)
            fit(model, images)
            found.append(
                {
                    "by": name,
                    "sparsity": sparsity,
                    "seed": seed,
                    "dense": dense,
                    "pruned": pruned,
                    "fine_tuned": accuracy(model, images),
                }
            )
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", help="folder with MNIST's files, or an .npz file")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="dense networks (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of timed epochs (default: %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, metavar="FOLDER", help="write CSV and plot there")
    options = parse(parser)

    from keras_selfish.data import load_images

    images = load_images("mnist", options.data_dir)
    ratio = alternation(images, options.rounds)
    teacher = make(images, options.epochs, 0)
    fit(teacher, images, options.epochs)
    rows = [
        row
        for seed in range(1, options.seeds + 1)
        for row in compare(teacher.switcher, images, options.epochs, seed)
    ]
    where = machine()
    print(f"{where}\nalternation: {ratio:.2f} times a dense epoch")
    print(f"dense: {statistics.mean({row['seed']: row['dense'] for row in rows}.values()):.2%}\n")
    ways = list(dict.fromkeys((row["by"], row["sparsity"]) for row in rows))

    def mean(way, figure):
        return statistics.mean(row[figure] for row in rows if (row["by"], row["sparsity"]) == way)

    print_table(
        ["pruned by", "sparsity", "accuracy", "after fine-tuning"],
        [
            [way[0], f"{way[1]:.0%}", f"{mean(way, 'pruned'):.2%}", f"{mean(way, 'fine_tuned'):.2%}"]
            for way in ways
        ],
    )

    def draw(figure):
        axes = figure.subplots()
        for name in dict.fromkeys(name for name, _ in ways):
            axes.plot(SPARSITIES, [mean((name, one), "pruned") for one in SPARSITIES], "o-", label=name)
        axes.set_xlabel("sparsity")
        axes.set_ylabel("test accuracy without fine-tuning")
        axes.legend()

    settings = {"epochs": options.epochs, "alternation": ratio, "machine": where}
    write_figures(options.output, "unseen_pruning", [{**row, **settings} for row in rows], (6, 4), draw)


if __name__ == "__main__":
    main()
