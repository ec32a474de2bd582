"""What the sparse forms of Keras's recurrent layers share."""

import inspect

import keras

from keras_selfish.layers.masked import MaskedLayer, SparseLayer
from keras_selfish.masks import check_seed


class SparseCell(MaskedLayer):
    """Mixin for a Keras recurrent cell that masks its kernel and its recurrent kernel."""

    gates = ()

    def __init__(
        self,
        units,
        *args,
        sparsity=0.67,
        distribution="uniform",
        block_shape=(1, 1),
        mask_seed=None,
        **kwargs,
    ):
        super().__init__(units, *args, **kwargs)
        self._init_masks(sparsity, distribution, block_shape, mask_seed)

    @property
    def masked_names(self):
        return {"kernel": self.gates, "recurrent_kernel": self.gates}

    def masked_shapes(self, input_shape):
        width = max(len(self.gates), 1) * self.units
        return {"kernel": (input_shape[-1], width), "recurrent_kernel": (self.units, width)}

    def call(self, inputs, states, training=False):
        # A sparse layer has masked the kernels before its loop; in a plain `keras.layers.RNN` there is no
        # place but the time step itself.
        if self._effective:
            return super().call(inputs, states, training=training)
        with self.effective_weights():
            return super().call(inputs, states, training=training)


class SparseRecurrent(SparseLayer):
    """Mixin for a Keras recurrent layer that runs a sparse cell.

    Subclasses name the Keras layer and the cell: `keras_layer`, `cell_class`, and `cell_name`.
    """

    keras_layer = None
    cell_class = None
    cell_name = None

    def __init__(
        self,
        units,
        *args,
        sparsity=0.67,
        distribution="uniform",
        block_shape=(1, 1),
        mask_seed=None,
        **kwargs,
    ):
        mask_seed = None if mask_seed is None else check_seed(mask_seed, "mask_seed")
        arguments = _arguments(self.keras_layer, units, *args, **kwargs)
        cell_names = set(inspect.signature(_keras_base(self.cell_class).__init__).parameters)
        cell_arguments = {k: v for k, v in arguments.items() if k in cell_names}
        layer_arguments = {k: v for k, v in arguments.items() if k not in cell_names}
        use_cudnn = layer_arguments.pop("use_cudnn", None)
        # The backward layer of a `Bidirectional` is a copy that differs in `go_backwards` only.
        backwards = bool(layer_arguments.get("go_backwards", False))
        cell = self.cell_class(
            **cell_arguments,
            sparsity=sparsity,
            distribution=distribution,
            block_shape=block_shape,
            mask_seed=None if mask_seed is None else 2 * mask_seed + backwards,
            dtype=layer_arguments.get("dtype"),
            trainable=layer_arguments.get("trainable", True),
            name=self.cell_name,
            **{k: layer_arguments.pop(k) for k in ("implementation",) if k in layer_arguments},
        )
        # Keras's own `__init__` would make a dense cell; replacing that one leaves its variables tracked.
        keras.layers.RNN.__init__(self, cell, **layer_arguments)
        self.mask_seed = mask_seed
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self._configure_cudnn(use_cudnn)

    def _configure_cudnn(self, use_cudnn):
        if use_cudnn is None:
            return
        if use_cudnn not in ("auto", True, False):
            raise ValueError(f"`use_cudnn` must be 'auto', True or False. Received: use_cudnn={use_cudnn!r}")
        self.use_cudnn = use_cudnn
        # As in Keras: cuDNN's calls cannot be compiled by XLA, so `jit_compile="auto"` must not try.
        if use_cudnn and keras.backend.backend() == "tensorflow":
            self.supports_jit = False

    def inner_loop(self, sequences, initial_state, mask, training=False):
        # Masked here, once per call: inside the loop it would be done at every time step.
        with self.cell.effective_weights():
            return self._inner_loop(sequences, initial_state, mask, training)

    def _inner_loop(self, sequences, initial_state, mask, training):
        return super().inner_loop(sequences, initial_state, mask, training=training)

    @property
    def sparsity(self):
        return self.cell.sparsity

    @property
    def distribution(self):
        return self.cell.distribution

    @property
    def block_shape(self):
        return self.cell.block_shape

    def get_config(self):
        config = super().get_config()
        if hasattr(self, "use_cudnn"):
            config["use_cudnn"] = self.use_cudnn
        return config


def _keras_base(cell_class):
    return next(base for base in cell_class.__mro__ if base.__module__.startswith("keras."))


def _arguments(keras_layer, *args, **kwargs):
    """All arguments of a Keras layer by name, defaults included, as its `__init__` would see them."""
    bound = inspect.signature(keras_layer.__init__).bind(None, *args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    arguments.pop("self")
    arguments.update(arguments.pop("kwargs"))
    return arguments
