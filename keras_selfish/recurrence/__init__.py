"""Recurrences: cells as data, and drivers that run them over whole sequences with hand-written gradients."""

from keras_selfish.recurrence.cells import GRU, LSTM, ONLSTM, RHN, Cell, SimpleRNN, of_sigmoid, of_tanh
from keras_selfish.recurrence.driver import IS_AVAILABLE, on_gpu, run

__all__ = [
    "GRU",
    "IS_AVAILABLE",
    "LSTM",
    "ONLSTM",
    "RHN",
    "Cell",
    "SimpleRNN",
    "of_sigmoid",
    "of_tanh",
    "on_gpu",
    "run",
]
