"""A network whose connections a second network switches, and training both in turns."""

from keras_selfish._lazy import lazy_attributes

__all__ = ["AlternatingOptimizer", "SparsityConstraint", "SwitchedModel", "SwitcherNetwork"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "AlternatingOptimizer": "optimizer",
        "SparsityConstraint": "constraint",
        "SwitchedModel": "model",
        "SwitcherNetwork": "network",
    },
)
