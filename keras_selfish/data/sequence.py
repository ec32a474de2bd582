"""Windows of a corpus as a `keras.utils.PyDataset`."""

import keras
import numpy as np
from keras import tree


class WindowsSequence(keras.utils.PyDataset):
    """The windows of a corpus for `fit`, `evaluate` and `predict` on any Keras backend.

    `fit` shuffles a PyDataset by default, and the dataset cannot tell Keras not to. Shuffled
    windows would silently feed each one the hidden state of a stranger, so this dataset gives its
    windows in order only: 0, 1, 2 and so on. Any other order is an error. (Keras also looks at the
    first one or two windows to learn their shapes; starting again from 0 is allowed between
    epochs.)

    Under a `keras.distribution` over several processes each reads the columns of its own devices; make
    that distribution with `auto_shard_dataset=False`.

    Args:
        windows: a `Windows` object.
        first: number of windows to leave out at the beginning.

    Example:

        model.fit(Windows(corpus.train, 20, 35).pydataset(), shuffle=False)
    """

    def __init__(self, windows, first=0):
        # One worker: several would fetch windows in whatever order they are scheduled.
        super().__init__(workers=1, use_multiprocessing=False)
        self._windows = windows
        self._first = first
        self._next = 0
        self._may_restart = True
        self._in_epoch = False

    def __len__(self):
        return len(self._windows) - self._first

    def __iter__(self):
        return (own_columns(self._windows[index]) for index in range(self._first, len(self._windows)))

    def __getitem__(self, index):
        restarts = index == 0 and self._may_restart
        if index != self._next and not restarts:
            raise ValueError(
                "Windows must be read in order, or the carried hidden state belongs to other text; "
                f"pass `shuffle=False` to `fit`. Received: window {index} where {self._next} was "
                "due"
            )
        batch = own_columns(self._windows[self._first + index])
        self._next = index + 1
        # Within an epoch every window comes once, so only its first may be a restart. Without this
        # a shuffled epoch could pass as the end of one pass and the beginning of the next.
        self._may_restart = not self._in_epoch
        return batch

    def on_epoch_begin(self):
        """Called by Keras at the start of an epoch, which may begin a pass or continue one."""
        self._in_epoch = True
        self._may_restart = True

    def on_epoch_end(self):
        """Called by Keras at the end of an epoch."""
        self._in_epoch = False
        self._may_restart = True


def own_columns(batch):
    """The columns of a batch that this process is to feed its devices with.

    Args:
        batch: Arrays, all with as many columns as their first axis.

    Raises:
        ValueError: if the columns cannot be divided among the devices.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch
    columns, replicas = len(tree.flatten(batch)[0]), distribution.num_model_replicas
    if columns % replicas:
        raise ValueError(
            f"`batch_size` must be a multiple of the {replicas} parts that the distribution divides batches "
            f"into. Received: batch_size={columns}"
        )
    shards, shard = min(distribution.num_processes, replicas), distribution.data_shard_id
    return tree.map_structure(lambda array: np.split(array, shards)[shard], batch)
