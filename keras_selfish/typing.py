"""Types that arguments of this package share, for annotations.

Importing this module loads neither Keras nor a backend.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

__all__ = [
    "Activation",
    "BlockShape",
    "Config",
    "Constraint",
    "Distribution",
    "Function",
    "HasTokens",
    "Initializer",
    "Logs",
    "ModelOptions",
    "OpenShape",
    "PathLike",
    "Pattern",
    "Regularizer",
    "Shape",
    "Tensor",
    "TensorLike",
    "Tokens",
]


class TensorLike(Protocol):
    """An array of NumPy, a tensor of any backend, or a `keras.Variable`."""

    @property
    def shape(self) -> Any:
        """A tuple of integers, or TensorFlow's shape."""

    @property
    def dtype(self) -> Any:
        """A dtype of the library that the tensor is of, or its name."""

    def __getitem__(self, key: Any, /) -> Any:
        """A part of it."""


# A tensor of Keras's backend: those of TensorFlow, JAX and PyTorch have no common base.
Tensor: TypeAlias = Any


class HasTokens(Protocol):
    """A vocabulary, such as `keras_selfish.data.Vocabulary`."""

    @property
    def tokens(self) -> Sequence[str]:
        """The tokens in the order of their ids."""


Tokens: TypeAlias = HasTokens | Sequence[str]

PathLike: TypeAlias = str | os.PathLike[str]

# Of a weight, or of a tensor where an axis may be open.
Shape: TypeAlias = Sequence[int]
OpenShape: TypeAlias = tuple[int | None, ...]

Distribution: TypeAlias = Literal["uniform", "erdos_renyi", "erk"]
# (input weights, units), and (n, m). Configs hold lists.
BlockShape: TypeAlias = tuple[int, int] | list[int]
Pattern: TypeAlias = tuple[int, int] | list[int]

# What `keras.activations.get` and its like take: a name, a config, or an object that is called.
Function: TypeAlias = str | Mapping[str, Any] | Callable[..., Any]
Activation: TypeAlias = Function | None
Initializer: TypeAlias = Function
Regularizer: TypeAlias = Function | None
Constraint: TypeAlias = Function | None

# What the `get_config` of Keras gives, and the `logs` of its callbacks.
Config: TypeAlias = dict[str, Any]
Logs: TypeAlias = dict[str, Any]


class ModelOptions(TypedDict, total=False):
    """Further arguments of `keras.Model`."""

    name: str | None
    trainable: bool
