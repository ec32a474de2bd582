"""Convolutions in groups, for file formats that have none."""

import keras
from keras import ops


def is_in_groups(layer):
    """Whether a layer is a convolution of Keras in several groups."""
    kinds = keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D
    return isinstance(layer, kinds) and layer.groups > 1


def call_in_groups(layer, inputs):
    """What a convolution in groups computes, as a convolution of each group.

    Args:
        layer: A layer that `is_in_groups`, without masks.
        inputs: Tensor (batch, ..., channels), channels last.

    Raises:
        NotImplementedError: if the layer wants channels first.
    """
    if layer.data_format != "channels_last":
        raise NotImplementedError("a convolution in groups with channels first")
    padding = layer.padding
    if padding == "causal":
        reach = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        inputs, padding = ops.pad(inputs, [[0, 0], [reach, 0], [0, 0]]), "valid"
    settings = layer.strides, padding, layer.data_format, layer.dilation_rate
    kernels = ops.split(ops.convert_to_tensor(layer.kernel), layer.groups, axis=-1)
    parts = zip(ops.split(inputs, layer.groups, axis=-1), kernels, strict=True)
    outputs = ops.concatenate([ops.conv(part, kernel, *settings) for part, kernel in parts], axis=-1)
    if layer.use_bias:
        outputs = outputs + ops.convert_to_tensor(layer.bias)
    return outputs if layer.activation is None else layer.activation(outputs)
