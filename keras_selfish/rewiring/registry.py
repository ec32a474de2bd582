"""The methods by name, as data. Importing this module loads neither Keras nor a backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from keras_selfish import checks
from keras_selfish._lazy import class_of

if TYPE_CHECKING:
    from keras_selfish.rewiring.gradients import GradientData
    from keras_selfish.rewiring.mask_callback import MaskCallback

    Callback = TypeVar("Callback", bound=type[MaskCallback])

__all__ = ["METHODS", "PRUNING_OPTIONS", "REWIRING_OPTIONS", "Method", "register"]

# What a trainer can tell `Rewiring`.
REWIRING_OPTIONS = (
    *("pruning_rate", "schedule", "rewiring_steps", "reset_regrown", "drop", "grow", "redistribution"),
)
# What it can tell `SNIP`.
PRUNING_OPTIONS = ("gradient_batches", "prune_embeddings")


@dataclasses.dataclass(frozen=True)
class Method:
    """A method as a trainer lists it.

    Args:
        summary: What it does, for a help text.
        source: The callback class that carries it out, or its place in `keras_selfish.rewiring` as
            `"module:Class"`; None for a model without masks.
        begins_sparse: Whether connections are missing from the first step on. Default True.
        options: Names of the options of a trainer that the callback takes; the others mean nothing to it.
            Default: those of `Rewiring`.
        least_steps: Training steps without which it does nothing. Default 1.
    """

    summary: str
    source: str | type[MaskCallback] | None
    begins_sparse: bool = True
    options: tuple[str, ...] = REWIRING_OPTIONS
    least_steps: int = 1

    @property
    def callback(self) -> type[MaskCallback] | None:
        """The callback class, or None."""
        return class_of(__package__, self.source)

    def for_run(
        self, *, sparsity: float, total_steps: int, data: GradientData, seed: int, **options: Any
    ) -> list[MaskCallback]:
        """The callbacks with which a run of a trainer carries out the method: one, or none.

        Args:
            sparsity: Fraction of zeros that the run is to end with.
            total_steps: Training steps in all.
            data: The training data, for rules that need gradients.
            seed: Integer seed.
            **options: Further arguments of the callback; None stands for the method's own default.
        """
        if self.callback is None:
            return []
        given = {name: value for name, value in options.items() if value is not None}
        make = self.callback.for_run
        return [make(sparsity=sparsity, total_steps=total_steps, data=data, seed=seed, **given)]


# The one place to add a method to the package: the trainers list what is here, and the package exports the
# classes. A row names its class instead of importing it, which would load Keras. Type checkers read imports,
# in `rewiring/__init__.py` and the package's; a test names what they lack.
METHODS: dict[str, Method] = {
    "dense": Method("all connections exist", None, begins_sparse=False, options=()),
    "dense_small": Method(
        "all exist, in fewer units: as many parameters as the sparse model",
        None,
        begins_sparse=False,
        options=(),
    ),
    "static": Method("connections stay as drawn", "methods:Static", options=()),
    "selfish": Method(
        "small weights are dropped, random ones grown, gates compete", "methods:SelfishRewiring"
    ),
    "set": Method("half of the small weights dropped are positive, half negative", "methods:SET"),
    "dsr": Method("one threshold for all matrices, those that keep most grow most", "methods:DSR"),
    "snfs": Method(
        "growth follows the momentum, and so does the matrix that grows: small ones fill up", "methods:SNFS"
    ),
    "rigl": Method("growth follows the gradient, until a fraction of training", "methods:RigL"),
    "gse": Method("growth follows the gradient within a random subset", "methods:GSE"),
    "gmp": Method(
        "begins dense, small weights are dropped little by little",
        "pruning:GMP",
        begins_sparse=False,
        options=(),
        least_steps=2,
    ),
    "snip": Method(
        "what the loss is least sensitive to is dropped once, before the first step; embeddings stay",
        "pruning:SNIP",
        begins_sparse=False,
        options=PRUNING_OPTIONS,
    ),
}
_OURS = frozenset(METHODS)


def register(name: str, summary: str, **described: Any) -> Callable[[Callback], Callback]:
    """Class decorator that adds a method of one's own: the trainers then offer it as `--method=name`.

    Args:
        name: Its name, none of those of the package.
        summary: What it does, for a help text.
        **described: Further arguments of `Method`; by default those of a subclass of `Rewiring`.

    Raises:
        ValueError: if the name is taken, or the class is no `MaskCallback`.
    """
    if name in _OURS or not name.isidentifier():
        rule = "must be a word in letters, digits and _, and no method of the package"
        checks.refuse("name", rule, name)

    def add(callback):
        if not hasattr(callback, "for_run"):
            checks.refuse("callback", "must be a subclass of MaskCallback, such as one of Rewiring", callback)
        METHODS[name] = Method(summary, callback, **described)
        return callback

    return add


def callback_modules() -> dict[str, str]:
    """The callback classes of the package's methods: a dict from name to module."""
    sources = [METHODS[name].source for name in METHODS if name in _OURS]
    pairs = [source.split(":") for source in sources if isinstance(source, str)]
    return {name: f"{__package__}.{module}" for module, name in pairs}
