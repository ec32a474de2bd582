"""What sparse recurrent layers share that have no Keras parent."""

import contextlib

import keras
from keras import ops

from keras_selfish.layers.hoisted import HoistedCell, HoistedRNN
from keras_selfish.layers.masked import StaysItself, masked
from keras_selfish.layers.recurrent import RunsSparseCell, SparseCell, seed_of_cell
from keras_selfish.masks import check_seed

LAYER_ARGUMENTS = (
    "return_sequences",
    "return_state",
    "go_backwards",
    "stateful",
    "unroll",
    "zero_output_for_mask",
    "activity_regularizer",
    "trainable",
    "dtype",
    "name",
)


class _OwnCell(HoistedCell, keras.layers.SimpleRNNCell):
    """A cell with kernels of any number and shape.

    Of Keras's cell it takes the arguments and the dropout masks, which Keras's loop draws once per sequence
    for cells of Keras's own only; it computes nothing of what that cell does.
    """

    def build(self, input_shape):
        for index, (name, shape) in enumerate(self.masked_shapes(input_shape).items()):
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

    def initial_bias(self, shape, dtype=None):
        return self.bias_initializer(shape, dtype=dtype)

    def get_initial_state(self, batch_size=None):
        sizes = self.state_size if isinstance(self.state_size, list) else [self.state_size]
        return [ops.zeros((batch_size, size), dtype=self.compute_dtype) for size in sizes]


class SparseHoistedCell(StaysItself, SparseCell, _OwnCell):
    """Base of sparse cells without a Keras parent.

    A subclass names its kernels, the input kernel first, and their shapes (`masked_names`,
    `masked_shapes`), gives `bias_shape`, and computes in `step`, from weights that it reads by `in_use`.
    """

    def __init__(self, units, *args, recurrent_activation="sigmoid", **kwargs):
        # States stand in float32 in half precision, which Keras would cast at every step.
        super().__init__(units, *args, autocast=False, **kwargs)
        self.recurrent_activation = keras.activations.get(recurrent_activation)

    @property
    def bias_shape(self):
        raise ValueError(f"{type(self).__name__} must define `bias_shape`.")

    def project_inputs(self, inputs, training=False):
        if training and self.dropout:
            is_sequence = len(inputs.shape) == 3
            mask = self.get_dropout_mask(inputs[:, 0] if is_sequence else inputs)
            inputs = inputs * (ops.expand_dims(mask, 1) if is_sequence else mask)
        return ops.matmul(inputs, self.in_use("kernel"))

    def visible(self, state, training=False):
        """A state as the recurrent kernels see it: in the compute dtype, and in training with dropout.

        The dropout mask is drawn once per sequence and the same for all time steps (and depths).
        """
        state = ops.cast(state, self.compute_dtype)
        if training and self.recurrent_dropout:
            state = state * self.get_recurrent_dropout_mask(state)
        return state

    def in_use(self, name):
        """A weight as a tensor: a masked kernel in the compute dtype, the bias in at least float32."""
        if name in self._effective:
            return self._effective[name]
        if name in self._masked:
            return masked(self._masked[name], self.compute_dtype)
        dtype = state_dtype(self.compute_dtype) if name == "bias" else self.compute_dtype
        return ops.cast(getattr(self, name), dtype)

    @contextlib.contextmanager
    def effective_weights(self, training=False):
        """Within the block all weights are masked and cast once, not at each use."""
        with super().effective_weights(training=training):
            names = [*self.masked_names, *(["bias"] if self.use_bias else [])]
            with self._computed_weights({name: self.in_use(name) for name in names}):
                yield

    def get_config(self):
        activation = keras.activations.serialize(self.recurrent_activation)
        return {**super().get_config(), "recurrent_activation": activation}


class SparseHoistedRNN(StaysItself, RunsSparseCell, HoistedRNN):
    """Base of sparse recurrent layers without a Keras parent; subclasses name `cell_class` and `cell_name`.

    Arguments of `keras.layers.RNN` are the layer's, all others the cell's.
    """

    cell_class = None
    cell_name = None

    def __init__(self, units, *args, mask_seed=None, **kwargs):
        mask_seed = None if mask_seed is None else check_seed(mask_seed, "mask_seed")
        layer_arguments = {name: kwargs.pop(name) for name in LAYER_ARGUMENTS if name in kwargs}
        cell = self.cell_class(
            units,
            *args,
            mask_seed=seed_of_cell(mask_seed, layer_arguments),
            dtype=layer_arguments.get("dtype"),
            trainable=layer_arguments.get("trainable", True),
            name=self.cell_name,
            **kwargs,
        )
        super().__init__(cell, **layer_arguments)
        self.mask_seed = mask_seed
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def inner_loop(self, sequences, initial_state, mask, training=False):
        # In half precision a state would lose small changes.
        initial_state = [ops.cast(state, state_dtype(self.compute_dtype)) for state in initial_state]
        # Masked here, once per call: inside the loop it would be done at every time step.
        with self.cell.effective_weights(training=training):
            return super().inner_loop(sequences, initial_state, mask, training=training)

    @property
    def units(self):
        return self.cell.units

    def get_config(self):
        layer_config = HoistedRNN.get_config(self)
        layer_config.pop("cell")
        return {**self.cell.get_config(), **layer_config, "mask_seed": self.mask_seed}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def state_dtype(dtype):
    """The dtype in which states are kept and gates computed: float32 in half precision."""
    return keras.backend.result_type(dtype, "float32")


def _reseeded(initializer, index):
    """An initializer that draws other numbers: Keras's repeat theirs at each call."""
    config = initializer.get_config() if isinstance(initializer, keras.initializers.Initializer) else {}
    seed = config.get("seed", "none")
    if index == 0 or not (seed is None or isinstance(seed, int)):
        return initializer
    return type(initializer).from_config({**config, "seed": seed if seed is None else seed + index})
