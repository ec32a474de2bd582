"""The dense layer in half precision; what it shares with other sparse layers is tested with them."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish.layers import SparseDense

pytestmark = pytest.mark.backends("tensorflow", "jax", "torch")


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("shape", [(2000, 4), (40, 50, 4)])
def test_gradient_of_the_bias_keeps_small_terms(dtype, shape):
    # 2000 terms of 0.001 and one of -1: a sum in bfloat16 would stop growing at 0.25, in float16 at 2.
    layer = SparseDense(3, sparsity=0.5, mask_seed=1, dtype=dtype)
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    weights = np.full((*shape[:-1], 3), 0.001, "float32")
    weights[0] -= np.float32(1.0) / (weights[0].size // 3)
    # Float16's loss scale would hide what is tested; a plain optimizer on a sum gives the gradient itself.
    model.compile(keras.optimizers.SGD(1.0), loss=lambda w, p: ops.sum(w * p), auto_scale_loss=False)
    model.train_on_batch(np.zeros(shape, "float32"), weights)
    gradient = -ops.convert_to_numpy(layer.bias)
    np.testing.assert_allclose(gradient, np.full(3, 1.0), rtol=0.01)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_outputs_in_half_precision_are_those_of_keras(activation):
    arguments = {"activation": activation, "dtype": "mixed_bfloat16", "bias_initializer": "normal"}
    layer, parent = SparseDense(3, sparsity=0.0, **arguments), keras.layers.Dense(3, **arguments)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    parent.build(x.shape)
    layer.build(x.shape)
    layer.set_weights(parent.get_weights())
    assert keras.backend.standardize_dtype(layer(x).dtype) == "bfloat16"
    np.testing.assert_array_equal(
        *(ops.convert_to_numpy(ops.cast(one(x), "float32")) for one in (layer, parent))
    )
