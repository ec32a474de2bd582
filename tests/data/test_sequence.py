import itertools
import random

import keras
import pytest
from keras import ops

from keras_selfish.data import Windows

WINDOWS = Windows(range(42), batch_size=2, time_steps=4)  # 5 windows


def firsts(batches):
    return [int(inputs["tokens"][0, 0]) for inputs, _ in batches]


def read(sequence, order):
    return firsts(sequence[index] for index in order)


def test_the_same_batches_in_the_same_order():
    sequence = WINDOWS.pydataset()
    assert len(sequence) == len(WINDOWS) == 5
    assert firsts(sequence) == firsts(sequence) == read(sequence, range(5)) == [0, 4, 8, 12, 16]


def test_keras_may_peek_and_start_again_between_epochs():
    sequence = WINDOWS.pydataset()
    read(sequence, [0, 1])
    for _ in range(2):
        sequence.on_epoch_begin()
        read(sequence, range(5))
        sequence.on_epoch_end()
    # Epochs of 2 windows (`steps_per_epoch`) go on where the one before stopped.
    for order in [(0, 1), (2, 3)]:
        sequence.on_epoch_begin()
        read(sequence, order)
        sequence.on_epoch_end()


@pytest.mark.parametrize("peeked", [0, 1, 2])
def test_no_shuffled_epoch_passes(peeked):
    length = 4
    for order in itertools.permutations(range(length)):
        sequence = Windows(range(2 * length + 1), 1, 2).pydataset()
        read(sequence, range(peeked))
        sequence.on_epoch_begin()
        if order == tuple(range(length)):
            read(sequence, order)
        else:
            with pytest.raises(ValueError, match=r"pass `shuffle=False` to `fit`. Received: window"):
                read(sequence, order)


class Recorder(keras.layers.Layer):
    """Keeps the first token of each window, in the order in which they are trained on."""

    def build(self, input_shape):
        self.seen = self.add_weight(shape=(64,), initializer="zeros", trainable=False)
        self.count = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False)
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        tokens = ops.cast(inputs["tokens"], "float32")
        place = ops.cast(ops.arange(64) == self.count, "float32")
        self.seen.assign(self.seen * (1 - place) + place * tokens[0, 0])
        self.count.assign(self.count + 1)
        return tokens * self.scale


@pytest.mark.backends("tensorflow", "jax", "torch")
def test_fit_reads_in_order_and_refuses_to_shuffle(since_keras):
    recorder = Recorder()
    inputs = {
        "tokens": keras.Input((None,), batch_size=2, dtype="int32"),
        "first": keras.Input((), batch_size=2, dtype="int32"),
    }
    model = keras.Model(inputs, recorder(inputs))
    model.compile("sgd", loss="mse")

    def seen_in_fit(**options):
        recorder.count.assign(0)
        model.fit(WINDOWS.pydataset(), epochs=2, verbose=0, **options)
        return ops.convert_to_numpy(recorder.seen)[: int(recorder.count)].tolist()

    assert seen_in_fit(shuffle=False) == 2 * [0, 4, 8, 12, 16]
    random.seed(3)  # Keras shuffles with Python's random numbers
    # The backend tells of the error in one of its own, from where it reads.
    with pytest.raises(Exception, match="pass `shuffle=False` to `fit`"):
        seen_in_fit()
    if keras.backend.backend() == "jax":
        since_keras("3.15")  # before, a model on JAX has lost its variables after an error in `fit`
    assert seen_in_fit(shuffle=False, steps_per_epoch=2) == [0, 4, 8, 12]
