"""Fully connected layer whose connections, or whole units, are switched on and off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Unpack

import keras
import numpy as np
from keras import ops

from keras_selfish import checks
from keras_selfish.layers.dense import HALF_PRECISION, add_bias
from keras_selfish.layers.forms import strips_to
from keras_selfish.masks import MaskedWeight
from keras_selfish.packing import pack_masked, unpack_masked
from keras_selfish.typing import Config, OpenShape, Tensor, TensorLike

if TYPE_CHECKING:
    from keras_selfish.layers.options import DenseOptions

GRANULARITIES = ("connection", "neuron")
KERNEL_KEYS = ("0", "kernel_mask")  # of Keras's layer and of this one
NOT_ELEMENTWISE = (keras.activations.softmax, keras.activations.log_softmax)


@keras.saving.register_keras_serializable(package="keras_selfish")
@strips_to(keras.layers.Dense, without=("granularity", "frozen"))
class SwitchedDense(keras.layers.Dense):
    """`keras.layers.Dense` whose connections are switched by a switcher network.

    The kernel keeps the value of a connection that is off, so that it can come back; the forward pass,
    reports and `strip` see zero there. Alone the layer has all connections and is its Keras parent. In a
    `SwitchedModel` the switcher decides; `freeze` then fixes what it has decided.

    With `granularity="neuron"` whole units are switched and scaled: the output is
    switch * activation(scale * (inputs @ kernel + bias)), a switch of 0 or 1 and a positive scale for each
    unit. `strip` takes the units that are off out of the model.

    Args:
        units: Number of units.
        granularity: What is switched: `"connection"` (default) or `"neuron"`.
        frozen: Whether the switches stay as they are; set by `freeze`. Default False.
        *args: As in `keras.layers.Dense`.
        **kwargs: As in `keras.layers.Dense`. `lora_rank` and `quantization_config` are refused.

    Raises:
        ValueError: for an unknown granularity, a low rank or quantization, or a softmax over switched units.

    Example:

    >>> import numpy as np
    >>> layer = SwitchedDense(8)
    >>> layer(np.ones((2, 16), "float32")).shape == (2, 8)
    True
    >>> mask = np.zeros((16, 8), bool)
    >>> mask[:4] = True
    >>> layer.set_switches(mask)
    >>> layer.masked_weight.active
    32

    Reference: Han et al. 2021, arXiv 2103.15590 (connections); arXiv 2110.05954 (neurons).
    """

    def __init__(
        self,
        units: int,
        *args: Any,
        granularity: Literal["connection", "neuron"] = "connection",
        frozen: bool = False,
        **kwargs: Unpack[DenseOptions],
    ) -> None:
        checks.one_of("granularity", granularity, GRANULARITIES)
        super().__init__(units, *args, **kwargs)
        quantization_config = getattr(self, "quantization_config", None)  # Keras 3.12 has none
        if self.lora_rank or quantization_config is not None:
            raise ValueError(
                "`lora_rank` and `quantization_config` must be None: they would replace the weights that are "
                f"switched. Received: lora_rank={self.lora_rank!r}, "
                f"quantization_config={quantization_config!r}; strip the model first"
            )
        if granularity == "neuron" and self.activation in NOT_ELEMENTWISE:
            raise ValueError(
                "`activation` must be elementwise for units that are switched: others would see those that "
                f"are off. Received: activation={self.activation.__name__}; apply it in a layer of its own"
            )
        self.granularity = granularity
        self.frozen = bool(frozen)

    def build(self, input_shape: OpenShape) -> None:
        super().build(input_shape)
        shape: tuple[Any, int] = (input_shape[-1], self.units)
        # All replicas decide the same, so that the first one's decision is everyone's.
        state = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}
        self.mask = self.add_weight(
            name="kernel_mask", shape=shape, dtype="bool", initializer="ones", **state
        )
        self.scale = None
        if self.granularity == "neuron":
            self.scale = self.add_weight(
                name="scale", shape=(self.units,), dtype="float32", initializer="ones", **state
            )
        kernel = self.kernel
        self.masked_weight = MaskedWeight(
            kernel,
            self.mask,
            block_shape=(shape[0], 1) if self.granularity == "neuron" else (1, 1),
            initializer=self.kernel_initializer,
        )
        kernel.masked_weight = self.masked_weight

    @property
    def switching(self) -> Any:
        """What decides about the switches (see `keras_selfish.switcher.switching`); None in a layer alone."""
        # Not an attribute that Keras sees: the switcher would become a part of each layer that it switches.
        return self.__dict__.get("_switched_by")

    @switching.setter
    def switching(self, switching: Any) -> Any:
        self.__dict__["_switched_by"] = switching

    def call(self, inputs: TensorLike, training: bool | None = None) -> Tensor:
        if self.granularity == "neuron":
            return self._call_switching_units(inputs, training)
        kernel = ops.cast(self._switched_kernel(training), self.compute_dtype)
        outputs = self._add_bias(ops.matmul(inputs, kernel))
        return outputs if self.activation is None else self.activation(outputs)

    def _decides(self, training):
        return training and not self.frozen and self.switching is not None and self.switching.decides

    def _switched_kernel(self, training):
        mask = ops.convert_to_tensor(self.mask)
        if self._decides(training):
            switched, mask = self.switching.switch_connections(self.kernel)
            self.mask.assign(mask)
            if self.switching.learns:
                return switched
        kernel = ops.convert_to_tensor(self.kernel)
        return ops.where(mask, kernel, ops.zeros((), kernel.dtype))

    def _call_switching_units(self, inputs, training):
        if self._decides(training):
            switches, scale = self.switching.switch_units(self.kernel)
            is_open = ops.greater(switches, 0.5)
            self.mask.assign(ops.broadcast_to(is_open, self.mask.shape))
            self.scale.assign(scale)
        else:
            switches, scale = ops.convert_to_tensor(self.mask)[0], ops.convert_to_tensor(self.scale)
        kernel = ops.cast(ops.convert_to_tensor(self.kernel), self.compute_dtype)
        outputs = self._add_bias(ops.matmul(inputs, kernel)) * ops.cast(scale, self.compute_dtype)
        outputs = outputs if self.activation is None else self.activation(outputs)
        return outputs * ops.cast(switches, self.compute_dtype)

    def _add_bias(self, outputs):
        if not self.use_bias:
            return outputs
        bias = ops.cast(ops.convert_to_tensor(self.bias), self.compute_dtype)
        half = keras.backend.standardize_dtype(self.compute_dtype) in HALF_PRECISION
        return add_bias(outputs, bias) if half else ops.add(outputs, bias)

    def set_switches(self, mask: TensorLike, scale: TensorLike | None = None) -> None:
        """Switches connections or units by hand.

        Args:
            mask: Boolean array (inputs, units), True where a connection is on; (units,) for
                `granularity="neuron"`.
            scale: Positive array (units,), for `granularity="neuron"` only; None (default) leaves it as it
                is.

        Raises:
            ValueError: if the arrays have other shapes.
        """
        mask = np.asarray(ops.convert_to_numpy(mask)).astype(bool)
        expected = (self.units,) if self.granularity == "neuron" else tuple(self.mask.shape)
        if mask.shape != expected:
            raise ValueError(f"`mask` must have shape {expected}. Received: mask of shape {mask.shape}")
        self.mask.assign(np.broadcast_to(mask, self.mask.shape))
        if scale is not None:
            if self.scale is None:
                raise ValueError(
                    "`scale` must be None for a layer that switches connections. Received: a scale; use "
                    'granularity="neuron"'
                )
            self.scale.assign(scale)

    def freeze(self) -> None:
        """Fixes the switches as they are and sets the kernel to zero where a connection is off."""
        self.frozen = True
        self.masked_weight.project()

    def plain_weights(self) -> list[np.ndarray]:
        """Kernel and bias of a `keras.layers.Dense` that computes the same where units are on.

        Returns:
            A list of NumPy arrays: kernel (inputs, units), and the bias (units,) if there is one.
        """
        mask = ops.convert_to_numpy(self.mask)
        weights = [np.where(mask, ops.convert_to_numpy(self.kernel), 0)]
        weights += [ops.convert_to_numpy(self.bias)] if self.use_bias else []
        if self.granularity == "neuron":
            factor = ops.convert_to_numpy(self.scale) * mask[0]
            weights = [(weight * factor).astype(weight.dtype) for weight in weights]
        return weights

    def get_config(self) -> Config:
        return {**super().get_config(), "granularity": self.granularity, "frozen": self.frozen}

    def enable_lora(self, rank: int, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "A low-rank product has no zeros and cannot be added to switched weights. "
            f"Received: rank={rank!r}; strip the model first"
        )

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("Switched weights cannot be quantized; strip the model first")

    def save_own_variables(self, store: Any) -> None:
        if not self.built:
            return
        variables: dict[str, Any] = {}
        super().save_own_variables(variables)
        variables["kernel_mask"] = self.mask
        if self.scale is not None:
            variables["scale"] = self.scale
        arrays = {key: ops.convert_to_numpy(variable) for key, variable in variables.items()}
        pack_masked(store, arrays, [KERNEL_KEYS])

    def load_own_variables(self, store: Any) -> None:
        if not self.built:
            super().load_own_variables(store)  # which says so
            return
        arrays = unpack_masked(store, [(*KERNEL_KEYS, self.masked_weight.shape)], self.name)
        super().load_own_variables(arrays)
        self.mask.assign(arrays["kernel_mask"])
        if self.scale is not None:
            self.scale.assign(arrays["scale"])
