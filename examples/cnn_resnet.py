"""Trains a small residual network on images, sparse from its first step, and strips it for serving.

The images are those of mnist.npz or cifar10_subset.npz (arrays x_train, y_train, x_test, y_test) in
--data_dir; without one they are generated: stripes of ten directions, in noise.

Example:
    python -m examples.cnn_resnet --sparsity 0.9 --epochs 10
"""

import pathlib

import keras
import numpy as np
from absl import app, flags
from keras import layers

from keras_selfish import SelfishRewiring, masked_weights, sparsify, strip

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder with mnist.npz or cifar10_subset.npz.")
flags.DEFINE_float("sparsity", 0.9, "Fraction of zeros over all kernels but the classifier's, in [0, 1).")
flags.DEFINE_float("pruning_rate", 0.5, "Fraction of connections moved by the first rewiring, in (0, 1).")
flags.DEFINE_integer(
    "filters", 16, "Filters of the first block; later ones have twice as many.", lower_bound=1
)
flags.DEFINE_integer("examples", 2000, "Number of images to train on.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Epochs of training.", lower_bound=1)


def load_images(data_dir, count):
    """Images (examples, height, width, channels) around zero and labels, for training and testing."""
    if data_dir is None:
        return generate_images(count, seed=1), generate_images(500, seed=2)
    names = ("mnist.npz", "cifar10_subset.npz")
    files = [file for name in names if (file := pathlib.Path(data_dir, name)).is_file()]
    if not files:
        raise app.UsageError(f"--data_dir must hold {' or '.join(names)}. Received: --data_dir={data_dir}")
    with np.load(files[0]) as arrays:
        return [some_of(arrays[f"x_{part}"], arrays[f"y_{part}"], count) for part in ("train", "test")]


def some_of(images, labels, count):
    chosen = np.random.default_rng(0).permutation(len(labels))[:count]  # files may be sorted by label
    images = images[chosen].reshape(len(chosen), *images.shape[1:3], -1)  # MNIST's have no axis of channels
    return images.astype("float32") / 128 - 1, labels[chosen].ravel()


def generate_images(count, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, count)
    angles, phases = (labels * np.pi / 10)[:, None, None], generator.uniform(0, 2 * np.pi, (count, 1, 1))
    rows, columns = np.mgrid[:16, :16]
    images = np.sin(1.5 * (rows * np.sin(angles) + columns * np.cos(angles)) + phases)
    images += generator.normal(scale=0.5, size=images.shape)
    return images[..., None].astype("float32"), labels


def convolution(x, filters, size, strides=1):
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization(momentum=0.9)(x)


def residual_block(x, filters, strides):
    y = layers.Activation("relu")(convolution(x, filters, 3, strides))
    y = convolution(y, filters, 3)
    if strides > 1:
        x = convolution(x, filters, 1, strides)
    return layers.Activation("relu")(layers.Add()([x, y]))


def resnet(shape, filters):
    inputs = keras.Input(shape)
    x = layers.Activation("relu")(convolution(inputs, filters, 3))
    for width, strides in ((filters, 1), (2 * filters, 2), (4 * filters, 2)):
        x = residual_block(x, width, strides)
    return keras.Model(inputs, layers.Dense(10, name="classifier")(layers.GlobalAveragePooling2D()(x)))


def main(_):
    keras.utils.set_random_seed(1)
    train, test = load_images(FLAGS.data_dir, FLAGS.examples)
    model = sparsify(
        resnet(train[0].shape[1:], FLAGS.filters),
        FLAGS.sparsity,
        distribution="erk",
        initial="random",
        mask_seed=1,
        layers=lambda layer: layer.name != "classifier",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    rewiring = SelfishRewiring(FLAGS.pruning_rate)
    history = model.fit(*train, batch_size=64, epochs=FLAGS.epochs, verbose=0, callbacks=[rewiring])
    for epoch, accuracy in enumerate(history.history["accuracy"], start=1):
        print(f"epoch {epoch} accuracy {accuracy:.4f}")
    stripped = strip(model)
    stripped.compile(loss=loss, metrics=["accuracy"])
    weights = masked_weights(model)
    active, total = sum(weight.active for weight in weights), sum(np.prod(weight.shape) for weight in weights)
    print(f"test accuracy {stripped.evaluate(*test, verbose=0)[1]:.4f}")
    print(f"sparsity {1 - active / total:.4f}: {active:,} of {total:,} weights")


if __name__ == "__main__":
    app.run(main)
