"""The methods by name, as data. Importing this module loads neither Keras nor a backend."""

import dataclasses
import importlib

__all__ = ["METHODS", "Method"]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method as a trainer lists it.

    Args:
        summary: What it does, for a help text.
        class_name: Name in `keras_selfish.rewiring` of the callback class that carries it out; None for a
            model without masks.
        begins_sparse: Whether connections are missing from the first step on.
    """

    summary: str
    class_name: str = None
    begins_sparse: bool = True

    @property
    def callback(self):
        """The callback class, or None."""
        return self.class_name and getattr(importlib.import_module("keras_selfish.rewiring"), self.class_name)


METHODS = {
    "dense": Method("all connections exist", begins_sparse=False),
    "dense_small": Method(
        "all exist, in fewer units: as many parameters as the sparse model", begins_sparse=False
    ),
    "static": Method("connections stay as drawn", "Static"),
    "selfish": Method("small weights go, random ones come, gates compete", "SelfishRewiring"),
    "set": Method("half of the small weights that go are positive, half negative", "SET"),
    "dsr": Method("one threshold for all matrices, those that keep most get most", "DSR"),
    "snfs": Method("what comes follows the momentum, and so does the matrix it comes to", "SNFS"),
    "rigl": Method("what comes follows the gradient, until a fraction of training", "RigL"),
    "gse": Method("what comes follows the gradient within a random subset", "GSE"),
    "gmp": Method("begins with all, small weights go little by little", "GMP", begins_sparse=False),
    "snip": Method(
        "what the loss is least sensitive to goes once, before the first step", "SNIP", begins_sparse=False
    ),
}
