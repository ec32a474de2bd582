"""Recurrent layers over a whole sequence for TensorFlow, with hand-written gradients.

Imported only where Keras runs on TensorFlow. What makes them fast where there is no cuDNN:

- one matrix product projects the inputs of all time steps, so the loop does only `h @ U` and the
  gates, and stores what the gradient needs once;
- the derivatives of the gates do not depend on the incoming gradient, so they are computed for all
  time steps at once; the backward loop is left with `dz @ U^T` and a few elementwise operations;
- the gradients of the kernels, the bias and the inputs are one product (or sum) each after the
  backward loop, where automatic differentiation adds up one product for each time step.
"""

import tensorflow as tf

from keras_selfish.layers.gru_tensorflow import gru
from keras_selfish.layers.lstm_tensorflow import lstm
from keras_selfish.layers.simple_rnn_tensorflow import simple_rnn

__all__ = ["gru", "lstm", "on_gpu", "simple_rnn"]


def on_gpu():
    """Whether a GPU is visible, where cuDNN is faster."""
    return bool(tf.config.list_physical_devices("GPU"))
