"""Windows of random lengths: complete, as published, other ones each epoch, the same for the same seed."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_selfish.data import RandomWindows, batch_columns


def lengths(windows):
    return [targets.shape[1] for _, targets in windows]


@given(
    length=st.integers(4, 3000),
    batch_size=st.integers(1, 4),
    time_steps=st.integers(1, 90),
    multiple=st.integers(1, 12),
    epoch=st.integers(0, 3),
)
def test_every_token_is_predicted_once(length, batch_size, time_steps, multiple, epoch):
    if length < 2 * batch_size:
        return
    tokens = np.arange(length)
    windows = RandomWindows(tokens, batch_size, time_steps, seed=3, multiple=multiple)
    number = len(windows)
    windows.epoch = epoch
    batches = list(windows)
    assert len(windows) == len(batches) == number
    columns = batch_columns(tokens, batch_size)
    inputs = np.concatenate([batch["tokens"] for batch, _ in batches], axis=1)
    np.testing.assert_array_equal(inputs, columns[:, :-1])
    np.testing.assert_array_equal(np.concatenate([targets for _, targets in batches], axis=1), columns[:, 1:])
    assert [batch["first"].all() for batch, _ in batches] == [True, *[False] * (number - 1)]
    assert all(each % multiple == 0 for each in lengths(windows)[:-1])
    assert number == 1 or min(lengths(windows)) >= min(5, len(columns[0]) - 1)


def test_lengths_are_distributed_as_published():
    windows = RandomWindows(np.arange(200_000) % 100, batch_size=2, time_steps=70)
    found = np.concatenate([lengths(windows)])
    halved = found < 52
    # 0.05 of 1465 windows are 73; 5 standard deviations are 42.
    assert 31 < np.count_nonzero(halved) < 115
    assert found[~halved].mean() == pytest.approx(70, abs=1)
    assert found[halved].mean() == pytest.approx(35, abs=4)
    assert found[~halved].std() == pytest.approx(5, abs=0.7)


@pytest.mark.parametrize("time_steps", [35, 70])
def test_few_lengths_in_many_epochs(time_steps):
    windows = RandomWindows(np.arange(40_008), batch_size=1, time_steps=time_steps, multiple=10)
    found = set()
    for epoch in range(20):
        windows.epoch = epoch
        found.update(lengths(windows))
    assert len(found) <= 10
    assert sum(length % 10 > 0 for length in found) == 1


def test_lengths_follow_from_seed_and_epoch():
    def drawn(seed, epoch):
        windows = RandomWindows(np.arange(4000), 2, 20, seed=seed)
        windows.epoch = epoch
        return lengths(windows)

    assert drawn(1, 2) == drawn(1, 2)
    assert len({tuple(drawn(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("form", ["dataset", "pydataset"])
def test_each_epoch_of_a_fit_has_its_own_lengths(form):
    if form == "dataset":
        pytest.importorskip("tensorflow")
    seen = []

    class Seen(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen[-1].append(int(keras.ops.convert_to_numpy(counter.count)))

        def on_epoch_begin(self, epoch, logs=None):
            seen.append([])

    class Counter(keras.layers.Layer):
        """Remembers the number of time steps of its last input."""

        def build(self, input_shape):
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

        def call(self, inputs):
            self.count.assign(keras.ops.cast(keras.ops.shape(inputs)[1], "float32"))
            return inputs

    tokens = keras.Input((None,), dtype="int32", name="tokens")
    first = keras.Input((), dtype="int32", name="first")
    counter = Counter()
    outputs = counter(keras.layers.Embedding(30, 30)(tokens))
    # Keras before 3.14 has no models one of whose inputs nothing uses.
    outputs = keras.layers.Add()(
        [outputs, 0 * keras.ops.reshape(keras.ops.cast(first, "float32"), (-1, 1, 1))]
    )
    model = keras.Model({"tokens": tokens, "first": first}, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    windows = RandomWindows(np.arange(600) % 30, 2, 20, seed=1)
    model.fit(
        getattr(windows, form)(),
        epochs=3,
        initial_epoch=1,
        shuffle=False,
        verbose=0,
        callbacks=[windows.callback(), Seen()],
    )
    expected = []
    for epoch in (1, 2):
        windows.epoch = epoch
        expected.append(lengths(windows))
    assert seen == expected
    assert expected[0] != expected[1]
