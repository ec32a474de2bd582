"""Pruning by a trained switcher, also of networks that it was not trained with."""

import keras
import numpy as np
from keras import ops

from keras_selfish import checks, masks
from keras_selfish.cloning import with_inner
from keras_selfish.layers.switched_dense import SwitchedDense

LAYER_SHARES = ("magnitude", "logits")


def prune(switcher, model, target_sparsity=None, layer_shares="magnitude"):
    """Switches the layers of a model in place. See `SwitcherNetwork.prune`."""
    checks.one_of("layer_shares", layer_shares, LAYER_SHARES)
    if not model.built:
        raise ValueError(f"`model` must be built. Received: model={model.name!r}; call it on data first")
    if target_sparsity is not None:
        masks.check_sparsity(target_sparsity, "target_sparsity")
    layers = _layers_to_prune(switcher, model)
    if not switcher.built:
        switcher.build()
    kernels = [layer.kernel for layer in layers]
    logits = [ops.convert_to_numpy(switcher(ops.convert_to_tensor(kernel))) for kernel in kernels]
    if target_sparsity is None:
        decisions = [logit > 0 for logit in logits]
    elif switcher.granularity == "neuron":
        decisions = _units(logits, [kernel.shape[0] for kernel in kernels], target_sparsity)
    else:
        decisions = _connections(logits, kernels if layer_shares == "magnitude" else None, target_sparsity)
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
    layers = with_inner(model)
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


def _connections(logits, kernels, target_sparsity):
    """The connections with the largest logits; given kernels, as many in each layer as by magnitude."""
    size = sum(logit.size for logit in logits)
    closed = size - round((1.0 - target_sparsity) * size)
    if kernels is None:
        return _open(logits, _order(logits)[:closed])
    magnitudes = [np.abs(ops.convert_to_numpy(kernel)) for kernel in kernels]
    kept = _open(magnitudes, _order(magnitudes)[:closed])
    return [
        _open([logit], _order([logit])[: np.count_nonzero(~part)])[0]
        for logit, part in zip(logits, kept, strict=True)
    ]


def _units(logits, inputs, target_sparsity):
    """The units with the largest logits, in the number nearest to the target."""
    order = _order(logits)
    connections = np.repeat(inputs, [logit.size for logit in logits])[order]
    closed = np.abs(np.cumsum([0, *connections]) - target_sparsity * connections.sum()).argmin()
    return _open(logits, order[:closed])


def _order(arrays):
    """Positions of all values in ascending order; equal values keep their order."""
    return np.argsort(np.concatenate([array.ravel() for array in arrays]), kind="stable")


def _open(arrays, closed):
    """False at those positions of all arrays together, true elsewhere; an array for each."""
    is_open = np.ones(sum(array.size for array in arrays), bool)
    is_open[closed] = False
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(is_open, ends), arrays, strict=True)]
