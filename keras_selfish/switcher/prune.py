"""A trained switcher applied to a network, also to one that it has not seen."""

import keras
import numpy as np
from keras import ops

from keras_selfish import masks
from keras_selfish.layers.switched_dense import SwitchedDense


def prune(switcher, model, target_sparsity=None):
    """Switches the layers of a model in place. See `SwitcherNetwork.prune`."""
    if not model.built:
        raise ValueError(f"`model` must be built. Received: model={model.name!r}; call it on data first")
    if target_sparsity is not None:
        masks.check_sparsity(target_sparsity, "target_sparsity")
    layers = _layers_to_prune(switcher, model)
    if not switcher.built:
        switcher.build()
    kernels = [layer._kernel if isinstance(layer, SwitchedDense) else layer.kernel for layer in layers]
    logits = [ops.convert_to_numpy(switcher(ops.convert_to_tensor(kernel))) for kernel in kernels]
    decisions = _decide(
        logits, [kernel.shape[0] for kernel in kernels], switcher.granularity, target_sparsity
    )
    sparsities = {}
    for layer, kernel, is_open in zip(layers, kernels, decisions, strict=True):
        if isinstance(layer, SwitchedDense):
            scale = switcher.units(ops.convert_to_tensor(kernel))[1] if layer.scale is not None else None
            layer.set_switches(is_open, scale)
        else:
            kernel.assign(np.where(is_open, ops.convert_to_numpy(kernel), 0))
        sparsities[layer.name] = 1.0 - float(is_open.mean())
    return sparsities


def _layers_to_prune(switcher, model):
    layers = model._flatten_layers()  # Keras 3.15 has no public way to layers inside layers
    dense = [layer for layer in layers if isinstance(layer, keras.layers.Dense)]
    switched = [layer for layer in dense if isinstance(layer, SwitchedDense)]
    if any(layer.granularity != switcher.granularity for layer in switched):
        raise ValueError(
            "`model` must have layers of the switcher's granularity. Received: a switcher of granularity "
            f"{switcher.granularity} and a layer of another"
        )
    if switched:
        return switched
    if switcher.granularity == "neuron" or len(dense) < 2:
        raise ValueError(
            "`model` must have a SwitchedDense layer, or for a switcher of connections a Dense layer that is "
            f"not the last. Received: model={model.name!r}"
        )
    return dense[:-1]


def _decide(logits, inputs, granularity, target_sparsity):
    """What is on: an array per layer."""
    if target_sparsity is None:
        return [logit > 0 for logit in logits]
    every = np.concatenate([logit.ravel() for logit in logits])
    order = np.argsort(every, kind="stable")  # ties: the first ones go
    if granularity == "connection":
        closed = every.size - round((1.0 - target_sparsity) * every.size)
    else:
        connections = np.repeat(inputs, [logit.size for logit in logits])[order]
        # As many units as come nearest to the target.
        closed = np.abs(np.cumsum([0, *connections]) - target_sparsity * connections.sum()).argmin()
    is_open = np.ones(every.size, bool)
    is_open[order[:closed]] = False
    ends = np.cumsum([logit.size for logit in logits])[:-1]
    return [part.reshape(logit.shape) for part, logit in zip(np.split(is_open, ends), logits, strict=True)]
