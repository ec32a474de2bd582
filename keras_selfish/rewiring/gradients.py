"""Gradients of connections that do not exist, taken on a batch when a rule asks for them.

Ordinary training steps compute none: the layers mask them. Here the loss is differentiated once more on some
batches of the training data, and everything the forward pass changed (carried states, seeds of dropout,
metrics) is restored, so that training continues as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
from keras import ops

from keras_selfish.backend import BACKEND, of_backend
from keras_selfish.typing import Tensor

if TYPE_CHECKING:
    from keras_selfish.masks import MaskedWeight

__all__ = ["DenseGradients"]

# One batch, a sequence or an iterable of batches, or a function from the training step to a batch.
GradientData: TypeAlias = "Iterable[Any] | keras.utils.PyDataset | Callable[[int], tuple[Any, ...]]"


@of_backend
def make_gradients(model, training):
    """A function from a batch and a list of variables to the gradients of the loss, arrays or tensors."""
    raise NotImplementedError(
        f"Gradients of connections that do not exist need Keras on TensorFlow, JAX or PyTorch, not {BACKEND}."
    )


@of_backend
def replicas_of(variable):
    """The variables that hold a `keras.Variable` on the replicas of this process, as a list."""
    return [variable]


class DenseGradients:
    """Gradients of a model's loss with respect to masked weights, also where there is no connection.

    Args:
        data: What the model is trained on: one batch as a tuple `(x, y)` or `(x, y, sample_weight)`; a
            `keras.utils.PyDataset` or other sequence of batches; an iterable of them such as a
            `tf.data.Dataset`, whose first ones serve; or a function from the training step to a batch.
        training: Whether the loss is that of training (default), with dropout and statistics of the batch,
            or of inference.

    Raises:
        ValueError: if `data` is none of these.
    """

    def __init__(self, data: GradientData, training: bool = True) -> None:
        is_sequence = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        of_batches = callable(data) or is_sequence or hasattr(data, "__iter__")
        if not of_batches or isinstance(data, (str, bytes, dict)) or hasattr(data, "shape"):
            raise _not_data(data)
        if isinstance(data, list) and not all(isinstance(batch, tuple) for batch in data):
            raise _not_data(data)
        self.data = data
        self.training = training
        self._model: keras.Model | None = None
        self._gradients: Any = None

    def __call__(
        self, model: keras.Model, weights: Sequence[MaskedWeight], step: int, batches: int
    ) -> list[Tensor]:
        """The mean gradient over some batches.

        Args:
            model: The compiled model.
            weights: List of `MaskedWeight`.
            step: Training step, which decides on the batches.
            batches: How many of them.

        Returns:
            A list of arrays or tensors of the weights' shapes.
        """
        if self._model is not model:
            self._model, self._gradients = model, make_gradients(model, self.training)
        variables = [masked_weight.weight for masked_weight in weights]
        total: Any = None
        count = 0
        with contextlib.ExitStack() as dense, _unchanged(model):
            for masked_weight in weights:
                dense.enter_context(masked_weight.dense_gradient())
            for batch in self._batches(step, batches):
                batch = keras.utils.unpack_x_y_sample_weight(batch)
                gradients = self._gradients(batch, variables)
                total = gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
                count += 1
        if not count:
            raise ValueError("`gradient_data` must hold at least one batch. Received: none")
        return [each / count for each in total] if count > 1 else total

    def check(self):
        """Raises `ValueError` if the first item is no batch; iterators, which that would use up, are left."""
        batch = None
        if isinstance(self.data, tuple):
            batch = self.data
        elif callable(self.data) or (hasattr(self.data, "__getitem__") and hasattr(self.data, "__len__")):
            batch = next(iter(self._batches(0, 1)), None)
        if batch is not None and not (isinstance(batch, (tuple, list)) and 2 <= len(batch) <= 3):
            raise _not_data(batch)

    def _batches(self, step, count):
        if isinstance(self.data, tuple):
            return [self.data]
        if hasattr(self.data, "__getitem__") and hasattr(self.data, "__len__"):
            return (self.data[(step + k) % len(self.data)] for k in range(min(count, len(self.data))))
        if callable(self.data):
            return (self.data(step + k) for k in range(count))
        return itertools.islice(self.data, count)


def _not_data(data):
    shown = (
        f"{type(data).__name__}" if hasattr(data, "shape") or isinstance(data, (list, dict)) else repr(data)
    )
    return ValueError(
        "`gradient_data` must be a batch, which is a tuple (x, y) or (x, y, sample_weight), a sequence or an "
        f"iterable of batches, or a function from a step to a batch. Received: gradient_data={shown}"
    )


@contextlib.contextmanager
def _unchanged(model):
    """Restores, after the block, what training steps change besides the weights."""
    variables = [*model.non_trainable_variables, *model.metrics_variables]
    variables = [one for variable in variables for one in replicas_of(variable)]
    before = [ops.copy(ops.convert_to_tensor(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
