"""Sparse models from plain Keras layers: the inverse of `strip`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, overload

import keras
import numpy as np
from absl import logging
from keras import ops

from keras_selfish import checks, masks
from keras_selfish.cloning import (
    check_model,
    clone_layers,
    copy_state,
    from_config,
    is_model,
    shared_layers,
    with_inner,
)
from keras_selfish.conversion.report import SparsifyReport
from keras_selfish.conversion.sparse_forms import SPARSE_CLASSES, SPARSE_CLASSES_BY_NAME, masked_sources
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.typing import BlockShape, Distribution, Pattern

_Model = TypeVar("_Model", keras.Model, keras.Layer, Sequence[keras.Layer])

INITIAL = ("magnitude", "random", "nonzero")


@overload
def sparsify(
    model: _Model,
    sparsity: float | None = None,
    distribution: Distribution = "uniform",
    block_shape: BlockShape = (1, 1),
    n_of_m: Pattern | None = None,
    mask_seed: int | None = None,
    layers: Callable[[keras.Layer], bool] | None = None,
    initial: Literal["magnitude", "random", "nonzero"] = "magnitude",
    return_report: Literal[False] = False,
) -> _Model: ...
@overload
def sparsify(
    model: _Model,
    sparsity: float | None = None,
    distribution: Distribution = "uniform",
    block_shape: BlockShape = (1, 1),
    n_of_m: Pattern | None = None,
    mask_seed: int | None = None,
    layers: Callable[[keras.Layer], bool] | None = None,
    initial: Literal["magnitude", "random", "nonzero"] = "magnitude",
    *,
    return_report: Literal[True],
) -> tuple[_Model, SparsifyReport]: ...
def sparsify(
    model: _Model,
    sparsity: float | None = None,
    distribution: Distribution = "uniform",
    block_shape: BlockShape = (1, 1),
    n_of_m: Pattern | None = None,
    mask_seed: int | None = None,
    layers: Callable[[keras.Layer], bool] | None = None,
    initial: Literal["magnitude", "random", "nonzero"] = "magnitude",
    return_report: bool = False,
) -> Any:
    """Returns the same model in sparse layers, with the weights of the connections that are chosen to exist.

    It is a copy: names, dtype policies and weights are those of the model, which is left as it is. Nested
    models and wrappers (`Bidirectional`, `TimeDistributed`, `RNN` with Keras's cells) are entered, and a
    layer that is shared in the model is shared in the copy. Layers without a sparse form are copied as they
    are; so are sparse ones, with their masks, and layers that blocks or patterns do not divide, such as a
    first convolution of 3 channels. One line of the log names those that stay dense so, and the report says
    of each matrix why it is dense. The copy is not compiled, and its random generators start anew.

    A layer that is not built has no weights yet: it becomes a sparse one that draws its masks when it is
    built.

    Args:
        model: A Functional or Sequential `keras.Model`, a layer, or a list of layers and models.
        sparsity: Fraction of zeros over all weights that are masked together, in [0, 1). None with
            `initial="nonzero"`, which finds the zeros.
        distribution: How the weights of the model share the connections: `"uniform"` (default),
            `"erdos_renyi"` or `"erk"`. All layers must be built for the last two.
        block_shape: (input weights, units) of the blocks in which connections come and go. Default `(1, 1)`,
            single weights.
        n_of_m: `(n, m)` for exactly n of each m consecutive input weights of a unit, such as `(2, 4)`; it
            fixes the sparsity. Default None.
        mask_seed: Integer seed of what is drawn: random masks, and which of equal weights exist. None
            (default) draws one.
        layers: Which layers become sparse: a function of a Keras layer that returns True or False, such as
            `lambda layer: layer.name != "classifier"`. A wrapper answers for all that is in it, and blocks
            must divide the weights of those that are chosen so. By default all that have a sparse form and
            weights that blocks and patterns divide do.
        initial: Which connections exist: `"magnitude"` (default), the largest blocks of each weight by
            their L2 norm; `"random"`, any; `"nonzero"`, blocks with a value other than zero, as in a model
            that has been pruned or stripped. Layers without a zero then stay plain ones.
        return_report: Whether to return what became of each weight matrix as well. Default False.

    Returns:
        A `keras.Sequential` if the model is one, else a Functional `keras.Model`; a layer for a layer, and a
        list for a list. With `return_report` a pair of that and a `SparsifyReport`, which prints as a table.

    Raises:
        ValueError: if the model is subclassed, none of its layers is to become sparse, or an argument is out
            of range.

    Example:

    >>> import keras
    >>> from keras_selfish import masked_weights, sparsify
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(4)])
    >>> sparse = sparsify(model, 0.75)
    >>> [(type(layer).__name__, masked_weights(layer)[0].active) for layer in sparse.layers]
    [('SparseDense', 32), ('SparseDense', 16)]
    >>> first, second = sparsify([keras.layers.Dense(16), keras.layers.ReLU()], 0.75)
    >>> first.sparsity, type(second).__name__
    (0.75, 'ReLU')
    """
    originals = _checked_originals(model)
    if n_of_m is not None:
        sparsity = _sparsity_of_pattern(n_of_m, sparsity, initial)
    _check_arguments(sparsity, layers, initial)
    masks.check_distribution(distribution)
    masks.check_block_shape(block_shape)
    _check_unbuilt(originals, distribution, initial)
    seed = random.randint(0, 2**31 - 1) if mask_seed is None else masks.check_seed(mask_seed, "mask_seed")
    arguments: dict[str, Any] = {
        "distribution": distribution,
        "block_shape": list(block_shape),
        "mask_seed": mask_seed,
    }
    if n_of_m is not None:
        arguments["n_of_m"] = list(n_of_m)
    # Which weights a layer masks is known once it is made; until then any sparsity will do.
    arguments["sparsity"] = 0.5 if sparsity is None else sparsity
    reasons = {}  # why a layer stays dense, by its id

    def arguments_of(layer):
        if layers is not None:
            reasons[id(layer)] = None if layers(layer) else "left out by `layers`"
        else:
            reasons[id(layer)] = _misfit(layer, block_shape, n_of_m)
        if reasons[id(layer)]:
            return None
        if mask_seed is None or layer.built:
            return arguments
        return {**arguments, "mask_seed": _seed_of(mask_seed, len(reasons))}

    copies, pairs, masked = _sparse_copies(originals, arguments_of)
    report = SparsifyReport.of(pairs, reasons)
    _check_any_sparse(model, copies, sparsity, report)
    if initial == "nonzero":
        copies, pairs = _with_nonzero_masks(originals, masked, arguments, block_shape)
        report = SparsifyReport.of(pairs, reasons).where(report, "has no zeros")
    else:
        _assign_masks(masked, sparsity, distribution, block_shape, n_of_m, initial, seed)
    if layers is None and initial != "nonzero" and (left := report.left_dense()):
        logging.warning("`sparsify` leaves dense: %s.", "; ".join(left))
    result = copies if isinstance(model, (list, tuple)) else copies[0]
    return (result, report) if return_report else result


def _with_nonzero_masks(originals, masked, arguments, block_shape):
    """The copies with masks where the weights are not zero, and the pairs (layer, copy)."""
    found = {id(source): masks.nonzero_mask(_numpy_of(source), block_shape) for source, _ in masked}
    if all(mask.all() for mask in found.values()):
        raise ValueError(
            f"`model` must have zeros with initial='nonzero'. Received: {_names(originals)}, without a "
            f"block {tuple(block_shape)} of zeros; pass a `sparsity` and another `initial`"
        )
    return _copies_with_masks(originals, found, lambda layer: arguments)


def _assign_masks(masked, sparsity, distribution, block_shape, n_of_m, initial, seed):
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


def _checked_originals(model):
    """The layers and models that are to be copied; raises `ValueError` for what cannot be."""
    originals = list(model) if isinstance(model, (list, tuple)) else [model]
    if not originals:
        raise ValueError(f"`model` must hold a layer. Received: model={model!r}")
    for one in originals:
        if not isinstance(one, keras.Layer):
            raise ValueError(
                "`model` must be a keras.Model, a keras layer, or a list of them. Received: "
                f"{one!r} of type {type(one).__name__}; of a model that is `tf_keras`'s see `from_tfmot`"
            )
        unbuilt = isinstance(one, keras.Sequential) and not one.built
        if isinstance(one, keras.Model) and not unbuilt:
            check_model(one, "sparsify the functional models that it is made of")
    return originals


def _check_unbuilt(originals, distribution, initial):
    unbuilt = [layer.name for layer in originals if not layer.built]
    if unbuilt and (distribution != "uniform" or initial == "nonzero"):
        raise ValueError(
            "`model` must be built for a `distribution` other than 'uniform' or initial='nonzero'. Received: "
            f"distribution={distribution!r}, initial={initial!r}, and {', '.join(unbuilt)} not built; call "
            "it on data first"
        )


def _check_any_sparse(model, copies, sparsity, report):
    inner = [one for copy in copies for one in with_inner(copy)]
    if sparsity == 0 or any(isinstance(layer, SparseLayer) for layer in inner):
        return
    left = f" ({'; '.join(report.left_dense())})" if report.left_dense() else ""
    raise ValueError(
        "`model` must have a layer that `layers` admits and that has a sparse form. Received: "
        f"{_names([model] if not isinstance(model, (list, tuple)) else model)}{left}; those with one are "
        f"{', '.join(sorted(SPARSE_CLASSES_BY_NAME))}"
    )


def _names(originals):
    return ", ".join(f"model={one.name!r}" if is_model(one) else f"layer {one.name!r}" for one in originals)


def _misfit(layer, block_shape, n_of_m):
    """Why blocks or patterns cannot lie over the weights that a layer would mask; None where they can."""
    for weight in masked_sources(layer):
        try:
            masks.check_block_shape(block_shape, weight.shape)
            if n_of_m is not None:
                masks.check_n_of_m(n_of_m, weight.shape)
        except ValueError:
            shape = " × ".join(map(str, weight.shape))
            what = f"blocks {tuple(block_shape)}" if n_of_m is None else f"{n_of_m[0]} of {n_of_m[1]}"
            return f"{what} do not divide {weight.name} ({shape})"
    return None


def _seed_of(seed, index):
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _sparse_copies(originals, arguments_of):
    """Copies layers and models, some of their layers as sparse ones whose masks are not yet those wanted.

    Args:
        originals: List of layers and of Functional and Sequential models.
        arguments_of: Function of a layer that gives the arguments of its masks as a dict, or None for a
            layer that is to stay as it is.

    Returns:
        The copies; a list of pairs (layer, its copy); and a list of pairs (variable of a layer,
        `MaskedWeight` of its copy) of the weights that are masked in the copy only, in the order of the
        copies' variables.
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

    copies, pairs = clone_layers(originals, copy_layer)
    sources = {}
    for layer, copy in pairs:
        if layer.built:
            sources.update(_copy_weights(layer, copy))
    every = {id(w): w for copy in copies for w in masks.masked_weights(copy)}.values()
    return copies, pairs, [(sources[id(w)], w) for w in every if id(w) in sources]


def twin_with_masks(model, given, arguments_of):
    """The sparse twin of a model with given masks.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        given: Dict from the id of a variable of the model to its mask, a boolean NumPy array.
        arguments_of: Function of a layer that gives the arguments of its masks but the sparsity.
    """
    (twin,), _ = _copies_with_masks([model], given, arguments_of)
    return twin


def _copies_with_masks(originals, given, arguments_of):
    """As `twin_with_masks`, of several layers and models; returns the pairs (layer, copy) as well."""

    def with_sparsity(layer):
        own = [given[id(variable)] for variable in layer.weights if id(variable) in given]
        size, active = sum(mask.size for mask in own), sum(np.count_nonzero(mask) for mask in own)
        # A layer that has lost all its connections has masks as well.
        return {**arguments_of(layer), "sparsity": 1 - max(active, 1) / size} if active < size else None

    copies, pairs, masked = _sparse_copies(originals, with_sparsity)
    used = {id(source) for source, _ in masked}
    for variable in (variable for one in originals for variable in one.weights):
        if id(variable) in given.keys() - used and not given[id(variable)].all():
            raise ValueError(
                "`model` must be sparse in layers that have a sparse form only. Received: zeros in "
                f"{variable.path}; those with one are {', '.join(sorted(SPARSE_CLASSES_BY_NAME))}"
            )
    for source, weight in masked:
        weight.mask.assign(given.get(id(source), np.ones(weight.shape, bool)))
    return copies, pairs


def _sparsity_of_pattern(n_of_m, sparsity, initial):
    if sparsity is not None or initial == "nonzero":
        raise ValueError(
            "`n_of_m` fixes which and how many connections exist; leave `sparsity` out and `initial` at "
            f"'magnitude' or 'random'. Received: n_of_m={n_of_m}, sparsity={sparsity}, initial={initial!r}"
        )
    n, m = masks.check_n_of_m(n_of_m)
    return 1.0 - n / m


def _check_arguments(sparsity, layers, initial):
    checks.one_of("initial", initial, INITIAL)
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
    weights, targets = _without_mask_variables(layer), _without_mask_variables(copy)
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


def _without_mask_variables(layer):
    of_masks = {id(weight.mask) for weight in masks.masked_weights(layer)}
    return [variable for variable in layer.weights if id(variable) not in of_masks]


def _numpy_of(variable):
    return ops.convert_to_numpy(variable)
