"""Variables whose parts are on several devices, perhaps of several processes, on JAX."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from keras import ops


def to_numpy(variable):
    """As in `variables.py`. Where other processes hold parts, all of them must call it at once."""
    array = ops.convert_to_tensor(variable)
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return ops.convert_to_numpy(array)


def view(variable):
    """As in `variables.py`."""
    return np.asarray(to_numpy(variable))


def is_divided(variable):
    """As in `variables.py`."""
    sharding = getattr(ops.convert_to_tensor(variable), "sharding", None)
    return sharding is not None and not sharding.is_fully_replicated


def placed_like(array, tensor):
    """As in `variables.py`."""
    sharding = ops.convert_to_tensor(tensor).sharding
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
