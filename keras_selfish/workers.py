"""Training by several workers: processes under `tf.distribute.MultiWorkerMirroredStrategy`."""

from keras_selfish.backend import of_backend

__all__ = ["prepare_for_fit"]


@of_backend
def prepare_for_fit():
    """Has Keras's `fit` work with the current strategy, if that is of several workers: TensorFlow's only."""
