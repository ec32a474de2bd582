"""The methods by name, as data. Importing this module loads neither Keras nor a backend."""

import dataclasses
import importlib

__all__ = ["METHODS", "REWIRING_OPTIONS", "Method"]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method as a trainer lists it.

    Args:
        summary: What it does, for a help text.
        class_name: Name in `keras_selfish.rewiring` of the callback class that carries it out; None for a
            model without masks.
        begins_sparse: Whether connections are missing from the first step on.
        options: Names of the options of a trainer that the callback takes; the others mean nothing to it.
    """

    summary: str
    class_name: str = None
    begins_sparse: bool = True
    options: tuple = ()

    @property
    def callback(self):
        """The callback class, or None."""
        return self.class_name and getattr(importlib.import_module("keras_selfish.rewiring"), self.class_name)


REWIRING_OPTIONS = ("pruning_rate", "schedule", "rewiring_steps", "reset_regrown", "redistribution")

METHODS = {
    "dense": Method("all connections exist", begins_sparse=False),
    "dense_small": Method(
        "all exist, in fewer units: as many parameters as the sparse model", begins_sparse=False
    ),
    "static": Method("connections stay as drawn", "Static"),
    "selfish": Method(
        "small weights go, random ones come, gates compete", "SelfishRewiring", options=REWIRING_OPTIONS
    ),
    "set": Method(
        "half of the small weights that go are positive, half negative", "SET", options=REWIRING_OPTIONS
    ),
    "dsr": Method(
        "one threshold for all matrices, those that keep most get most", "DSR", options=REWIRING_OPTIONS
    ),
    "snfs": Method(
        "what comes follows the momentum, and so does the matrix it comes to",
        "SNFS",
        options=REWIRING_OPTIONS,
    ),
    "rigl": Method(
        "what comes follows the gradient, until a fraction of training", "RigL", options=REWIRING_OPTIONS
    ),
    "gse": Method("what comes follows the gradient within a random subset", "GSE", options=REWIRING_OPTIONS),
    "gmp": Method("begins with all, small weights go little by little", "GMP", begins_sparse=False),
    "snip": Method(
        "what the loss is least sensitive to goes once, before the first step", "SNIP", begins_sparse=False
    ),
}
