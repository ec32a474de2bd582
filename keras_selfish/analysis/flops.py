"""Floating-point operations of a sparse model, and of the same model without masks.

The convention is the customary one of papers on sparse training: what is counted are the products with
weights, a multiplication and an addition being two operations; nothing is counted for a connection that does
not exist. The figures are of what has to be computed, not of what a given machine saves: most dense kernels
multiply by the zeros as well.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import keras
import numpy as np

from keras_selfish.cloning import with_inner
from keras_selfish.keras_internals import own_trainable_variables
from keras_selfish.variables import to_numpy

CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
TRANSPOSED_CONVOLUTIONS = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
# Attributes by which Keras's layers hold parameters that are added to or multiplied with single activations.
ELEMENTWISE = ("bias", "beta", "gamma", "alpha")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A figure of a model without its masks and with them.

    Args:
        dense: The figure if every weight existed.
        sparse: The figure of the connections that exist.

    Example:

    >>> Comparison(dense=200, sparse=66).ratio
    0.33
    """

    dense: int
    sparse: int

    @property
    def ratio(self) -> float:
        """Sparse as a fraction of dense; 1 where both are zero."""
        return self.sparse / self.dense if self.dense else 1.0


def inference_flops(model: keras.Layer) -> Comparison:
    """Operations of one forward pass per token, time step or example (see `unit_of`).

    Every kernel of a fully connected or recurrent layer costs two operations per connection; so does the
    matrix of a reversible embedding, which serves as the decoder; the decoder of a mixture of softmaxes
    costs as much for each expert. A convolution's kernel is applied at every position of its output (input,
    if transposed) and costs as many times more. Looking up an
    embedding costs nothing. Biases, activation functions, normalisation and products of activations
    with each other are not counted, nor that a layer may be called more than once.

    Args:
        model: A built `keras.Model` or layer, sparse or not.

    Returns:
        A `Comparison` of integers.

    Raises:
        ValueError: if the model is not built, or the size of the images that a convolution sees is unknown.

    Example:

    >>> from keras_selfish import SparseDense
    >>> model = keras.Sequential([keras.Input((8,)), SparseDense(10, sparsity=0.75)])
    >>> inference_flops(model)
    Comparison(dense=160, sparse=40)
    """
    dense = sparse = 0
    repeated = _repeated(model)
    for variable, layer in weight_matrices(model):
        products = 2 * repeated.get(id(variable), products_per_position(variable, layer))
        dense += products * math.prod(variable.shape)
        sparse += products * non_zeros(variable)
    return Comparison(dense, sparse)


def training_flops(model: keras.Layer) -> Comparison:
    """Operations of one training step per token, time step or example (see `unit_of`).

    Three times those of the forward pass: the backward pass takes two products per weight, one for the
    gradient of its input and one for its own. The optimizer and rewiring, which do not grow with the batch,
    are not counted.

    Args:
        model: A built `keras.Model` or layer, sparse or not.

    Returns:
        A `Comparison` of integers.

    Raises:
        ValueError: as `inference_flops`.

    Reference: Evci et al. 2020, "Rigging the Lottery", arXiv 1911.11134, appendix on FLOPs.
    """
    forward = inference_flops(model)
    return Comparison(3 * forward.dense, 3 * forward.sparse)


def weight_matrices(model: keras.Layer) -> list[tuple[keras.Variable, keras.Layer]]:
    """The weight matrices of a model: its trainable variables, frozen ones included, with two axes or more.

    Biases and scales are none, though a GRU's bias has two axes.

    Args:
        model: A built `keras.Model` or layer.

    Returns:
        A list of pairs (variable, the layer that owns it), in the order of the model's variables.

    Raises:
        ValueError: if the model is not built.
    """
    return [
        (variable, layer)
        for variable, layer in trainable_weights(model)
        if len(variable.shape) >= 2
        and all(getattr(layer, name, None) is not variable for name in ELEMENTWISE)
    ]


def trainable_weights(model: keras.Layer) -> list[tuple[keras.Variable, keras.Layer]]:
    """All trainable variables of a model, frozen ones included, as pairs (variable, owner)."""
    if not model.built:
        raise ValueError(
            f"`model` must be built, so that it has weights. Received: model={model.name!r}; call it on data "
            "or give it a `keras.Input` first"
        )
    owners = {
        id(variable): layer for layer in with_inner(model) for variable in own_trainable_variables(layer)
    }
    return [(variable, owners[id(variable)]) for variable in model.weights if id(variable) in owners]


def unit_of(model: keras.Layer) -> Literal["token", "time step", "example"]:
    """The unit that operations are counted for.

    Returns:
        `"token"` in a model with an embedding, `"time step"` in another recurrent one, else `"example"`.
    """
    layers = with_inner(model)
    if any(isinstance(layer, keras.layers.Embedding) for layer in layers):
        return "token"
    return "time step" if any(isinstance(layer, keras.layers.RNN) for layer in layers) else "example"


def non_zeros(variable: keras.Variable) -> int:
    """Number of connections of a masked weight, of values other than zero of any other weight."""
    masked_weight = getattr(variable, "masked_weight", None)
    if masked_weight is not None:  # a connection that has just been grown is still zero
        return masked_weight.active
    return int(np.count_nonzero(to_numpy(variable)))


def _repeated(model):
    """Multiplications per token by id, of layers with `repeated_weights`."""
    pairs = (pair for layer in with_inner(model) for pair in getattr(layer, "repeated_weights", ()))
    return {id(variable): times for variable, times in pairs}


def products_per_position(variable, layer):
    """How often each connection of a weight matrix is multiplied per token or example."""
    if isinstance(layer, keras.layers.ReversibleEmbedding):
        return int(layer.tie_weights or variable is layer.reverse_embeddings)
    if isinstance(layer, keras.layers.Embedding):
        return 0
    if isinstance(layer, CONVOLUTIONS + TRANSPOSED_CONVOLUTIONS):
        return _pixels(layer)
    return 1


def _pixels(layer):
    """Number of positions at which a convolution applies its kernel."""
    try:
        tensor = layer.input if isinstance(layer, TRANSPOSED_CONVOLUTIONS) else layer.output
    except (AttributeError, ValueError):  # never called on symbolic tensors
        axes = (None,)
    else:
        axes = tensor.shape[1:-1] if layer.data_format == "channels_last" else tensor.shape[2:]
    if None in axes:
        raise ValueError(
            f"`model` must tell the size of the images that its convolution {layer.name!r} sees, on which "
            "its operations depend; make it a Functional model of a `keras.Input` with fixed axes. "
            f"Received: axes {axes}"
        )
    return math.prod(axes)
