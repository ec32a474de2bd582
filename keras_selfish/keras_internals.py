"""All that this package uses of what Keras keeps private, with the reason why no public way does.

Everywhere else private names of other packages are forbidden, and a test for each function here fails where
Keras changes what it relies on (`tests/test_keras_internals.py`). What is TensorFlow's stands in
`keras_internals_tensorflow.py`. A private method that a class of this package overrides cannot be a function:
`OVERRIDES` lists these.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

# For cells that derive from it, Keras's loop draws dropout masks once per sequence; for others at every step.
from keras.src.layers.rnn.dropout_rnn_cell import DropoutRNNCell

from keras_selfish.typing import Tensor

__all__ = [
    "DropoutRNNCell",
    "LOOKED_AT",
    "MULTI_OPTIMIZER",
    "OVERRIDES",
    "Override",
    "current_call",
    "decays",
    "exchange_inner_layer",
    "gradient_accumulators",
    "graph_nodes",
    "inner_layers",
    "layout_of",
    "own_trainable_variables",
    "padding_mask_of",
    "raw_value",
    "scoped_objects",
    "set_padding_mask",
    "symbolic_operations",
    "symbols_within",
    "track_layer",
    "trained_variables",
    "variable_index",
    "write_raw",
]

# The versions of Keras whose source was read, and on which the tests passed.
LOOKED_AT = ("3.12", "3.13", "3.14", "3.15")


class Override(NamedTuple):
    """A private method of another package's class that a class of this package overrides."""

    owner: str  # module and name of the class here
    method: str
    reason: str


_VARIABLES = "keras_selfish.layers.masked_variables"
_OPTIMIZER = "keras_selfish.optimizers.snt_asgd.SNTASGD"
_RESOURCE = "keras_selfish.export.packed_variables_tensorflow.ExpandedValues"

_WRITES = (
    "Whatever writes to a Keras variable outside of a stateless scope ends here: `assign`, `set_weights`, a "
    "file. There is no public hook, and a layer's variables are not of a class that it chooses."
)
_RESTORES = "`tf.train.Checkpoint` writes to the `tf.Variable` without asking the Keras variable around it."
_DOCUMENTED = "TensorFlow documents it as what a `TrackableResource` has to define."

OVERRIDES = (
    Override(f"{_VARIABLES}.MaskedVariable", "_direct_assign", _WRITES),
    Override(f"{_VARIABLES}.MaskedVariable", "_restore_from_tensors", _RESTORES),
    Override(f"{_VARIABLES}.MaskVariable", "_direct_assign", _WRITES),
    Override(f"{_VARIABLES}.MaskVariable", "_restore_from_tensors", _RESTORES),
    Override(
        _OPTIMIZER,
        "_clip_gradients",
        "Keras clips before it sums over replicas, so that several devices would take other steps than one.",
    ),
    Override(
        _OPTIMIZER,
        "_apply_weight_decay",
        "Keras decays in a pass of its own over the weights, not within the step.",
    ),
    Override(
        _OPTIMIZER,
        "_backend_update_step",
        "`update_step` sees one variable on one replica; clipping by the global norm needs the sums of all. "
        "An `apply` of our own would have to repeat loss scaling, accumulation and constraints.",
    ),
    Override(_RESOURCE, "_create_resource", _DOCUMENTED),
    Override(_RESOURCE, "_initialize", _DOCUMENTED),
    Override(_RESOURCE, "_destroy_resource", _DOCUMENTED),
)


# What older versions lack

# `keras.optimizers.MultiOptimizer` came with Keras 3.15; nothing is an instance of no classes.
MULTI_OPTIMIZER = getattr(keras.optimizers, "MultiOptimizer", ())


# Layers and models


def inner_layers(layer: keras.Layer) -> list[keras.Layer]:
    """All layers inside a layer, at any depth: cells, wrapped layers, nested models.

    `Model.layers` is public, but ends at the first level, and a layer that is no model has nothing like it.
    """
    return layer._flatten_layers(include_self=False)


def exchange_inner_layer(layer: keras.Layer, old: keras.Layer, new: keras.Layer) -> None:
    """Counts a layer among those that a layer holds, in the place that another one had in their order.

    Setting an attribute adds to them and takes none away, and is refused once the layer is built.
    """
    layer._tracker.replace_tracked_value("layers", old, new)


def track_layer(model: keras.Model, layer: keras.Layer) -> None:
    """Makes a layer that a Functional model holds as an attribute a part of it, with all its variables.

    Before Keras 3.15 the constructor of Functional models replaces the list that attributes are tracked in.
    """
    if not any(one is layer for one in model._layers):
        model._layers.append(layer)


def own_trainable_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The variables that a layer made as trainable ones, also while it is frozen.

    `trainable_variables` is empty then, and `trainable` of each variable False.
    """
    return list(layer._trainable_variables)


def graph_nodes(function: keras.Function) -> list[Any]:
    """The calls that a function consists of, each after those that it depends on; inputs are none.

    Each has `operation`, `arguments` (with `args` and `kwargs`), `input_tensors` and `output_tensors`.
    `Function.operations` is public, but tells neither how often each is called nor with what, and a config
    names layers only.
    """
    by_depth = function._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def symbols_within(tensors: Sequence[Tensor]) -> set[int]:
    """The ids of all symbolic tensors that some are computed from, and their own.

    Before Keras 3.14 a `keras.Function` is refused inputs that its outputs do not depend on.
    """
    found: dict[int, Tensor] = {}
    ahead = list(tensors)
    while ahead:
        tensor = ahead.pop()
        if id(tensor) not in found:
            found[id(tensor)] = tensor
            operation, node, _ = getattr(tensor, "_keras_history", (None, None, None))
            ahead += operation._inbound_nodes[node].input_tensors if operation is not None else ()
    return set(found)


def current_call() -> Any:
    """The outermost call of a layer that runs in this thread, with its `training`; None if none does.

    A layer learns of its own call only. `Bidirectional` reads the kernels of its layers without calling them.
    """
    return keras.src.backend.common.global_state.get_global_attribute("current_call_ctx")


def padding_mask_of(tensor: Tensor) -> Tensor | None:
    """The mask of padded time steps that a tensor carries to the next layer, or None.

    Keras hands it to the layers that take one; what nodes of a model list as arguments has it only sometimes.
    """
    return keras.src.backend.get_keras_mask(tensor)


def scoped_objects() -> dict[str, Any]:
    """The classes and functions of the `keras.saving.custom_object_scope` that this thread is in.

    A scope within another one hides what that one holds, instead of adding to it.
    """
    return keras.src.backend.common.global_state.get_global_attribute("custom_objects_scope_dict", {})


def set_padding_mask(tensor: Tensor, mask: Tensor) -> None:
    """Attaches to a layer's output which time steps are padding, for the layers after it.

    `compute_mask` would be the public way; but it does not learn the arguments of the call, and
    `ReversibleEmbedding` marks padding only where it embeds, and therefore in `call`.
    """
    keras.src.backend.set_keras_mask(tensor, mask)


# Variables


@contextlib.contextmanager
def symbolic_operations() -> Iterator[None]:
    """Within the block all of `keras.activations`, and the layers of Keras, take symbolic tensors.

    Some activations make tensors of their inputs first, as nothing public does, and `mish` computes with the
    backend; before Keras 3.15 some layers have the backend cast their masks. `ops.batch_normalization` fails
    with an offset and no scale.
    """
    from keras.src import backend
    from keras.src.activations.activations import Mish
    from keras.src.ops.nn import BatchNorm

    convert, cast = backend.convert_to_tensor, backend.cast
    compute, spec = Mish.static_call, BatchNorm.compute_output_spec

    def convert_to_tensor(x, *args, **kwargs):
        return x if isinstance(x, keras.KerasTensor) else convert(x, *args, **kwargs)

    def cast_symbols(x, dtype):
        return keras.ops.cast(x, dtype) if isinstance(x, keras.KerasTensor) else cast(x, dtype)

    def static_call(x):
        return Mish()(x) if isinstance(x, keras.KerasTensor) else compute(x)

    def compute_output_spec(self, x, mean, variance, offset=None, scale=None):
        # It looks at the shape of the scale wherever that is another one than the offset.
        return spec(self, x, mean, variance, offset, offset if scale is None else scale)

    def known_sizes(self, input_shape):
        # Where `output_shape` leaves a size open, that of the inputs is known all the same.
        inputs, output = self.equation.split("->")
        sizes = dict(zip(inputs.split(",")[0], input_shape, strict=False))
        shape = einsum_shape(self, input_shape)
        if "." in self.equation or len(output) != len(shape):
            return shape
        return tuple(
            sizes.get(letter) if size is None else size for letter, size in zip(output, shape, strict=True)
        )

    def attention_spec(self, *args, **kwargs):
        # A subclass may take more arguments than this method of its base knows.
        known = inspect.signature(attention).parameters
        kwargs = {name: value for name, value in kwargs.items() if name in known or value is not None}
        return attention(self, *args, **kwargs)

    def call_layer(self, *args, **kwargs):
        # A layer that returns None beside tensors is no node of a graph; what it consists of is.
        try:
            return layer_call(self, *args, **kwargs)
        except ValueError as error:
            if "outputs must be tensors" not in str(error):
                raise
            return self.call(*args, **kwargs)

    layer_call = keras.layers.Layer.__call__
    einsum, multi_head = keras.layers.EinsumDense, keras.layers.MultiHeadAttention
    einsum_shape, attention = einsum.compute_output_shape, multi_head.compute_output_spec

    replaced = [
        (backend, "convert_to_tensor", convert_to_tensor),
        (backend, "cast", cast_symbols),
        (Mish, "static_call", staticmethod(static_call)),
        (BatchNorm, "compute_output_spec", compute_output_spec),
        (einsum, "compute_output_shape", known_sizes),
        (multi_head, "compute_output_spec", attention_spec),
        (keras.layers.Layer, "__call__", call_layer),
    ]
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in replaced]
    for owner, name, new in replaced:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def raw_value(variable: Any) -> Any:
    """What a Keras variable holds, as it stands there; anything else is returned as it is.

    `value` would cast it in a layer of mixed precision, take that of a stateless scope instead, and have a
    masked weight project itself. On TensorFlow it is a `tf.Variable`, perhaps one of several replicas. On JAX
    it may have been deleted, while a trainer carries the value.
    """
    return variable._value if isinstance(variable, keras.Variable) else variable


def write_raw(variable: keras.Variable, value: Tensor) -> None:
    """Writes a tensor of the right shape and dtype to a variable, past an override of its class.

    `assign` would call that override, which calls this.
    """
    keras.Variable._direct_assign(variable, value)


def layout_of(variable: keras.Variable) -> Any:
    """How `keras.distribution` divides a variable among devices, for `add_variable(layout=...)`.

    `add_variable_from_reference` divides like another variable, too, but takes its dtype. A distribution
    knows what it would give a path, not what a variable was given.
    """
    return getattr(variable, "_layout", None)  # variables of other backends than JAX have none


# Optimizers


def trained_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that an optimizer without wrappers was built for; before, none.

    `Optimizer.variables` is its own state. To store them once more as an attribute would make them state.
    """
    return optimizer._trainable_variables


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """The place of a variable among those that an optimizer trains.

    On TensorFlow it may also be the part of the variable on one replica. Keras documents the lookup as what
    an `update_step` calls, but under a private name.

    Raises:
        KeyError: if the optimizer does not train the variable.
    """
    return optimizer._get_variable_index(variable)


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether weight decay is meant for a variable.

    `exclude_from_weight_decay` is public, but not what it has come to.
    """
    return optimizer._use_weight_decay(variable)


def gradient_accumulators(optimizer: keras.optimizers.Optimizer) -> Sequence[keras.Variable]:
    """The sums of gradients of `gradient_accumulation_steps`, in the order of the trained variables.

    They are among `Optimizer.variables`, by names that several may share.
    """
    return optimizer._accumulated_gradients
