"""What a SavedModel says of the model in it."""

import math

import keras

from keras_selfish.masks import masked_weights, overall_sparsity
from keras_selfish.version import __version__

# What of an `Architecture` says how the model computes, not how it was trained.
COMPUTED = ("cell", "embedding_units", "tied", "experts", "block_shape", "n_of_m")


def metadata(model, stepwise):
    """Describes a language model in JSON values, as they stand in the asset `model.json`.

    Args:
        model: The language model; its `architecture`, if it has one, tells cell, units and blocks.
        stepwise: What its method `stepwise()` returns.

    Returns:
        A dict. `states` has the width of each state by name; `weights` has name, shape, sparsity and block
        shape of each masked weight, `sparsity` the fraction of zeros over all of them.
    """
    weights = masked_weights(stepwise)
    described = {
        "keras_selfish": __version__,
        "keras": keras.__version__,
        "model": getattr(model, "name", stepwise.name),
        "vocabulary_size": stepwise.outputs[0].shape[-1],
        "compute_dtype": stepwise.outputs[0].dtype,
        "states": {state.name: state.shape[-1] for state in stepwise.inputs[1:]},
        "sparsity": overall_sparsity(weights),
    }
    architecture = getattr(model, "architecture", None)
    if architecture is not None:
        config = architecture.get_config()
        described["units"] = list(architecture.layer_units)
        described |= {name: config[name] for name in COMPUTED}
        described["embedding_units"] = architecture.token_units
    described["weights"] = [_describe(weight) for weight in weights]
    return described


def _describe(weight):
    return {
        "name": weight.name,
        "shape": list(weight.shape),
        "sparsity": 1.0 - weight.active / math.prod(weight.shape),
        "block_shape": list(weight.block_shape),
    }
