"""Layers that follow one another, made up of the weight matrices of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Bools: TypeAlias = npt.NDArray[np.bool_]

# What a weight is, by its name; all others are kernels of layers that follow one another.
ROLES = {
    "embeddings": "embedding",
    "reverse_embeddings": "decoder",
    "depthwise_kernel": "depthwise",
    "prior_kernel": "prior",
    "latent_kernel": "latent",
}


@dataclasses.dataclass
class Weight:
    """A weight matrix of a network.

    Args:
        path: Its path.
        parts: Boolean arrays (..., inputs, units), one for each gate; one of all where gates are not known.
        masked: Whether it has a mask; without one all is True.
        role: What it is: `"kernel"`, or one of the values of `ROLES`.
    """

    path: str
    parts: list[Bools]
    masked: bool = True
    role: str = "kernel"

    @property
    def folder(self) -> str:
        """Path of its layer."""
        return self.path.rpartition("/")[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole matrix."""
        return (*self.parts[0].shape[:-1], sum(part.shape[-1] for part in self.parts))

    def take_gates_of(self, other: Weight) -> None:
        """Divides the matrix into the gates that another one of its shape is known to have."""
        if len(self.parts) < len(other.parts):
            ends = np.cumsum([part.shape[-1] for part in other.parts])[:-1]
            self.parts = np.split(self.whole(), ends, -1)

    def whole(self) -> Bools:
        """All gates side by side."""
        return np.concatenate(self.parts, -1) if len(self.parts) > 1 else self.parts[0]


def role_of(path: str) -> str:
    """The role of a weight by its name, as Keras and the layers of this package call it."""
    name = path.rpartition("/")[2]
    return "recurrent" if name.startswith("recurrent_kernel") else ROLES.get(name, "kernel")


@dataclasses.dataclass
class Layer:
    """A layer of a network.

    Args:
        name: Its path.
        kernel: Boolean array (inputs, gates, units).
        recurrent: Boolean arrays (units, gates, units).
        masked: Whether any of them has a mask.
        movable: Whether its units are matched; else they are in place.
        follows: Number of units for each of the source's, in whose order they are; 0 for an order of its own.
        source: Index of the layer whose units the inputs are, perhaps several times one after another (the
            pixels of a flattened image); None where they are in place.
    """

    name: str
    kernel: Bools
    recurrent: list[Bools] = dataclasses.field(default_factory=list)
    masked: bool = True
    movable: bool = True
    follows: int = 0
    source: int | None = None

    @property
    def units(self) -> int:
        """Number of its units."""
        return self.kernel.shape[-1]

    def reading(self, index: int, own: bool) -> list[Bools]:
        """Those of its kernels whose inputs are the units of the layer at an index, by `own` itself."""
        return self.recurrent if own else [self.kernel] if self.source == index else []


def layers_of(weights: Sequence[Weight], match: str) -> list[Layer]:
    """The layers that weights make up, each after its source.

    Args:
        weights: The weight matrices of a network, in the order of its layers.
        match: As in `topology_distance`.

    Raises:
        ValueError: if the inputs of a layer are not the units of the one before.
    """
    # A decoder stands beside its embedding, but at the end of the network.
    groups = list(_groups(sorted(weights, key=lambda weight: weight.role == "decoder")))
    layers: list[Layer] = []
    source, experts = None, 1
    for group in groups:
        role = group[0].role
        if role == "prior":
            experts = group[0].shape[-1]
        layer = _layer(group, experts)
        if role != "embedding":
            layer.source = source
        _check_inputs(layer, layers)
        # All units of a layer without masks have the same inputs.
        layer.masked = any(weight.masked for weight in group)
        is_output = group is groups[-1] and role in ("kernel", "decoder") and not layer.recurrent
        layer.movable &= layer.masked and match != "none" and (match == "all" or not is_output)
        layers.append(layer)
        if role != "prior":  # what is beside the way to the outputs
            ordered = layer.movable or (layer.follows and source is not None)
            source = len(layers) - 1 if ordered else None
    return layers


def _groups(weights):
    """Lists of weights: a kernel with the recurrent kernels of its layer, any other alone."""
    group = []
    for weight in weights:
        joins = weight.role == "recurrent" and group and group[0].role in ("kernel", "recurrent")
        if group and not (joins and group[0].folder == weight.folder):
            yield group
            group = []
        group.append(weight)
    yield group


def _layer(group, experts):
    """The `Layer` of a group of weights."""
    weight = group[0]
    if group[-1].role == "recurrent":
        return _recurrent_layer(group)
    kernel = weight.whole()
    if weight.role == "depthwise":
        multiplier = kernel.shape[-1]
        kernel = kernel.reshape(-1, 1, kernel.shape[-2] * multiplier)
        return Layer(weight.path, kernel, movable=False, follows=multiplier)
    gates = experts if weight.role == "latent" and kernel.shape[-1] % experts == 0 else 1
    kernel = kernel.reshape(-1, gates, kernel.shape[-1] // gates)
    alone = weight.path in (f"{weight.folder}/kernel", f"{weight.folder}/embeddings")
    return Layer(weight.folder if alone else weight.path, kernel, movable=weight.role != "prior")


def _recurrent_layer(group):
    """The `Layer` of a kernel, which may be missing, and recurrent kernels."""
    units = group[-1].shape[-2]
    # Gates of other widths order the units, which are then single columns in place.
    movable = all(
        weight.shape[-1] % units == 0 and (len(weight.parts) == 1 or part.shape[-1] == units)
        for weight in group
        for part in weight.parts
    )
    kernels = []
    for weight in group:
        gates = weight.shape[-1] // units if movable else 1
        kernels.append(weight.whole().reshape(-1, gates, weight.shape[-1] // gates))
    if group[0].role == "recurrent":
        kernels.insert(0, np.zeros((0, 1, kernels[0].shape[-1]), bool))
    return Layer(group[-1].folder or group[-1].path, kernels[0], kernels[1:], movable=movable)


def _check_inputs(layer, before):
    """Raises `ValueError` unless a layer can take the units of its source as inputs."""
    if layer.source is None:
        return
    source = before[layer.source]
    inputs = layer.units // layer.follows if layer.follows else layer.kernel.shape[0]
    if inputs % source.units or (layer.follows and inputs != source.units):
        raise ValueError(
            "`a` and `b` must have layers that follow one another, whose inputs are the units of the one "
            f"before. Received: {layer.name} with {inputs} inputs after {source.name} with {source.units} "
            "units; compare others with match='none'"
        )
