"""Contiguous batches: a corpus laid out in columns and read window by window.

A language model with carried hidden state reads its corpus in order. The corpus is cut into as many
equal columns as the batch has rows; window k holds the k-th stretch of every column, and row i of
window k + 1 goes on where row i of window k ended. So windows must never be shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from keras_selfish import checks
from keras_selfish.data.token_cache import release

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from keras_selfish.data.sequence import WindowsSequence

_Integers: TypeAlias = npt.NDArray[np.int32]
Batch: TypeAlias = tuple[dict[str, _Integers], _Integers]

# How `RandomWindows` draws its lengths.
HALVED, DEVIATION, SHORTEST = 0.05, 5.0, 5
# Tokens that are read from a memory map at once, and before what was read need not stay in memory.
_BLOCK, _RESIDENT = 1 << 17, 1 << 22


def batch_columns(tokens: npt.ArrayLike, batch_size: int) -> _Integers:
    """Lays a corpus out in `batch_size` contiguous columns of equal length.

    Tokens at the end that would not fill all columns are left out, as in the published code.

    Args:
        tokens: (length,) integer token ids.
        batch_size: number of columns.

    Returns:
        (batch_size, length // batch_size) int32 NumPy array; each row is one column of the
        published (time, batch) layout.

    Raises:
        ValueError: if `tokens` is not a vector of integers, if `batch_size` is below 1, or if the
            corpus is shorter than two tokens a column (one to read, one to predict).

    Example:
        >>> batch_columns(range(7), batch_size=2)
        array([[0, 1, 2],
               [3, 4, 5]], dtype=int32)
    """
    return _columns(tokens, batch_size).astype(np.int32)


def _columns(tokens, batch_size):
    """`batch_columns` as a view: of integers of any type, and of a memory map another one."""
    tokens = np.asanyarray(tokens)
    batch_size = checks.integer("batch_size", batch_size, at_least=1)
    if tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
        raise ValueError(
            "`tokens` must be a vector of integer token ids. "
            f"Received: an array of shape {tokens.shape} and type {tokens.dtype}"
        )
    if len(tokens) < 2 * batch_size:
        raise ValueError(
            "`tokens` must be at least 2 × `batch_size` long, so that every column has a token to "
            "read and one to predict; take a longer corpus or a smaller batch. "
            f"Received: {len(tokens)} tokens, batch_size={batch_size}"
        )
    length = len(tokens) // batch_size
    return tokens[: length * batch_size].reshape(batch_size, length)


class Windows:
    """The windows of a corpus, in order, for a model that carries its hidden state across them.

    A finite iterable that starts afresh each time, of batches

        ({"tokens": (batch, time) int32, "first": (batch,) int32}, targets: (batch, time) int32)

    where `targets` are the tokens one step later. `first` is 1 in the first window of a pass
    and tells the model to start from a zero hidden state. All windows are `time_steps` long but
    the last one, which holds what is left: every token except the first of each column is
    predicted exactly once.

    Args:
        tokens: (length,) integer token ids.
        batch_size: number of columns the corpus is cut into. 1 keeps every token.
        time_steps: tokens of each column in a window.

    Attributes:
        columns: (batch_size, column length) NumPy array, from `batch_columns`; of tokens that are an
            `np.memmap`, a view of the map with its type, so that only what is read is loaded.
        predictions: number of predicted tokens in a pass, batch_size × (column length - 1).

    Raises:
        ValueError: see `batch_columns`; also if `time_steps` is below 1.

    Example:
        >>> windows = Windows(range(10), batch_size=2, time_steps=3)
        >>> len(windows), windows.predictions
        (2, 8)
        >>> inputs, targets = windows[1]
        >>> inputs["tokens"].tolist(), inputs["first"].tolist(), targets.tolist()
        ([[3], [8]], [0, 0], [[4], [9]])
    """

    def __init__(self, tokens: npt.ArrayLike, batch_size: int, time_steps: int) -> None:
        self.time_steps = checks.integer("time_steps", time_steps, at_least=1)
        self._mapped, self._resident = isinstance(tokens, np.memmap) and tokens.mode == "r", 0
        self.columns = (_columns if self._mapped else batch_columns)(tokens, batch_size)
        self.batch_size = len(self.columns)
        self._steps = self.columns.shape[1] - 1  # predictions in one column
        self.predictions = self.batch_size * self._steps

    def __len__(self) -> int:
        return -(-self._steps // self.time_steps)

    def bounds(self, index: int) -> tuple[int, int]:
        """First time step of a window, and the one after its last."""
        start = range(len(self))[index] * self.time_steps
        return start, min(start + self.time_steps, self._steps)

    def __getitem__(self, index: int) -> Batch:
        start, stop = self.bounds(index)
        inputs = {
            "tokens": self._read(start, stop),
            "first": np.full(self.batch_size, start == 0, np.int32),
        }
        return inputs, self._read(start + 1, stop + 1)

    def _read(self, start, stop):
        """Some time steps of the columns, int32."""
        found = np.array(self.columns[:, start:stop], np.int32)
        if self._mapped:
            self._resident += found.size
            if self._resident > _RESIDENT:
                release(self.columns)
                self._resident = 0
        return found

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def dataset(self) -> tf.data.Dataset:
        """The same batches in the same order as a `tf.data.Dataset`.

        The batch size is static and the number of time steps is not, since the last window may be
        shorter. The number of batches is known to Keras. The columns are held once, as a constant, or are
        read from their memory map by the block; no Python runs between windows. Every entry has the batch as
        its first axis, so that tf.distribute gives each replica the same rows, that is its own columns, of
        every window.

        Pass `shuffle=False` to `fit`, which otherwise warns that it cannot shuffle the dataset.
        """
        import tensorflow as tf

        from keras_selfish.data.prefetching_tensorflow import prefetched

        def window(columns, index, is_first):
            start = index * self.time_steps
            stop = tf.minimum(start + self.time_steps, tf.shape(columns, tf.int64)[1] - 1)
            inputs = {
                "tokens": columns[:, start:stop],
                "first": tf.fill([self.batch_size], tf.cast(is_first, tf.int32)),
            }
            return inputs, columns[:, start + 1 : stop + 1]

        if self._mapped:
            return prefetched(self._from_blocks(window))
        with tf.device("CPU:0"):
            columns = tf.constant(self.columns)
        windows = tf.data.Dataset.range(len(self))
        return prefetched(windows.map(lambda index: window(columns, index, tf.equal(index, 0))))

    def _from_blocks(self, window):
        """The windows of blocks of columns, each of which Python reads from the map at once."""
        import tensorflow as tf

        steps = max(1, _BLOCK // (self.batch_size * self.time_steps)) * self.time_steps

        def blocks():
            for begin in range(0, self._steps, steps):
                yield self._read(begin, begin + steps + 1), begin == 0

        def windows(columns, is_first):
            number = -(-(tf.shape(columns, tf.int64)[1] - 1) // self.time_steps)
            return tf.data.Dataset.range(number).map(
                lambda index: window(columns, index, tf.logical_and(is_first, tf.equal(index, 0)))
            )

        signature = (tf.TensorSpec((self.batch_size, None), tf.int32), tf.TensorSpec((), tf.bool))
        dataset = tf.data.Dataset.from_generator(blocks, output_signature=signature).flat_map(windows)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(self)))

    def pydataset(self, first: int = 0) -> WindowsSequence:
        """The same batches as a `keras.utils.PyDataset`, for backends without TensorFlow.

        Keras shuffles a PyDataset unless told otherwise, which this one answers with an error:
        call `fit(windows.pydataset(), shuffle=False)`.

        Args:
            first: Number of windows to leave out at the beginning. Default 0.
        """
        from keras_selfish.data.sequence import WindowsSequence

        return WindowsSequence(self, first)

    def batches(self, first: int = 0) -> Any:
        """The same batches in the form that suits Keras's backend: `dataset()` or `pydataset()`.

        Args:
            first: Number of windows to leave out at the beginning, for a pass that is resumed. Default 0.
        """
        from keras_selfish.backend import BACKEND

        if BACKEND != "tensorflow":
            return self.pydataset(first)
        dataset = self.dataset()
        return dataset.skip(first) if first else dataset

    def __repr__(self) -> str:
        return (
            f"<Windows: {len(self):,} of {self.batch_size} × {self.time_steps} tokens, "
            f"{self.predictions:,} predictions>"
        )


class RandomWindows(Windows):
    """Windows of random lengths, other ones in each epoch, so that gradients are cut at other places.

    A length is drawn from a normal distribution with a standard deviation of 5 around `time_steps`, or with
    a probability of 0.05 around half of it; it is at least 5. So far as published; then single lengths are
    changed by one step until they fill the corpus exactly, so that every epoch has the same number of windows
    and predicts every token once.

    Args:
        tokens: (length,) integer token ids.
        batch_size: number of columns the corpus is cut into.
        time_steps: mean length before any is halved.
        seed: integer seed of the lengths.
        multiple: lengths are multiples of it; the last window, of about `time_steps` if any is, also holds
            what is left. A backend that compiles for each length, such as JAX, wants few: 10, say. Default 1.

    Attributes:
        epoch: which epoch's lengths the windows have; set it before the epoch, or let `callback()` do so.

    Raises:
        ValueError: see `Windows`.

    Example:
        >>> windows = RandomWindows(range(2000), batch_size=2, time_steps=70, seed=0)
        >>> lengths = [targets.shape[1] for _, targets in windows]
        >>> len(windows), sum(lengths)
        (15, 999)

    Reference: Merity et al. 2018, arXiv 1708.02182, section 5.
    """

    def __init__(
        self, tokens: npt.ArrayLike, batch_size: int, time_steps: int, seed: int = 0, multiple: int = 1
    ) -> None:
        super().__init__(tokens, batch_size, time_steps)
        self.seed = seed
        self.multiple = checks.integer("multiple", multiple, at_least=1)
        self._shortest = -(-SHORTEST // self.multiple) * self.multiple
        mean = (1.0 - 0.5 * HALVED) * self.time_steps
        self._number = max(1, min(round(self._steps / mean), self._steps // self._shortest))
        self.epoch = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._ends = self._draw(np.random.default_rng([self.seed, epoch]))

    def _draw(self, generator):
        """The ends of all windows."""
        if self._number == 1:
            return np.array([self._steps])
        means = np.where(generator.random(self._number) < HALVED, 0.5, 1.0) * self.time_steps
        shortest = self._shortest // self.multiple
        lengths = np.maximum(np.round(generator.normal(means, DEVIATION) / self.multiple), shortest).astype(
            int
        )
        wanted = self._steps // self.multiple
        while excess := lengths.sum() - wanted:
            # One step each, of as many windows as are too many, or of all that can be changed.
            may_change = np.flatnonzero(lengths > (shortest if excess > 0 else 0))
            changed = generator.permutation(may_change)[: abs(excess)]
            lengths[changed] -= np.sign(excess)
        usual = np.flatnonzero(lengths == round(self.time_steps / self.multiple))
        if self.multiple > 1 and usual.size:  # then the last window has the same odd length in every epoch
            lengths[[usual[-1], -1]] = lengths[[-1, usual[-1]]]
        ends = self.multiple * np.cumsum(lengths)
        ends[-1] = self._steps
        return ends

    def __len__(self) -> int:
        return self._number

    def bounds(self, index: int) -> tuple[int, int]:
        index = range(len(self))[index]
        return (int(self._ends[index - 1]) if index else 0), int(self._ends[index])

    def dataset(self) -> tf.data.Dataset:
        """The same batches in the same order as a `tf.data.Dataset`, of the epoch that it is read in."""
        import tensorflow as tf

        from keras_selfish.data.prefetching_tensorflow import prefetched

        columns = tf.TensorSpec((self.batch_size, None), tf.int32)
        inputs = {"tokens": columns, "first": tf.TensorSpec((self.batch_size,), tf.int32)}
        dataset = tf.data.Dataset.from_generator(lambda: iter(self), output_signature=(inputs, columns))
        cardinality = tf.data.experimental.assert_cardinality(len(self))
        return prefetched(dataset.apply(cardinality))

    def callback(self) -> keras.callbacks.Callback:
        """A Keras callback that draws new lengths for each epoch."""
        import keras

        def set_epoch(epoch, logs=None):
            self.epoch = epoch

        return keras.callbacks.LambdaCallback(on_epoch_begin=set_epoch)
