"""What `sparsify` made of each weight matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from keras_selfish.analysis import flops
from keras_selfish.cloning import with_inner
from keras_selfish.layers.composite import layers_within, without_composite
from keras_selfish.layers.masked import SparseLayer

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True)
class SparsifiedMatrix:
    """A weight matrix of a model that `sparsify` has copied.

    Args:
        name: Path of the variable in the copy.
        layer: Name of the layer of the model that holds it; a wrapper's for what is in it.
        shape: Its shape.
        sparse: Whether the copy has a mask of it.
        reason: Why it is dense, `""` for a sparse one.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    sparse: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class SparsifyReport:
    """What `sparsify` made of a model. Printed, it is a table.

    Args:
        matrices: A `SparsifiedMatrix` for each weight matrix. Layers that are not built have none yet.
    """

    matrices: tuple[SparsifiedMatrix, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[keras.Layer, keras.Layer]], reasons: Mapping[int, str | None]) -> Self:
        """The report of what layers have become.

        Args:
            pairs: List of pairs (layer, its copy).
            reasons: Dict from the id of a layer to why it was to stay dense, None or absent if it was not.
        """
        rows = []
        for layer, copy in pairs:
            sources = _sources(layer, without_composite(copy))
            for variable, owner in flops.weight_matrices(copy) if copy.built else ():
                is_sparse = hasattr(variable, "masked_weight")
                source, made = sources.get(id(owner), (layer, copy))
                has_form = is_sparse or isinstance(made, SparseLayer)
                why = "" if has_form else _reason(source, layer, reasons)
                rows.append(
                    SparsifiedMatrix(variable.path, layer.name, tuple(variable.shape), is_sparse, why)
                )
        return cls(tuple(rows))

    def where(self, earlier: SparsifyReport, reason: str) -> SparsifyReport:
        """The same, with a reason for matrices that an earlier report of the model still had as sparse."""
        rows = [
            dataclasses.replace(row, reason=reason) if before.sparse and not row.sparse else row
            for row, before in zip(self.matrices, earlier.matrices, strict=True)
        ]
        return SparsifyReport(tuple(rows))

    @property
    def dense(self) -> tuple[SparsifiedMatrix, ...]:
        """The matrices that have no mask."""
        return tuple(matrix for matrix in self.matrices if not matrix.sparse)

    def left_dense(self) -> list[str]:
        """The layers that stay dense, each with the reason, as a list of strings."""
        return list(dict.fromkeys(f"{m.layer}: {m.reason}" for m in self.dense if m.reason))

    def __str__(self):
        rows = [("weight", "shape", "becomes")]
        for matrix in self.matrices:
            reason = f"dense: {matrix.reason}" if matrix.reason else "dense"
            shape = " × ".join(map(str, matrix.shape))
            rows.append((matrix.name, shape, "sparse" if matrix.sparse else reason))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(f"{name:{widths[0]}}  {shape:>{widths[1]}}  {what}" for name, shape, what in rows)


def _sources(layer, copy):
    """Of which layer a layer within a copy is the copy: dict from its id to the pair."""
    copies = dict(layers_within(copy))
    pairs = [(held, copies[path]) for path, held in layers_within(layer) if path in copies]
    return {id(inner): pair for pair in pairs for inner in with_inner(pair[1])}


def _reason(source, layer, reasons):
    return reasons.get(id(source)) or reasons.get(id(layer)) or f"{type(source).__name__} has no sparse form"
