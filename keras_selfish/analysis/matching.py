"""Matching of the units of two networks, layer by layer, and how far apart matched units are.

A network is a list of `chain.Layer`. An order tells for each unit of the first network its match in the
second one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from keras_selfish.analysis.chain import Layer

if TYPE_CHECKING:
    import numpy.typing as npt

    Order: TypeAlias = npt.NDArray[np.intp]

# What distances of outputs count for beside those of inputs: they decide where the latter are equal.
TIE_BREAK = 1e-8
# Sweeps go on while each brings networks nearer by a hundredth.
MOST_SWEEPS, WORTHWHILE = 8, 0.99
# Entries that are float32 at a time, for the products.
CHUNK = 2**24


def comes_later(a: Sequence[Layer], b: Sequence[Layer]) -> bool:
    """Whether the first of two networks is the later one in an order of all networks."""
    for one, other in zip(a, b, strict=True):
        for mine, others in zip([one.kernel, *one.recurrent], [other.kernel, *other.recurrent], strict=True):
            different = np.flatnonzero(mine != others)
            if different.size:
                return bool(mine.flat[different[0]])
    return False


def matched(a: Sequence[Layer], b: Sequence[Layer]) -> list[Order]:
    """The order of each layer's units, found from the inputs on, again while it brings networks nearer.

    What is found again is only which of several matchings that are equally good by inputs is best by outputs.
    """
    in_place = best = [np.arange(layer.units) for layer in b]
    if not any(layer.movable for layer in b):
        return best
    starts = [in_place]
    if any(_has_twins(layer) for layer in (*a, *b) if layer.movable):
        starts.append(_by_outputs(a, b, in_place))
    least = math.inf
    for orders in starts:
        before = math.inf
        for _ in range(MOST_SWEEPS):
            orders = _sweep(a, b, orders)
            distance = sum(distances(a, b, orders))
            if distance < least:
                best, least = orders, distance
            if distance >= WORTHWHILE * before:
                break
            before = distance
    return best


def _has_twins(layer):
    """Whether several units of a layer have the same inputs in its kernel."""
    packed = np.packbits(layer.kernel.reshape(-1, layer.units), axis=0)
    return len({column.tobytes() for column in packed.T}) < layer.units


def _by_outputs(a, b, orders):
    """The order of each layer's units in which outputs agree best, found from those of the network on."""
    orders = list(orders)
    for index in reversed(range(len(a))):
        others = list(_outputs(a, b, index, orders, itself=False))
        if a[index].movable and others:
            orders[index] = _assignment(_pairwise(others))
    return orders


def _sweep(a, b, before):
    """Matches the units of each layer once.

    Args:
        a: The layers of one network.
        b: Those of the other.
        before: The orders by which outputs are compared.
    """
    orders = list(before)
    for index, (one, other) in enumerate(zip(a, b, strict=True)):
        if one.follows and one.source is not None:
            places = orders[one.source][:, None] * one.follows + np.arange(one.follows)
            orders[index] = places.ravel()
        elif one.movable:
            inputs = _pairwise([(one.kernel, _arranged(other.kernel, _source_order(other, orders)))])
            outputs = _pairwise(list(_outputs(a, b, index, before)))
            orders[index] = _assignment(inputs + TIE_BREAK * outputs)
    return orders


def _assignment(costs):
    """The column of each row that together cost least."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`topology_distance` needs SciPy to match units, which is not installed: "
            "pip install 'keras_selfish[topology]', or give match='none'"
        ) from error
    return linear_sum_assignment(costs)[1]


def _source_order(layer, orders):
    """The order of a layer's inputs; None where they are in place."""
    return None if layer.source is None or layer.follows else orders[layer.source]


def _arranged(kernel, order):
    """A kernel (inputs, ...) with its inputs in an order, each group of them alike."""
    if order is None:
        return kernel
    groups = kernel.reshape(-1, len(order), *kernel.shape[1:])
    return groups[:, order].reshape(kernel.shape)


def _outputs(a, b, index, orders, itself=True):
    """Pairs of arrays (..., units): which outputs the units of a layer have in each network.

    Args:
        a: The layers of one network.
        b: Those of the other.
        index: Index of the layer.
        orders: The orders of all units of the other network.
        itself: Whether those to the layer itself count. Default True.
    """
    for reader, (one, other) in enumerate(zip(a, b, strict=True)):
        own = reader == index
        if one.follows or (own and not itself):
            continue
        for mine, others in zip(one.reading(index, own), other.reading(index, own), strict=True):
            yield tuple(
                kernel.reshape(-1, a[index].units, math.prod(kernel.shape[1:])).swapaxes(1, 2)
                for kernel in (mine, others[..., orders[reader]])
            )


def _pairwise(pairs):
    """Distances (units, units) of the sets that pairs of arrays (..., units) hold, taken together."""
    if not pairs:
        return 0.0
    units = pairs[0][0].shape[-1]
    common = np.zeros((units, units), np.float32)
    sizes = np.zeros((2, units))
    step = max(1, CHUNK // units)
    for pair in pairs:
        flat = [array.reshape(-1, units) for array in pair]
        for begin in range(0, len(flat[0]), step):
            one, other = (array[begin : begin + step].astype(np.float32) for array in flat)
            common += one.T @ other
        sizes += [array.sum(0) for array in flat]
    return _edits(common.astype(np.float64), sizes[0][:, None], sizes[1])


def _edits(common, size, other_size):
    """|A △ B| / |A ∪ B| of sets of which the sizes and those of their intersections are known."""
    union = size + other_size - common
    return np.where(union > 0, 1.0 - common / np.maximum(union, 1.0), 0.0)


def distances(a: Sequence[Layer], b: Sequence[Layer], orders: Sequence[Order]) -> Iterator[float]:
    """The distance of each layer, with the units of the second network in an order."""
    for index, (one, other) in enumerate(zip(a, b, strict=True)):
        pairs = [(one.kernel, _arranged(other.kernel, _source_order(other, orders)))]
        own = orders[index] if other.movable else None
        for mine, others in zip(one.recurrent, other.recurrent, strict=True):
            pairs.append((mine, _arranged(others, own)))
        common, size, other_size = np.zeros((3, one.units))
        for mine, others in pairs:
            others = others[..., orders[index]]
            common += (mine & others).sum((0, 1))
            size += mine.sum((0, 1))
            other_size += others.sum((0, 1))
        yield float(_edits(common, size, other_size).mean())
