"""The variables of a masked weight and its mask, which keep the weight at zero where no connection exists.

Anybody may write to them: a user, `set_weights`, a callback that restores the best weights, a file, a loop
that copies one model into another, in any order. A value for a weight loses what lies outside the mask; the
whole value is kept until its layer next reads the weight, for its own mask may be written later.
"""

import contextlib

import keras
from keras import ops

from keras_selfish import masks
from keras_selfish.backend import BACKEND
from keras_selfish.keras_internals import raw_value, write_raw

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax


def make_guarded(weight, mask, **options):
    """Makes two new variables of a layer those of a masked weight.

    Args:
        weight: The `keras.Variable` of the weight, zero where the mask is False.
        mask: The boolean `keras.Variable` of the same shape.
        **options: As in `GuardedWeight`.

    Returns:
        The `GuardedWeight`.
    """
    guarded = GuardedWeight(weight, mask, **options)
    # Keras makes the variable of a layer itself, of a class that cannot be chosen.
    weight.__class__, mask.__class__ = MaskedVariable, MaskVariable
    weight.guarded = mask.guarded = weight.masked_weight = guarded
    return guarded


class GuardedWeight(masks.MaskedWeight):
    """A `MaskedWeight` that is zero where no connection exists, whoever writes to it or to its mask.

    An optimizer whose state is older than the mask would move weights without a connection: momentum does so
    without any gradient. Where a mask changes, the optimizers that are known (see `watch`) are told. Others
    may exist, so that from then on the forward pass masks the weight as well (`is_settled` is False), until
    a callback that knows the model's optimizer says otherwise (`settle`).
    """

    def __post_init__(self):
        super().__post_init__()
        self._lost = None  # a value that had entries outside the mask
        self._settled = True
        self._projects = False
        self._written_together = False
        # What a compiled function of TensorFlow reads; a constant of Python would be a part of it for ever.
        self.unsettled_flag = None
        if BACKEND == "tensorflow":
            with tf.init_scope():
                self.unsettled_flag = tf.Variable(
                    False,
                    trainable=False,
                    name="unsettled",
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )

    @property
    def is_settled(self):
        """Whether no optimizer can move a weight that does not exist."""
        return self._settled

    def unsettle(self):
        """Has the forward pass mask the weight from now on."""
        if self._passes and self._settled:  # before the first pass no optimizer has anything to remember
            self._set_settled(False)

    def settle(self):
        """Has the forward pass read the weight as it is."""
        if not self._settled:
            self.project()
            self._set_settled(True)

    def _set_settled(self, settled):
        self._settled = settled
        if self.unsettled_flag is not None:
            self.unsettled_flag.assign(not settled)
        if BACKEND == "jax":
            # What is compiled has taken the weight for settled, or not; it is seldom that this changes.
            jax.clear_caches()

    def project(self):
        weight, mask = read(self.weight), read(self.mask)
        if weight is not None and mask is not None:
            write(self.weight, _where(mask, weight))

    def project_quietly(self):
        """As `project`, from the reading of the weight itself, which writing may do as well (on torch)."""
        if not self._projects:
            self._projects = True
            try:
                self.project()
            finally:
                self._projects = False

    def forget_lost(self):
        """Lets go of a value that a mask written later might have wanted."""
        self._lost = None

    def write_weight(self, value):
        """Writes what of a value lies inside the mask."""
        if self._written_together:
            write(self.weight, value)
            return
        mask, self._lost = read(self.mask), None
        if mask is None:  # it is written next
            self._lost = value
        elif _graph_of(value) is not None or _is_outside(mask, value):
            self._lost, value = value, _where(mask, value)
        write(self.weight, value)

    def change_mask(self, mask):
        """Writes the mask and nothing else: for those who see to the weight and the optimizers."""
        self._lost = None
        write(self.mask, ops.convert_to_tensor(mask, "bool"))

    def write_mask(self, mask):
        """Writes the mask, fits the weight to it, and tells optimizers what has changed."""
        if self._written_together:
            write(self.mask, mask)
            return
        old, in_graph = read(self.mask), _graph_of(mask) is not None
        write(self.mask, mask)
        self.fit_weight(mask)
        if in_graph:
            self.unsettle()
        elif old is not None:
            self._tell_what_changed(old, mask)

    @contextlib.contextmanager
    def written_together(self):
        """Within the block weight and mask are written as they come; at its end they are made to fit.

        Each by itself is compared with the other, which takes several passes over both.
        """
        old, self._written_together = read(self.mask), True
        try:
            yield
        finally:
            self._written_together, self._lost = False, None
            mask = read(self.mask)
            if mask is not None:
                self.fit_weight(mask)
                if old is not None:
                    self._tell_what_changed(old, mask)

    def _tell_what_changed(self, old, mask):
        changed = ops.not_equal(old, mask)
        if ops.any(changed):
            self.unsettle()
            self.tell(ops.logical_and(old, changed), ops.logical_and(mask, changed))

    def fit_weight(self, mask):
        """Has the weight be zero outside a mask, and inside what was last written to it."""
        lost, self._lost = self._lost, None
        if lost is None or _graph_of(lost) is not _graph_of(mask):
            lost = read(self.weight)
        if lost is not None:
            write(self.weight, _where(mask, lost))


class MaskedVariable(keras.Variable):
    """The variable of a masked weight."""

    # Outside of a stateless scope everything that writes to a Keras variable does so by this method,
    def _direct_assign(self, value):
        self.guarded.write_weight(_tensor(value))

    # but a checkpoint of TensorFlow.
    def _restore_from_tensors(self, restored_tensors):
        restored = super()._restore_from_tensors(restored_tensors)
        self.guarded.write_weight(read(self))
        return restored

    @property
    def value(self):
        guarded = self.__dict__.get("guarded")
        if guarded is not None and not guarded.is_settled and _optimizers_write_past():
            guarded.project_quietly()
        return super().value


class MaskVariable(keras.Variable):
    """The variable of a mask."""

    def _direct_assign(self, value):
        self.guarded.write_mask(ops.cast(_tensor(value), "bool"))

    def _restore_from_tensors(self, restored_tensors):
        restored = super()._restore_from_tensors(restored_tensors)
        # Optimizers are not told: their state is restored as well, before this or after it.
        self.guarded.fit_weight(read(self))
        self.guarded.unsettle()
        return restored


def read(variable):
    """The value of a variable as it stands there, a tensor; None while Keras has it elsewhere (on JAX)."""
    value = raw_value(variable)
    if BACKEND == "jax" and value is not None and value.is_deleted():
        return None
    return None if value is None else _tensor(value)


def write(variable, value):
    """Writes to a variable what is known to be right."""
    write_raw(variable, value)


def _where(mask, value):
    return ops.where(mask, value, ops.zeros((), value.dtype))


def _is_outside(mask, value):
    """Whether a value has entries that are not zero outside the mask."""
    return bool(ops.any(ops.logical_and(ops.logical_not(mask), ops.not_equal(value, 0))))


def _tensor(value):
    return tf.convert_to_tensor(value) if BACKEND == "tensorflow" else ops.convert_to_tensor(value)


def _graph_of(tensor):
    """The graph that a tensor is a part of, None for one that has a value."""
    return getattr(tensor, "graph", None) if BACKEND == "tensorflow" else None


def _optimizers_write_past():
    """Whether an optimizer may have written to a variable without `assign`, and nothing is being traced."""
    if BACKEND == "tensorflow":
        return not tf.inside_function()
    return BACKEND == "torch"
