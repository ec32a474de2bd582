"""The mask arguments of all sparse layers, in one value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from keras_selfish import masks
from keras_selfish.typing import BlockShape, Config, Distribution, Pattern, Shape

__all__ = ["MaskSpec"]

if TYPE_CHECKING:
    import numpy.typing as npt

DEFAULT_SPARSITY = 0.67  # of the published models


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Which connections of a layer's weights exist: how many, in which shape, drawn from which seed.

    All sparse layers take these five as keyword arguments, check them here, and keep them as `mask_spec`.

    Args:
        sparsity: Fraction of zeros in the masked weights of the layer together, in [0, 1). None (default) is
            0.67, the published one, or what `n_of_m` fixes. At 0 no mask is made: the layer is Keras's.
        distribution: How several weights share the connections: `"uniform"` (default) gives all the same
            density; with `"erdos_renyi"` and `"erk"` small ones are denser (see `masks.active_counts`). With
            one weight they agree.
        block_shape: Shape over a weight's last two axes, (input weights, units) in most layers, of the blocks
            in which connections are dropped and grown; it must divide all masked weights. Default `(1, 1)`,
            single weights.
        n_of_m: `(n, m)` for exactly n of each m consecutive weights along the last axis but one, in most
            layers the input weights of a unit, such as `(2, 4)`; it fixes the sparsity. Default None.
        mask_seed: Integer seed of the initial masks; None (default) draws one.

    Raises:
        ValueError: for an argument out of range, or `n_of_m` beside another sparsity, distribution or block
            shape.

    Example:

    >>> spec = MaskSpec(n_of_m=(2, 4))
    >>> spec.sparsity
    0.5
    >>> from keras_selfish import SparseDense
    >>> SparseDense(8, **spec.get_config()).mask_spec == SparseDense(8, n_of_m=(2, 4)).mask_spec
    True
    """

    sparsity: float | None = None
    distribution: Distribution = "uniform"
    block_shape: BlockShape = (1, 1)
    n_of_m: Pattern | None = None
    mask_seed: int | None = None

    def __post_init__(self):
        if self.sparsity is not None:
            masks.check_sparsity(self.sparsity)
        masks.check_distribution(self.distribution)
        self._set("block_shape", masks.check_block_shape(self.block_shape))
        if self.mask_seed is not None:
            self._set("mask_seed", masks.check_seed(self.mask_seed, "mask_seed"))
        if self.sparsity == 0:
            self._set("n_of_m", None)
        if self.n_of_m is not None:
            self._set("n_of_m", masks.check_n_of_m(self.n_of_m))
            self._set("sparsity", self._sparsity_of_pattern())
        self._set("sparsity", float(DEFAULT_SPARSITY if self.sparsity is None else self.sparsity))

    def _set(self, name, value):
        object.__setattr__(self, name, value)  # a frozen dataclass settles its own fields

    def _sparsity_of_pattern(self):
        fixed = 1.0 - self.n_of_m[0] / self.n_of_m[1]
        if self.sparsity not in (None, fixed):
            raise ValueError(
                f"`sparsity` must be left out or {fixed} with `n_of_m={self.n_of_m}`, which fixes it. "
                f"Received: sparsity={self.sparsity}"
            )
        if self.distribution != "uniform" or self.block_shape != (1, 1):
            raise ValueError(
                "`n_of_m` must stand alone: it fixes the density of every matrix and the place of single "
                f"weights. Received: n_of_m={self.n_of_m}, distribution={self.distribution!r}, "
                f"block_shape={self.block_shape}"
            )
        return fixed

    @classmethod
    def taken_from(cls, arguments: dict[str, Any]) -> Self:
        """The specification that is among keyword arguments, which lose it.

        Args:
            arguments: Dict of keyword arguments, of which those of this class are taken out.
        """
        return cls(**{name: arguments.pop(name) for name in MASK_ARGUMENTS if name in arguments})

    def get_config(self) -> Config:
        """The arguments as a dict of JSON values, as layers take them and as their configs hold them."""
        config = {**dataclasses.asdict(self), "block_shape": list(self.block_shape)}
        if config.pop("n_of_m") is not None:
            config["n_of_m"] = list(self.n_of_m)  # type: ignore[arg-type] # not None
        return config

    def check(self, shape: Shape, name: str = "the weight") -> None:
        """Raises `ValueError` unless blocks or patterns divide a weight of this shape."""
        masks.check_block_shape(self.block_shape, shape, name)
        if self.n_of_m is not None:
            masks.check_n_of_m(self.n_of_m, shape, name)

    def random_masks(self, shapes: Sequence[Shape], seed: int) -> list[npt.NDArray[Any]]:
        """The masks of several weights that share the connections, at random.

        Args:
            shapes: List of their shapes.
            seed: Integer seed, in place of `mask_seed`, which may be None.

        Returns:
            A list of boolean NumPy arrays.
        """
        if self.n_of_m is not None:
            return [masks.n_of_m_mask(shape, self.n_of_m, [seed, i]) for i, shape in enumerate(shapes)]
        return [
            masks.random_mask(shape, count, [seed, index], self.block_shape)
            for index, (shape, count) in enumerate(zip(shapes, self._counts(shapes), strict=True))
        ]

    def largest_masks(self, weights: Sequence[npt.NDArray[Any]], seed: int) -> list[npt.NDArray[Any]]:
        """The masks of the largest connections of several weights that share them.

        Args:
            weights: List of NumPy arrays.
            seed: Integer seed of the choice among equal ones.

        Returns:
            A list of boolean NumPy arrays.
        """
        if self.n_of_m is not None:
            return [masks.largest_n_of_m_mask(weight, self.n_of_m) for weight in weights]
        counts = self._counts([weight.shape for weight in weights])
        return [
            masks.largest_mask(weight, count, [seed, index], self.block_shape)
            for index, (weight, count) in enumerate(zip(weights, counts, strict=True))
        ]

    def _counts(self, shapes):
        block_shapes = [self.block_shape] * len(shapes)
        return masks.active_counts(shapes, self.sparsity, self.distribution, block_shapes)


MASK_ARGUMENTS = tuple(field.name for field in dataclasses.fields(MaskSpec))
