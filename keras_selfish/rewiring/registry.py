"""The methods by name, as data. Importing this module loads neither Keras nor a backend."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_selfish.rewiring.mask_callback import MaskCallback

__all__ = ["METHODS", "REWIRING_OPTIONS", "Method"]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method as a trainer lists it.

    Args:
        summary: What it does, for a help text.
        source: The callback class that carries it out, or its place as `"package.module:Class"`; None
            (default) for a model without masks.
        begins_sparse: Whether connections are missing from the first step on. Default True.
        options: Names of the options of a trainer that the callback takes; the others mean nothing to it.
    """

    summary: str
    source: str | type[MaskCallback] | None = None
    begins_sparse: bool = True
    options: tuple[str, ...] = ()

    @property
    def callback(self) -> type[MaskCallback] | None:
        """The callback class, or None."""
        if not isinstance(self.source, str):
            return self.source
        module, _, name = self.source.partition(":")
        return getattr(importlib.import_module(module), name)


REWIRING_OPTIONS = ("pruning_rate", "schedule", "rewiring_steps", "reset_regrown", "redistribution")


def _rewires(summary, name):
    return Method(summary, f"keras_selfish.rewiring.methods:{name}", options=REWIRING_OPTIONS)


def _prunes(summary, name):
    return Method(summary, f"keras_selfish.rewiring.pruning:{name}", begins_sparse=False)


# The one place to add a method: the trainers list what is here, and the package exports the classes. Type
# checkers read imports instead, in `rewiring/__init__.py` and the package's; a test names what they lack.
METHODS: dict[str, Method] = {
    "dense": Method("all connections exist", begins_sparse=False),
    "dense_small": Method(
        "all exist, in fewer units: as many parameters as the sparse model", begins_sparse=False
    ),
    "static": Method("connections stay as drawn", "keras_selfish.rewiring.methods:Static"),
    "selfish": _rewires("small weights go, random ones come, gates compete", "SelfishRewiring"),
    "set": _rewires("half of the small weights that go are positive, half negative", "SET"),
    "dsr": _rewires("one threshold for all matrices, those that keep most get most", "DSR"),
    "snfs": _rewires("what comes follows the momentum, and so does the matrix it comes to", "SNFS"),
    "rigl": _rewires("what comes follows the gradient, until a fraction of training", "RigL"),
    "gse": _rewires("what comes follows the gradient within a random subset", "GSE"),
    "gmp": _prunes("begins with all, small weights go little by little", "GMP"),
    "snip": _prunes("what the loss is least sensitive to goes once, before the first step", "SNIP"),
}


def callback_modules() -> dict[str, str]:
    """The callback classes of the methods: a dict from name to module."""
    sources = [method.source.split(":") for method in METHODS.values() if method.source]
    return {name: module for module, name in sources}
