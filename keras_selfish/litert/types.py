"""Types of operands: LiteRT's operations take fewer of them than Keras's, and none beside another one."""

import keras

from keras_selfish.litert.graph import Tensor
from keras_selfish.litert.parts import KINDS, in_dtype, kind_of

# Whose operands are of several types, as they are in LiteRT.
_AS_THEY_ARE = {
    "Cast",
    "DotProductAttention",
    "FullLike",
    "GetItem",
    "MultiHot",
    "OneHot",
    "OnesLike",
    "Select",
    "Take",
    "TakeAlongAxis",
    "Where",
    "ZerosLike",
}
_LOGICAL = {"All", "Any", "LogicalAnd", "LogicalNot", "LogicalOr", "LogicalXor"}
_PRODUCTS = {"Dot", "Einsum", "Matmul"}  # of floats only


def operands_of(lowering, name, arguments, dtype):
    """The arguments of an operation, of which tensors are of the type that LiteRT wants.

    Args:
        lowering: The `Lowering`.
        name: The name of the operation's class.
        arguments: Its arguments, of any structure.
        dtype: What Keras says of the type of its output.
    """
    kind = kind_of(dtype)
    wanted = "bool" if name in _LOGICAL else "float32" if name in _PRODUCTS else kind
    if name in _AS_THEY_ARE or (kind == "bool" and name not in _LOGICAL):
        return arguments

    def in_wanted(value):
        if not isinstance(value, Tensor) or not (wanted == "bool" or _rank(value.dtype) < _rank(wanted)):
            return value
        return in_dtype(lowering, value, wanted)

    return keras.tree.map_structure(in_wanted, arguments)


def output_of(lowering, name, outputs, dtype):
    """What an operation has given, in the type of Keras's, where LiteRT computes in another one."""
    if name in _PRODUCTS and kind_of(dtype) != "float32":
        return in_dtype(lowering, outputs, kind_of(dtype))
    return outputs


def _rank(dtype):
    return KINDS.index(kind_of(dtype))
