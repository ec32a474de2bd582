"""A network and its switcher, trained in turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, Unpack

import keras
import numpy as np
from keras import ops

from keras_selfish import checks
from keras_selfish.cloning import with_inner
from keras_selfish.keras_internals import track_layer
from keras_selfish.layers.switched_dense import SwitchedDense
from keras_selfish.optimizers.slot_reset import reset_state
from keras_selfish.switcher.alternation import AlternatingTraining
from keras_selfish.switcher.constraint import SparsityConstraint
from keras_selfish.switcher.estimators import ESTIMATORS
from keras_selfish.switcher.network import SwitcherNetwork
from keras_selfish.switcher.optimizer import AlternatingOptimizer
from keras_selfish.switcher.switching import SWITCHER, Switching
from keras_selfish.typing import Config, ModelOptions
from keras_selfish.workers import prepare_for_fit


@keras.saving.register_keras_serializable(package="keras_selfish")
class SwitchedModel(AlternatingTraining, keras.Model):
    """A network whose `SwitchedDense` layers are switched by a switcher that learns in turns with it.

    In `fit`, `task_steps` batches train the network with its switches as they are, then `switcher_steps`
    batches train the switcher on the same loss with the network as it is. A step computes the gradients of
    its own side only and leaves the variables, the optimizer state and the moving statistics of the other bit
    for bit. The switcher decides in each of its steps and once more at the beginning of the network's turn;
    validation and inference use the last decision.

    Without `target_sparsity` the loss alone says how sparse the layers become, as published. With it, a
    constraint on the number of open connections steers the switcher (see `SparsityConstraint`).

    Args:
        network: A built Functional or Sequential model with `SwitchedDense` layers; its layers become those
            of this model.
        switcher: A `SwitcherNetwork`; None (default) for one of the layers' granularity.
        task_steps: Batches of a turn of the network. Default 40.
        switcher_steps: Batches of a turn of the switcher. Default 4.
        warmup_steps: Batches of the network before the first turn of the switcher; None (default) for
            `task_steps`.
        target_sparsity: Fraction of zeros over all switched layers, in [0, 1); None (default) leaves it to
            the loss. Or a `SparsityConstraint`.
        estimator: How gradients pass the switches: `"straight_through"` (default) or `"hard_concrete"`.
        seed: Integer seed of the hard concrete gates. Default 0.
        **kwargs: As in `keras.Model`.

    Raises:
        ValueError: for an argument out of range, a network that is not built or switches nothing, or a
            switcher of another granularity.

    Example:

    >>> import numpy as np
    >>> network = keras.Sequential([keras.Input((4,)), SwitchedDense(8), keras.layers.Dense(1)])
    >>> model = SwitchedModel(network, task_steps=2, switcher_steps=1)
    >>> model.compile("sgd", loss="mse", switcher_optimizer="adam")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=2, verbose=0)
    >>> model.freeze()

    Reference: Han et al. 2021, arXiv 2103.15590.
    """

    def __init__(
        self,
        network: keras.Model,
        switcher: SwitcherNetwork | None = None,
        task_steps: int = 40,
        switcher_steps: int = 4,
        warmup_steps: int | None = None,
        target_sparsity: float | SparsityConstraint | None = None,
        estimator: Literal["straight_through", "hard_concrete"] = "straight_through",
        seed: int = 0,
        **kwargs: Unpack[ModelOptions],
    ) -> None:
        prepare_for_fit()
        layers = switched_layers(network)
        _check(network, layers, switcher, task_steps, switcher_steps, warmup_steps, estimator)
        # A Sequential has lists only, of one; a Functional keeps its structure, which serving shows.
        sequential = isinstance(network, keras.Sequential)
        inputs = network.inputs[0] if sequential else network.input
        outputs = network.outputs[0] if sequential else network.output
        super().__init__(inputs, outputs, **{"name": network.name, **kwargs})
        self.task_steps = task_steps
        self.switcher_steps = switcher_steps
        self.warmup_steps = task_steps if warmup_steps is None else warmup_steps
        self.estimator = estimator
        self.seed = seed
        self.switcher = switcher or SwitcherNetwork(granularity=layers[0].granularity, name="switcher")
        if not self.switcher.built:
            self.switcher.build()
        if target_sparsity is not None and not isinstance(target_sparsity, SparsityConstraint):
            target_sparsity = SparsityConstraint(target_sparsity, name="sparsity_constraint")
        self.constraint = target_sparsity
        if self.constraint is not None and not self.constraint.built:
            self.constraint.build()
        for part in filter(None, (self.switcher, self.constraint)):
            track_layer(self, part)
        hard_concrete = estimator == "hard_concrete"
        self.seed_generator = keras.random.SeedGenerator(seed) if hard_concrete else None
        self.switching = Switching(self.switcher, self.constraint, self.seed_generator)
        self._steps_done = 0
        for layer in layers:
            layer.switching = self.switching

    # Sides

    @property
    def frozen(self) -> bool:
        """Whether the structure is fixed."""
        return not self.layers_to_switch()

    def freeze(self) -> None:
        """Fixes the structure as it is: from now on `fit` trains the connections that are on, no others.

        If training stopped in a turn of the switcher, it decides a last time.
        """
        self._find_place()
        if self._steps_done and self.phase_of(self._steps_done - 1) == SWITCHER:
            self._decide()
        for layer in self.layers_to_switch():
            layer.freeze()
            if self.optimizer is not None and self.optimizer.built:
                # Momentum would move a weight that is off away from zero.
                closed = ~ops.convert_to_numpy(layer.mask)
                reset_state(self.optimizer.task_optimizer, layer.masked_weight, closed, np.zeros_like(closed))
        self.train_function = self.test_function = self.predict_function = None

    def _decide(self):
        """The decision that the next turn of the network would begin with."""
        layers = self.layers_to_switch()
        self.switching.settle([layer.masked_weight.weight for layer in layers])
        threshold = 0.0 if self.constraint is None else ops.convert_to_tensor(self.constraint.threshold)
        for layer in layers:
            kernel = ops.convert_to_tensor(layer.masked_weight.weight)
            is_open = ops.greater(self.switcher(kernel), threshold)
            layer.set_switches(is_open, None if layer.scale is None else self.switcher.units(kernel)[1])

    def layers_to_switch(self) -> list[SwitchedDense]:
        """The layers whose structure is not fixed."""
        return [layer for layer in switched_layers(self) if not layer.frozen]

    def sides(self) -> tuple[list[keras.Variable], list[keras.Variable]]:
        """The variables that each side trains, as two lists: the network's and the switcher's."""
        switchers = {id(variable) for variable in self.switcher.trainable_variables}
        variables = super().trainable_variables
        return (
            [variable for variable in variables if id(variable) not in switchers],
            [variable for variable in variables if id(variable) in switchers],
        )

    # Steps

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "rmsprop",
        *args: Any,
        switcher_optimizer: str | keras.optimizers.Optimizer = "adam",
        **kwargs: Any,
    ) -> None:
        """As in `keras.Model`, and `switcher_optimizer`, the optimizer of the switcher. Default `"adam"`.

        Raises:
            ValueError: if `steps_per_execution` does not divide the turns, or for float16.
        """
        if not isinstance(optimizer, AlternatingOptimizer):
            pair = (keras.optimizers.get(optimizer), keras.optimizers.get(switcher_optimizer))
            optimizer = AlternatingOptimizer(*pair)
        steps = kwargs.get("steps_per_execution", 1)
        if any(turn % steps for turn in (self.task_steps, self.switcher_steps, self.warmup_steps)):
            raise ValueError(
                "`steps_per_execution` must divide `task_steps`, `switcher_steps` and `warmup_steps`. "
                f"Received: steps_per_execution={steps}, turns of {self.task_steps}, "
                f"{self.switcher_steps} and {self.warmup_steps}"
            )
        if self.dtype_policy.name == "mixed_float16":
            raise ValueError(
                "A SwitchedModel must not scale its loss. Received: dtype policy mixed_float16; use "
                "mixed_bfloat16"
            )
        super().compile(optimizer, *args, **{**kwargs, "auto_scale_loss": False})
        optimizer.build_sides(*self.sides())

    def compile_from_config(self, config: Config) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    # Saving

    def get_config(self) -> Config:
        network = keras.Model(self.input, self.output, name=self.name)
        return {
            "network": keras.saving.serialize_keras_object(network),
            "switcher": keras.saving.serialize_keras_object(self.switcher),
            "task_steps": self.task_steps,
            "switcher_steps": self.switcher_steps,
            "warmup_steps": self.warmup_steps,
            "target_sparsity": keras.saving.serialize_keras_object(self.constraint),
            "estimator": self.estimator,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Mapping[str, Any] | None = None) -> Self:
        config = dict(config)
        for name in ("network", "switcher", "target_sparsity"):
            config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)


def _check(network, layers, switcher, task_steps, switcher_steps, warmup_steps, estimator):
    if not network.built or not getattr(network, "inputs", None):
        raise ValueError(
            "`network` must be a built Functional or Sequential model. Received: "
            f"network={network.name!r}; give it a `keras.Input` or call it on data first"
        )
    if not layers:
        raise ValueError(
            f"`network` must have a SwitchedDense layer. Received: network={network.name!r}, which has none"
        )
    found = {layer.granularity for layer in layers}
    if len(found) > 1 or (switcher is not None and switcher.granularity not in found):
        raise ValueError(
            "`switcher` must be of the granularity of all switched layers. Received: layers of granularity "
            f"{', '.join(sorted(found))}, switcher of {getattr(switcher, 'granularity', None)}"
        )
    turns = {"task_steps": (task_steps, 1), "switcher_steps": (switcher_steps, 1)}
    turns["warmup_steps"] = (0 if warmup_steps is None else warmup_steps, 0)
    for name, (value, least) in turns.items():
        checks.integer(name, value, at_least=least)
    checks.one_of("estimator", estimator, ESTIMATORS)


def switched_layers(model):
    """The `SwitchedDense` layers of a model, those of nested models and wrappers included.

    Args:
        model: A `keras.Model`.
    """
    return [layer for layer in with_inner(model) if isinstance(layer, SwitchedDense)]
