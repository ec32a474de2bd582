"""Optimizer state of single connections: that of dropped or grown ones is reset, their momentum is read."""

from __future__ import annotations

import weakref
from typing import Any

import keras
from keras import ops

from keras_selfish.keras_internals import trained_variables
from keras_selfish.optimizers.wrappers import holders, leaves
from keras_selfish.variables import fill

__all__ = ["check_elementwise", "momentum_of", "reset_state"]

# Optimizers that mix the entries of a matrix: a reset at single positions means nothing there.
_NOT_ELEMENTWISE = (keras.optimizers.Muon, keras.optimizers.Adafactor)

# Whose slot "momentum" is one of gradients, and whose update divides it by the root of the slot "velocity".
_WITH_MOMENTUM = (keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.Nadam)
_DIVIDING = (keras.optimizers.Adam, keras.optimizers.Nadam)

_PROBE_SHAPE = (2, 3)

_initial_values: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def reset_state(optimizer, masked_weight, dropped, grown):
    """Resets the optimizer's state to its initial value at changed positions.

    Momentum left on a dropped weight would move it away from zero, and a new connection must not inherit
    the momentum of an old one. This works for any elementwise Keras optimizer, its gradient accumulators
    and moving averages included, within a `LossScaleOptimizer` or a `MultiOptimizer` too. An optimizer that
    has a method `reset_slots(variable, dropped, grown)` does it itself.

    Args:
        optimizer: The `keras.optimizers.Optimizer` of the model; before it is built there is no state.
        masked_weight: The `MaskedWeight` that changed.
        dropped: Boolean array of the weight's shape: connections that were dropped.
        grown: Boolean array of the weight's shape: connections that were grown.

    Raises:
        ValueError: if the optimizer is not elementwise, or its state of this weight is ambiguous.
    """
    variable = masked_weight.weight
    dropped, grown = ops.convert_to_tensor(dropped), ops.convert_to_tensor(grown)
    for leaf in holders(optimizer, variable):
        check_elementwise(leaf)
        if not leaf.built:
            continue
        if hasattr(leaf, "reset_slots"):
            leaf.reset_slots(variable, dropped, grown)
            continue
        changed = ops.logical_or(dropped, grown)
        for slot, initial in _slots(leaf, variable).values():
            fill(slot, changed, initial)


def momentum_of(optimizer, variable):
    """The momentum that an optimizer has of a variable; of Adam, divided by the root of its mean square.

    Args:
        optimizer: The `keras.optimizers.Optimizer` of the model.
        variable: A `keras.Variable` that it trains.

    Returns:
        A tensor, up to a factor that all variables share; None for an optimizer other than SGD with
        momentum, Adam (AdamW) and Nadam, before its first step, and within a `MultiOptimizer`, whose
        optimizers have factors of their own.
    """
    (leaf, *others) = leaves(optimizer)
    if others or not isinstance(leaf, _WITH_MOMENTUM) or not leaf.built:
        return None
    if not int(ops.convert_to_numpy(leaf.iterations)):
        return None
    slots = {name: slot for name, (slot, _) in _slots(leaf, variable).items()}
    if "momentum" not in slots:
        return None
    momentum = ops.convert_to_tensor(slots["momentum"])
    if isinstance(leaf, _DIVIDING):
        momentum = momentum / (ops.sqrt(ops.convert_to_tensor(slots["velocity"])) + 1e-8)
    return momentum


def check_elementwise(optimizer):
    """Raises `ValueError` for an optimizer (no wrapper) that mixes the entries of a matrix.

    Args:
        optimizer: One of the optimizers that `wrappers.leaves` returns.
    """
    if hasattr(optimizer, "reset_slots"):
        return
    if isinstance(optimizer, _NOT_ELEMENTWISE):
        raise ValueError(
            "`optimizer` must update each weight by itself to train weights that are rewired. "
            f"Received: {type(optimizer).__name__}, which mixes the entries of a matrix; use SGD or Adam"
        )
    _initial_slot_values(optimizer)


def _slots(optimizer, variable):
    """What an optimizer keeps for a variable, a dict from the name of a slot to (slot, initial value)."""
    prefix = _slot_prefix(variable.path)
    # Keras lets slots have one name, as those of variables of one path; they come in the variables' order.
    alike = [
        one
        for one in trained_variables(optimizer)
        if _slot_prefix(one.path) == prefix and tuple(one.shape) == tuple(variable.shape)
    ]
    place = next((index for index, one in enumerate(alike) if one is variable), 0)
    pairs = {}
    for suffix, initial in _initial_slot_values(optimizer).items():
        found = [slot for slot in optimizer.variables if slot.name == prefix + suffix]
        found = [slot for slot in found if tuple(slot.shape) == tuple(variable.shape)]
        if len(found) != len(alike):
            raise ValueError(
                f"`optimizer` must keep one variable {suffix!r} of shape {tuple(variable.shape)} for each "
                f"weight {variable.path!r}. Received: {type(optimizer).__name__} with {len(found)} for "
                f"{len(alike)}; give the layers of the model unique names"
            )
        pairs[suffix] = (found[place], initial)
    return pairs


def _slot_prefix(path):
    return path.replace("/", "_") + "_"


def _initial_slot_values(optimizer):
    """The names of an optimizer's slots with the initial value of each, for a weight that is zero.

    An optimizer of the same configuration tells them when it is built for a small variable.
    """
    if optimizer not in _initial_values:
        _initial_values[optimizer] = _probe(optimizer)
    return _initial_values[optimizer]


def _probe(optimizer):
    try:
        config = optimizer.get_config()
        if "learning_rate" in config:  # a schedule need not be made again to know the slots
            config["learning_rate"] = 0.001
        twin = type(optimizer).from_config(config)
    except TypeError as error:
        raise ValueError(
            "`optimizer` must be one that `from_config(get_config())` makes again. Received: "
            f"{type(optimizer).__name__}; give it a method `reset_slots(variable, dropped, grown)`"
        ) from error
    variable = keras.Variable(ops.zeros(_PROBE_SHAPE), name="probe")
    twin.build([variable])
    prefix = _slot_prefix(variable.path)
    initial = {}
    for slot in twin.variables:
        if len(slot.shape) == 0:
            continue
        if tuple(slot.shape) != _PROBE_SHAPE or not slot.name.startswith(prefix):
            raise ValueError(
                "`optimizer` must keep state of the shape of each weight to train weights that are rewired. "
                f"Received: {type(optimizer).__name__}, whose variable {slot.name!r} has another shape or "
                "name; give it a method `reset_slots(variable, dropped, grown)`"
            )
        initial[slot.name.removeprefix(prefix)] = float(ops.convert_to_numpy(slot)[0, 0])
    return initial
