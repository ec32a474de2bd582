"""Training steps of Keras models: ours, and one of plain Keras layers."""

import time

import keras

from benchmarks.task import DROPOUT, SETTINGS, SPARSITY, result_of, windows
from keras_selfish import SNTASGD, LanguageModel, TokenCrossEntropy


class Clock(keras.callbacks.Callback):
    """Notes the seconds of each step in `seconds` and the last loss in `loss`."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.loss = float(logs["loss"])  # waits for the step
        self.seconds.append(time.perf_counter() - self._began)


def measure(variant, sizes, steps):
    """Measures one variant.

    Args:
        variant: `"sparse"`, `"unmasked"`, `"averaging"`, `"bfloat16"` or `"keras"`.
        sizes: The `Sizes`.
        steps: Number of training steps.

    Returns:
        A result as `result_of` makes it.
    """
    model = plain_model(sizes) if variant == "keras" else our_model(variant, sizes)
    data = batches(windows(sizes, steps), plain=variant == "keras")
    clock = Clock()
    model.fit(data, verbose=0, shuffle=False, callbacks=[clock])
    return result_of(clock.seconds, clock.loss)


def batches(windows, plain):
    """Windows for `fit`; with `plain` of tokens and targets alone."""
    if not plain:
        return windows.batches()
    if keras.backend.backend() == "tensorflow":
        return windows.dataset().map(lambda inputs, targets: (inputs["tokens"], targets))
    return ((inputs["tokens"], targets) for inputs, targets in windows)


def our_model(variant, sizes):
    model = LanguageModel(
        sizes.vocabulary,
        sizes.units,
        layers=sizes.layers,
        dropout=DROPOUT,
        sparsity=0.0 if variant == "unmasked" else SPARSITY,
        batch_size=sizes.batch,
        dtype="mixed_bfloat16" if variant == "bfloat16" else "float32",
    )
    model.compile(SNTASGD(**SETTINGS), loss=TokenCrossEntropy())
    if variant == "averaging":
        model.optimizer.build(model.trainable_variables)
        model.optimizer.start_averaging()
    return model


def plain_model(sizes):
    layers = [keras.Input((None,), batch_size=sizes.batch, dtype="int32")]
    layers += [keras.layers.Embedding(sizes.vocabulary, sizes.units), keras.layers.Dropout(DROPOUT)]
    for _ in range(sizes.layers):
        layers += [keras.layers.LSTM(sizes.units, return_sequences=True), keras.layers.Dropout(DROPOUT)]
    model = keras.Sequential([*layers, keras.layers.Dense(sizes.vocabulary)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(**SETTINGS), loss=loss)
    return model
