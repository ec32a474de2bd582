"""The order of what a graph computes, which runs whatever is ready."""

from keras_selfish.backend import of_backend


@of_backend
def after(tensor, *others):
    """The tensor, computed after the others where the order is not that of the program.

    Args:
        tensor: A tensor.
        *others: Tensors or, on TensorFlow, operations.

    Returns:
        The same tensor: what is computed from it is computed after the others.
    """
    return tensor
