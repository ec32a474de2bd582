"""Trains a sparse bidirectional recurrent network to classify time series.

A series is two pulses in noise, each up or down, at times of their own: four classes, which only a network
that remembers the first pulse can tell apart. With --data_dir it reads the images of mnist.npz row by row.

Example:
    python -m examples.sequence_classification --cell gru --sparsity 0.8
"""

import pathlib

import keras
import numpy as np
from absl import app, flags

from keras_selfish import SelfishRewiring, SparseDense, SparseGRU, SparseLSTM, masked_weights

FLAGS = flags.FLAGS
flags.DEFINE_enum("cell", "lstm", ["lstm", "gru"], "Kind of the recurrent layer.")
flags.DEFINE_string("data_dir", None, "Folder with mnist.npz; without it, time series are generated.")
flags.DEFINE_float("sparsity", 0.8, "Fraction of zeros in every kernel, in [0, 1).")
flags.DEFINE_float("pruning_rate", 0.5, "Fraction of connections moved by the first rewiring, in (0, 1).")
flags.DEFINE_integer("units", 32, "Units of each direction.", lower_bound=1)
flags.DEFINE_integer("examples", 2000, "Number of series to train on.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Epochs of training.", lower_bound=1)


def load_series(data_dir, count):
    """Series (examples, time steps, features) and labels, for training and testing."""
    if data_dir is None:
        return generate_series(count, seed=1), generate_series(500, seed=2)
    with np.load(pathlib.Path(data_dir, "mnist.npz")) as arrays:
        return [some_of(arrays[f"x_{part}"], arrays[f"y_{part}"], count) for part in ("train", "test")]


def some_of(images, labels, count):
    chosen = np.random.default_rng(0).permutation(len(labels))[:count]  # the file may be sorted by label
    return images[chosen].astype("float32") / 255, labels[chosen]


def generate_series(count, seed, time_steps=40):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, count)
    series = generator.normal(scale=0.3, size=(count, time_steps, 2))
    half = time_steps // 2
    for pulse in range(2):
        times = generator.integers(pulse * half, pulse * half + half - 3, count)
        heights = np.where(labels >> pulse & 1, 1.5, -1.5)
        for step in range(3):
            series[np.arange(count), times + step, 0] += heights
    return series.astype("float32"), labels


def main(_):
    keras.utils.set_random_seed(1)
    train, test = load_series(FLAGS.data_dir, FLAGS.examples)
    recurrent = {"lstm": SparseLSTM, "gru": SparseGRU}[FLAGS.cell]
    sparse = {"sparsity": FLAGS.sparsity, "mask_seed": 1}
    model = keras.Sequential(
        [
            keras.Input(train[0].shape[1:]),
            keras.layers.Bidirectional(recurrent(FLAGS.units, **sparse)),
            SparseDense(int(train[1].max()) + 1, **sparse),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01, clipnorm=1.0), loss, metrics=["accuracy"])
    rewiring = SelfishRewiring(FLAGS.pruning_rate)
    history = model.fit(*train, batch_size=64, epochs=FLAGS.epochs, verbose=0, callbacks=[rewiring])
    for epoch, accuracy in enumerate(history.history["accuracy"], start=1):
        print(f"epoch {epoch} accuracy {accuracy:.4f}")
    weights = masked_weights(model)
    active, total = sum(weight.active for weight in weights), sum(np.prod(weight.shape) for weight in weights)
    print(f"test accuracy {model.evaluate(*test, verbose=0)[1]:.4f}")
    print(f"sparsity {1 - active / total:.4f}: {active:,} of {total:,} weights")
    for weight in weights:
        gates = ", ".join(f"{gate} {density:.3f}" for gate, density in weight.gate_densities().items())
        print(f"density of {weight.name}: {gates}")


if __name__ == "__main__":
    app.run(main)
