"""Training two sides of a model in turns, inside Keras's own `fit`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_selfish.backend import BACKEND
from keras_selfish.cloning import with_inner
from keras_selfish.switcher.switching import PHASES, REFRESH, SWITCHER, TASK
from keras_selfish.typing import Tensor

if TYPE_CHECKING:
    from keras import Model as _Base  # what it is placed before
else:
    _Base = object


class AlternatingTraining(_Base):
    """Mixin, placed before `keras.Model`, that gives each step of `fit` to one side.

    Each phase has a train function of its own, chosen in Python between steps: a branch inside one function
    would compute both on some backends, and is refused by `tf.distribute`. Keras's own steps run in them;
    what they see as trainable are the variables of one side, and an `AlternatingOptimizer` knows whose turn
    it is.

    The model has `sides()`, `layers_to_switch()`, `switching`, `task_steps`, `switcher_steps`,
    `warmup_steps`, `frozen`.
    """

    train_function: Any

    def phase_of(self, step: int) -> str:
        """The phase of the step after this number of steps: `"task"`, `"refresh"` or `"switcher"`."""
        if self.frozen or step < self.warmup_steps:
            return TASK
        place = (step - self.warmup_steps) % (self.task_steps + self.switcher_steps)
        if place < self.switcher_steps:
            return SWITCHER
        return REFRESH if place == self.switcher_steps else TASK

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        # Keras's trainers take the gradients of these.
        if not self.__dict__.get("_in_step"):
            return super().trainable_weights
        return self.sides()[self.switching.phase == SWITCHER]

    def make_train_function(self, force: bool = False) -> None:
        if self.train_function is not None and not force:
            return
        functions = {}
        for phase in PHASES:
            # A function of its own for each phase: JAX keeps what it has compiled by the function's identity.
            self.train_step = lambda *args: type(self).train_step(self, *args)  # type: ignore[method-assign]
            super().make_train_function(force=True)
            functions[phase] = self.train_function
        del self.train_step

        def take_steps(*args):
            with self._in_phase(self.phase_of(self._steps_done)) as phase:
                results = functions[phase](*args)
            self._steps_done += self.steps_per_execution
            return results

        self.train_function = take_steps

    @contextlib.contextmanager
    def _in_phase(self, phase):
        """Sets all that a step, or its tracing, looks up in Python."""
        learns = phase == SWITCHER
        kept = [(layer, layer.momentum) for layer in self._with_statistics()] if learns else []
        self.__dict__["_in_step"], self.switching.phase = True, phase
        optimizer = self.optimizer
        optimizer.active = optimizer.switcher_optimizer if learns else optimizer.task_optimizer
        for layer, _ in kept:
            layer.momentum = 1.0  # the moving statistics are the network's: x * 1 + y * 0 is x
        try:
            yield phase
        finally:
            self.__dict__["_in_step"], self.switching.phase = False, TASK
            optimizer.active = optimizer.task_optimizer
            for layer, momentum in kept:
                layer.momentum = momentum

    def _with_statistics(self):
        return [one for one in with_inner(self) if isinstance(one, keras.layers.BatchNormalization)]

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        self._find_place()
        return super().fit(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._find_place()
        return super().train_on_batch(*args, **kwargs)

    def _find_place(self):
        """Resumes the alternation where the optimizer's state says that it stopped."""
        if self.optimizer is not None:  # Keras says best that the model must be compiled
            self._steps_done = int(ops.convert_to_numpy(self.optimizer.iterations))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        self.switching.begin()
        if training and self.switching.phase == REFRESH:
            self.switching.settle([layer.masked_weight.weight for layer in self.layers_to_switch()])
        outputs = super().call(inputs, training=training, mask=mask)
        self.switching.end()
        return outputs

    # On JAX a step is a function of values, and takes the gradient of all that it is given first.

    def train_step(self, *args: Any) -> Any:
        if BACKEND != "jax":
            return super().train_step(*args)
        (trainable, *others), data = args
        switchers = {id(variable) for variable in self.sides()[1]}
        moves = [(id(v) in switchers) == self.switching.learns for v in self.trainable_variables]
        self.__dict__["_moves"], self.__dict__["_at_rest"] = moves, trainable
        active = [value for value, one in zip(trainable, moves, strict=True) if one]
        logs, (active, *others) = super().train_step((active, *others), data)
        return logs, (self._with_those_at_rest(active), *others)

    def compute_loss_and_updates(
        self, trainable_variables: list[Tensor], *args: Any, training: bool = False, **kwargs: Any
    ) -> Any:
        if training and self.__dict__.get("_in_step"):
            trainable_variables = self._with_those_at_rest(trainable_variables)
        return super().compute_loss_and_updates(trainable_variables, *args, training=training, **kwargs)

    def _with_those_at_rest(self, active):
        moving = iter(active)
        return [next(moving) if one else value for value, one in zip(self._at_rest, self._moves, strict=True)]
