"""Networks whose connections a second network switches, both trained in turns."""

from typing import TYPE_CHECKING

from keras_selfish._lazy import lazy_attributes

if TYPE_CHECKING:
    # What editors and type checkers read of the names that load lazily.
    from keras_selfish.switcher.constraint import SparsityConstraint
    from keras_selfish.switcher.model import SwitchedModel
    from keras_selfish.switcher.network import SwitcherNetwork
    from keras_selfish.switcher.optimizer import AlternatingOptimizer

__all__ = ["AlternatingOptimizer", "SparsityConstraint", "SwitchedModel", "SwitcherNetwork"]

if not TYPE_CHECKING:  # to a type checker any name would be one of them
    __getattr__ = lazy_attributes(
        __name__,
        {
            "AlternatingOptimizer": "optimizer",
            "SparsityConstraint": "constraint",
            "SwitchedModel": "model",
            "SwitcherNetwork": "network",
        },
    )
