"""Which backend Keras runs on, and how code is chosen that is written for one of them."""

import importlib
import importlib.util

import keras

BACKEND = keras.backend.backend()


def of_backend(function):
    """Replaces a function of a module by that of the same name for Keras's backend, where there is one.

    Used as a decorator; what `module.py` has for all backends, `module_tensorflow.py`, `module_jax.py` or
    `module_torch.py` beside it has for one.
    """
    name = f"{function.__module__}_{BACKEND}"
    if importlib.util.find_spec(name) is None:
        return function
    return getattr(importlib.import_module(name), function.__name__, function)
