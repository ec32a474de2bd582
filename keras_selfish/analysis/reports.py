"""Connections, parameters and operations of a model, in numbers and as a table."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from keras_selfish.analysis import flops
from keras_selfish.analysis.flops import Comparison
from keras_selfish.analysis.tables import align
from keras_selfish.variables import to_numpy

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True)
class WeightReport:
    """A weight matrix, or one gate of it.

    Args:
        name: Path of the variable, or name of the gate.
        shape: Its shape.
        non_zeros: Number of its connections.
        masked: Whether it has a mask.
        gates: The gates of a recurrent kernel, each a `WeightReport`; empty where there are none.
    """

    name: str
    shape: tuple[int, ...]
    non_zeros: int
    masked: bool
    gates: tuple[WeightReport, ...] = ()

    @property
    def size(self) -> int:
        """Number of entries of the matrix."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1.0 - self.non_zeros / self.size


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `report`; printed, a table.

    Args:
        name: Name of the model.
        weights: A `WeightReport` for each weight matrix, in the order of the model's variables.
        parameters: Number of parameters: in all, and without the ones that a mask (or pruning) took away.
            Biases and other parameters that are no matrix count in both.
        training_flops: See `keras_selfish.analysis.training_flops`.
        inference_flops: See `keras_selfish.analysis.inference_flops`.
        unit: What the operations are counted for: `"token"`, `"time step"` or `"example"`.
    """

    name: str
    weights: tuple[WeightReport, ...]
    parameters: Comparison
    training_flops: Comparison
    inference_flops: Comparison
    unit: Literal["token", "time step", "example"] = "token"

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all weight matrices."""
        size = sum(weight.size for weight in self.weights)
        return 1.0 - sum(weight.non_zeros for weight in self.weights) / size if size else 0.0

    def table(self) -> str:
        """The report as text for a terminal: one row a matrix and gate, then the totals."""
        return f"{_weights_table(self)}\n\n{_totals_table(self)}"

    def __str__(self):
        return self.table()


def report(model: keras.Layer) -> Report:
    """Counts the connections, parameters and operations of a model, sparse against dense.

    It works for models with masks, for stripped models, where the zeros themselves are counted, and for
    dense ones, whose matrices are shown with sparsity 0.

    Args:
        model: A built `keras.Model` or layer.

    Returns:
        A `Report`; `print(report(model))` shows its table.

    Raises:
        ValueError: if the model is not built, or the size of the images that a convolution sees is unknown.

    Example:

    >>> import keras
    >>> from keras_selfish import SparseDense
    >>> model = keras.Sequential([keras.Input((8,)), SparseDense(10, sparsity=0.75)], name="small")
    >>> print(report(model))
    weight                      shape  non-zeros  sparsity
    small/sparse_dense/kernel  8 × 10         20    75.00%
    all matrices                   80         20    75.00%
    <BLANKLINE>
                                 dense  sparse   ratio
    parameters                      90      30  33.33%
    training FLOPs per example     480     120  25.00%
    inference FLOPs per example    160      40  25.00%
    """
    matrices = flops.weight_matrices(model)
    weights = tuple(_weight_report(variable) for variable, _ in matrices)
    every = sum(math.prod(variable.shape) for variable, _ in flops.trainable_weights(model))
    zeros = sum(weight.size - weight.non_zeros for weight in weights)
    return Report(
        name=model.name,
        weights=weights,
        parameters=Comparison(every, every - zeros),
        training_flops=flops.training_flops(model),
        inference_flops=flops.inference_flops(model),
        unit=flops.unit_of(model),
    )


def _weight_report(variable):
    masked_weight = getattr(variable, "masked_weight", None)
    shape = tuple(variable.shape)
    if masked_weight is None:
        return WeightReport(variable.path, shape, flops.non_zeros(variable), masked=False)
    gates = ()
    if masked_weight.gates:
        mask = to_numpy(masked_weight.mask)
        gates = tuple(
            WeightReport(gate, part.shape, int(np.count_nonzero(part)), masked=True)
            for gate, part in masked_weight.split_gates(mask).items()
        )
    return WeightReport(variable.path, shape, masked_weight.active, masked=True, gates=gates)


def _weights_table(model_report):
    rows = [("weight", "shape", "non-zeros", "sparsity")]
    for weight in model_report.weights:
        rows.append(_weight_row(weight))
        rows += [_weight_row(gate, indent="  gate ") for gate in weight.gates]
    size = sum(weight.size for weight in model_report.weights)
    active = sum(weight.non_zeros for weight in model_report.weights)
    rows.append(("all matrices", f"{size:,}", f"{active:,}", f"{model_report.sparsity:.2%}"))
    return align(rows)


def _weight_row(weight, indent=""):
    shape = " × ".join(str(axis) for axis in weight.shape)
    return (indent + weight.name, shape, f"{weight.non_zeros:,}", f"{weight.sparsity:.2%}")


def _totals_table(model_report):
    figures = {
        "parameters": model_report.parameters,
        f"training FLOPs per {model_report.unit}": model_report.training_flops,
        f"inference FLOPs per {model_report.unit}": model_report.inference_flops,
    }
    rows = [("", "dense", "sparse", "ratio")]
    for name, figure in figures.items():
        rows.append((name, f"{figure.dense:,}", f"{figure.sparse:,}", f"{figure.ratio:.2%}"))
    return align(rows)
