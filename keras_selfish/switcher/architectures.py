"""Architectures of switchers: one logit per connection of a weight matrix, with few parameters.

An architecture has `shapes`, its parameters by name; `context`, which looks at the whole matrix once and
returns two dicts of tensors, what was only measured and what depends on parameters; and `logits` of a part of
the matrix, given both dicts as one. A positive logit says that a connection is on.
"""

import dataclasses

from keras import ops

from keras_selfish.switcher.statistics import (
    SUMMARY_FEATURES,
    own_features,
    standing_features,
    statistics,
)
from keras_selfish.switcher.tiling import part_of

OWN = 3
LATENTS = 4


def mlp(features, parameters, rows=None, columns=None):
    """A hidden layer over a list of features, and a direct path beside it.

    Features and hidden units are the first axis, so that a product is a few long rows of numbers.

    Args:
        features: List of tensors (rows, columns).
        parameters: Dict with `hidden` (features, hidden units), `hidden_bias`, `output` (hidden units, 1),
            `direct` (features, 1) and `output_bias` (1,).
        rows: Addend (rows, hidden units) of the hidden layer's input. None (default) for none.
        columns: Addend (columns, hidden units). None (default) for none.

    Returns:
        Logits (rows, columns).
    """
    shape = features[0].shape
    stacked = ops.reshape(ops.stack(features, 0), (len(features), -1))
    hidden = ops.matmul(ops.transpose(parameters["hidden"]), stacked)
    hidden = ops.reshape(hidden, (-1, *shape))
    if rows is not None:
        hidden = hidden + ops.transpose(rows + parameters["hidden_bias"])[:, :, None]
        hidden = hidden + ops.transpose(columns)[:, None, :]
    else:
        hidden = hidden + parameters["hidden_bias"][:, None, None]
    hidden = ops.reshape(ops.relu(hidden), (hidden.shape[0], -1))
    outputs = ops.matmul(ops.transpose(parameters["output"]), hidden)
    outputs = outputs + ops.matmul(ops.transpose(parameters["direct"]), stacked)
    return ops.reshape(outputs, shape) + parameters["output_bias"]


def _mlp_shapes(features, hidden_units):
    return {
        "hidden": (features, hidden_units),
        "hidden_bias": (hidden_units,),
        "output": (hidden_units, 1),
        "direct": (features, 1),
        "output_bias": (1,),
    }


class _Architecture:
    def prior(self):
        """Initial direct weights: the larger a weight, the more it matters."""
        direct = self.shapes()["direct"]
        return [[1.0 if feature == OWN - 1 else 0.0] for feature in range(direct[0])]


def _scales(seen):
    return {"scale": seen.scale, "row_scales": seen.row_scales, "column_scales": seen.column_scales}


@dataclasses.dataclass(frozen=True)
class PerWeight(_Architecture):
    """An MLP that sees each weight by itself.

    Args:
        hidden_units: Number of hidden units.
    """

    hidden_units: int

    def shapes(self):
        return _mlp_shapes(OWN, self.hidden_units)

    def context(self, weights, parameters):
        return {"scale": statistics(weights).scale}, {}

    def logits(self, weights, context, parameters, rows, columns):
        return mlp(own_features(part_of(weights, rows, columns), context["scale"]), parameters)


@dataclasses.dataclass(frozen=True)
class Convolution(_Architecture):
    """A convolution of 3 × 3 neighbouring weights, then an MLP on each place.

    Args:
        hidden_units: Number of filters.
    """

    hidden_units: int

    def shapes(self):
        return {
            **_mlp_shapes(OWN, self.hidden_units),
            "hidden": (3, 3, OWN, self.hidden_units),
        }

    def context(self, weights, parameters):
        return {"scale": statistics(weights).scale, "padded": ops.pad(weights, ((1, 1), (1, 1)))}, {}

    def logits(self, weights, context, parameters, rows, columns):
        spans = [(start, length + 2) for start, length in (rows, columns)]
        features = own_features(part_of(context["padded"], *spans), context["scale"])
        stacked = ops.stack(features, -1)
        hidden = ops.conv(stacked[None], parameters["hidden"], data_format="channels_last")[0]
        hidden = ops.relu(hidden + parameters["hidden_bias"])
        direct = ops.matmul(stacked[1:-1, 1:-1], parameters["direct"])
        outputs = ops.matmul(hidden, parameters["output"]) + direct
        return outputs[..., 0] + parameters["output_bias"]


@dataclasses.dataclass(frozen=True)
class Contextual(_Architecture):
    """An MLP that sees each weight in its matrix.

    Beside the weight itself: its standing within its row and column, what row and column consist of, and what
    the other rows and columns consist of, by attention: a few learnt queries each pick rows (and columns),
    whose mean every row (and column) sees. Units of a dense layer have no order, so nothing here depends on
    one.

    Args:
        hidden_units: Number of hidden units.
    """

    hidden_units: int

    def shapes(self):
        shapes = _mlp_shapes(OWN + 2, self.hidden_units)
        for side in ("rows", "columns"):
            shapes[f"{side}_summary"] = (SUMMARY_FEATURES, self.hidden_units)
            shapes[f"{side}_queries"] = (SUMMARY_FEATURES, LATENTS)
            shapes[f"{side}_latents"] = (LATENTS * SUMMARY_FEATURES, self.hidden_units)
        return shapes

    def context(self, weights, parameters):
        seen = statistics(weights)
        learned = {}
        for side, summary in (("rows", seen.rows), ("columns", seen.columns)):
            attention = ops.softmax(ops.matmul(summary, parameters[f"{side}_queries"]), 0)
            latents = ops.reshape(ops.matmul(ops.transpose(attention), summary), (1, -1))
            learned[side] = ops.matmul(summary, parameters[f"{side}_summary"]) + ops.matmul(
                latents, parameters[f"{side}_latents"]
            )
        return _scales(seen), learned

    def logits(self, weights, context, parameters, rows, columns):
        part, scale = part_of(weights, rows, columns), context["scale"]
        standing = standing_features(
            part, scale, part_of(context["row_scales"], rows), part_of(context["column_scales"], columns)
        )
        everything = (0, self.hidden_units)
        return mlp(
            own_features(part, scale) + standing,
            parameters,
            part_of(context["rows"], rows, everything),
            part_of(context["columns"], columns, everything),
        )


@dataclasses.dataclass(frozen=True)
class RowColumnAttention(Contextual):
    """As `Contextual`, but each row attends to its columns, and each column to its rows, by magnitude.

    An input's weights so tell how much the units matter that it feeds, and a unit's weights how much the
    inputs matter that it reads.

    Args:
        hidden_units: Number of hidden units.
    """

    def shapes(self):
        shapes = _mlp_shapes(OWN + 2, self.hidden_units)
        for side in ("rows", "columns"):
            shapes[f"{side}_summary"] = (SUMMARY_FEATURES, self.hidden_units)
            shapes[f"{side}_attended"] = (self.hidden_units, self.hidden_units)
        return shapes

    def context(self, weights, parameters):
        seen = statistics(weights)
        magnitudes = ops.abs(weights)
        rows = ops.matmul(seen.rows, parameters["rows_summary"])
        columns = ops.matmul(seen.columns, parameters["columns_summary"])
        tiny = 1e-12
        by_rows = ops.matmul(magnitudes, ops.relu(columns)) / (ops.sum(magnitudes, 1)[:, None] + tiny)
        by_columns = ops.matmul(ops.transpose(magnitudes), ops.relu(rows)) / (
            ops.sum(magnitudes, 0)[:, None] + tiny
        )
        return _scales(seen), {
            "rows": rows + ops.matmul(by_rows, parameters["rows_attended"]),
            "columns": columns + ops.matmul(by_columns, parameters["columns_attended"]),
        }


ARCHITECTURES = {
    "contextual": Contextual,
    "weight": PerWeight,
    "convolution": Convolution,
    "attention": RowColumnAttention,
}
