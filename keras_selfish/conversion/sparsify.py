"""Sparse models from plain Keras layers: the inverse of `strip`."""

import random

import keras
import numpy as np
from keras import ops

from keras_selfish import layers as sparse_layers
from keras_selfish import masks
from keras_selfish.cloning import check_model, clone, copy_state, from_config, shared_layers

SPARSE_CLASSES = {
    sparse_class.keras_layer: sparse_class
    for sparse_class in (
        sparse_layers.SparseConv1D,
        sparse_layers.SparseConv2D,
        sparse_layers.SparseDense,
        sparse_layers.SparseDepthwiseConv2D,
        sparse_layers.SparseEinsumDense,
        sparse_layers.SparseEmbedding,
        sparse_layers.SparseGRU,
        sparse_layers.SparseGRUCell,
        sparse_layers.SparseLSTM,
        sparse_layers.SparseLSTMCell,
        sparse_layers.SparseReversibleEmbedding,
        sparse_layers.SparseSimpleRNN,
        sparse_layers.SparseSimpleRNNCell,
    )
}
SPARSE_CLASSES_BY_NAME = {keras_layer.__name__: cls for keras_layer, cls in SPARSE_CLASSES.items()}
INITIAL = ("magnitude", "random", "nonzero")


def sparsify(
    model,
    sparsity=None,
    distribution="uniform",
    block_shape=(1, 1),
    n_of_m=None,
    mask_seed=None,
    layers=None,
    initial="magnitude",
):
    """Returns the same model in sparse layers, with the weights of the connections that are chosen to exist.

    It is a copy: names, dtype policies and weights are those of the model, which is left as it is. Nested
    models and wrappers (`Bidirectional`, `TimeDistributed`, `RNN` with Keras's cells) are entered, and a
    layer that is shared in the model is shared in the copy. Layers without a sparse form are copied as they
    are; so are sparse ones, with their masks. The copy is not compiled, and its random generators start anew.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        sparsity: Fraction of zeros over all weights that are masked together, in [0, 1). None with
            `initial="nonzero"`, which finds the zeros.
        distribution: How the weights of the model share the connections: `"uniform"` (default),
            `"erdos_renyi"` or `"erk"`.
        block_shape: (input weights, units) of the blocks in which connections come and go; they must divide
            every weight that is masked. Default `(1, 1)`, single weights.
        n_of_m: `(n, m)` for exactly n of each m consecutive input weights of a unit, such as `(2, 4)`; it
            fixes the sparsity. Default None.
        mask_seed: Integer seed of what is drawn: random masks, and which of equal weights exist. None
            (default) draws one.
        layers: Which layers become sparse: a function of a Keras layer that returns True or False, such as
            `lambda layer: layer.name != "classifier"`. A wrapper answers for all that is in it. By default
            all that have a sparse form do.
        initial: Which connections exist: `"magnitude"` (default), the largest blocks of each weight by
            their L2 norm; `"random"`, any; `"nonzero"`, blocks with a value other than zero, as in a model
            that has been pruned or stripped. Layers without a zero then stay plain ones.

    Returns:
        A `keras.Sequential` if the model is one, else a Functional `keras.Model`.

    Raises:
        ValueError: if the model is subclassed or not built, none of its layers is to become sparse, or an
            argument is out of range.

    Example:

    >>> import keras
    >>> from keras_selfish import masked_weights, sparsify
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(4)])
    >>> sparse = sparsify(model, 0.75)
    >>> [(type(layer).__name__, masked_weights(layer)[0].active) for layer in sparse.layers]
    [('SparseDense', 32), ('SparseDense', 16)]
    """
    check_model(model, "sparsify the functional models that it is made of")
    if n_of_m is not None:
        sparsity = _sparsity_of_pattern(n_of_m, sparsity, initial)
    _check_arguments(sparsity, layers, initial)
    masks.check_distribution(distribution)
    masks.check_block_shape(block_shape)
    seed = random.randint(0, 2**31 - 1) if mask_seed is None else masks.check_seed(mask_seed, "mask_seed")
    arguments = {"distribution": distribution, "block_shape": list(block_shape), "mask_seed": mask_seed}
    if n_of_m is not None:
        arguments["n_of_m"] = list(n_of_m)

    def arguments_of(layer):
        # Which weights a layer masks is known once it is made; until then any sparsity will do.
        nominal = 0.5 if sparsity is None else sparsity
        return {**arguments, "sparsity": nominal} if layers is None or layers(layer) else None

    twin, masked = sparse_twin(model, arguments_of)
    if not masked and sparsity != 0:
        raise ValueError(
            "`model` must have a layer that `layers` admits and that has a sparse form. Received: "
            f"model={model.name!r}; those with one are {', '.join(sorted(SPARSE_CLASSES_BY_NAME))}"
        )
    if initial == "nonzero":
        found = {id(source): masks.nonzero_mask(_numpy_of(source), block_shape) for source, _ in masked}
        if all(mask.all() for mask in found.values()):
            raise ValueError(
                f"`model` must have zeros with initial='nonzero'. Received: model={model.name!r}, without a "
                f"block {tuple(block_shape)} of zeros; pass a `sparsity` and another `initial`"
            )
        return twin_with_masks(model, found, lambda layer: arguments)
    counts = masks.active_counts(
        [weight.shape for _, weight in masked], sparsity or 0.0, distribution, [block_shape] * len(masked)
    )
    for index, ((source, weight), active) in enumerate(zip(masked, counts, strict=True)):
        if n_of_m is not None and initial == "random":
            mask = masks.n_of_m_mask(weight.shape, n_of_m, [seed, index])
        elif n_of_m is not None:
            mask = masks.largest_n_of_m_mask(_numpy_of(source), n_of_m)
        elif initial == "random":
            mask = masks.random_mask(weight.shape, active, [seed, index], block_shape)
        else:
            mask = masks.largest_mask(_numpy_of(source), active, [seed, index], block_shape)
        weight.mask.assign(mask)
        weight.unpruned = _numpy_of(source)
    return twin


def sparse_twin(model, arguments_of):
    """Copies a model, some of its layers as sparse ones whose masks are drawn but not yet applied.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        arguments_of: Function of a layer that gives the arguments of its masks as a dict, or None for a
            layer that is to stay as it is.

    Returns:
        The copy, and a list of pairs (variable of `model`, `MaskedWeight` of the copy) of the weights that
        are masked in the copy only, in the order of the copy's variables.
    """

    def copy_layer(layer, copy_of):
        # Functional models also hold operations such as `x + 1`, which are no layers.
        arguments = arguments_of(layer) if isinstance(layer, keras.Layer) else None
        if arguments is None:
            return from_config(type(layer), {**layer.get_config(), **shared_layers(layer, copy_of)})
        config = {**_sparse_config(layer.get_config(), arguments), **shared_layers(layer, copy_of)}
        if type(layer) in SPARSE_CLASSES:
            return SPARSE_CLASSES[type(layer)].from_config({**config, **arguments})
        return from_config(type(layer), config)

    twin, pairs = clone(model, copy_layer)
    sources = {}
    for layer, copy in pairs:
        sources.update(_copy_weights(layer, copy))
    return twin, [(sources[id(w)], w) for w in masks.masked_weights(twin) if id(w) in sources]


def twin_with_masks(model, given, arguments_of):
    """The sparse twin of a model with given masks.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        given: Dict from the id of a variable of the model to its mask, a boolean NumPy array.
        arguments_of: Function of a layer that gives the arguments of its masks but the sparsity.
    """

    def with_sparsity(layer):
        own = [given[id(variable)] for variable in layer.weights if id(variable) in given]
        size, active = sum(mask.size for mask in own), sum(np.count_nonzero(mask) for mask in own)
        # A layer that has lost all its connections has masks as well.
        return {**arguments_of(layer), "sparsity": 1 - max(active, 1) / size} if active < size else None

    twin, masked = sparse_twin(model, with_sparsity)
    used = {id(source) for source, _ in masked}
    for variable in model.weights:
        if id(variable) in given.keys() - used and not given[id(variable)].all():
            raise ValueError(
                "`model` must be sparse in layers that have a sparse form only. Received: zeros in "
                f"{variable.path}; those with one are {', '.join(sorted(SPARSE_CLASSES_BY_NAME))}"
            )
    for source, weight in masked:
        weight.mask.assign(given[id(source)])
    return twin


def _sparsity_of_pattern(n_of_m, sparsity, initial):
    if sparsity is not None or initial == "nonzero":
        raise ValueError(
            "`n_of_m` fixes which and how many connections exist; leave `sparsity` out and `initial` at "
            f"'magnitude' or 'random'. Received: n_of_m={n_of_m}, sparsity={sparsity}, initial={initial!r}"
        )
    n, m = masks.check_n_of_m(n_of_m)
    return 1.0 - n / m


def _check_arguments(sparsity, layers, initial):
    if initial not in INITIAL:
        raise ValueError(f"`initial` must be one of {', '.join(INITIAL)}. Received: initial={initial!r}")
    if initial != "nonzero":
        masks.check_sparsity(sparsity)
    elif sparsity is not None:
        raise ValueError(
            "`sparsity` must be None with initial='nonzero': the zeros of the model decide. "
            f"Received: sparsity={sparsity!r}"
        )
    if layers is not None and not callable(layers):
        raise ValueError(
            f"`layers` must be a function of a layer, or None for all. Received: layers={layers!r}; for a "
            "list of names pass `lambda layer: layer.name in names`"
        )


def _sparse_config(config, arguments):
    """Replaces the Keras layers that are serialized within a config, as wrappers and cells are."""
    if isinstance(config, (list, tuple)):
        return type(config)(_sparse_config(value, arguments) for value in config)
    if not isinstance(config, dict):
        return config
    config = {key: _sparse_config(value, arguments) for key, value in config.items()}
    if config.get("module") != "keras.layers" or config["class_name"] not in SPARSE_CLASSES_BY_NAME:
        return config
    sparse_class = SPARSE_CLASSES_BY_NAME[config["class_name"]]
    layer = sparse_class.from_config({**config["config"], **arguments})
    return {**config, **keras.saving.serialize_keras_object(layer)}


def _copy_weights(layer, copy):
    """Copies weights and masks; returns the sources of the weights that only the copy masks, by id."""
    weights, targets = _without_masks(layer), _without_masks(copy)
    if [weight.shape for weight in weights] != [weight.shape for weight in targets]:
        raise ValueError(
            "`model` must consist of layers that their config describes in full. Received: layer "
            f"{layer.name!r} of class {type(layer).__name__}, whose copy has other weights"
        )
    sources = {}
    for weight, target in zip(weights, targets, strict=True):
        target.assign(ops.copy(ops.convert_to_tensor(weight)))  # on JAX a step would delete it
        masked, target_masked = (getattr(one, "masked_weight", None) for one in (weight, target))
        if masked is not None:
            target_masked.mask.assign(masked.mask)
        elif target_masked is not None:
            sources[id(target_masked)] = weight
    copy_state(layer, copy)
    return sources


def _without_masks(layer):
    of_masks = {id(weight.mask) for weight in masks.masked_weights(layer)}
    return [variable for variable in layer.weights if id(variable) not in of_masks]


def _numpy_of(variable):
    return ops.convert_to_numpy(variable)
