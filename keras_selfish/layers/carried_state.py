"""Hidden state carried from one window of a text to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import keras
from keras import ops

from keras_selfish import checks
from keras_selfish.typing import Config, OpenShape, Tensor, TensorLike
from keras_selfish.variables import to_numpy

if TYPE_CHECKING:
    from keras_selfish.layers.options import LayerOptions


@keras.saving.register_keras_serializable(package="keras_selfish")
class CarriedState(keras.layers.Wrapper):
    """Runs a recurrent layer from where the previous window of the same text left it.

    A language model reads a text in windows, batch column by batch column; the state after one window is
    the initial state of the next, without gradient between them (truncated backpropagation through
    time). The layer keeps two sets of states, one for training and one for evaluation, so that validation
    neither sees nor disturbs the training state, and a flag in the data marks the windows that begin from
    zero. Keras's own `stateful=True` overwrites the training state in validation, loses it on save and
    carries nothing on JAX.

    Args:
        layer: A recurrent layer with `return_sequences=True` and `return_state=True`.
        batch_size: The largest number of batch columns per replica, under a `keras.distribution` of all
            devices together; smaller batches use the first ones. The states of a column are on the device
            that has the column, if `batch_size` is a multiple of the devices among which batches are divided.
        **kwargs: As in `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor (batch, time steps, features).
        first: Integer or boolean tensor (batch,): 1 where the column starts from a zero state.
        training: Selects the set of states.

    Returns:
        The layer's outputs, (batch, time steps, units).

    Raises:
        ValueError: if the layer does not return sequences and states, or a batch is too large.
    """

    def __init__(self, layer: keras.Layer, batch_size: int, **kwargs: Unpack[LayerOptions]) -> None:
        super().__init__(layer, **kwargs)
        if not (layer.return_sequences and layer.return_state):
            raise ValueError(
                "`layer` must be a recurrent layer with return_sequences=True and return_state=True. "
                f"Received: layer={layer!r}"
            )
        if getattr(layer, "return_distances", False):
            raise ValueError(
                "`layer` must give back its outputs and states only. Received: a layer with "
                "return_distances=True; run such a layer by itself"
            )
        self.batch_size = checks.integer("batch_size", batch_size, at_least=1)

    def build(self, inputs_shape: OpenShape, first_shape: OpenShape | None = None) -> None:
        if not self.layer.built:
            self.layer.build(inputs_shape)
        self.training_states = self._add_states("training")
        self.evaluation_states = self._add_states("evaluation")
        self.built = True

    def _add_states(self, use):
        return [
            self._add_state((self.batch_size, size), f"{use}_state_{index}")
            for index, size in enumerate(self.layer.state_size)
        ]

    def _add_state(self, shape, name):
        settings = {"shape": shape, "initializer": "zeros", "trainable": False, "autocast": False}
        layout = _layout_of_columns(shape)
        if layout is None:
            return self.add_weight(name=name, **settings)
        return keras.Variable(dtype=self.variable_dtype, layout=layout, name=name, **settings)

    def save_own_variables(self, store: Any) -> None:
        states: dict[str, Any] = {}
        super().save_own_variables(states)
        for key, state in states.items():
            store[key] = to_numpy(state)

    def call(self, inputs: TensorLike, first: TensorLike, training: bool = False) -> Tensor:
        states = self.training_states if training else self.evaluation_states
        keep = ops.expand_dims(ops.logical_not(ops.cast(first, "bool")), 1)
        batch = inputs.shape[0]
        if batch is not None and batch > self.batch_size:
            raise ValueError(
                f"The batch must have at most `batch_size` columns, which is {self.batch_size}. "
                f"Received: a batch of {batch}; build the model with a larger batch_size"
            )
        initial = [
            ops.where(keep, self._read(state, batch, keep), ops.zeros((), self.variable_dtype))
            for state in states
        ]
        outputs, *final = self.layer(
            inputs, initial_state=[ops.cast(s, self.compute_dtype) for s in initial], training=training
        )
        for state, value in zip(states, final, strict=True):
            self._write(state, batch, ops.cast(ops.stop_gradient(value), self.variable_dtype))
        return outputs

    def _read(self, state, batch, like):
        if batch == self.batch_size:
            return ops.convert_to_tensor(state)
        return ops.convert_to_tensor(state)[: ops.shape(like)[0]]

    def _write(self, state, batch, value):
        if batch != self.batch_size:
            value = ops.concatenate([value, ops.convert_to_tensor(state)[ops.shape(value)[0] :]])
        state.assign(value)

    def compute_output_shape(
        self, inputs_shape: OpenShape, first_shape: OpenShape | None = None
    ) -> OpenShape:
        return self.layer.compute_output_shape(inputs_shape)[0]

    def get_config(self) -> Config:
        return {**super().get_config(), "batch_size": self.batch_size}


def _layout_of_columns(shape):
    """The layout of states whose columns are on the devices that their batch is on; None for Keras's own."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    mesh = distribution.device_mesh
    devices = mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]
    return None if shape[0] % devices else distribution.get_data_layout(shape)
