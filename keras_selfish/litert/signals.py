"""Spectra of signals, as products with matrices, for LiteRT.

Each is a function of the operation, which has its settings, and of its arguments; that of a layer is a rule
as in `layer_rules`. A transform is linear: what Keras makes of the rows of a unit matrix is its matrix.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_selfish.litert.parts import Exact, in_dtype, rules_in

LAYERS: dict[Any, Any] = {}


_layer_rule = rules_in(LAYERS)  # by their classes


def _matrices(transform, size):
    """What a transform makes of each entry of a signal: the real and the imaginary parts."""
    return [Exact(ops.convert_to_numpy(part)) for part in transform(np.eye(size, dtype="float32"))]


def _real_spectrum(operation, x):
    real, imaginary = _matrices(lambda rows: ops.rfft(rows, operation.fft_length), x.shape[-1])
    return ops.matmul(x, real), ops.matmul(x, imaginary)


def _spectrum(_, parts):
    return _complex(lambda rows: ops.fft((rows, np.zeros_like(rows))), *parts)


def _complex(transform, a, b):
    """A transform of complex numbers along the last axis, given what it makes of real ones."""
    real, imaginary = _matrices(transform, a.shape[-1])
    return (
        ops.matmul(a, real) - ops.matmul(b, imaginary),
        ops.matmul(a, imaginary) + ops.matmul(b, real),
    )


def _spectrum_of_images(name):
    def transform(rows):
        image = rows[:, np.newaxis]  # of one row: along the other axis the transform changes nothing
        return [part[:, 0] for part in getattr(ops, name)((image, np.zeros_like(image)))]

    def rule(_, parts):
        for _ in range(2):
            parts = [ops.swapaxes(part, -1, -2) for part in _complex(transform, *parts)]
        return tuple(parts)

    return rule


def _signal(operation, parts):
    """The real signal of half a spectrum."""

    def transform(rows):
        nothing = np.zeros_like(rows)
        return [ops.irfft(parts, operation.fft_length) for parts in ((rows, nothing), (nothing, rows))]

    of_real, of_imaginary = _matrices(transform, parts[0].shape[-1])
    return ops.matmul(parts[0], of_real) + ops.matmul(parts[1], of_imaginary)


def _sequences(x, length, stride):
    begins = np.arange(0, x.shape[-1] - length + 1, stride)
    return ops.take(x, (begins[:, np.newaxis] + np.arange(length)).astype("int32"), axis=-1)


def _spectra_over_time(operation, x):
    length = operation.fft_length
    if operation.center:
        ends = [(0, 0)] * (len(x.shape) - 1) + [(length // 2, length // 2)]
        x = ops.pad(x, ends, mode="reflect")
    settings = operation.sequence_length, operation.sequence_stride, length, operation.window

    def of_one_sequence(rows):
        return [part[:, 0] for part in ops.stft(rows, *settings, center=False)]

    sequences = _sequences(x, length, operation.sequence_stride)
    return tuple(ops.matmul(sequences, matrix) for matrix in _matrices(of_one_sequence, length))


SIGNALS: dict[str, Callable] = {
    "RFFT": _real_spectrum,
    "FFT": _spectrum,
    "FFT2": _spectrum_of_images("fft2"),
    "IFFT2": _spectrum_of_images("ifft2"),
    "IRFFT": _signal,
    "STFT": _spectra_over_time,
    "ExtractSequences": lambda operation, x: _sequences(
        x, operation.sequence_length, operation.sequence_stride
    ),
}


@_layer_rule(keras.layers.MelSpectrogram)
def _mel_spectrogram(lowering, layer, x):
    """Keras's layer computes with a backend alone."""
    matrix = layer.linear_to_mel_weight_matrix(
        num_mel_bins=layer.num_mel_bins,
        num_spectrogram_bins=layer.fft_length // 2 + 1,
        sampling_rate=layer.sampling_rate,
        lower_edge_hertz=layer.min_freq,
        upper_edge_hertz=layer.max_freq,
    )
    matrix = Exact(ops.convert_to_numpy(matrix))

    def compute(x):
        settings = layer.sequence_length, layer.sequence_stride, layer.fft_length, layer.window
        real, imaginary = ops.stft(x, *settings, center=True)
        magnitude = ops.sqrt(ops.square(real) + ops.square(imaginary))
        mel = ops.matmul(ops.power(magnitude, float(layer.mag_exp)), matrix)
        if layer.power_to_db:
            reference = 10 * np.log10(max(abs(layer.ref_power), layer.min_power))
            mel = 10 * ops.log10(ops.maximum(mel, layer.min_power)) - float(reference)
            mel = ops.maximum(mel, ops.max(mel) - layer.top_db)
        return ops.swapaxes(mel, -1, -2)

    return lowering.call(compute, (in_dtype(lowering, x, "float32"),), {})
