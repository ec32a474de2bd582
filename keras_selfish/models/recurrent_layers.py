"""The recurrent layers of a `LanguageModel` by name, as data.

Importing this module loads neither Keras nor a backend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from keras_selfish import checks
from keras_selfish._lazy import class_of

if TYPE_CHECKING:
    import keras

    Layer = TypeVar("Layer", bound=type[keras.layers.RNN])

__all__ = ["RECURRENT_LAYERS", "RecurrentLayer", "register_recurrent_layer"]


@dataclasses.dataclass(frozen=True)
class RecurrentLayer:
    """A recurrent layer as a language model takes it.

    Args:
        source: The layer class, or its place in `keras_selfish.layers` as `"module:Class"`.
        sizes: Function of inputs, units and the dict of `cell_options` that returns the number of positions
            in the layer's weight matrices and that of its biases.
        states: Number of states of `units` features each that are carried from window to window.
        arguments: Dict of arguments with which the layer begins as published.
        bias_vectors: Numbers of bias vectors that `Architecture` may ask for.
    """

    source: str | type[keras.layers.RNN]
    sizes: Callable[[int, int, Mapping[str, Any]], tuple[int, int]]
    states: int = 1
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bias_vectors: tuple[int, ...] = (1, 2)

    @property
    def layer(self) -> Any:
        """The layer class."""
        return class_of("keras_selfish.layers", self.source)


def _gates(gates, biases=1):
    """Sizes of a layer that has so many gates, and as many bias vectors for each."""
    return lambda inputs, units, options: ((inputs + units) * gates * units, biases * gates * units)


def _rhn(inputs, units, options):
    depth, width = _number(options, "depth", 10), (2 if options.get("coupled", True) else 3) * units
    return (inputs + depth * units) * width, depth * width


def _on_lstm(inputs, units, options):
    width = 4 * units + 2 * (units // _number(options, "chunk_size", 10))
    return (inputs + units) * width, width


def _number(options, name, default):
    value = options.get(name, default)
    return value if isinstance(value, int) and value > 0 else 1  # what is none, the layer refuses


# PyTorch's two bias vectors are those that a GRU has anyway.
RECURRENT_LAYERS: dict[str, RecurrentLayer] = {
    "lstm": RecurrentLayer("lstm:SparseLSTM", _gates(4), 2, {"unit_forget_bias": False}),
    "gru": RecurrentLayer("gru:SparseGRU", _gates(3, biases=2), bias_vectors=(1,)),
    "simple_rnn": RecurrentLayer("simple_rnn:SparseSimpleRNN", _gates(1)),
    "rhn": RecurrentLayer("rhn:SparseRHN", _rhn),
    "on_lstm": RecurrentLayer("on_lstm:SparseONLSTM", _on_lstm, 2),
}
_OURS = frozenset(RECURRENT_LAYERS)


def register_recurrent_layer(
    name: str,
    *,
    states: int = 1,
    arguments: Mapping[str, Any] | None = None,
    sizes: Callable[[int, int, Mapping[str, Any]], tuple[int, int]] | None = None,
) -> Callable[[Layer], Layer]:
    """Class decorator that adds a recurrent layer of one's own: `Architecture(cell=name)`, `--cell=name`.

    Args:
        name: Its name, none of those of the package.
        states: Number of its states. Default 1.
        arguments: Dict of arguments that it is always given besides those of all recurrent layers. Default
            none.
        sizes: As in `RecurrentLayer`; by default those of a kernel and a recurrent kernel with a column for
            each unit of each of the cell's `gates`, and one bias vector.

    Raises:
        ValueError: if the name is taken, or the class is no recurrent layer.
    """
    if name in _OURS or not name.isidentifier():
        rule = "must be a word in letters, digits and _, and no recurrent layer of the package"
        checks.refuse("name", rule, name)
    checks.integer("states", states, at_least=1)

    def add(layer):
        if not hasattr(layer, "cell_class"):
            rule = "must be a recurrent layer with a `cell_class`, such as a subclass of SparseHoistedRNN"
            checks.refuse("layer", rule, layer)
        of_gates = _gates(max(len(layer.cell_class.gates), 1))
        RECURRENT_LAYERS[name] = RecurrentLayer(layer, sizes or of_gates, states, dict(arguments or {}))
        return layer

    return add
