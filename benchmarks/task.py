"""What the benchmarks train: a stacked LSTM language model on random tokens.

This module loads neither Keras nor PyTorch: a process holds only the library that it measures.
"""

import dataclasses
import math
import statistics

import numpy as np

from benchmarks.processes import peak_memory
from keras_selfish.data import Windows
from keras_selfish.models.presets import preset
from keras_selfish.settings import check_settings, setting

PUBLISHED = preset("ptb_lstm")
SPARSITY = PUBLISHED.architecture.sparsity
DROPOUT = 0.25  # of random tokens nothing is learned, at any rate
SETTINGS = {
    "learning_rate": 0.4,
    "global_clipnorm": PUBLISHED.training.clipnorm,
    "weight_decay": PUBLISHED.training.weight_decay,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a stacked LSTM language model and of the batch that it is trained on."""

    units: int = setting(PUBLISHED.architecture.units, "units of each LSTM layer", at_least=1)
    layers: int = setting(PUBLISHED.architecture.layers, "number of LSTM layers", at_least=1)
    vocabulary: int = setting(
        PUBLISHED.architecture.vocabulary_size, "number of tokens in the vocabulary", at_least=1
    )
    batch: int = setting(PUBLISHED.training.batch_size, "columns of a batch", at_least=1)
    time_steps: int = setting(PUBLISHED.training.bptt, "time steps of a window", at_least=1)

    def __post_init__(self):
        check_settings(self)

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
