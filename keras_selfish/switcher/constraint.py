"""Steering the switches towards a given sparsity."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import keras
from keras import ops

from keras_selfish import checks, masks
from keras_selfish.ordering import after
from keras_selfish.typing import Config, OpenShape, Tensor

if TYPE_CHECKING:
    from keras_selfish.layers.options import LayerOptions

# Width, in standard deviations of the logits, over which their number near the threshold is estimated.
WIDTH = 0.3
# Fraction of the logits within one width that is taken for granted, and the largest step, in widths.
LEAST_SLOPE, LARGEST_STEP = 0.02, 2.0


class Count(typing.NamedTuple):
    """Sums over the logits of some connections, from a forward pass.

    Args:
        size: Number of connections.
        is_open: Number of open ones.
        near: Estimate of minus the derivative of `is_open` by the threshold.
        total: Sum of the logits.
        squares: Sum of their squares.
    """

    size: float
    is_open: Tensor
    near: Tensor
    total: Tensor
    squares: Tensor


class Position(typing.NamedTuple):
    """Where a constraint's threshold is, in scalars.

    Args:
        threshold: The threshold on the logits.
        width: Width over which logits near the threshold are counted.
        last_threshold: Where the threshold was before.
        last_open: Fraction of the connections that was open there.
    """

    threshold: Tensor
    width: Tensor
    last_threshold: Tensor
    last_open: Tensor


def together(counts):
    """Adds up several `Count`s.

    Stacked, because TensorFlow makes one operation of additions, whose order depends on other threads.
    """
    size = sum(one.size for one in counts)
    sums = zip(*(one[1:] for one in counts), strict=True)
    return Count(size, *(ops.sum(ops.stack(parts)) for parts in sums))


def value_of(variable):
    """The present value of a variable.

    `ops.convert_to_tensor` returns on TensorFlow the variable itself, which is read anew wherever it is used:
    the gradient would see what was assigned after the forward pass, and not always in this order.
    """
    return ops.copy(ops.convert_to_tensor(variable))


def count(logits, threshold, width):
    """The sums of a `Count` but its size, as a tuple of scalars without gradient.

    Args:
        logits: Float tensor.
        threshold: Scalar; a connection is on where its logit is over it.
        width: Scalar over 0, the width of the logistic function that smooths the count.
    """
    logits = ops.stop_gradient(logits)
    gates = ops.sigmoid((logits - threshold) / width)
    return (
        ops.sum(ops.cast(ops.greater(logits, threshold), logits.dtype)),
        ops.sum(gates * (1.0 - gates)) / width,
        ops.sum(logits),
        ops.sum(ops.square(logits)),
    )


@keras.saving.register_keras_serializable(package="keras_selfish")
class SparsityConstraint(keras.layers.Layer):
    """A threshold on the logits: the multiplier of a constraint on the number of open connections.

    Among switches s in [0, 1], the maximisers of the logits' sum plus the entropy, under the constraint that
    the switches add up to a given number, are sigmoid(logit - multiplier). So the multiplier of
    the constraint is a threshold that all logits share: it decides how many connections are open, and the
    task's loss, through the logits, which. The multiplier follows the violation by Newton's method on the
    dual, a step each time the switcher decides: it moves by (fraction open - fraction wanted) over the
    derivative of the fraction open, estimated from the logits near the threshold. Where it has just stepped
    over the number wanted, it goes to where the line through the last two points meets it (false position):
    at an edge of the logits, such as the largest weights of a new layer, the smooth estimate is half of the
    derivative, and Newton's method would step to and fro for ever. It is at rest only where the number of
    binary switches that are on is the number wanted.

    The fraction wanted falls from 1 to the target over the first `ramp_steps` steps of the switcher, fast at
    first, as a cube.

    Args:
        target_sparsity: Fraction of zeros over all switched layers, in [0, 1).
        ramp_steps: Steps of the switcher over which the target is approached. Default 200.
        **kwargs: As in `keras.layers.Layer`.

    Raises:
        ValueError: for an argument out of range.

    Reference: Zhu and Gupta 2017, arXiv 1710.01878 (the cube).
    """

    def __init__(self, target_sparsity: float, ramp_steps: int = 200, **kwargs: Unpack[LayerOptions]) -> None:
        masks.check_sparsity(target_sparsity, "target_sparsity")
        ramp_steps = checks.integer("ramp_steps", ramp_steps, at_least=0)
        super().__init__(**{"dtype": "float32", **kwargs})
        self.target_sparsity = float(target_sparsity)
        self.ramp_steps = ramp_steps

    def build(self, input_shape: OpenShape | None = None) -> None:
        # All replicas count the same.
        state = {"shape": (), "trainable": False, "autocast": False}
        state["aggregation"] = "only_first_replica"
        self.threshold = self.add_weight(name="threshold", initializer=_below_all, **state)
        self.width = self.add_weight(name="width", initializer=_some_width, **state)
        self.steps = self.add_weight(name="steps", initializer="zeros", **state)
        # Where the threshold was before, and what fraction was open there.
        self.last_threshold = self.add_weight(name="last_threshold", initializer=_below_all, **state)
        self.last_open = self.add_weight(name="last_open", initializer="ones", **state)
        self.built = True

    def density_wanted(self) -> Tensor:
        """Present target for the fraction of open connections, a scalar tensor."""
        if not self.ramp_steps:
            return 1.0 - self.target_sparsity
        left = 1.0 - ops.minimum(value_of(self.steps) / float(self.ramp_steps), 1.0)
        return 1.0 - self.target_sparsity * (1.0 - left**3)

    def update(self, counted: Count, advance: bool) -> None:
        """Moves the threshold.

        Args:
            counted: The `Count` of all switched connections at the present threshold and width.
            advance: Whether this was a step of the switcher, which the approach to the target is counted in.
        """
        self.move_to(self.moved(self.position(), counted), advance)

    def position(self) -> Position:
        """The present `Position`."""
        return Position(*map(value_of, self._variables_of_position()))

    def _variables_of_position(self):
        return self.threshold, self.width, self.last_threshold, self.last_open

    def moved(self, position: Position, counted: Count) -> Position:
        """The `Position` after a step; no variable is assigned.

        Args:
            position: The `Position` before it.
            counted: The `Count` of all switched connections there.
        """
        threshold, width, last_threshold, last_open = position
        is_open = counted.is_open / counted.size
        wanted = self.density_wanted()
        excess, last_excess = is_open - wanted, last_open - wanted
        slope = ops.maximum(counted.near / counted.size, LEAST_SLOPE / width)
        newton = ops.clip(excess / slope, -LARGEST_STEP * width, LARGEST_STEP * width)
        crossed = excess * last_excess < 0.0
        back = last_threshold - threshold
        step = ops.where(crossed, back * excess / ops.where(crossed, excess - last_excess, 1.0), newton)
        mean = counted.total / counted.size
        deviation = ops.sqrt(ops.maximum(counted.squares / counted.size - mean**2, 0.0))
        return Position(threshold + step, WIDTH * deviation + 1e-3, threshold, is_open)

    def move_to(self, position: Position, advance: bool) -> None:
        """Assigns a `Position`, as `moved` returns it.

        The threshold is computed from all that was read of the position before, and every assignment waits
        for it. TensorFlow has assignments wait for what was read before them, but forgets this where it
        simplifies graphs with custom gradients: a width assigned here was at times the one counted with.

        Args:
            position: A `Position`.
            advance: Whether this was a step of the switcher, which the approach to the target is counted in.
        """
        for variable, value in zip(self._variables_of_position(), position, strict=True):
            variable.assign(after(value, position.threshold))
        if advance:
            self.steps.assign(after(value_of(self.steps) + 1.0, position.threshold))

    def place(self, logits: Sequence[Tensor], sizes: Sequence[float]) -> None:
        """Puts the threshold where the fraction open is as near to the one wanted as whole units allow.

        Args:
            logits: A list of tensors (units,), one for each layer.
            sizes: Number of connections of a unit of each.
        """
        every = ops.concatenate(logits)
        connections = ops.concatenate(
            [ops.full_like(logit, float(size)) for logit, size in zip(logits, sizes, strict=True)]
        )
        order = ops.argsort(every)
        ranked = ops.take(every, order)
        closed = ops.pad(ops.cumsum(ops.take(connections, order)), ((1, 0),))
        wanted = (1.0 - self.density_wanted()) * closed[-1]
        place = ops.argmin(ops.abs(closed - wanted))
        bounds = ops.concatenate([ranked[:1] - 1.0, ranked, ranked[-1:] + 1.0])
        self.threshold.assign((ops.take(bounds, place) + ops.take(bounds, place + 1)) / 2.0)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "target_sparsity": self.target_sparsity,
            "ramp_steps": self.ramp_steps,
        }


def _below_all(shape, dtype=None):
    return ops.full(shape, -5.0, dtype)


def _some_width(shape, dtype=None):
    return ops.full(shape, WIDTH, dtype)
