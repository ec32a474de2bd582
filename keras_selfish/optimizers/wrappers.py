"""Optimizers inside wrappers: `LossScaleOptimizer`, `MultiOptimizer`, and which of them trains a variable."""

from keras_selfish.keras_internals import MULTI_OPTIMIZER, trained_variables

__all__ = ["holders", "innermost", "leaves", "trains", "trains_itself"]


def leaves(optimizer):
    """The optimizers without their wrappers, as a list."""
    if hasattr(optimizer, "inner_optimizer"):
        return leaves(optimizer.inner_optimizer)
    if isinstance(optimizer, MULTI_OPTIMIZER):
        return [leaf for inner in optimizer.optimizers for leaf in leaves(inner)]
    return [optimizer]


def innermost(optimizer):
    """The optimizer whose `iterations` count the updates: without the wrapper that scales the loss."""
    return innermost(optimizer.inner_optimizer) if hasattr(optimizer, "inner_optimizer") else optimizer


def holders(optimizer, variable):
    """The leaves of an optimizer that train a variable; of one that is not built, its only leaf."""
    found = leaves(optimizer)
    if len(found) == 1 and not found[0].built:
        return found
    return [leaf for leaf in found if trains_itself(leaf, variable)]


def trains(optimizer, variable):
    """Whether an optimizer, or one inside it, trains a variable."""
    return any(trains_itself(leaf, variable) for leaf in leaves(optimizer))


def trains_itself(leaf, variable):
    """Whether an optimizer without wrappers trains a variable."""
    return any(one is variable for one in trained_variables(leaf))
