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
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_selfish.keras_internals import current_call
from keras_selfish.layers.mask_gradient import mask_gradient
from keras_selfish.layers.masked_variables import make_guarded
from keras_selfish.mask_spec import MaskSpec
from keras_selfish.packing import pack_masked, unpack_masked
from keras_selfish.typing import BlockShape, Config, Distribution, Pattern, Shape, Tensor
from keras_selfish.variables import to_numpy
from keras_selfish.workers import prepare_for_fit

if TYPE_CHECKING:
    from keras import Layer as _Base  # of the layer that it is placed before

    from keras_selfish.layers.masked_variables import GuardedWeight
else:
    _Base = object

NOTHING: Any = types.MappingProxyType({})
# By the id of a layer that is in a call.
_computed_weights: contextvars.ContextVar[Mapping[int, dict[str, Tensor]]] = contextvars.ContextVar(
    "weights that layers have computed", default=types.MappingProxyType({})
)


class SparseLayer(_Base):
    """Base of all sparse layers and cells, placed before the Keras layer class whose weights it masks.

    A subclass names the weights in `masked_names`. Each gets a mask of its own when it is added, and is
    masked wherever a call of a layer reads it as an attribute; inside `effective_weights()` that is done once
    a call. A layer with several masked weights tells their shapes beforehand, with `plan_masks`. One that
    only holds other sparse layers names none. It is registered by `sparse_form_of`.

    Args:
        *args: As in the Keras layer.
        **kwargs: `sparsity` and the other arguments of `MaskSpec`, and those of the Keras layer.
    """

    mask_spec: MaskSpec
    masked_names: Sequence[str] = ()
    # That each masked weight concatenates, and their widths if they differ.
    gates: tuple[str, ...] = ()
    gate_sizes: tuple[int, ...] = ()
    # Those of which rows are looked up, and which no product reads.
    looked_up_names: Sequence[str] = ()
    # What `strip` puts in place of it: see `sparse_form_of`; or the same layer at sparsity 0.
    plain_class: type[keras.Layer] | None = None
    strips_to_itself = False
    _seed_in_use: int | None = None
    _masked: dict[str, GuardedWeight] = NOTHING
    _initial_masks: dict[str, Any] = NOTHING

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = vars(cls).get("masked_names", ())
        if isinstance(names, str):
            raise ValueError(
                f"`masked_names` must be a tuple of names. Received: {names!r}; write ({names!r},)"
            )
        bases = cls.__mro__
        if keras.Layer in bases and bases.index(keras.Layer) < bases.index(SparseLayer):
            raise ValueError(
                "`SparseLayer` must stand before the Keras layer among the bases of a class, or it changes "
                f"nothing. Received: {cls.__name__}({', '.join(base.__name__ for base in cls.__bases__)})"
            )
        for name in () if isinstance(names, property) else names:
            if not isinstance(getattr(cls, name, None), MaskedAttribute):
                setattr(cls, name, MaskedAttribute(name))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._take_mask_arguments(kwargs)
        super().__init__(*args, **kwargs)
        self._seed_masks()

    def _take_mask_arguments(self, arguments):
        """Keeps the mask arguments, before all else: a layer may add weights in its own constructor."""
        self.mask_spec = MaskSpec.taken_from(arguments)
        self._masked = {}

    def _seed_masks(self):
        """The seed of the masks, drawn at the end of a constructor at the latest, behind those of Keras."""
        self._check_lora("lora_rank", getattr(self, "lora_rank", None))
        self._check_quantization()
        if self._seed_in_use is None:
            seed = self.mask_seed
            self._seed_in_use = random.randint(0, 2**31 - 1) if seed is None else seed
        return self._seed_in_use

    @property
    def sparsity(self) -> float:
        return self.mask_spec.sparsity  # type: ignore[return-value] # which is settled

    @property
    def distribution(self) -> Distribution:
        return self.mask_spec.distribution

    @property
    def block_shape(self) -> BlockShape:
        return self.mask_spec.block_shape

    @property
    def n_of_m(self) -> Pattern | None:
        return self.mask_spec.n_of_m

    @property
    def mask_seed(self) -> int | None:
        return self.mask_spec.mask_seed

    def get_config(self) -> Config:
        return {**super().get_config(), **self.mask_spec.get_config()}

    def plan_masks(self, shapes: Mapping[str, Shape]) -> None:
        """Draws the masks of weights that are about to be added and share the connections of the layer.

        Args:
            shapes: Dict from the names of the weights to their shapes.
        """
        if not self.sparsity:
            return
        for name, shape in shapes.items():
            self.mask_spec.check(shape, f"{self.name}/{name}")
        drawn = self.mask_spec.random_masks(list(shapes.values()), self._seed_masks())
        self._initial_masks = dict(zip(shapes, drawn, strict=True))

    def gates_of(self, name: str) -> tuple[str, ...]:
        """Names of the gates that a masked weight concatenates."""
        return self.gates

    def add_weight(
        self, shape: Shape | None = None, *args: Any, name: str | None = None, **kwargs: Any
    ) -> keras.Variable:
        """Adds a weight; one that is to be masked gets its mask beside it and starts at zero outside."""
        if not self.sparsity or name is None or name not in self.masked_names:
            return super().add_weight(shape, *args, name=name, **kwargs)
        prepare_for_fit()
        initial_mask = self._initial_mask(name, shape)
        initializer = keras.initializers.get(kwargs.pop("initializer", None) or "glorot_uniform")
        regularizer = keras.regularizers.get(kwargs.pop("regularizer", None))
        masked = _MaskedInitializer(initializer, initial_mask)
        weight = super().add_weight(shape, *args, name=name, initializer=masked, **kwargs)
        mask = super().add_weight(
            shape=weight.shape,
            dtype="bool",
            initializer=_MaskedInitializer("ones", initial_mask),
            trainable=False,
            autocast=False,
            name=f"{name}_mask",
        )
        setattr(self, f"{name}_mask", mask)  # `tf.train.Checkpoint` finds variables by attribute
        self._masked[name] = masked_weight = make_guarded(
            weight,
            mask,
            gates=self.gates_of(name),
            gate_sizes=self.gate_sizes,
            block_shape=self.block_shape,
            n_of_m=self.n_of_m,
            initializer=initializer,
            looked_up=name in self.looked_up_names,
        )
        # Likewise, and SavedModels find it so.
        setattr(self, f"_{name}_unsettled", masked_weight.unsettled_flag)
        if regularizer is not None:
            weight.regularizer = _MaskedRegularizer(regularizer, masked_weight)
        return weight

    def _initial_mask(self, name, shape):
        if name not in self._initial_masks:
            if len(self.masked_names) > 1:
                raise ValueError(
                    f"{type(self).__name__} must call `plan_masks` with the shapes of all its masked weights "
                    f"before it adds the first. Received: add_weight(name={name!r})"
                )
            self.plan_masks({name: shape})
        return self._initial_masks.pop(name)

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
        if self.sparsity and self.built and not self._masked:
            raise ValueError(
                "`masked_names` must name weights that the layer adds in `build`. Received: "
                f"{tuple(self.masked_names)} of {type(self).__name__}, which has added none of them"
            )
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
            for name, masked_weight in self._masked.items():
                if f"{name}_mask" in arrays:
                    masked_weight.mask.assign(arrays[f"{name}_mask"])

    def _variables_by_key(self):
        """What is stored of the layer: a dict from key to variable."""
        variables = {}
        super().save_own_variables(variables)
        # Some of Keras's layers write the weights they know by name, and so leave out the masks.
        stored = {id(variable) for variable in variables.values()}
        masks = {f"{name}_mask": weight.mask for name, weight in self._masked.items()}
        return variables | {key: mask for key, mask in masks.items() if id(mask) not in stored}

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
        derived = "plain_class" not in vars(type(self))
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


class MaskedAttribute:
    """A layer's attribute that holds a weight: masked inside a layer's call, the variable elsewhere.

    Before the layer is built it raises AttributeError, as Keras's own attribute does.
    """

    def __init__(self, name):
        self.name = name

    def __get__(self, layer, owner=None):
        if layer is None:
            return self
        return layer.weight_to_use(self.name, self._variable_of(layer))

    def _variable_of(self, layer):
        if (of_keras := self._property_of(layer)) is not None:
            return of_keras.__get__(layer)
        try:
            return layer.__dict__[f"_raw_{self.name}"]
        except KeyError:
            raise AttributeError(f"{type(layer).__name__} has no `{self.name}` before it is built.") from None

    def _property_of(self, layer):
        """The property that some of Keras's layers have by this name."""
        found = (vars(base).get(self.name) for base in type(layer).__mro__)
        return next((one for one in found if isinstance(one, property)), None)

    def __set__(self, layer, value):
        if (of_keras := self._property_of(layer)) is not None:
            of_keras.__set__(layer, value)
            return
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


class _MaskedInitializer(keras.initializers.Initializer):
    """The values of an initializer where a mask is True, and zero elsewhere.

    An object, not a function: for a large variable that is divided, Keras has JAX compile an object's method.
    """

    def __init__(self, initializer, mask):
        self.initializer = keras.initializers.get(initializer)
        self.mask = mask

    def __call__(self, shape, dtype=None):
        return ops.where(self.mask, self.initializer(shape, dtype=dtype), ops.zeros((), dtype))


class _MaskedRegularizer(keras.regularizers.Regularizer):
    """A regularizer whose gradient moves existing connections only (an orthogonal one has others too)."""

    def __init__(self, regularizer, masked_weight):
        self.regularizer = regularizer
        self.masked_weight = masked_weight

    def __call__(self, weight):
        mask = ops.convert_to_tensor(self.masked_weight.mask)
        return self.regularizer(with_masked_gradient(ops.convert_to_tensor(weight), mask, self.masked_weight))
