"""The optimizers of both sides of a switched model, as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import keras

from keras_selfish.typing import Config, Tensor


@keras.saving.register_keras_serializable(package="keras_selfish")
class AlternatingOptimizer(keras.optimizers.Optimizer):
    """Two optimizers, each with its own variables, one of which makes each step.

    It is what `SwitchedModel.compile` makes of its two optimizers: each has its own state and its own count
    of steps, and a step of one leaves the other's state bit for bit. Learning rate and schedules' callbacks
    mean the task's optimizer; `iterations` counts the steps of both.

    Args:
        task_optimizer: The `keras.optimizers.Optimizer` of the task network.
        switcher_optimizer: That of the switcher.
        name: Name of the optimizer.

    Raises:
        ValueError: if one of the two is no Keras optimizer.
    """

    def __init__(
        self,
        task_optimizer: keras.optimizers.Optimizer,
        switcher_optimizer: keras.optimizers.Optimizer,
        name: str = "alternating",
    ) -> None:
        super().__init__(learning_rate=0.0, name=name)
        for argument, optimizer in (
            ("optimizer", task_optimizer),
            ("switcher_optimizer", switcher_optimizer),
        ):
            if not isinstance(optimizer, keras.optimizers.Optimizer):
                raise ValueError(
                    f"`{argument}` must be a keras.optimizers.Optimizer. Received: {argument}={optimizer!r}"
                )
        self.task_optimizer = task_optimizer
        self.switcher_optimizer = switcher_optimizer
        # The one whose turn it is; gradients are of its variables.
        self.active = task_optimizer
        self._switchers: set[int] = set()

    def build_sides(
        self, task_variables: list[keras.Variable], switcher_variables: list[keras.Variable]
    ) -> None:
        """Makes the state of both sides.

        Args:
            task_variables: List of variables that the first optimizer moves.
            switcher_variables: Those that the second one moves.
        """
        if self.built:
            return
        self._switchers = {id(variable) for variable in switcher_variables}
        self.task_optimizer.build(task_variables)
        self.switcher_optimizer.build(switcher_variables)
        super().build([*task_variables, *switcher_variables])

    def build(self, variables: list[keras.Variable]) -> None:
        if not self.built:
            raise ValueError(
                "An AlternatingOptimizer must be compiled into a SwitchedModel, which knows the two sides. "
                f"Received: {len(variables)} variables"
            )

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, *self.task_optimizer.variables, *self.switcher_optimizer.variables]

    @property
    def learning_rate(self) -> Any:
        return self.task_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule) -> None:
        self.task_optimizer.learning_rate = learning_rate

    def apply(self, grads: list[Tensor], trainable_variables: list[keras.Variable] | None = None) -> None:
        self.active.apply(grads, trainable_variables)
        self.iterations.assign_add(1)

    def stateless_apply(
        self, optimizer_variables: list[Tensor], grads: list[Tensor], trainable_variables: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        values = {id(v): value for v, value in zip(self.variables, optimizer_variables, strict=True)}
        inner = [values[id(variable)] for variable in self.active.variables]
        trainable_variables, inner = self.active.stateless_apply(inner, grads, trainable_variables)
        values.update((id(v), value) for v, value in zip(self.active.variables, inner, strict=True))
        values[id(self.iterations)] = values[id(self.iterations)] + 1
        return trainable_variables, [values[id(variable)] for variable in self.variables]

    def scale_loss(self, loss: Tensor) -> Tensor:
        return loss

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        for optimizer, switchers in ((self.task_optimizer, False), (self.switcher_optimizer, True)):
            side = [v for v in var_list if (id(v) in self._switchers) == switchers]
            if side:
                optimizer.finalize_variable_values(side)

    def get_config(self) -> Config:
        return {
            "task_optimizer": keras.optimizers.serialize(self.task_optimizer),
            "switcher_optimizer": keras.optimizers.serialize(self.switcher_optimizer),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Mapping[str, Any] | None = None) -> Self:
        config = dict(config)
        for name in ("task_optimizer", "switcher_optimizer"):
            config[name] = keras.optimizers.deserialize(config[name], custom_objects=custom_objects)
        return cls(**config)
