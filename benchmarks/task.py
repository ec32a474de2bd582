"""What the benchmarks train: a stacked LSTM language model on random tokens.

This module loads neither Keras nor PyTorch: a process holds only the library that it measures.
"""

import dataclasses
import math
import statistics

import numpy as np

from benchmarks.processes import peak_memory
from keras_selfish.data import Windows

DROPOUT, SPARSITY = 0.25, 0.67
SETTINGS = {"learning_rate": 0.4, "global_clipnorm": 0.25, "weight_decay": 1.2e-6}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a stacked LSTM language model and of the batch that it is trained on.

    Args:
        units: Units of each LSTM layer, and features of a token.
        layers: Number of LSTM layers.
        vocabulary: Number of tokens in the vocabulary.
        batch: Columns of a batch.
        time_steps: Time steps of a window.
    """

    units: int = 1500
    layers: int = 2
    vocabulary: int = 10_000
    batch: int = 20
    time_steps: int = 35

    @property
    def tokens(self):
        """Tokens of one training step."""
        return self.batch * self.time_steps

    @property
    def operations(self):
        """Floating-point operations of the matrix products of one training step, as a dense model has them.

        A multiplication and an addition are two, and the backward pass takes two products for each of the
        forward pass. Each LSTM layer has two kernels of units × 4 units.
        """
        weights = self.layers * 2 * self.units * 4 * self.units + self.units * self.vocabulary
        return 3 * 2 * weights * self.tokens

    def flags(self):
        """The command-line flags that make these sizes again."""
        return [f"--{name}={value}" for name, value in dataclasses.asdict(self).items()]

    def __str__(self):
        return (
            f"{self.layers} x {self.units} units, vocabulary {self.vocabulary}, "
            f"batch {self.batch}, {self.time_steps} time steps"
        )


def windows(sizes, steps):
    """Random tokens for so many steps, as `Windows`."""
    length = sizes.batch * (sizes.time_steps * steps + 1)
    tokens = np.random.default_rng(0).integers(0, sizes.vocabulary, length)
    return Windows(tokens, sizes.batch, sizes.time_steps)


def result_of(seconds, loss):
    """What a process reports: the first step, the median of those from the third on, the peak of memory.

    Raises:
        ValueError: if the loss is not finite: such a step may take another time than one of training.
    """
    if not math.isfinite(loss):
        raise ValueError(f"the loss must stay finite in what is measured. Received: {loss}")
    return {"first": seconds[0], "step": statistics.median(seconds[2:]), "memory": peak_memory()}
