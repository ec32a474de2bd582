"""SNT-ASGD: sparse non-monotonically triggered averaged stochastic gradient descent."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack

import keras
import numpy as np
from keras import ops

from keras_selfish import checks, masks
from keras_selfish.backend import BACKEND
from keras_selfish.keras_internals import (
    decays,
    gradient_accumulators,
    layout_of,
    trained_variables,
    variable_index,
)
from keras_selfish.optimizers import update
from keras_selfish.optimizers.slot_reset import reset_state
from keras_selfish.optimizers.wrappers import trains_itself
from keras_selfish.packing import pack, unpacked
from keras_selfish.typing import Config, Tensor, TensorLike
from keras_selfish.variables import fill, to_numpy

if TYPE_CHECKING:
    from keras_selfish.optimizers.options import OptimizerOptions

CLIP_NORMS = ("dense", "active")
OFF = "None switches it off"
DEFAULT_CLIP_NORM: Final = "dense"

AVERAGED_RATES = ("current", "first")

# The number of validation results that an optimizer carries for `NonMonotonicAveraging`.
HISTORY_LENGTH = 128
# Where there is none yet. Not NaN: processes of one JAX program compare what they write, and NaN is not NaN.
NO_VALUE = float("-inf")

# Of each variable, to tell whether it was set by others.
TRACED_ENTRIES = 1024


@keras.saving.register_keras_serializable(package="keras_selfish")
class SNTASGD(keras.optimizers.Optimizer):
    """SGD that, once triggered, averages each weight over the steps since its connection was grown.

    Until the trigger it is plain SGD with L2 weight decay in the gradient and with clipping. From then on
    it also averages. When training ends at a high, constant learning rate, the weights still jump about a
    good solution, and their mean is nearer to it. A weight that grew later than the trigger is averaged
    from its growth on, so that no mean contains values of a connection that did not exist. With s the
    number of updates since the later of the trigger and the growth,

        average_s = average_{s-1} + (w_s - average_{s-1}) / max(1, s - 1)

    and the average of a weight that does not exist is 0. Biases and other weights without a mask are
    averaged from the trigger on. `NonMonotonicAveraging` pulls the trigger, validates and saves the
    averages, and puts the weights back for training.

    Under `tf.distribute` gradients are clipped after they are summed over the replicas, so that one device
    and several take the same steps.

    State, apart from that of every Keras optimizer: for each variable an average; for each masked one also
    `births`, the number of updates after which each weight began to count (float32, -1 where it does not
    exist); `trigger`, the number of updates when averaging began (-1: not yet); `averages_in` (1 while the
    averages stand in the weights, and the weights in the averages); `validation_history`.

    A variable may stand for the sum of several parameters with one gradient, such as the two bias vectors of
    PyTorch's recurrent layers: where it has an attribute `summands`, a number or an array that fits it, its
    step is as many times the gradient, which counts as often in the norm that `global_clipnorm` limits.

    Args:
        learning_rate: Float, schedule, or callable. Default 40.0, as published for LSTMs with clipping.
        weight_decay: L2 weight decay: this times the weight is added to the clipped gradient. Default None.
        clipnorm: Largest norm of the gradient of each single variable. Default None.
        clipvalue: Largest magnitude of each entry of the gradient. Default None.
        global_clipnorm: Largest norm of the gradient of all variables together. Default None; published
            0.25.
        clip_norm_of: Of which gradient `clipnorm` and `global_clipnorm` take the norm: `"dense"`, the
            inactive positions included as in the published code, or `"active"`, that of the weights that
            exist. The dense norm is larger, so that clipped steps are shorter, by a factor down to about
            sqrt(density). `"dense"` needs `scale_loss` to be called on the loss before the
            gradient is taken, as `model.fit` does; `LossScaleOptimizer` and `MultiOptimizer` do not pass
            this call on, so use `"active"` inside them.
        averaged_rate: By which rate steps are taken once averaging has begun, where the rate changes from
            step to step, as it does with sequences of random lengths: `"current"` (default), that of the
            step; or `"first"`, as in the published code: masked variables keep the rate of the first
            averaged step, the others take that of the step before.
        loss_scale_factor: As in every Keras optimizer.
        gradient_accumulation_steps: As in every Keras optimizer; an update, and so a step of the averages,
            is made once in so many batches. Not with several replicas, where Keras cannot accumulate.
        name: Name of the optimizer; None (default) gives `snt_asgd`, then `snt_asgd_1` and so on.
        **kwargs: As in every Keras optimizer; `use_ema` must be False.

    Raises:
        ValueError: for an argument out of range.

    Example:

    >>> import numpy as np
    >>> from keras_selfish.layers import SparseDense
    >>> model = keras.Sequential([keras.Input((4,)), SparseDense(2, sparsity=0.5)])
    >>> model.compile(SNTASGD(40.0, global_clipnorm=0.25, weight_decay=1.2e-6), loss="mse")
    >>> history = model.fit(np.eye(4), np.ones((4, 2)), verbose=0)
    >>> int(model.optimizer.iterations), int(model.optimizer.trigger)
    (1, -1)

    Reference: Liu et al. 2021, arXiv 2101.09048 (SNT-ASGD); Merity et al. 2018, arXiv 1708.02182 (NT-ASGD).
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], float] = 40.0,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        clip_norm_of: Literal["dense", "active"] = DEFAULT_CLIP_NORM,
        averaged_rate: Literal["current", "first"] = "current",
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        **kwargs: Unpack[OptimizerOptions],
    ) -> None:
        checks.number("weight_decay", weight_decay, "[0, inf)", others=(None,), advice=OFF)
        limits = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
        for argument, limit in limits.items():
            checks.number(argument, limit, "(0, inf)", others=(None,), advice=OFF)
        checks.one_of("clip_norm_of", clip_norm_of, CLIP_NORMS)
        checks.one_of("averaged_rate", averaged_rate, AVERAGED_RATES)
        if kwargs.get("use_ema"):
            raise ValueError(
                "`use_ema` must be False: this optimizer keeps averages of its own. Received: use_ema=True"
            )
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name or _default_name("snt_asgd"),
            **limits,
            **kwargs,
        )
        self.clip_norm_of = clip_norm_of
        self.averaged_rate = averaged_rate
        # From `scale_loss`, which asks for gradients that no mask has touched, to `apply`: of which weights.
        self._asked_for_dense: list[masks.MaskedWeight] | None = None
        self._step_factor: Tensor | None = None
        self._remembered: tuple[int, int] | None = None

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        update.check_replicas(self)
        super().build(variables)
        minus_one = keras.initializers.Constant(-1)
        nothing_yet = keras.initializers.Constant(NO_VALUE)
        self.trigger = self.add_variable((), minus_one, "float32", name="trigger")
        self.averages_in = self.add_variable((), "zeros", "float32", name="averages_in")
        self.validation_history = self.add_variable(
            (HISTORY_LENGTH + 1,), nothing_yet, "float32", name="validation_history"
        )
        if self.averaged_rate == "first":
            # Of the first averaged step, and of the step before.
            self.rates = self.add_variable(
                (2,), "zeros", "float32", aggregation="only_first_replica", name="rates"
            )
        self.averages = [self.add_variable_from_reference(v, "average") for v in variables]
        self.births = [self._add_births(v) if hasattr(v, "masked_weight") else None for v in variables]
        for masked_weight in self._masked_weights():
            masked_weight.watch(self, reset_state)

    def _add_births(self, variable):
        mask = variable.masked_weight.mask

        def from_mask(shape, dtype=None):
            return ops.cast(ops.convert_to_tensor(mask), dtype) - 1

        # Keras has JAX compile the initializer of a large variable: no mask that processes divide may be a
        # constant of it. TensorFlow may be within a graph, where only an initializer runs just once.
        on_jax = BACKEND == "jax"
        # Float32 counts exactly to 2 ** 24; TensorFlow has no kernels for many operations on int32 on GPUs.
        births = self.add_variable(
            variable.shape,
            "zeros" if on_jax else from_mask,
            "float32",
            layout=layout_of(variable),
            name=variable.path.replace("/", "_") + "_birth",
        )
        if on_jax:
            births.assign(from_mask(births.shape, births.dtype))
        return births

    # The gradient

    @property
    def _clips_dense_norm(self):
        return self.clip_norm_of == "dense" and bool(self.clipnorm or self.global_clipnorm)

    def scale_loss(self, loss: Tensor) -> Tensor:
        if self._clips_dense_norm:
            # On TensorFlow the first batch is differentiated before the optimizer is told its variables.
            found = self._masked_weights() if self.built else masks.living_masked_weights()
            for masked_weight in found:
                masked_weight.ask_for_dense_gradient()
            self._asked_for_dense = found
        return super().scale_loss(loss)

    def scale_step(self, factor: TensorLike | float) -> None:
        """Multiplies the learning rate of the next step only.

        A model calls it while it computes its loss (in the same trace), for a batch whose sequences are
        longer or shorter than those that the learning rate was chosen for.

        Args:
            factor: A number or scalar tensor.
        """
        self._step_factor = factor

    def _masked_weights(self):
        found = (getattr(variable, "masked_weight", None) for variable in trained_variables(self))
        return [masked_weight for masked_weight in found if masked_weight is not None]

    def apply(self, grads: list[Tensor], trainable_variables: list[keras.Variable] | None = None) -> None:
        if self._clips_dense_norm:
            self._check_dense_gradients(trainable_variables)
        super().apply(grads, trainable_variables)

    def _check_dense_gradients(self, trainable_variables):
        variables = trained_variables(self) if trainable_variables is None else trainable_variables
        masked = any(hasattr(variable, "masked_weight") for variable in variables)
        if self._asked_for_dense is None and masked:
            raise ValueError(
                "`clip_norm_of` must be 'active' unless `optimizer.scale_loss(loss)` is called before the "
                "gradient is taken; LossScaleOptimizer and MultiOptimizer do not call it. "
                "Received: clip_norm_of='dense'"
            )
        for masked_weight in self._asked_for_dense or ():
            masked_weight.take_masked_gradient()
        self._asked_for_dense = None

    # Three private methods of Keras's optimizers (see `keras_internals.py`): it clips before it sums over
    # replicas, and decays in a pass of its own over the weights. The last one does both.

    def _clip_gradients(self, grads):
        return grads

    def _apply_weight_decay(self, variables):
        pass

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if self._step_factor is not None:
            learning_rate = learning_rate * ops.cast(self._step_factor, "float32")
            self._step_factor = None
        update.update_variables(self, grads, trainable_variables, learning_rate)
        if self.averaged_rate == "first":
            first = self._averaged_rate(learning_rate, masked=True)
            self.rates.assign(ops.stack([first, ops.cast(learning_rate, "float32")]))

    def _averaged_rate(self, learning_rate, masked):
        """The published learning rate of an averaged step; before the trigger, the rate of the step."""
        rate = ops.cast(learning_rate, "float32")
        kept = ops.convert_to_tensor(self.rates)[0 if masked else 1]
        updates = ops.cast(self.iterations, "float32")
        begun = ops.logical_and(
            self.is_averaging(), ops.greater(updates, ops.convert_to_tensor(self.trigger))
        )
        return ops.where(begun, kept, rate)

    def clip(
        self, gradients: list[Tensor], variables: list[keras.Variable]
    ) -> tuple[list[Tensor], list[Tensor | float]]:
        """Clips gradients that are summed over replicas.

        A factor is cheaper than a clipped gradient: the step multiplies by the learning rate anyway.

        Args:
            gradients: List of tensors.
            variables: The variables they are of, in this order.

        Returns:
            A list of gradients, and a list with the factor that each is still to be multiplied by.
        """
        if self.clipvalue:
            gradients = [update.clip_values(gradient, self.clipvalue) for gradient in gradients]
        # A sum moves by the gradient of each of its summands, and each counts in the norm of all gradients.
        counts = [self._summands(variable) for variable in variables]
        moving = [
            gradient if count is None else gradient * ops.cast(count, gradient.dtype)
            for gradient, count in zip(gradients, counts, strict=True)
        ]
        if self.clipnorm:
            return moving, [_factor(update.sum_of_squares(one), self.clipnorm) for one in gradients]
        if not self.global_clipnorm:
            return moving, [1.0] * len(gradients)
        squares = [
            update.sum_of_squares(gradient)
            if count is None
            else ops.sum(ops.cast(count, "float32") * ops.square(ops.cast(gradient, "float32")))
            for gradient, count in zip(gradients, counts, strict=True)
        ]
        return moving, [_factor(ops.sum(ops.stack(squares)), self.global_clipnorm)] * len(gradients)

    def _summands(self, variable):
        weight = trained_variables(self)[variable_index(self, variable)]
        return getattr(weight, "summands", None)

    # The step

    def update_step(
        self,
        gradient: TensorLike,
        variable: keras.Variable,
        learning_rate: Tensor,
        factor: Tensor = 1.0,
        mean: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """Moves one variable.

        Args:
            gradient: Tensor of the variable's shape.
            variable: The variable; on TensorFlow possibly the part of it on one replica.
            learning_rate: Scalar.
            factor: What clipping multiplies the gradient by.
            mean: What `mean_of` gives for the variable, where its average is moved in the same pass.
        """
        index = variable_index(self, variable)
        weight, births = trained_variables(self)[index], self.births[index]
        shrinks = self.weight_decay and decays(self, weight)
        masked = births is not None and self._clips_dense_norm
        if self.averaged_rate == "first":
            learning_rate = self._averaged_rate(learning_rate, masked=births is not None)
        update.descend(
            variable,
            gradient,
            learning_rate * factor,
            decay=learning_rate * self.weight_decay if shrinks else None,
            exists=update.existing(weight.masked_weight, births) if masked else None,
            **({} if mean is None else {"mean": mean}),
        )

    def is_averaging(self) -> Tensor:
        """Whether averaging has begun, a boolean scalar tensor."""
        return ops.greater_equal(ops.convert_to_tensor(self.trigger), 0.0)

    def mean_of(self, variable: keras.Variable) -> tuple[keras.Variable, keras.Variable, Tensor]:
        """The values that `update.py` needs to move the average of a variable.

        Returns:
            The average; the variable with the number of updates after which each weight began to count;
            the number of updates before the present one, a float32 scalar.
        """
        index = variable_index(self, variable)
        births = self.births[index]
        counted_from = self.trigger if births is None else births
        return self.averages[index], counted_from, ops.cast(self.iterations, "float32")

    # Between steps

    def start_averaging(self) -> None:
        """Starts to average now, or anew: the average of each weight begins at the weight's value."""
        now = ops.cast(self.iterations, "float32")
        self.trigger.assign(now)
        for variable, average in zip(trained_variables(self), self.averages, strict=True):
            average.assign(_copied(variable))
        for births in self.births:
            if births is not None:
                old = ops.convert_to_tensor(births)
                births.assign(ops.where(ops.greater_equal(old, 0.0), now, old))

    def exchange_averages(self) -> None:
        """Swaps each weight with its average, bit by bit, and notes in `averages_in` which stands where."""
        for variable, average in zip(trained_variables(self), self.averages, strict=True):
            weight = _copied(variable)
            variable.assign(ops.convert_to_tensor(average))
            average.assign(weight)
        self.averages_in.assign(1.0 - ops.convert_to_tensor(self.averages_in))

    def remember_weights(self) -> None:
        """Notes what the weights are, for `weights_were_replaced`."""
        self._remembered = self._trace_of_weights()

    def weights_were_replaced(self) -> bool:
        """Whether others have set the weights since they were last remembered, in the course of averaging.

        Where the number of updates is another, training has gone on, or all of it comes from a checkpoint.
        """
        if self._remembered is None or ops.convert_to_numpy(self.trigger) < 0:
            return False
        (updates, weights), now = self._remembered, self._trace_of_weights()
        return now[0] == updates and now[1] != weights

    def _trace_of_weights(self):
        return int(ops.convert_to_numpy(self.iterations)), _trace(trained_variables(self))

    def reset_slots(self, variable: keras.Variable, dropped: TensorLike, grown: TensorLike) -> None:
        """Resets the state of connections that were dropped or grown.

        Args:
            variable: The masked weight, a `keras.Variable`.
            dropped: Boolean array of its shape, True where a connection was dropped.
            grown: Boolean array of its shape, True where a connection was grown.

        Raises:
            ValueError: if the optimizer does not train the variable, or it is not masked.
        """
        index = variable_index(self, variable) if trains_itself(self, variable) else None
        if index is None or self.births[index] is None:
            raise ValueError(
                "`variable` must be a masked weight that this optimizer trains. "
                f"Received: variable={variable.path}"
            )
        averages = ops.convert_to_numpy(self.trigger) >= 0
        slots = [self.averages[index]] if averages else []  # before, all of them are 0
        if self.gradient_accumulation_steps:
            slots.append(gradient_accumulators(self)[index])
        if slots:
            changed = ops.logical_or(dropped, grown)
            for slot in slots:
                fill(slot, changed, 0.0)
        fill(self.births[index], dropped, -1.0)
        fill(self.births[index], grown, self.iterations)

    def align_masks(self) -> None:
        """Fits the state to the masks after weights with other masks were loaded.

        Weights that no longer exist lose their average; weights that the optimizer did not know begin now.
        `NonMonotonicAveraging` calls this when training begins.
        """
        for variable, births in zip(trained_variables(self), self.births, strict=True):
            if births is None:
                continue
            mask = ops.convert_to_tensor(variable.masked_weight.mask)
            known = ops.greater_equal(ops.convert_to_tensor(births), 0.0)
            if ops.any(ops.not_equal(mask, known)):
                dropped = ops.logical_and(known, ops.logical_not(mask))
                grown = ops.logical_and(mask, ops.logical_not(known))
                self.reset_slots(variable, dropped, grown)

    def save_own_variables(self, store: Any) -> None:
        for index, variable in enumerate(self.variables):
            pack(store, str(index), to_numpy(variable))

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(unpacked(store))

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "clip_norm_of": self.clip_norm_of,
            "averaged_rate": self.averaged_rate,
        }


def _factor(square, limit):
    norm = ops.sqrt(square)
    # norm - norm is NaN if the norm is not finite: the loss then shows that something went wrong.
    return limit / ops.maximum(norm, limit) + (norm - norm)


def _trace(variables):
    """A checksum of some entries of each variable, by which a replaced weight is noticed."""
    checksum = 0
    for variable in variables:
        # Not flat: the parts of a matrix that is divided among devices would have to be gathered.
        limit = math.ceil(TRACED_ENTRIES ** (1 / max(len(variable.shape), 1)))
        places = tuple(slice(None, None, math.ceil(size / limit)) for size in variable.shape)
        sample = to_numpy(ops.convert_to_tensor(variable)[places])
        checksum = zlib.crc32(np.ascontiguousarray(sample), checksum)
    return checksum


def _copied(variable):
    # Without the copy, JAX and torch would leave the variable and what is assigned from it in one buffer.
    return ops.copy(ops.convert_to_tensor(variable))


def _default_name(prefix):
    """The name that Keras would generate next from a prefix."""
    count = keras.backend.get_uid(prefix)
    return prefix if count == 1 else f"{prefix}_{count - 1}"
