"""The switcher network, which reads a layer's weights and decides which connections are on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Unpack

import keras
from keras import ops

from keras_selfish import checks
from keras_selfish.layers.switched_dense import GRANULARITIES
from keras_selfish.switcher.architectures import ARCHITECTURES
from keras_selfish.switcher.constraint import Count, count
from keras_selfish.switcher.estimators import binary
from keras_selfish.switcher.neurons import Neurons
from keras_selfish.switcher.tiling import map_tiles, part_of
from keras_selfish.typing import Config, OpenShape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import LayerOptions


@keras.saving.register_keras_serializable(package="keras_selfish")
class SwitcherNetwork(keras.layers.Layer):
    """A small network that reads a weight matrix and returns a logit per connection, positive for on.

    One switcher serves all layers of a model, of any size: its own parameters (326 by default) do not grow
    with them, and all it sees is relative to the scale of the matrix. A large matrix is read part by part.

    Args:
        architecture: What a logit depends on. `"contextual"` (default): the weight, its standing within its
            row and column, and what these and the others consist of. `"attention"`: the same, but rows attend
            to their columns and columns to their rows. `"convolution"`: the weight's 3 × 3 neighbourhood.
            `"weight"`: the weight alone.
        granularity: `"connection"` (default), or `"neuron"`: a logit and a positive scale for each unit, from
            the summary of its weights; `architecture` then does not matter.
        hidden_units: Number of hidden units. Default 8.
        initial_logit: Logit of a weight of average magnitude before training. Default 2.0: nearly all
            connections are on.
        tile_size: Number of weights that are read at a time. Default 65,536; no result depends on it.
        seed: Integer seed of the initial parameters. Default 0.
        **kwargs: As in `keras.layers.Layer`; a switcher computes in float32 unless `dtype` says otherwise.

    Call arguments:
        weights: Weight matrix (inputs, units).

    Returns:
        Logits (inputs, units); (units,) for `granularity="neuron"`.

    Raises:
        ValueError: for an argument out of range.

    Example:

    >>> import numpy as np
    >>> switcher = SwitcherNetwork()
    >>> switcher(np.random.default_rng(0).normal(size=(20, 10))).shape == (20, 10)
    True

    Reference: Han et al. 2021, arXiv 2103.15590; arXiv 2110.05954 (neurons).
    """

    def __init__(
        self,
        architecture: Literal["contextual", "weight", "convolution", "attention"] = "contextual",
        granularity: Literal["connection", "neuron"] = "connection",
        hidden_units: int = 8,
        initial_logit: float = 2.0,
        tile_size: int = 65_536,
        seed: int = 0,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        checks.one_of("architecture", architecture, ARCHITECTURES)
        checks.one_of("granularity", granularity, GRANULARITIES)
        hidden_units = checks.integer("hidden_units", hidden_units, at_least=1)
        tile_size = checks.integer("tile_size", tile_size, at_least=1)
        super().__init__(**{"dtype": "float32", **kwargs})
        self.architecture = architecture
        self.granularity = granularity
        self.hidden_units = hidden_units
        self.initial_logit = float(initial_logit)
        self.tile_size = tile_size
        self.seed = seed
        family = ARCHITECTURES[architecture] if granularity == "connection" else Neurons
        self._reader: Any = family(hidden_units)
        self._parameters: dict[str, keras.Variable] = {}

    def build(self, input_shape: OpenShape | None = None) -> None:
        for index, (name, shape) in enumerate(self._reader.shapes().items()):
            self._parameters[name] = self.add_weight(
                name=name,
                shape=shape,
                initializer=self._initializer(name, shape, self.seed + index),
                autocast=False,  # it is read in the calls of layers of any precision
            )
        self.built = True

    def _initializer(self, name, shape, seed):
        if name == "output_bias":
            return keras.initializers.Constant([self.initial_logit] + [0.0] * (shape[0] - 1))
        if name.endswith("bias"):
            return "zeros"
        if name == "direct":
            return keras.initializers.Constant(self._reader.prior())
        return keras.initializers.VarianceScaling(0.5 if name != "output" else 0.1, seed=seed)

    def call(self, weights: TensorLike) -> Tensor:
        weights = ops.cast(weights, self.compute_dtype)
        if self.granularity == "neuron":
            return self.units(weights)[0]
        (logits,) = self._by_tiles(weights, lambda logits, rows, columns: (logits,))
        return logits

    def units(
        self, weights: TensorLike, parameters: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The logit and the scale of each unit.

        Args:
            weights: Weight matrix (inputs, units).
            parameters: As in `switched`.

        Returns:
            Two tensors (units,): logits, and scales over 0.
        """
        weights = ops.stop_gradient(ops.cast(weights, self.compute_dtype))
        return self._reader.logits_and_scales(weights, parameters or self.parameters())

    def switched(
        self,
        weights: TensorLike,
        threshold: TensorLike | float = 0.0,
        width: TensorLike | float = 1.0,
        noise: TensorLike | None = None,
        parameters: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Count]:
        """The matrix after switching, computed without keeping any logit.

        Gradients flow to the switcher's parameters only.

        Args:
            weights: Weight matrix (inputs, units).
            threshold: Scalar; a connection is on where its logit is over it.
            width: Scalar, as in `constraint.count`.
            noise: As in `estimators.binary`.
            parameters: Tensors to compute with, as `parameters()` returns them; None (default) for its own.

        Returns:
            The weights, zero where they are switched off, and a boolean mask, both (inputs, units); and the
            `Count` of the logits.
        """
        weights = ops.stop_gradient(ops.cast(weights, self.compute_dtype))

        def apply(logits, rows, columns):
            drawn = None if noise is None else ops.cast(part_of(noise, rows, columns), logits.dtype)
            switches = binary(logits - threshold, drawn)
            part = part_of(weights, rows, columns)
            mask = ops.greater(ops.stop_gradient(switches), 0.5)
            return part * switches, mask, *count(logits, threshold, width)

        switched, mask, *sums = self._by_tiles(weights, apply, parameters)
        return switched, mask, Count(float(math.prod(weights.shape)), *sums)

    def count(
        self, weights: TensorLike, threshold: TensorLike | float = 0.0, width: TensorLike | float = 1.0
    ) -> Count:
        """What `switched` counts, alone.

        Args:
            weights: Weight matrix (inputs, units).
            threshold: As in `switched`.
            width: As in `switched`.

        Returns:
            A `Count`, for neurons too: of the connections.
        """
        weights = ops.stop_gradient(ops.cast(weights, self.compute_dtype))
        if self.granularity == "neuron":
            sums = (weights.shape[0] * one for one in count(self.units(weights)[0], threshold, width))
        else:
            sums = self._by_tiles(weights, lambda logits, *spans: count(logits, threshold, width))
        return Count(float(math.prod(weights.shape)), *sums)

    def parameters(self) -> dict[str, Tensor]:
        """The values of the parameters, a dict of tensors."""
        return {name: ops.convert_to_tensor(variable) for name, variable in self._parameters.items()}

    def _by_tiles(self, weights, function, parameters=None):
        """Calls function(logits, rows, columns) on each part of the matrix; see `map_tiles`."""
        of_context, parameters = two_uses(parameters or self.parameters())
        measured, learned = self._reader.context(weights, of_context)
        names = [*parameters, *learned]

        def part(rows, columns, tensors):
            named = dict(zip(names, tensors, strict=True))
            context = {**measured, **{name: named[name] for name in learned}}
            return function(self._reader.logits(weights, context, named, rows, columns), rows, columns)

        tensors = [*parameters.values(), *learned.values()]
        return map_tiles(part, tuple(weights.shape), tensors, self.tile_size)

    def prune(
        self,
        model: keras.Model,
        target_sparsity: float | None = None,
        layer_shares: Literal["magnitude", "logits"] = "magnitude",
    ) -> dict[str, float]:
        """Switches a network, which this switcher need not have been trained with.

        Layers that switch get their switches set. In plain `keras.layers.Dense` layers of a model without any
        such layer, the last one excepted, the weights that are off become zero.

        Args:
            model: A built `keras.Model`; it is changed in place.
            target_sparsity: Fraction of zeros over all layers together, in [0, 1), met by moving the
                logit from which on a connection is on: exactly, or as nearly as whole units allow. None
                (default): it is zero.
            layer_shares: With a target, how connections are divided between layers: "magnitude" (default)
                leaves each layer as many as it has among the largest weights of all layers, and the switcher
                decides which; "logits" has all layers' logits compete. What the switcher sees of a weight
                is relative to its matrix, so that its logits say little across layers it was not trained
                with. Units always compete by their logits.

        Returns:
            A dict from layer name to the fraction of zeros in its kernel.

        Raises:
            ValueError: if the model is not built or has no layer to prune, or for an argument out of range.

        Example:

        >>> from keras_selfish import SwitchedDense
        >>> model = keras.Sequential([keras.Input((20,)), SwitchedDense(10), keras.layers.Dense(2)])
        >>> sparsity = SwitcherNetwork().prune(model, target_sparsity=0.9)
        >>> round(sparsity["switched_dense"], 3)
        0.9
        """
        from keras_selfish.switcher.prune import prune

        return prune(self, model, target_sparsity, layer_shares)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "architecture": self.architecture,
            "granularity": self.granularity,
            "hidden_units": self.hidden_units,
            "initial_logit": self.initial_logit,
            "tile_size": self.tile_size,
            "seed": self.seed,
        }


def two_uses(tensors):
    """Tensors to be used in two places, as a pair of dicts, whose gradients are added in this order.

    TensorFlow adds the gradients of three or more uses of a tensor in an order that depends on other threads.

    Args:
        tensors: A dict of tensors.
    """
    pairs = {
        name: ops.unstack(ops.broadcast_to(tensor, (2, *tensor.shape)), 2) for name, tensor in tensors.items()
    }
    return tuple({name: pair[place] for name, pair in pairs.items()} for place in range(2))
