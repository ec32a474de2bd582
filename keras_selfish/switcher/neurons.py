"""The architecture of switchers of whole units."""

import dataclasses

from keras import ops

from keras_selfish.switcher.statistics import SUMMARY_FEATURES, statistics

LATENTS = 4
FEATURES = SUMMARY_FEATURES + 1


@dataclasses.dataclass(frozen=True)
class Neurons:
    """An MLP over the summary of a unit's weights and its standing among the units.

    Args:
        hidden_units: Number of hidden units.
    """

    hidden_units: int

    def shapes(self):
        return {
            "hidden": (FEATURES, self.hidden_units),
            "hidden_bias": (self.hidden_units,),
            "queries": (SUMMARY_FEATURES, LATENTS),
            "latents": (LATENTS * SUMMARY_FEATURES, self.hidden_units),
            "output": (self.hidden_units, 2),
            "direct": (FEATURES, 2),
            "output_bias": (2,),
        }

    def prior(self):
        """Initial direct weights: the larger a unit's weights among the units, the more it matters."""
        return [[0.0, 0.0]] * SUMMARY_FEATURES + [[1.0, 0.0]]

    def logits_and_scales(self, weights, parameters):
        """Logits (units,) and scales (units,); a scale is 1 where the network's output is 0."""
        summary = statistics(weights).columns
        magnitudes = summary[:, 1]
        spread = ops.sqrt(ops.mean(ops.square(magnitudes - ops.mean(magnitudes)))) + 1e-3
        standing = (magnitudes - ops.mean(magnitudes)) / spread
        features = ops.concatenate([summary, standing[:, None]], -1)
        attention = ops.softmax(ops.matmul(summary, parameters["queries"]), 0)
        latents = ops.reshape(ops.matmul(ops.transpose(attention), summary), (1, -1))
        hidden = ops.matmul(features, parameters["hidden"]) + parameters["hidden_bias"]
        hidden = ops.relu(hidden + ops.matmul(latents, parameters["latents"]))
        outputs = ops.matmul(hidden, parameters["output"]) + ops.matmul(features, parameters["direct"])
        outputs = outputs + parameters["output_bias"]
        return outputs[:, 0], 2.0 * ops.sigmoid(outputs[:, 1])
