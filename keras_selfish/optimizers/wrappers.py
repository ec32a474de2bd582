"""The optimizers of a model, with and without their wrappers: which of them trains a variable."""

import keras

from keras_selfish.backend import BACKEND
from keras_selfish.keras_internals import MULTI_OPTIMIZER, trained_variables

__all__ = ["build_before_trace", "holders", "innermost", "leaves", "trains", "trains_itself"]


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


def build_before_trace(model):
    """Builds the optimizer of a model that is about to train, if it will be asked to make all of its steps.

    Keras does so on JAX and torch. On TensorFlow it lets the first step build it, and TensorFlow traces and
    compiles a function that makes variables twice, which is half of the time of that step.
    """
    optimizer = getattr(model, "optimizer", None)
    usual = type(model).train_step is keras.Model.train_step  # one that builds it, for the same variables
    whole = model.built and getattr(model, "inputs", None) is not None
    if BACKEND == "tensorflow" and optimizer is not None and not optimizer.built and usual and whole:
        optimizer.build(model.trainable_variables)
