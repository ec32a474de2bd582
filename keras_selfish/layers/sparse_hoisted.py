"""What sparse recurrent layers share that have no Keras parent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import keras
from keras import ops

from keras_selfish.keras_internals import DropoutRNNCell
from keras_selfish.layers.dropout import check_rate
from keras_selfish.layers.hoisted import HoistedCell, HoistedRNN
from keras_selfish.layers.masked import masked
from keras_selfish.layers.recurrent import RunsSparseCell, SparseCell, parameters_of, spec_of_cell
from keras_selfish.recurrence.cells import split_last, wide_dtype
from keras_selfish.typing import Activation, Config, OpenShape, Shape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.recurrence.cells import RecurrentWeights

COMMON_ARGUMENTS = ("activity_regularizer", "trainable", "dtype", "name")
LAYER_ARGUMENTS = {*parameters_of(keras.layers.RNN), *COMMON_ARGUMENTS}
WEIGHT_ARGUMENTS = {
    name: parameter.default
    for name, parameter in parameters_of(keras.layers.SimpleRNNCell).items()
    if name.endswith(("_initializer", "_regularizer", "_constraint"))
}


class SparseHoistedCell(SparseCell, HoistedCell, keras.layers.Layer, DropoutRNNCell):
    """Base of sparse cells without a Keras parent.

    A subclass names its `gates`, which its kernels concatenate, and in `recurrence_class` the
    `recurrence.Cell` that computes; `recurrence_options` are that one's arguments. It has an input kernel
    `kernel`, for each product a recurrent kernel, and one bias, which is added to the projected inputs.

    Args: those of `keras.layers.SimpleRNNCell`, `sparsity` and the other arguments of `MaskSpec`,
        `weight_drop`, and `recurrent_activation`, the activation of the gates. Default `"sigmoid"`.
    """

    strips_to_itself = True

    def __init__(
        self,
        units: int,
        activation: Activation = "tanh",
        use_bias: bool = True,
        *,
        recurrent_activation: Activation = "sigmoid",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | keras.random.SeedGenerator | None = None,
        weight_drop: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if units <= 0:
            raise ValueError(f"`units` must be a positive integer. Received: units={units!r}")
        self._take_mask_arguments(kwargs)
        of_weights = {name: kwargs.pop(name, default) for name, default in WEIGHT_ARGUMENTS.items()}
        # States stand in float32 in half precision, which Keras would cast at every step.
        keras.layers.Layer.__init__(self, autocast=False, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.units = self.output_size = units
        self.state_size: int | list[int] = units
        self.activation = keras.activations.get(activation)
        self.recurrent_activation = keras.activations.get(recurrent_activation)
        self.use_bias = use_bias
        for name, value in of_weights.items():
            setattr(self, name, _kind_of(name).get(value))
        # Beyond these limits Keras's cells drop nothing or everything.
        self.dropout, self.recurrent_dropout = (
            min(1.0, max(0.0, rate)) for rate in (dropout, recurrent_dropout)
        )
        self._seed_masks()
        self.weight_drop = check_rate(weight_drop, "weight_drop")

    def build(self, input_shape: OpenShape) -> None:
        shapes = self.masked_shapes(input_shape)
        self.plan_masks(shapes)
        for index, (name, shape) in enumerate(shapes.items()):
            role = "recurrent" if index else "kernel"
            weight = self.add_weight(
                shape=shape,
                name=name,
                initializer=_reseeded(getattr(self, f"{role}_initializer"), max(index - 1, 0)),
                regularizer=getattr(self, f"{role}_regularizer"),
                constraint=getattr(self, f"{role}_constraint"),
            )
            setattr(self, name, weight)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=self.bias_shape,
                name="bias",
                initializer=self.initial_bias,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.built = True

    def initial_bias(self, shape: Shape, dtype: str | None = None) -> Tensor:
        return self.bias_initializer(shape, dtype=dtype)

    def get_initial_state(self, batch_size: int | None = None) -> list[Tensor]:
        sizes = self.state_size if isinstance(self.state_size, list) else [self.state_size]
        return [ops.zeros((batch_size, size), dtype=self.compute_dtype) for size in sizes]

    @property
    def recurrent_names(self) -> list[str]:
        """The name of the recurrent kernel of each product."""
        count = len(self.recurrence.widths(self.units))
        return ["recurrent_kernel"] if count == 1 else [f"recurrent_kernel_{i}" for i in range(count)]

    @property
    def masked_names(self) -> list[str]:
        return ["kernel", *self.recurrent_names]

    def gates_of(self, name: str) -> tuple[str, ...]:
        if name == "kernel":
            return self.gates
        # A product may give a part of the gates only.
        index, places = self.recurrent_names.index(name), self.recurrence.input_gates()
        if len(self.recurrence.widths(self.units)[index]) == len(places):
            return self.gates
        pairs = zip(self.gates, places, strict=False)
        return tuple(gate for gate, place in pairs if place and place[0] == index)

    @property
    def dropped_names(self) -> list[str]:
        return self.recurrent_names

    def masked_shapes(self, input_shape: OpenShape) -> dict[str, tuple[int, ...]]:
        products = zip(self.recurrent_names, self.recurrence.widths(self.units), strict=True)
        inputs: Any = input_shape[-1]
        kernel = (inputs, sum(self.recurrence.input_widths(self.units)))
        return {"kernel": kernel, **{name: (self.units, sum(widths)) for name, widths in products}}

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (sum(self.recurrence.input_widths(self.units)),)

    def recurrent_weights(self) -> RecurrentWeights:
        kernels = [self.in_use(name) for name in self.recurrent_names]
        return kernels, self.in_use("bias") if self.use_bias else None, None

    def drop_inputs(self, inputs: TensorLike, training: bool = False) -> Tensor:
        """The inputs `(batch, ..., features)`, in training with dropout, the same at all time steps."""
        if not (training and self.dropout):
            return inputs
        is_sequence = len(inputs.shape) == 3
        mask = self.get_dropout_mask(inputs[:, 0] if is_sequence else inputs)
        return inputs * (ops.expand_dims(mask, 1) if is_sequence else mask)

    def project_inputs(self, inputs: TensorLike, training: bool = False) -> Tensor:
        return ops.matmul(self.drop_inputs(inputs, training), self.in_use("kernel"))

    def step(
        self, projected: TensorLike, states: Sequence[Tensor], training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        states, _ = self.computed(projected, states, training)
        return ops.cast(states[0], self.compute_dtype), states

    def computed(
        self, projected: TensorLike, states: Sequence[Tensor], training: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """A time step where the loop is not ours: the states, and what the recurrence keeps of it."""
        cell, dtype = self.recurrence, wide_dtype(self.compute_dtype)
        kernels, bias, biases = self.recurrent_weights()
        dropout = self.recurrent_dropout_mask(states[0], training)

        def product(index, state):
            state = ops.cast(state, self.compute_dtype)
            gates = ops.matmul(state if dropout is None else state * dropout, kernels[index])
            gates = split_last(gates, cell.widths(self.units)[index])
            return list(map(plus, gates, biases[index] if biases else [None] * len(gates)))

        def plus(gates, bias):
            gates = ops.cast(gates, dtype)
            return gates if bias is None else gates + ops.cast(bias, dtype)

        x = split_last(plus(projected, bias), cell.input_widths(self.units))
        return cell.step(x, list(states), product)

    def recurrent_dropout_mask(self, state: TensorLike, training: bool = False) -> Tensor | None:
        """What multiplies all that the recurrent kernels see: drawn once per sequence; or None."""
        if not (training and self.recurrent_dropout):
            return None
        return self.get_recurrent_dropout_mask(ops.cast(state[:, : self.units], self.compute_dtype))

    def in_use(self, name: str) -> Tensor:
        """A weight as a tensor: a masked kernel in the compute dtype, the bias in at least float32."""
        if name in self._effective:
            return self._effective[name]
        if name in self._masked:
            return masked(self._masked[name], self.compute_dtype)
        dtype = wide_dtype(self.compute_dtype) if name == "bias" else self.compute_dtype
        return ops.cast(getattr(self, name), dtype)

    @contextlib.contextmanager
    def effective_weights(self, training: bool = False) -> Iterator[None]:
        """Within the block all weights are masked and cast once, not at each use."""
        with super().effective_weights(training=training):
            names = [*self.masked_names, *(["bias"] if self.use_bias else [])]
            with self._computed_weights({name: self.in_use(name) for name in names}):
                yield

    def get_config(self) -> Config:
        functions = ("activation", "recurrent_activation")
        return {
            **super().get_config(),
            **{
                name: getattr(self, name)
                for name in ("units", "use_bias", "dropout", "recurrent_dropout", "seed")
            },
            **{name: keras.activations.serialize(getattr(self, name)) for name in functions},
            **{name: _kind_of(name).serialize(getattr(self, name)) for name in WEIGHT_ARGUMENTS},
        }


class SparseHoistedRNN(RunsSparseCell, HoistedRNN):
    """Base of sparse recurrent layers without a Keras parent; subclasses name `cell_class` and `cell_name`.

    Arguments of `keras.layers.RNN` are the layer's, all others the cell's.
    """

    strips_to_itself = True
    cell_class: type[SparseHoistedCell]
    cell_name: str

    def __init__(self, units: int, *args: Any, **kwargs: Any) -> None:
        self._take_mask_arguments(kwargs)
        layer_arguments = {name: kwargs.pop(name) for name in LAYER_ARGUMENTS if name in kwargs}
        cell = self.cell_class(  # type: ignore[misc] # further positional arguments are those of a subclass
            units,
            *args,
            **spec_of_cell(self.mask_spec, layer_arguments).get_config(),
            dtype=layer_arguments.get("dtype"),
            trainable=layer_arguments.get("trainable", True),
            name=self.cell_name,
            **kwargs,
        )
        HoistedRNN.__init__(self, cell, **layer_arguments)
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def inner_loop(
        self,
        sequences: TensorLike,
        initial_state: Sequence[Tensor],
        mask: TensorLike | None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        # In half precision a state would lose small changes.
        initial_state = [ops.cast(state, wide_dtype(self.compute_dtype)) for state in initial_state]
        # Masked here, once per call: inside the loop it would be done at every time step.
        with self.cell.effective_weights(training=training):
            mask = mask[0] if isinstance(mask, (list, tuple)) else mask
            if not self._whole_sequence_applies(mask, training):
                return super().inner_loop(sequences, initial_state, mask, training=training)
            dropout = self.cell.recurrent_dropout_mask(initial_state[0], training)
            sequences = self.cell.drop_inputs(ops.cast(sequences, self.compute_dtype), training)
            kernel, weights = self.cell.in_use("kernel"), self.cell.recurrent_weights()
            return self._run(sequences, initial_state, kernel, weights, mask, dropout)

    @property
    def units(self) -> int:
        return self.cell.units

    def get_config(self) -> Config:
        layer_config = HoistedRNN.get_config(self)
        layer_config.pop("cell")
        return {**self.cell.get_config(), **layer_config, "mask_seed": self.mask_seed}

    @classmethod
    def from_config(cls, config: Config, custom_objects: Mapping[str, Any] | None = None) -> Self:
        return cls(**config)


def _kind_of(name):
    """The module of Keras that knows what an argument about weights names, such as `keras.initializers`."""
    return getattr(keras, f"{name.rpartition('_')[2]}s")


def _reseeded(initializer, index):
    """An initializer that draws other numbers: Keras's repeat theirs at each call."""
    config = initializer.get_config() if isinstance(initializer, keras.initializers.Initializer) else {}
    seed = config.get("seed", "none")
    if index == 0 or not (seed is None or isinstance(seed, int)):
        return initializer
    return type(initializer).from_config({**config, "seed": seed if seed is None else seed + index})
