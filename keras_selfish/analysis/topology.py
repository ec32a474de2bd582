"""How far apart the connectivities of two sparse networks are, whatever the order of their units.

Importing this module loads neither Keras nor a backend, and comparing masks needs neither.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from keras_selfish import checks
from keras_selfish.analysis.chain import Weight, layers_of, role_of
from keras_selfish.analysis.matching import comes_later, distances, matched
from keras_selfish.analysis.tables import align
from keras_selfish.typing import TensorLike

if TYPE_CHECKING:
    import keras
    import numpy.typing as npt

# The masks of a network by path; a mask whole, or in its gates by name.
Masks: TypeAlias = Mapping[str, TensorLike | Mapping[str, TensorLike]]

MATCHES = ("hidden", "all", "none")


@dataclasses.dataclass(frozen=True)
class LayerDistance:
    """The distance of one layer.

    Args:
        name: Path of the layer, or of its weight.
        units: Number of its units.
        distance: Mean distance of the matched units, in [0, 1].
        order: Integer array (units,): the unit of the second network that each unit of the first is matched
            to.
    """

    name: str
    units: int
    distance: float
    order: npt.NDArray[np.intp] = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class TopologyDistance:
    """The result of `topology_distance`; printed, a table.

    Args:
        layers: A `LayerDistance` for each layer that has masks, from the inputs to the outputs.
        match: Which units were matched, as given.
    """

    layers: tuple[LayerDistance, ...]
    match: Literal["hidden", "all", "none"] = "hidden"

    @property
    def distance(self) -> float:
        """The distance of the networks, the mean of those of their layers, in [0, 1]."""
        return math.fsum(layer.distance for layer in self.layers) / len(self.layers)

    def table(self) -> str:
        """The distances as text for a terminal: one row a layer, then the network."""
        rows = [("layer", "units", "distance")]
        rows += [(layer.name, f"{layer.units:,}", f"{layer.distance:.4f}") for layer in self.layers]
        return align([*rows, ("network", "", f"{self.distance:.4f}")])

    def __str__(self):
        return self.table()


def topology_distance(
    a: keras.Layer | Masks, b: keras.Layer | Masks, match: Literal["hidden", "all", "none"] = "hidden"
) -> TopologyDistance:
    """Measures how far apart the connectivities of two networks of the same shapes are.

    That is the neural network sparse topology distance. Two units are as far apart as the sets of their
    inputs, |A △ B| / |A ∪ B|: the edits that turn one set into the other, as a fraction of both (0 if both
    are empty). From the inputs of the network to its outputs, the units of each layer are matched to those
    of the other network so that these distances sum up to least (the Hungarian algorithm), and the inputs
    of the next layer are put in that order before it is compared. The distance of a layer is the mean over
    its units, that of the networks the mean over their layers: 0 if one is the other with its hidden units
    in another order, 1 if no matched units share an input. Masks drawn at random with density d are about
    (2 - 2 d) / (2 - d) apart in place, and a little less if units are matched.

    A layer is matched by its inputs only, so units may fit the layers above worse than in place: then the
    distance is larger than that of `match="none"`. Where several matchings are equally good, as for units
    without inputs, the one counts by which the outputs of matched units agree best. The measure was
    published for layers that follow one another. Here

    - a unit of a recurrent layer is its columns in all gates. Units are matched by the input kernel, whose
      inputs are in order by then; rows and columns of the recurrent kernels follow, and the distance is
      that of all kernels together. Ordered neurons (gates of different widths) are compared column by
      column in place, since their order means something;
    - an embedding's inputs are words, its units features. The outputs of a network, such as words, are what
      they are: a last layer is compared in place, unless it is recurrent or an embedding;
    - a tied decoder is the embedding, and counts once. The experts of a mixture of softmaxes are in place,
      like gates of the features that the decoder sees;
    - a unit of a convolution is a filter, with an input for each channel at each place of the kernel; those
      of a depthwise one come in the order of their channels;
    - where connections come in blocks, single weights are compared;
    - a layer without masks does not count, and its units, all of whose inputs are the same, stay in place;
      of one with masks in the other network all connections exist. Zeros in a matrix without a mask, as in a
      stripped model, are a mask.

    Args:
        a: A built model or layer, or its masks: a mapping from the path of each weight, in the order of the
            model's variables, to a boolean array (..., inputs, units), or to a mapping of such arrays by
            gate. Of a path such as `"lstm/recurrent_kernel"` the last part says what the weight is, as in
            Keras; any other name is a kernel.
        b: The same of the other network.
        match: Which units are matched: of hidden layers (`"hidden"`, default); of all, the outputs too, as
            in the published code (`"all"`, which for n outputs takes memory of 8 n² bytes); or `"none"`,
            where the units are the same ones, as at two times of one run. Only `"none"` compares networks
            with branches, attention or `Bidirectional`, and does without SciPy.

    Returns:
        A `TopologyDistance`; `print` shows its table.

    Raises:
        ValueError: if the networks have no masks or masks of different shapes, or if layers do not follow one
            another.
        ModuleNotFoundError: if units are to be matched and SciPy is not installed.

    Example:

    >>> hidden = np.array([[1, 0], [1, 0], [0, 1]], bool)
    >>> outputs = np.array([[1, 1], [0, 1]], bool)
    >>> a = {"hidden/kernel": hidden, "outputs/kernel": outputs}
    >>> b = {"hidden/kernel": hidden[:, ::-1], "outputs/kernel": outputs[::-1]}
    >>> topology_distance(a, b).distance
    0.0
    >>> print(topology_distance(a, b, match="none"))
    layer    units  distance
    hidden       2    1.0000
    outputs      2    0.5000
    network           0.7500

    Reference: Liu et al. 2020, "Topological Insights into Sparse Neural Networks", arXiv 2006.14085.
    """
    checks.one_of("match", match, MATCHES)
    weights = [_weights_of(network, name, match) for network, name in ((a, "a"), (b, "b"))]
    _check_alike(*weights)
    for one, other in zip(*weights, strict=True):
        one.masked = other.masked = one.masked or other.masked
        one.take_gates_of(other)
        other.take_gates_of(one)
    first, second = (layers_of(of_one, match) for of_one in weights)
    # Where matchings are equally good, the one that is found depends on which network is first.
    swapped = comes_later(first, second)
    if swapped:
        first, second = second, first
    orders = matched(first, second)
    found = [
        LayerDistance(layer.name, layer.units, distance, np.argsort(order) if swapped else order)
        for layer, distance, order in zip(first, distances(first, second, orders), orders, strict=True)
        if layer.masked
    ]
    return TopologyDistance(tuple(found), match)


def _weights_of(network, name, match):
    """The `Weight`s of a model or of masks, in order."""
    if isinstance(network, Mapping):
        found = [_given(path, mask, name) for path, mask in network.items()]
    elif hasattr(network, "weights"):
        from keras_selfish.analysis.model_weights import weights_of_model

        found = weights_of_model(network, name, chained=match != "none")
    else:
        checks.refuse(name, "must be a built model or layer, or a mapping from paths to masks", network)
    if not any(weight.masked for weight in found):
        checks.refuse(name, "must have masks, but has none", network)
    return found


def _given(path, mask, name):
    """The `Weight` of a mask that a user gives."""
    parts = list(mask.values()) if isinstance(mask, Mapping) else [mask]
    arrays = [np.asarray(part) for part in parts]
    fit = arrays and all(
        array.ndim >= 2 and array.size and array.shape[:-1] == arrays[0].shape[:-1] for array in arrays
    )
    if not fit or not all(array.dtype == bool or np.isin(array, (0, 1)).all() for array in arrays):
        shown = ", ".join(f"shape {array.shape} of {array.dtype}" for array in arrays) or "no gates"
        raise ValueError(
            f"`{name}` must map paths to boolean arrays (..., inputs, units). Received: {name}[{path!r}] of "
            f"{shown}; give masks, such as `weight != 0`"
        )
    return Weight(str(path), [array.astype(bool, copy=False) for array in arrays], role=role_of(str(path)))


def _check_alike(a, b):
    for one, other in itertools.zip_longest(a, b):
        if one is None or other is None:
            received = f"{len(a)} and {len(b)} weights"
        elif (one.role, one.shape) != (other.role, other.shape):
            received = f"{one.path} of shape {one.shape} and {other.path} of shape {other.shape}"
        else:
            continue
        raise ValueError(
            "`a` and `b` must have weights of the same kinds and shapes, in the same order. Received: "
            f"{received}; compare networks of one architecture"
        )
