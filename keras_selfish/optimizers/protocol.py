"""What callbacks, models and checkpoints expect of an optimizer.

**Any elementwise optimizer of Keras** trains weights that are rewired, as it is, if

- each of its slots has the shape of its variable, is made by `add_variable_from_reference`, which names it
  `<path of the variable, with _ for />_<slot>`, and begins with one number everywhere;
- `from_config(get_config())` makes another one like it, whose slots tell these numbers;
- it moves no weight whose gradient and slots are as they begin: outside a mask gradients are zero, and slots
  are set back (`slot_reset.reset_state`);
- all that it has to remember is in its variables, which files and checkpoints store.

One that does not keep to the first two needs methods of its own, those of `MaskedState`;
`NonMonotonicAveraging` needs those of `Averaging`. A `LanguageModel` that is trained on windows of several
lengths calls `scale_step(factor)` while it computes its loss: the rate of the coming step is to be multiplied
by the factor.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

from keras_selfish.typing import TensorLike

__all__ = ["Averaging", "MaskedState", "can_average"]

_METHODS = (
    "align_masks",
    "exchange_averages",
    "remember_weights",
    "start_averaging",
    "weights_were_replaced",
)


class MaskedState(Protocol):
    """An optimizer that keeps its own state in step with masks."""

    def reset_slots(self, variable: Any, dropped: TensorLike, grown: TensorLike) -> None:
        """Sets the state of connections that were dropped or grown to what it is for none, or for new ones.

        It is called between two steps, after the mask and the weight have changed.

        Args:
            variable: The masked weight, a `keras.Variable` that the optimizer trains.
            dropped: Boolean array of its shape, True where a connection was dropped.
            grown: Boolean array of its shape, True where a connection was grown.
        """

    def align_masks(self) -> None:
        """Fits the state to the masks of its variables, which others may have changed.

        It is called when training begins. A variable's mask, if it has one, is
        `variable.masked_weight.mask`.
        """


class Averaging(MaskedState, Protocol):
    """An optimizer that can average weights, as `NonMonotonicAveraging` uses it.

    Attributes:
        built: Whether it has variables.
        iterations: Variable, the number of updates.
        trigger: Scalar variable, the number of updates when averaging began; -1 before.
        averages_in: Scalar variable, 1 while averages and weights are exchanged, else 0.
        validation_history: Variable (`snt_asgd.HISTORY_LENGTH` + 1,) of float32 for the values that were
            monitored, at first `snt_asgd.NO_VALUE`.
    """

    built: bool
    iterations: Any
    trigger: Any
    averages_in: Any
    validation_history: Any

    def start_averaging(self) -> None:
        """Begins to average now, or anew, and sets `trigger`."""

    def exchange_averages(self) -> None:
        """Swaps weights and averages, bit by bit, and notes it in `averages_in`."""

    def remember_weights(self) -> None:
        """Notes what the weights are, for `weights_were_replaced`."""

    def weights_were_replaced(self) -> bool:
        """Whether others have set the weights since they were remembered, and averages are of no use."""


def can_average(optimizer: Any) -> TypeGuard[Averaging]:
    """Whether an optimizer, without wrappers, has the methods of `Averaging`.

    Args:
        optimizer: A `keras.optimizers.Optimizer`, built or not.
    """
    return all(callable(getattr(optimizer, name, None)) for name in _METHODS)
