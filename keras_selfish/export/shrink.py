"""Which units of a model can be taken out of it: they are switched off, and nothing else needs them."""

import collections
import dataclasses

import keras
import numpy as np
from keras import ops

from keras_selfish.cloning import nodes
from keras_selfish.layers import SwitchedDense

# Layers that compute, at inference, one feature from the same feature before; checked to keep zeros.
ELEMENTWISE = (
    keras.layers.Activation,
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.ELU,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.LeakyReLU,
    keras.layers.ReLU,
)
READERS = (keras.layers.Dense, SwitchedDense)


@dataclasses.dataclass
class Cut:
    """What is left of a dense layer.

    Args:
        units: Indices of the units that stay; None for all.
        inputs: Indices of the inputs that stay; None for all.
        silent: Indices of inputs that stay, but are always zero; None for none.
    """

    units: object = None
    inputs: object = None
    silent: object = None

    def apply(self, weights):
        """Kernel and bias of what is left.

        Args:
            weights: List of the kernel (inputs, units) and, if there is one, the bias (units,).
        """
        kernel, *bias = weights
        if self.silent is not None:
            kernel = kernel.copy()
            kernel[self.silent] = 0
        if self.inputs is not None:
            kernel = kernel[self.inputs]
        if self.units is not None:
            kernel, bias = kernel[:, self.units], [one[self.units] for one in bias]
        return [kernel, *bias]


def cuts(model):
    """What is left of the dense layers of a Functional or Sequential model whose units are switched.

    A unit that is off outputs zero. It goes, with the rows of the layers that read it, where its layer's
    output reaches dense layers only, through layers that keep zeros. Elsewhere it stays, with weights of
    zero.

    Args:
        model: A built Functional or Sequential `keras.Model`; nested ones are looked at on their own.

    Returns:
        A dict from the layer's id to its `Cut`.

    Raises:
        ValueError: if a unit that is off has to stay and its activation of zero is not zero.
    """
    order, outputs = nodes(model)
    users = collections.defaultdict(list)
    for node in order:
        for tensor in node.input_tensors:
            users[id(tensor)].append(node)
    calls = collections.Counter(id(node.operation) for node in order)
    found = collections.defaultdict(Cut)
    for node in order:
        layer = node.operation
        if not isinstance(layer, SwitchedDense) or layer.granularity != "neuron":
            continue
        is_on = ops.convert_to_numpy(layer.mask)[0]
        readers = _readers(node.output_tensors, users, outputs, calls) if calls[id(layer)] == 1 else None
        if is_on.all():
            continue
        if not readers:
            _check_silence(layer)
            continue
        kept = np.flatnonzero(is_on)
        if not kept.size:  # a layer must have a unit
            kept = np.zeros(1, int)
        found[id(layer)].units = kept
        for reader in readers:
            found[id(reader)].inputs, found[id(reader)].silent = kept, np.flatnonzero(~is_on)
    return dict(found)


def _readers(tensors, users, outputs, calls):
    """The dense layers that alone read some tensors, through layers that keep zeros; None if others do."""
    readers, front = [], list(tensors)
    while front:
        tensor = front.pop()
        if id(tensor) in outputs:
            return None
        for node in users[id(tensor)]:
            layer = node.operation
            if type(layer) in READERS and calls[id(layer)] == 1:
                readers.append(layer)
            elif isinstance(layer, ELEMENTWISE) and _keeps_zero(layer):
                front += node.output_tensors
            else:
                return None
    return readers


def _keeps_zero(layer):
    activation = layer.activation if isinstance(layer, keras.layers.Activation) else None
    if activation is keras.activations.softmax:
        return False
    return float(ops.convert_to_numpy(layer(ops.zeros((1, 1))))[0, 0]) == 0.0


def _check_silence(layer):
    if (
        layer.activation is None
        or float(ops.convert_to_numpy(layer.activation(ops.zeros((1, 1))))[0, 0]) == 0
    ):
        return
    raise ValueError(
        "A unit that is off and cannot be taken out must have an activation that is zero at zero. Received: "
        f"layer {layer.name!r}, whose output reaches others than dense layers; use relu or tanh there"
    )
