"""What the tests of exports share: models of everything that can be stripped or written."""

import typing

import keras
import numpy as np
import pytest
from keras import layers

from keras_selfish.layers import (
    SparseDense,
    SparseEmbedding,
    SparseGRU,
    SparseGRUCell,
    SparseLSTM,
    SparseLSTMCell,
    SparseMultiHeadAttention,
)


@pytest.fixture(scope="session")
def everything():
    """A function that makes a model of many kinds of sparse layers, put together in all ways."""

    def make(shared_by_models=True):
        """A model with two inputs, shared and nested layers, wrappers, states, operations and two outputs."""
        tokens, x = keras.Input((5,), dtype="int32", name="tokens"), keras.Input((5, 6), name="x")
        embedded = SparseEmbedding(10, 8, mask_zero=True, name="embedding")(tokens)
        both = layers.Bidirectional(SparseLSTM(4, return_sequences=True, return_state=True), name="both")
        y, h, _, backward_h, _ = both(embedded)
        y = SparseGRU(8, return_sequences=True, name="gru")(
            y, initial_state=layers.Concatenate()([h, backward_h])
        )
        y = layers.TimeDistributed(SparseDense(6), name="each")(y)
        shared = SparseDense(6, name="shared")
        inner = keras.Sequential(
            [keras.Input((5, 6)), SparseDense(6, activation="relu"), shared], name="inner"
        )
        inner_input = keras.Input((5, 6))
        outer = keras.Model(inner_input, inner(inner_input * 0.5), name="outer")
        y = layers.Add()([outer(outer(y)), shared(x) if shared_by_models else x])
        y = layers.Lambda(lambda tensor: tensor * 2, name="double")(y) + 1.0
        z = layers.RNN([SparseLSTMCell(4), SparseGRUCell(3)], return_state=True, name="stack")(y)[0]
        z = layers.Dropout(0.5)(layers.LayerNormalization()(z))
        model = keras.Model({"tokens": tokens, "x": x}, {"sequence": y, "last": z}, name="everything")
        for weight in model.weights:
            if not hasattr(weight, "masked_weight") and weight.dtype == "float32":
                weight.assign(
                    np.random.default_rng(0).normal(size=weight.shape)
                )  # biases and norms that are not what Keras starts from
        return model

    return make


class Inner(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = SparseDense(units)

    def call(self, inputs):
        return self.dense(inputs)


class Pair(typing.NamedTuple):
    first: keras.Layer
    second: keras.Layer


class Blocks(layers.Layer):
    """Keeps many to itself: by name, in lists, dicts, tuples and models, one of them twice, one made late."""

    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        self.first = SparseDense(width, activation="tanh")
        recurrent = SparseLSTM(width, return_sequences=True)
        self.parts = [layers.LayerNormalization(), SparseDense(width), (recurrent,)]
        self.named = {"attention": SparseMultiHeadAttention(2, 3), "again": self.first}
        self.pair = Pair(SparseDense(width), layers.Dense(width))
        self.within = Inner(width)
        self.sequence = keras.Sequential([SparseDense(width), layers.ReLU()])
        self.unused = SparseDense(3)

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="uniform")
        self.late = SparseDense(input_shape[-1])
        self.late.build(input_shape)

    def call(self, x):
        x = self.first(x) + self.named["again"](x * self.scale)
        for part in self.parts[:2]:
            x = part(x)
        x = self.parts[2][0](x)
        x = self.named["attention"](x, x)
        x = self.pair.second(self.pair.first(x))
        return self.late(self.sequence(self.within(x)))


@pytest.fixture
def layers_within():
    """A function that makes a model with sparse layers within a layer of a user's own."""
    return lambda: keras.Sequential(
        [keras.Input((5, 6), name="x"), Blocks(name="blocks"), SparseDense(2, name="last")]
    )
