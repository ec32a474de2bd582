"""Sparse models from plain Keras layers: the inverse of `strip`."""

from __future__ import annotations

import dataclasses
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
    config_of,
    copy_state,
    from_config,
    is_keras_s,
    serialized,
    shared_layers,
    with_inner,
)
from keras_selfish.conversion.report import SparsifyReport
from keras_selfish.held_layers import is_model
from keras_selfish.layers.composite import SparseComposite, layers_within, without_composite
from keras_selfish.layers.forms import SPARSE_FORMS, class_in, known_to_keras
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.mask_spec import MaskSpec
from keras_selfish.typing import BlockShape, Distribution, Pattern

_Model = TypeVar("_Model", keras.Model, keras.Layer, Sequence[keras.Layer])

INITIAL = ("magnitude", "random", "nonzero")


@overload
def sparsify(
    model: _Model,
    sparsity: float | MaskSpec | None = None,
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
    sparsity: float | MaskSpec | None = None,
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
    sparsity: float | MaskSpec | None = None,
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
    layer that is shared in the model is shared in the copy. So are layers that make others for themselves,
    such as a transformer block of one's own or of another library: a `layers.SparseComposite` takes the place
    of such a layer and calls it. Layers without a sparse form are copied as they
    are; so are sparse ones, with their masks, and layers that blocks or patterns do not divide, such as a
    first convolution of 3 channels. One line of the log names the layers that stay dense for that reason,
    and the report says of each matrix why it is dense. The copy is not compiled, and its random generators
    start anew.

    A layer that is not built has no weights yet: it becomes a sparse one that draws its masks when it is
    built.

    Args:
        model: A Functional or Sequential `keras.Model`, a layer, or a list of layers and models. For a
            subclassed model pass `keras.Model(x, model(x))`, where x is a `keras.Input`.
        sparsity: Fraction of zeros over all weights that are masked together, in [0, 1). None with
            `initial="nonzero"`, which finds the zeros.
        distribution: How the weights of the model share the connections: `"uniform"` (default),
            `"erdos_renyi"` or `"erk"`. All layers must be built for the last two.
        block_shape: (input weights, units) of the blocks that are dropped and grown as one. Default `(1, 1)`,
            single weights.
        n_of_m: `(n, m)` for exactly n of each m consecutive input weights of a unit, such as `(2, 4)`; it
            fixes the sparsity. Default None.
        mask_seed: Integer seed of what is drawn: random masks, and which of equal weights exist. None
            (default) draws one.
        layers: Which layers become sparse: a function of a Keras layer that returns True or False, such as
            `lambda layer: layer.name != "classifier"`. A wrapper answers for all that is in it; a layer that
            makes others for itself is asked first, and then each of these. Blocks
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
    arguments = {
        "distribution": distribution,
        "block_shape": block_shape,
        "n_of_m": n_of_m,
        "mask_seed": mask_seed,
    }
    spec = _checked_spec(sparsity, arguments, initial)
    _check_layers(layers)
    _check_unbuilt(originals, spec.distribution, initial)
    seed = random.randint(0, 2**31 - 1) if spec.mask_seed is None else spec.mask_seed
    reasons = {}  # why a layer stays dense, by its id

    def spec_of(layer):
        if layers is not None:
            reasons[id(layer)] = None if layers(layer) else "left out by `layers`"
        else:
            reasons[id(layer)] = _misfit(layer, spec)
        if reasons[id(layer)]:
            return None
        if spec.mask_seed is None or layer.built:
            return spec
        return dataclasses.replace(spec, mask_seed=_seed_of(seed, len(reasons)))

    copies, pairs, masked = _sparse_copies(originals, spec_of)
    report = SparsifyReport.of(pairs, reasons)
    _check_any_sparse(model, copies, spec, report)
    if initial == "nonzero":
        copies, pairs = _with_nonzero_masks(originals, masked, spec)
        report = SparsifyReport.of(pairs, reasons).where(report, "has no zeros")
    else:
        _assign_masks(masked, spec, initial, seed)
    if layers is None and initial != "nonzero" and (left := report.left_dense()):
        logging.warning("`sparsify` leaves dense: %s.", "; ".join(left))
    result = copies if isinstance(model, (list, tuple)) else copies[0]
    return (result, report) if return_report else result


def _with_nonzero_masks(originals, masked, spec):
    """The copies with masks where the weights are not zero, and the pairs (layer, copy)."""
    found = {id(source): masks.nonzero_mask(_numpy_of(source), spec.block_shape) for source, _ in masked}
    if all(mask.all() for mask in found.values()):
        raise ValueError(
            f"`model` must have zeros with initial='nonzero'. Received: {_names(originals)}, without a "
            f"block {spec.block_shape} of zeros; pass a `sparsity` and another `initial`"
        )
    return _copies_with_masks(originals, found, lambda layer: spec)


def _assign_masks(masked, spec, initial, seed):
    values = [_numpy_of(source) for source, _ in masked]
    if initial == "random":
        drawn = spec.random_masks([value.shape for value in values], seed)
    else:
        drawn = spec.largest_masks(values, seed)
    for (_, weight), value, mask in zip(masked, values, drawn, strict=True):
        weight.mask.assign(mask)
        weight.unpruned = value


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
            check_model(one)
    return originals


def _check_unbuilt(originals, distribution, initial):
    unbuilt = [layer.name for layer in originals if not layer.built]
    if unbuilt and (distribution != "uniform" or initial == "nonzero"):
        raise ValueError(
            "`model` must be built for a `distribution` other than 'uniform' or initial='nonzero'. Received: "
            f"distribution={distribution!r}, initial={initial!r}, and {', '.join(unbuilt)} not built; call "
            "it on data first"
        )


def _check_any_sparse(model, copies, spec, report):
    inner = [one for copy in copies for one in with_inner(copy)]
    if spec.sparsity == 0 or any(isinstance(layer, SparseLayer) for layer in inner):
        return
    left = f" ({'; '.join(report.left_dense())})" if report.left_dense() else ""
    raise ValueError(
        "`model` must have a layer that `layers` admits and that has a sparse form. Received: "
        f"{_names([model] if not isinstance(model, (list, tuple)) else model)}{left}; those with one are "
        f"{_names_of_forms()}"
    )


def _names(originals):
    return ", ".join(f"model={one.name!r}" if is_model(one) else f"layer {one.name!r}" for one in originals)


def _names_of_forms():
    return ", ".join(sorted({plain_class.__name__ for plain_class in SPARSE_FORMS}))


def _misfit(layer, spec):
    """Why blocks or patterns cannot lie over the weights that a layer would mask; None where they can."""
    for weight in _masked_sources(layer):
        try:
            spec.check(weight.shape)
        except ValueError:
            shape = " × ".join(map(str, weight.shape))
            what = f"{spec.n_of_m[0]} of {spec.n_of_m[1]}" if spec.n_of_m else f"blocks {spec.block_shape}"
            return f"{what} do not divide {weight.name} ({shape})"
    return None


def _masked_sources(layer):
    """The variables of a plain layer, and of what its config shows, that its sparse form masks."""
    hidden = {id(inner) for _, held in _hidden_layers(layer) for inner in with_inner(held)}
    forms = [(inner, SPARSE_FORMS.get(type(inner))) for inner in with_inner(layer) if id(inner) not in hidden]
    sources = [
        variable
        for inner, sparse_class in forms
        if sparse_class is not None
        for variable in inner.weights
        if variable.name in sparse_class.masked_names
    ]
    return list({id(variable): variable for variable in sources}.values())


def _hidden_layers(layer):
    """The layers with a sparse form that a layer of one's own makes for itself, with their paths in it."""
    if type(layer) in SPARSE_FORMS or all(is_keras_s(type(inner)) for inner in with_inner(layer)):
        return []
    shown = set(_names_in(config_of(layer)))
    return [
        (path, held)
        for path, held in layers_within(layer)
        if type(held) in SPARSE_FORMS and held.name not in shown
    ]


def _names_in(config):
    """The names of the layers that are serialized within a config."""
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _names_in(value)
    elif isinstance(config, dict):
        if class_in(config):
            yield config["config"].get("name")
        for value in config.values():
            yield from _names_in(value)


def _seed_of(seed, index):
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _sparse_copies(originals, spec_of):
    """Copies layers and models, some of their layers as sparse ones whose masks are not yet those wanted.

    Args:
        originals: List of layers and of Functional and Sequential models.
        spec_of: Function of a layer that gives the `MaskSpec` of its sparse form, or None for a layer that is
            to stay as it is.

    Returns:
        The copies; a list of pairs (layer, its copy); and a list of pairs (variable of a layer,
        `MaskedWeight` of its copy) of the weights that are masked in the copy only, in the order of the
        copies' variables.
    """

    def copy_layer(layer, copy_of):
        # Functional models also hold operations such as `x + 1`, which are no layers.
        spec = spec_of(layer) if isinstance(layer, keras.Layer) else None
        config = {**config_of(layer), **shared_layers(layer, copy_of)}
        if spec is None:
            return from_config(type(layer), config)
        config = _sparse_config(config, spec)
        if type(layer) in SPARSE_FORMS:
            return from_config(SPARSE_FORMS[type(layer)], {**config, **spec.get_config()})
        copy = from_config(type(layer), config)
        shown = {path for path, held in layers_within(copy) if isinstance(held, SparseLayer)}
        specs = {path: spec_of(held) for path, held in _hidden_layers(layer) if path not in shown}
        specs = {path: of_one for path, of_one in specs.items() if of_one is not None}
        if not specs:
            return copy
        return SparseComposite(copy, specs, name=layer.name, trainable=layer.trainable)

    with known_to_keras():
        copies, pairs = clone_layers(originals, copy_layer)
    sources = {}
    for layer, copy in pairs:
        if layer.built:
            sources.update(_copy_weights(layer, copy))
    every = {id(w): w for copy in copies for w in masks.masked_weights(copy)}.values()
    return copies, pairs, [(sources[id(w)], w) for w in every if id(w) in sources]


def twin_with_masks(model, given, spec_of):
    """The sparse twin of a model with given masks.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        given: Dict from the id of a variable of the model to its mask, a boolean NumPy array.
        spec_of: Function of a layer that gives the `MaskSpec` of its masks, whose sparsity does not count.
    """
    (twin,), _ = _copies_with_masks([model], given, spec_of)
    return twin


def _copies_with_masks(originals, given, spec_of):
    """As `twin_with_masks`, of several layers and models; returns the pairs (layer, copy) as well."""

    def with_sparsity(layer):
        own = [given[id(variable)] for variable in layer.weights if id(variable) in given]
        size, active = sum(mask.size for mask in own), sum(np.count_nonzero(mask) for mask in own)
        if active == size:
            return None
        # A layer that has lost all its connections has masks as well.
        return dataclasses.replace(spec_of(layer), sparsity=1 - max(active, 1) / size)

    copies, pairs, masked = _sparse_copies(originals, with_sparsity)
    used = {id(source) for source, _ in masked}
    for variable in (variable for one in originals for variable in one.weights):
        if id(variable) in given.keys() - used and not given[id(variable)].all():
            raise ValueError(
                "`model` must be sparse in layers that have a sparse form only. Received: zeros in "
                f"{variable.path}; those with one are {_names_of_forms()}"
            )
    for source, weight in masked:
        weight.mask.assign(given.get(id(source), np.ones(weight.shape, bool)))
    return copies, pairs


def _checked_spec(sparsity, arguments, initial):
    """The `MaskSpec` of the arguments; with initial="nonzero" its sparsity does not count."""
    checks.one_of("initial", initial, INITIAL)
    n_of_m = arguments["n_of_m"]
    if n_of_m is not None and (sparsity is not None or initial == "nonzero"):
        raise ValueError(
            "`n_of_m` fixes which and how many connections exist; leave `sparsity` out and `initial` at "
            f"'magnitude' or 'random'. Received: n_of_m={n_of_m}, sparsity={sparsity}, initial={initial!r}"
        )
    if initial == "nonzero":
        if sparsity is not None:
            raise ValueError(
                "`sparsity` must be None with initial='nonzero': the zeros of the model decide. "
                f"Received: sparsity={sparsity!r}"
            )
        # Which weights a layer masks is known once it is made; until then any sparsity over 0 will do.
        return MaskSpec(0.5, **arguments)
    if isinstance(sparsity, MaskSpec):
        if MaskSpec(**arguments) != MaskSpec():
            raise ValueError(
                "`sparsity` must be a number beside other mask arguments: a `MaskSpec` holds them all. "
                f"Received: sparsity={sparsity}, {arguments}"
            )
        return sparsity
    if n_of_m is None:
        masks.check_sparsity(sparsity)
    return MaskSpec(sparsity, **arguments)


def _check_layers(layers):
    if layers is not None and not callable(layers):
        raise ValueError(
            f"`layers` must be a function of a layer, or None for all. Received: layers={layers!r}; for a "
            "list of names pass `lambda layer: layer.name in names`"
        )


def _sparse_config(config, spec):
    """Replaces the plain layers that are serialized within a config, as wrappers and cells are."""
    if isinstance(config, (list, tuple)):
        return type(config)(_sparse_config(value, spec) for value in config)
    if not isinstance(config, dict):
        return config
    config = {key: _sparse_config(value, spec) for key, value in config.items()}
    sparse_class = SPARSE_FORMS.get(class_in(config))
    if sparse_class is None:
        return config
    layer = from_config(sparse_class, {**config["config"], **spec.get_config()})
    return {**config, **serialized(layer)}


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
    copy_state(layer, without_composite(copy))
    return sources


def _without_mask_variables(layer):
    of_masks = {id(weight.mask) for weight in masks.masked_weights(layer)}
    return [variable for variable in layer.weights if id(variable) not in of_masks]


def _numpy_of(variable):
    return ops.convert_to_numpy(variable)
