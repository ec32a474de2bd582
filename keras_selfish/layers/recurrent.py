"""What the sparse forms of Keras's recurrent layers share."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_selfish import recurrence
from keras_selfish.backend import BACKEND
from keras_selfish.keras_internals import current_call
from keras_selfish.layers.dropout import check_rate, drop_connections
from keras_selfish.layers.masked import SparseLayer
from keras_selfish.typing import Config, OpenShape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.recurrence.cells import RecurrentWeights

# From so many units on `recurrence.run` is taken for faster than cuDNN, on JAX in float32. At 1500 units a
# training step of a language model took 6.34 ms with cuDNN on one NVIDIA H200, and 4.09 ms with a loop like
# ours at 1536; other widths have not been compared (`python -m benchmarks.cells --cells lstm,lstm_cudnn`).
CUDNN_BELOW = 1024


class SparseCell(SparseLayer):
    """Base, placed before a Keras recurrent cell, that masks its kernel and its recurrent kernel.

    Subclasses name their `gates`, and in `recurrence_class` the `recurrence.Cell` that computes the same.

    `weight_drop` drops connections of the weights in `dropped_names`: in training, once per call of the
    layer that runs the cell, so that all time steps see the same ones.
    """

    masked_names: Sequence[str] = ("kernel", "recurrent_kernel")
    recurrence_class: type[recurrence.Cell] = recurrence.SimpleRNN
    dropped_names: Sequence[str] = ("recurrent_kernel",)

    def __init__(self, units: int, *args: Any, weight_drop: float = 0.0, **kwargs: Any) -> None:
        super().__init__(units, *args, **kwargs)
        self.weight_drop = check_rate(weight_drop, "weight_drop")

    def get_config(self) -> Config:
        return {**super().get_config(), "weight_drop": self.weight_drop}

    @property
    def recurrence(self) -> recurrence.Cell:
        """The cell as `recurrence.run` takes it."""
        return self.recurrence_class(
            activation=own_function(self.activation, keras.activations.tanh),
            gate_activation=own_function(
                getattr(self, "recurrent_activation", keras.activations.sigmoid), keras.activations.sigmoid
            ),
            **self.recurrence_options(),
        )

    def recurrence_options(self) -> dict[str, Any]:
        """Further arguments of `recurrence_class`."""
        return {}

    def recurrent_weights(self) -> RecurrentWeights:
        """The recurrent kernels, the bias of the inputs, and those of the products; see `recurrence.run`."""
        bias = ops.cast(self.bias, self.compute_dtype) if self.use_bias else None
        return [self.recurrent_kernel], bias, None

    def masked_shapes(self, input_shape: OpenShape) -> dict[str, tuple[int, ...]]:
        """The shapes of the kernels, a dict by name, for an input of a shape."""
        inputs: Any = input_shape[-1]
        width = max(len(self.gates), 1) * self.units
        return {"kernel": (inputs, width), "recurrent_kernel": (self.units, width)}

    def build(self, input_shape: OpenShape) -> None:
        self.plan_masks(self.masked_shapes(input_shape))
        super().build(input_shape)

    def call(
        self, inputs: TensorLike, states: Sequence[Tensor], training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        # A sparse layer has masked the kernels before its loop; in a plain `keras.layers.RNN` there is no
        # place but the time step itself.
        if self._effective:
            return super().call(inputs, states, training=training)
        if training and self.weight_drop:
            raise ValueError(
                "`weight_drop` must be 0 in a cell that its own sparse layer does not run: other connections "
                f"would be dropped at each time step. Received: weight_drop={self.weight_drop}; use a layer "
                "such as `SparseLSTM`"
            )
        with self.effective_weights():
            return super().call(inputs, states, training=training)

    @contextlib.contextmanager
    def effective_weights(self, training: bool = False) -> Iterator[None]:
        """As in `SparseLayer`; in training some connections are dropped."""
        with super().effective_weights():
            dropped = self.dropped_names if training and self.weight_drop else ()
            with self._computed_weights(self._effective | {name: self._dropped(name) for name in dropped}):
                yield

    def _dtype_of(self, masked_weight):
        return self.compute_dtype  # that of the states

    def _dropped(self, name):
        attributes = self.__dict__
        weight = super().weight_to_use(name, attributes.get(f"_raw_{name}", attributes.get(name)))
        weight = ops.cast(ops.convert_to_tensor(weight), self.compute_dtype)
        return drop_connections(weight, self.weight_drop, self.seed_generator)

    def weight_to_use(self, name: str, variable: keras.Variable) -> Tensor:
        # `Bidirectional` may hand the kernels of its layers to cuDNN without calling the layers.
        unseen = name in self.dropped_names and name not in self._effective
        if unseen and self.weight_drop and getattr(current_call(), "training", False):
            return self._dropped(name)
        return super().weight_to_use(name, variable)


class RunsSparseCell(SparseLayer):
    """Base of recurrent layers whose masks are those of the cell that they run."""

    @property
    def weight_drop(self) -> float:
        return self.cell.weight_drop

    def _whole_sequence_applies(self, mask, training):
        """Whether `recurrence.run` computes what this layer is to compute; else Keras's own loop does."""
        return (
            recurrence.IS_AVAILABLE
            and self.cell.recurrence.has_gradient
            and not self.unroll
            and (mask is None or len(mask.shape) == 2)
        )

    def _run(self, sequences, initial_state, kernel, weights, mask, dropout):
        """Runs the cell over whole sequences; returns the last output, all outputs, and the last states."""
        mask = None if mask is None else ops.cast(mask, "bool")
        outputs, states = recurrence.run(
            self.cell.recurrence,
            sequences,
            initial_state,
            kernel,
            *weights,
            dropout=dropout,
            go_backwards=self.go_backwards,
            mask=mask,
        )
        if mask is None:
            return ops.cast(states[0], outputs.dtype), outputs, states
        if self.zero_output_for_mask:
            real = ops.flip(mask, 1) if self.go_backwards else mask
            outputs = ops.where(ops.expand_dims(real, -1), outputs, ops.zeros_like(outputs))
        # At a padded step the output need not be the state.
        return outputs[:, -1], outputs, states


def own_function(function, usual):
    """A function, but None for the usual one."""
    return None if function is usual else function


class SparseRecurrent(RunsSparseCell):
    """Base, placed before a Keras recurrent layer, that runs a sparse cell.

    Subclasses are registered as the sparse form of that layer (`sparse_form_of`), and name the cell:
    `cell_class` and `cell_name`.
    """

    plain_class: type[keras.layers.RNN]
    cell_class: type[SparseCell]
    cell_name: str

    def __init__(self, units: int, *args: Any, weight_drop: float = 0.0, **kwargs: Any) -> None:
        self._take_mask_arguments(kwargs)
        arguments = _arguments(self.plain_class, units, *args, **kwargs)
        cell_names = parameters_of(self.cell_class.plain_class)
        cell_arguments = {k: v for k, v in arguments.items() if k in cell_names}
        layer_arguments = {k: v for k, v in arguments.items() if k not in cell_names}
        use_cudnn = layer_arguments.pop("use_cudnn", None)
        cell = self.cell_class(
            **cell_arguments,
            **spec_of_cell(self.mask_spec, layer_arguments).get_config(),
            weight_drop=weight_drop,
            dtype=layer_arguments.get("dtype"),
            trainable=layer_arguments.get("trainable", True),
            name=self.cell_name,
            **{k: layer_arguments.pop(k) for k in ("implementation",) if k in layer_arguments},
        )
        # Keras's own `__init__` would make a dense cell; replacing that one leaves its variables tracked.
        keras.layers.RNN.__init__(self, cell, **layer_arguments)
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self._configure_cudnn(use_cudnn)

    def _configure_cudnn(self, use_cudnn):
        if use_cudnn is None:
            return
        if use_cudnn not in ("auto", True, False):
            raise ValueError(f"`use_cudnn` must be 'auto', True or False. Received: use_cudnn={use_cudnn!r}")
        self.use_cudnn = use_cudnn
        # As in Keras: cuDNN's calls cannot be compiled by XLA, so `jit_compile="auto"` must not try.
        if use_cudnn and BACKEND == "tensorflow":
            self.supports_jit = False

    def inner_loop(
        self,
        sequences: TensorLike,
        initial_state: Sequence[Tensor],
        mask: TensorLike | None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        # Keras casts neither integers and booleans, nor what `TimeDistributed` hands on in its own dtype.
        sequences, *initial_state = (
            ops.cast(tensor, self.compute_dtype) for tensor in (sequences, *initial_state)
        )
        # Masked here, once per call: inside the loop it would be done at every time step.
        with self.cell.effective_weights(training):
            return self._inner_loop(sequences, initial_state, mask, training)

    def _inner_loop(self, sequences, initial_state, mask, training):
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        if not self._whole_sequence_applies(mask, training):
            return super().inner_loop(sequences, initial_state, mask, training=training)
        cell, dropout = self.cell, None
        if training and self.dropout:
            masks = cell.get_dropout_mask(sequences[:, 0, :])
            sequences = _each(lambda mask: sequences * ops.expand_dims(mask, 1), masks)
        if training and self.recurrent_dropout:
            dropout = cell.get_recurrent_dropout_mask(initial_state[0])
        weights = cell.recurrent_weights()
        return self._run(sequences, initial_state, cell.kernel, weights, mask, dropout)

    def _whole_sequence_applies(self, mask, training):
        return (
            super()._whole_sequence_applies(mask, training)
            and not (training and self._drops_unlike_keras())
            and not self._cudnn_is_meant(mask)
        )

    def _drops_unlike_keras(self):
        # Keras's cells ignore a rate of 1, or fail, each in its own way.
        rates = (self.dropout, self.recurrent_dropout)
        if max(rates) == 1:
            return True
        # Cells with `dropout_mask_count` draw a mask for each gate, which only the functions for
        # TensorFlow take.
        return max(rates) > 0 and hasattr(self.cell, "dropout_mask_count") and BACKEND != "tensorflow"

    def _cudnn_is_meant(self, mask):
        """Whether to leave the layer to Keras, which runs cuDNN or says why it cannot."""
        use_cudnn = getattr(self, "use_cudnn", False)
        if use_cudnn is True:
            return True
        return (
            bool(use_cudnn)
            and recurrence.on_gpu()
            and self.use_bias
            and not self.recurrent_dropout
            and getattr(self.cell, "reset_after", True)
            and (BACKEND == "tensorflow" or self._cudnn_of_jax_applies(mask))
        )

    def _cudnn_of_jax_applies(self, mask):
        # JAX refuses half precision only when it compiles, too late for Keras to do without.
        return (
            isinstance(self, keras.layers.LSTM)
            and self.units < CUDNN_BELOW
            and mask is None
            and self.compute_dtype in ("float32", "float64")
        )

    def get_config(self) -> Config:
        config = {**super().get_config(), "weight_drop": self.weight_drop}
        config["seed"] = self.cell.seed  # which Keras 3.15 forgets in its SimpleRNN
        if hasattr(self, "use_cudnn"):
            config["use_cudnn"] = self.use_cudnn
        return config


def spec_of_cell(spec, layer_arguments):
    """The mask arguments of a layer's cell, whose seed is another.

    The backward layer of a `Bidirectional` is a copy that differs in `go_backwards` only, and is to have
    masks of its own.
    """
    if spec.mask_seed is None:
        return spec
    backwards = bool(layer_arguments.get("go_backwards", False))
    return dataclasses.replace(spec, mask_seed=2 * spec.mask_seed + backwards)


def _each(function, masks):
    """The function of one mask, or of each in a list of one for each gate."""
    return [function(mask) for mask in masks] if isinstance(masks, list) else function(masks)


def parameters_of(layer_class):
    """The arguments of a Keras layer as a dict from name to `inspect.Parameter`."""
    return inspect.signature(layer_class.__init__).parameters


def _arguments(keras_layer, *args, **kwargs):
    """All arguments of a Keras layer by name, defaults included, as its `__init__` would see them."""
    bound = inspect.signature(keras_layer.__init__).bind(None, *args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    arguments.pop("self")
    arguments.update(arguments.pop("kwargs"))
    return arguments
