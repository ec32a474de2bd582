"""How the trainer of image classifiers makes dense layers sparse: a row of a table for each method."""

import dataclasses
import functools

from keras_selfish.rewiring.registry import METHODS as REWIRING


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to a sparse network.

    Args:
        summary: What it does, for the help of the trainer.
        hidden: Maps the settings to a function that makes a hidden dense layer.
        output: The same for the last layer; None (default) for `hidden`.
        callbacks: Maps the settings, the number of steps and the training data to the callbacks of training.
        switched: Whether a switcher is trained as well.
        begins_sparse: Whether connections are missing from the first step on.
        options: Names of the options of the trainer that the method takes; the others mean nothing to it.
        least_steps: Training steps without which it does nothing.
    """

    summary: str
    hidden: object
    output: object = None
    callbacks: object = lambda settings, steps, data: []
    switched: bool = False
    begins_sparse: bool = False
    options: tuple = ()
    least_steps: int = 1

    def layers(self, settings):
        """Functions that make hidden layers and the last layer."""
        return self.hidden(settings), (self.output or self.hidden)(settings)


def _plain(settings):
    import keras

    return keras.layers.Dense


def _sparse(settings):
    from keras_selfish.layers import SparseDense

    seeds = iter(range(1000 * settings.seed, 1000 * settings.seed + 1000))

    def dense(units, **arguments):
        return SparseDense(units, sparsity=settings.sparsity, mask_seed=next(seeds), **arguments)

    return dense


def _switched(granularity):
    def make(settings):
        from keras_selfish.layers import SwitchedDense

        return functools.partial(SwitchedDense, granularity=granularity)

    return make


def _updates(name):
    """Makes the callback of a method of `keras_selfish.rewiring`, with the defaults it was published with."""

    def make(settings, steps, data):
        return REWIRING[name].for_run(
            sparsity=settings.sparsity,
            total_steps=steps,
            data=data,
            seed=settings.seed,
            pruning_rate=settings.pruning_rate,
        )

    return make


METHODS = {
    "switcher": Method(
        "a switcher network decides about connections", _switched("connection"), switched=True
    ),
    "switcher_neuron": Method(
        "a switcher network decides about hidden neurons", _switched("neuron"), _plain, switched=True
    ),
    "dense": Method("all connections exist", _plain),
    **{
        name: Method(
            method.summary,
            _sparse,
            callbacks=_updates(name),
            **{key: getattr(method, key) for key in ("begins_sparse", "options", "least_steps")},
        )
        for name, method in REWIRING.items()
        if method.source is not None
    },
}
