"""What `ordering.py` needs of TensorFlow."""

import tensorflow as tf


def after(tensor, *others):
    """The tensor, computed after the others.

    An operation waits through this tensor, not through `tf.control_dependencies` around it: around several
    operations only the first of them wait, and where those are constants, graphs are simplified until
    nothing waits.
    """
    with tf.control_dependencies(others):
        return tf.identity(tensor)
