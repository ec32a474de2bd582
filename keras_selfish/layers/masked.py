"""What a layer needs in order to mask its weights.

The mask multiplies the weight in the forward pass, once per call. The weight is kept at exactly zero
outside its mask (see `masked_variables.py`), so the product's value is the weight itself and only the
gradient has to be masked: one pass over the weights instead of two.
"""

from __future__ import annotations

import contextlib
import contextvars
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import ops

from keras_selfish import masks
from keras_selfish.keras_internals import current_call
from keras_selfish.layers.mask_gradient import mask_gradient
from keras_selfish.layers.masked_variables import make_guarded
from keras_selfish.layers.plain import PlainForm
from keras_selfish.packing import pack_masked, unpack_masked
from keras_selfish.typing import Config, OpenShape, Tensor
from keras_selfish.variables import to_numpy
from keras_selfish.workers import prepare_for_fit

MASK_ARGUMENTS = ("sparsity", "distribution", "block_shape", "n_of_m", "mask_seed")


DEFAULT_SPARSITY = 0.67  # that of the published models

# By the id of a layer that is in a call.
_computed_weights: contextvars.ContextVar[Mapping[int, dict[str, Tensor]]] = contextvars.ContextVar(
    "weights that layers have computed", default=types.MappingProxyType({})
)


class SparseLayer(PlainForm):
    """Mixin of all sparse layers and cells: the mask arguments, and the way back to plain Keras."""

    further_arguments: tuple[str, ...] = MASK_ARGUMENTS

    def get_config(self) -> Config:
        config = {**super().get_config(), "block_shape": list(self.block_shape)}
        if config.pop("n_of_m") is not None:
            config["n_of_m"] = list(self.n_of_m)
        return config


class StripsToItself:
    """Mixin, placed first, of sparse layers that Keras has no form of: stripped, they stay, but dense."""

    @classmethod
    def plain_form(cls, config: Config) -> tuple[type[keras.Layer], Config] | None:
        """As in `PlainForm`: the same class without masks; the zeros stay in its weights."""
        config = {name: value for name, value in config.items() if name not in MASK_ARGUMENTS}
        return cls, {**config, "sparsity": 0.0}


class MaskedLayer(SparseLayer):
    """Mixin, placed before a Keras layer class, that masks the weights named in `masked_names`.

    The subclass lists its masked weights in `masked_names` (weight name to gate names), tells their
    shapes in `masked_shapes(input_shape)` before `build`, and computes inside `effective_weights()`.
    """

    masked_names: Mapping[str, tuple[str, ...]] = {}
    gate_sizes: tuple[int, ...] = ()  # for gates of different widths
    # Dense and Embedding write the weights they know by name, and so leave out the masks.
    saves_named_weights_only = False

    def _init_masks(self, sparsity, distribution, block_shape, mask_seed, n_of_m=None):
        """Checks and stores the arguments. Call it after the Keras layer's own `__init__`."""
        if sparsity is not None:
            masks.check_sparsity(sparsity)
        masks.check_distribution(distribution)
        self.n_of_m = None
        if n_of_m is not None and sparsity != 0:
            self.n_of_m = masks.check_n_of_m(n_of_m)
            sparsity = _sparsity_of_pattern(self.n_of_m, sparsity, distribution, block_shape)
        sparsity = DEFAULT_SPARSITY if sparsity is None else sparsity
        self.sparsity = float(sparsity)
        self.distribution = distribution
        self.block_shape = masks.check_block_shape(block_shape)
        self.mask_seed = None if mask_seed is None else masks.check_seed(mask_seed, "mask_seed")
        self._drawn_seed = random.randint(0, 2**31 - 1) if mask_seed is None else self.mask_seed
        self._check_lora("lora_rank", getattr(self, "lora_rank", None))
        self._check_quantization()
        self._masked = {}

    def masked_shapes(self, input_shape: OpenShape) -> dict[str, OpenShape]:
        """Shapes of the masked weights as a dict from weight name to shape."""
        raise ValueError(f"{type(self).__name__} must define `masked_shapes`.")

    def build(self, input_shape: OpenShape | None = None, **kwargs: Any) -> None:
        if self.sparsity and not self.built:
            self._plan_masks(self.masked_shapes(input_shape))  # type: ignore[arg-type]
        super().build(input_shape, **kwargs)

    def _plan_masks(self, shapes):
        for name, shape in shapes.items():
            masks.check_block_shape(self.block_shape, shape, f"{self.name}/{name}")
            if self.n_of_m:
                masks.check_n_of_m(self.n_of_m, shape, f"{self.name}/{name}")
        if self.n_of_m:
            self._initial_masks = {
                name: masks.n_of_m_mask(shape, self.n_of_m, [self._drawn_seed, index])
                for index, (name, shape) in enumerate(shapes.items())
            }
            return
        counts = masks.active_counts(
            shapes.values(), self.sparsity, self.distribution, [self.block_shape] * len(shapes)
        )
        self._initial_masks = {
            name: masks.random_mask(shape, count, [self._drawn_seed, index], self.block_shape)
            for index, ((name, shape), count) in enumerate(zip(shapes.items(), counts, strict=True))
        }

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        """Adds a weight; one that is to be masked gets its mask beside it and starts at zero outside."""
        initial_masks = self.__dict__.get("_initial_masks", {})
        if name not in initial_masks:
            return super().add_weight(*args, name=name, **kwargs)
        prepare_for_fit()
        initial_mask = initial_masks.pop(name)
        initializer = keras.initializers.get(kwargs.pop("initializer", None) or "glorot_uniform")
        regularizer = keras.regularizers.get(kwargs.pop("regularizer", None))

        def masked_initializer(shape, dtype=None):
            return ops.where(initial_mask, initializer(shape, dtype=dtype), ops.zeros((), dtype))

        weight = super().add_weight(*args, name=name, initializer=masked_initializer, **kwargs)
        mask = super().add_weight(
            shape=weight.shape,
            dtype="bool",
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(initial_mask, dtype),
            trainable=False,
            autocast=False,
            name=f"{name}_mask",
        )
        setattr(self, f"{name}_mask", mask)  # `tf.train.Checkpoint` finds variables by attribute
        self._masked[name] = masked_weight = make_guarded(
            weight,
            mask,
            gates=self.masked_names[name],  # type: ignore[index] # not None: it is one of the masks
            gate_sizes=self.gate_sizes,
            block_shape=self.block_shape,
            n_of_m=self.n_of_m,
            initializer=initializer,
        )
        # Likewise, and SavedModels find it so.
        setattr(self, f"_{name}_unsettled", masked_weight.unsettled_flag)
        if regularizer is not None:
            weight.regularizer = _MaskedRegularizer(regularizer, masked_weight)
        return weight

    def weight_to_use(self, name: str, variable: keras.Variable) -> Tensor:
        """What an attribute that holds a masked weight gives: the masked weight inside a layer's call.

        The call need not be this layer's: `Bidirectional` hands the kernels of its layers to cuDNN, and a
        custom layer may compute with the embeddings of another. Everywhere else it is the variable.
        """
        if name in self._effective:
            return self._effective[name]
        masked_weight = self._masked.get(name)
        if masked_weight is None or current_call() is None:
            return variable
        return masked(masked_weight, self._dtype_of(masked_weight))

    @contextlib.contextmanager
    def effective_weights(self) -> Iterator[None]:
        """Within the block the masked weights are computed once, in the compute dtype, not at each use."""
        computed = {
            name: masked(masked_weight, self._dtype_of(masked_weight))
            for name, masked_weight in self._masked.items()
        }
        with self._computed_weights(computed):
            yield

    def _dtype_of(self, masked_weight):
        """The dtype that the layer computes with a weight in, as in Keras.

        In a call of the layer that is its compute dtype. In one of another layer that calls this one's
        `call`, as `TimeDistributed` does, variables are cast to the dtype of that one.
        """
        return masked_weight.weight.dtype if self.autocast else self.compute_dtype

    @property
    def _effective(self):
        """The weights that a block of this thread has computed, a dict by name; empty outside of one."""
        return _computed_weights.get().get(id(self), {})

    @contextlib.contextmanager
    def _computed_weights(self, weights):
        """Within the block these tensors are the weights in this thread: another may trace the layer, too."""
        token = _computed_weights.set({**_computed_weights.get(), id(self): weights})
        try:
            yield
        finally:
            _computed_weights.reset(token)

    def save_own_variables(self, store: Any) -> None:
        if not self._masked:
            super().save_own_variables(store)
            return
        variables = self._variables_by_key()
        arrays = {key: to_numpy(variable) for key, variable in variables.items()}
        pack_masked(store, arrays, [pair[:2] for pair in self._masked_keys(variables)])

    def load_own_variables(self, store: Any) -> None:
        if not self._masked:
            super().load_own_variables(store)
            return
        arrays = unpack_masked(store, self._masked_keys(self._variables_by_key()), self.name)
        with contextlib.ExitStack() as stack:
            for masked_weight in self._masked.values():
                stack.enter_context(masked_weight.written_together())
            super().load_own_variables(arrays)
            if self.saves_named_weights_only:
                for name, masked_weight in self._masked.items():
                    masked_weight.mask.assign(arrays[f"{name}_mask"])

    def _variables_by_key(self):
        """What is stored of the layer: a dict from key to variable."""
        variables = {}
        super().save_own_variables(variables)
        if self.saves_named_weights_only:
            variables |= {f"{name}_mask": weight.mask for name, weight in self._masked.items()}
        return variables

    def _masked_keys(self, variables):
        """Where the masked weights are stored: (key of the weight, key of its mask, shape) of each."""
        keys = {id(variable): key for key, variable in variables.items()}
        return [
            (keys[id(masked_weight.weight)], keys[id(masked_weight.mask)], masked_weight.shape)
            for masked_weight in self._masked.values()
        ]

    def enable_lora(self, rank: int, *args: Any, **kwargs: Any) -> None:
        self._check_lora("rank", rank)
        super().enable_lora(rank, *args, **kwargs)

    def quantize(self, mode: str | None = None, type_check: bool = True, config: Any = None) -> None:
        """Quantizes the layer as Keras does, at sparsity 0; a masked layer raises `NotImplementedError`."""
        if self.sparsity:
            # `Model.quantize` turns this error into a warning, and leaves the layer as it is.
            raise NotImplementedError(
                f"A layer must have sparsity 0 to be quantized: {mode} weights have no masks. Received: "
                f"{self.name!r} of sparsity {self.sparsity}; quantize `strip(model)`, which keeps its zeros"
            )
        # Keras refuses classes that derive from its own: they may compute something else.
        derived = type(self).__dict__.get("keras_layer") is None
        super().quantize(mode, type_check=type_check and derived, config=config)

    def _check_lora(self, name, rank):
        if rank and self.sparsity:
            raise ValueError(
                f"`{name}` must be None at a sparsity over 0: the low-rank product has no zeros. Received: "
                f"{name}={rank!r}, sparsity={self.sparsity}; strip the model of its masks first"
            )

    def _check_quantization(self):
        if self.quantization_mode is not None and self.sparsity:
            raise ValueError(
                "`dtype` must not be a quantized one at a sparsity over 0: quantized weights have no masks. "
                f"Received: dtype={self.dtype_policy.name!r}, sparsity={self.sparsity}; train in a "
                "floating-point dtype, then quantize the stripped model"
            )


def _sparsity_of_pattern(n_of_m, sparsity, distribution, block_shape):
    """The sparsity that an n-of-m pattern fixes; raises `ValueError` if other arguments differ."""
    fixed = 1.0 - n_of_m[0] / n_of_m[1]
    if sparsity not in (None, fixed):
        raise ValueError(
            f"`sparsity` must be left out or {fixed} with `n_of_m={n_of_m}`, which fixes it. "
            f"Received: sparsity={sparsity}"
        )
    if distribution != "uniform" or tuple(block_shape) != (1, 1):
        raise ValueError(
            "`n_of_m` must stand alone: it fixes the density of every matrix and the place of single "
            f"weights. Received: n_of_m={n_of_m}, distribution={distribution!r}, block_shape={block_shape}"
        )
    return fixed


class MaskedAttribute:
    """A layer's attribute that holds a weight: masked inside a layer's call, the variable elsewhere.

    Before the layer is built it raises AttributeError, as Keras's own attribute does.
    """

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, layer, owner=None):
        if layer is None:
            return self
        try:
            variable = layer.__dict__[f"_raw_{self.name}"]
        except KeyError:
            raise AttributeError(f"{type(layer).__name__} has no `{self.name}` before it is built.") from None
        return layer.weight_to_use(self.name, variable)

    def __set__(self, layer, value):
        layer.__dict__[f"_raw_{self.name}"] = value

    def __delete__(self, layer):
        del layer.__dict__[f"_raw_{self.name}"]


def masked(masked_weight, dtype):
    """The masked weight as a tensor of `dtype`, whose gradient is zero where no connection exists."""
    weight = ops.cast(ops.convert_to_tensor(masked_weight.weight), dtype)
    return with_masked_gradient(weight, ops.convert_to_tensor(masked_weight.mask), masked_weight)


def with_masked_gradient(weight, mask, masked_weight):
    """A tensor made of a masked weight, whose gradient is zero where `mask`, made likewise, is False."""
    # Where a backward pass computes a part of the forward pass again, it does so without a call of a layer.
    number = masked_weight.pass_number(begins=current_call() is not None)
    masked_weight.forget_lost()
    return mask_gradient(weight, mask, masked_weight, number)


class _MaskedRegularizer(keras.regularizers.Regularizer):
    """A regularizer whose gradient moves existing connections only (an orthogonal one has others too)."""

    def __init__(self, regularizer, masked_weight):
        self.regularizer = regularizer
        self.masked_weight = masked_weight

    def __call__(self, weight):
        mask = ops.convert_to_tensor(self.masked_weight.mask)
        return self.regularizer(with_masked_gradient(ops.convert_to_tensor(weight), mask, self.masked_weight))
