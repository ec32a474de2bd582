"""SNT-ASGD: sparse non-monotonically triggered averaged stochastic gradient descent."""

import keras
from keras import ops

from keras_selfish import masks

if keras.backend.backend() == "tensorflow":
    from keras_selfish.optimizers import update_tensorflow as update
else:
    from keras_selfish.optimizers import update

CLIP_NORMS = ("dense", "active")
DEFAULT_CLIP_NORM = "dense"

# How many of the last validation results an optimizer carries for `NonMonotonicAveraging`.
HISTORY = 128


@keras.saving.register_keras_serializable(package="keras_selfish")
class SNTASGD(keras.optimizers.Optimizer):
    """Sparse non-monotonically triggered averaged SGD."""

    def __init__(
        self,
        learning_rate=40.0,
        weight_decay=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        clip_norm_of=DEFAULT_CLIP_NORM,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        name="snt_asgd",
        **kwargs,
    ):
        if clip_norm_of not in CLIP_NORMS:
            raise ValueError(
                f"`clip_norm_of` must be one of {', '.join(CLIP_NORMS)}. Received: clip_norm_of={clip_norm_of!r}"
            )
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
            **kwargs,
        )
        self.clip_norm_of = clip_norm_of
        self._asked = None

    def build(self, variables):
        if self.built:
            return
        update.check_replicas(self)
        super().build(variables)
        self.trigger = self.add_variable((), keras.initializers.Constant(-1), "float32", name="trigger")
        self.averages_in = self.add_variable((), "zeros", "float32", name="averages_in")
        self.history = self.add_variable(
            (1 + HISTORY,), keras.initializers.Constant(float("nan")), "float32", name="history"
        )
        self.averages = []
        self.births = []
        for variable in variables:
            self.averages.append(self.add_variable_from_reference(variable, "average"))
            masked_weight = getattr(variable, "masked_weight", None)
            self.births.append(None if masked_weight is None else self._add_birth(masked_weight))

    def _add_birth(self, masked_weight):
        def first_births(shape, dtype=None):
            return ops.cast(ops.convert_to_tensor(masked_weight.mask), dtype) - 1

        return self.add_variable(
            masked_weight.shape,
            first_births,
            "float32",
            layout=getattr(masked_weight.weight, "_layout", None),
            name=masked_weight.weight.path.replace("/", "_") + "_birth",
        )

    # The gradient

    @property
    def _norm_is_clipped(self):
        return bool(self.clipnorm or self.global_clipnorm)

    @property
    def _wants_dense_gradients(self):
        return self.clip_norm_of == "dense" and self._norm_is_clipped

    def scale_loss(self, loss):
        if self._wants_dense_gradients:
            self._asked = self._own_masked_weights() if self.built else masks.living_masked_weights()
            for masked_weight in self._asked:
                masked_weight.dense_gradient = True
        return super().scale_loss(loss)

    def _own_masked_weights(self):
        found = (getattr(variable, "masked_weight", None) for variable in self._trainable_variables)
        return [masked_weight for masked_weight in found if masked_weight is not None]

    def apply(self, grads, trainable_variables=None):
        asked, self._asked = self._asked, None
        for masked_weight in asked or ():
            masked_weight.dense_gradient = False
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        masked = any(hasattr(variable, "masked_weight") for variable in variables)
        if self._wants_dense_gradients and masked and asked is None:
            raise ValueError(
                "`clip_norm_of` 'dense' needs the gradient of inactive weights too: call "
                "`optimizer.scale_loss(loss)` before the gradient is taken (LossScaleOptimizer and "
                "MultiOptimizer do not pass it on), or use clip_norm_of='active'"
            )
        super().apply(grads, trainable_variables)

    def _clip_gradients(self, grads):
        # Keras 3.15 clips here, before gradients are summed over replicas; `update_variables` clips.
        return grads

    def _apply_weight_decay(self, variables):
        # Keras 3.15 decays here, in a pass of its own over the weights; `update_step` decays.
        pass

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        update.update_variables(self, grads, trainable_variables, learning_rate)

    def clip(self, gradients):
        """Returns the gradients, and for each the factor that clips it."""
        if self.clipvalue:
            return [update.clip_values(g, self.clipvalue) for g in gradients], [1.0] * len(gradients)
        if not self._norm_is_clipped:
            return gradients, [1.0] * len(gradients)
        squares = [update.sum_of_squares(g) for g in gradients]
        if self.clipnorm:
            return gradients, [_scale(square, self.clipnorm) for square in squares]
        return gradients, [_scale(ops.sum(ops.stack(squares)), self.global_clipnorm)] * len(gradients)

    # The step

    def update_step(self, gradient, variable, learning_rate, scale=1.0):
        """Moves one variable against `scale * gradient`, and its average after it."""
        index = self._get_variable_index(variable)
        weight, birth = self._trainable_variables[index], self.births[index]
        exists = kept = None
        if birth is not None and self._wants_dense_gradients:
            exists = update.existing(weight.masked_weight, birth)
        if self.weight_decay and self._use_weight_decay(weight):
            kept = 1.0 - learning_rate * self.weight_decay
        update.descend(variable, gradient, exists, learning_rate * scale, kept)
        update.move_average(
            self.averages[index],
            variable,
            self.trigger if birth is None else birth,
            ops.cast(self.iterations, "float32"),
            ops.greater_equal(self.trigger, 0.0),
        )

    # Averages and rewiring, between steps

    def start_averaging(self):
        """Begins to average: every weight's average starts as its present value."""
        now = ops.cast(self.iterations, "float32")
        self.trigger.assign(now)
        for variable, average, birth in zip(
            self._trainable_variables, self.averages, self.births, strict=True
        ):
            average.assign(ops.copy(ops.convert_to_tensor(variable)))
            if birth is not None:
                old = ops.convert_to_tensor(birth)
                birth.assign(ops.where(ops.greater_equal(old, 0.0), now, old))

    def exchange_averages(self):
        """Swaps every weight with its average, bit by bit; done twice, all is as before."""
        for variable, average in zip(self._trainable_variables, self.averages, strict=True):
            weight = ops.copy(ops.convert_to_tensor(variable))
            variable.assign(ops.convert_to_tensor(average))
            average.assign(weight)
        self.averages_in.assign(1.0 - ops.convert_to_tensor(self.averages_in))

    def reset_slots(self, variable, dropped, grown):
        """Gives the slots of `variable` back their initial values where a connection came or went."""
        index = self._get_variable_index(variable)
        changed = ops.logical_or(dropped, grown)
        slots = [self.averages[index]]
        if self.gradient_accumulation_steps:
            slots.append(self._accumulated_gradients[index])
        for slot in slots:
            old = ops.convert_to_tensor(slot)
            slot.assign(ops.where(changed, ops.zeros((), old.dtype), old))
        birth = self.births[index]
        now = ops.cast(self.iterations, "float32")
        old = ops.convert_to_tensor(birth)
        birth.assign(ops.where(dropped, -1.0, ops.where(grown, now, old)))

    def align_masks(self):
        """Makes the births agree with the masks, after other masks have been loaded."""
        for variable, birth in zip(self._trainable_variables, self.births, strict=True):
            if birth is not None:
                mask = ops.convert_to_tensor(variable.masked_weight.mask)
                known = ops.greater_equal(ops.convert_to_tensor(birth), 0.0)
                dropped = ops.logical_and(ops.logical_not(mask), known)
                grown = ops.logical_and(mask, ops.logical_not(known))
                self.reset_slots(variable, dropped, grown)

    def get_config(self):
        return {**super().get_config(), "clip_norm_of": self.clip_norm_of}


def _scale(square, limit):
    norm = ops.sqrt(square)
    # norm - norm is 0, or NaN if the norm is not finite: then the loss must show it.
    return limit / ops.maximum(norm, limit) + (norm - norm)
