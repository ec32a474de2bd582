"""Reading and writing variables where they stand, on TensorFlow: imported only where Keras runs on it."""

import numpy as np
import tensorflow as tf

from keras_selfish.keras_internals import raw_value

# Number of entries under which a variable stays in the cache, so that compiling is not worth its time.
SMALLEST_COMPILED = 2**16


def view(variable):
    """A NumPy array to read from, which may show the variable's own memory."""
    tensor = tf.convert_to_tensor(raw_value(variable))
    if tensor.dtype in (tf.bool, tf.float32, tf.float64) and "CPU" in tensor.device:
        return np.asarray(memoryview(tensor))  # `numpy()` would copy
    return tensor.numpy()


def fill_in_place(variable, positions, value):
    """Does what `fill` says where compiling is worth its time.

    Returns:
        Whether it did.
    """
    inner = raw_value(variable)
    # A variable of several replicas is many in one; on a GPU memory is fast.
    single = isinstance(inner, tf.Variable) and not isinstance(inner, tf.distribute.DistributedValues)
    if not single or inner.shape.num_elements() < SMALLEST_COMPILED or "CPU" not in inner.device:
        return False
    _fill(inner, tf.convert_to_tensor(positions), tf.cast(value, inner.dtype))
    return True


@tf.function(jit_compile=True, autograph=False)
def _fill(variable, positions, value):
    variable.assign(tf.where(positions, value, variable))
