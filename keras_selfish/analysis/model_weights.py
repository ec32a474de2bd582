"""The weight matrices of a model, as `topology_distance` compares them."""

from __future__ import annotations

import collections
import math

import keras
import numpy as np

from keras_selfish.analysis.flops import TRANSPOSED_CONVOLUTIONS, weight_matrices
from keras_selfish.analysis.topology import Weight, role_of
from keras_selfish.cloning import nodes, with_inner
from keras_selfish.held_layers import is_model
from keras_selfish.variables import to_numpy

DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
# Layers whose weights do not follow one another.
BRANCHING = (keras.layers.Bidirectional, keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def weights_of_model(model: keras.Layer, name: str, chained: bool) -> list[Weight]:
    """The weight matrices of a model, those without a mask with a connection for each value but zero.

    Args:
        model: A built model or layer.
        name: Name of the argument, for errors.
        chained: Whether its layers have to follow one another.

    Raises:
        ValueError: if the model is not built, or its layers branch though they must not.
    """
    if chained:
        _check_chained(model, name)
    return [_weight(variable, layer) for variable, layer in weight_matrices(model)]


def _check_chained(model, name):
    branching = next((layer for layer in with_inner(model) if isinstance(layer, BRANCHING)), None)
    for inner in with_inner(model):
        if branching is None and is_model(inner) and inner.built:
            branching = _joint(inner)
    if branching is not None:
        raise ValueError(
            f"`{name}` must have layers that follow one another, so that units can be matched. Received: "
            f"{name}={model.name!r}, in which {branching.name!r} joins branches or has them; give "
            "match='none' to compare units in place"
        )


def _joint(model):
    """The first operation of a Functional model that takes several tensors, or one that others take; or None.

    Integers (words, or whether a state begins anew) do not count: they are no units' outputs.
    """
    taken = collections.Counter()
    for node in nodes(model)[0]:
        tensors = {id(tensor) for tensor in node.input_tensors if "float" in str(tensor.dtype)}
        taken.update(tensors)
        if len(tensors) > 1 or any(taken[tensor] > 1 for tensor in tensors):
            return node.operation
    return None


def _weight(variable, layer):
    """A `Weight` of a variable and its layer."""
    masked_weight = getattr(variable, "masked_weight", None)
    if masked_weight is None:  # pruned elsewhere, or stripped of its mask, or dense
        parts = [to_numpy(variable) != 0]
    else:
        mask = np.asarray(to_numpy(masked_weight.mask), bool)
        parts = list(masked_weight.split_gates(mask).values()) if masked_weight.gates else [mask]
    role = role_of(variable.path)
    if isinstance(layer, DEPTHWISE):
        role = "depthwise"
    elif isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        parts = [part.swapaxes(-1, -2) for part in parts]
    elif isinstance(layer, keras.layers.EinsumDense):
        parts = [_inputs_by_outputs(part, layer.equation) for part in parts]
    masked = masked_weight is not None or not all(part.all() for part in parts)
    return Weight(variable.path, parts, masked, role)


def _inputs_by_outputs(kernel, equation):
    """A kernel of an Einsum equation as (inputs, outputs)."""
    operands, outputs = equation.replace(" ", "").split("->")
    axes = operands.split(",")[1]
    summed = [axis for axis, letter in enumerate(axes) if letter not in outputs]
    kept = [axis for axis, letter in enumerate(axes) if letter in outputs]
    inputs = math.prod(kernel.shape[axis] for axis in summed)
    return kernel.transpose(summed + kept).reshape(inputs, -1)
