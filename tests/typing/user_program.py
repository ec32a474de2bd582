"""What a user of the package writes, for type checkers: it is checked, and it runs."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import keras
import numpy as np

from keras_selfish import (
    SNTASGD,
    LanguageModel,
    MaskedWeight,
    MaskSpec,
    NonMonotonicAveraging,
    PolynomialDecay,
    RigL,
    SelfishRewiring,
    SparseDense,
    SparseEmbedding,
    SparseLSTM,
    language_model,
    masked_weights,
    sparsify,
    strip,
)
from keras_selfish.analysis import Report, report
from keras_selfish.conversion import sparsify as sparsify_again
from keras_selfish.export import litert
from keras_selfish.layers import SparseLayer, sparse_form_of
from keras_selfish.rewiring import GMP, MaskCallback
from keras_selfish.rewiring.rules import Matrix, needs_gradients
from keras_selfish.typing import TensorLike

BLOCK_SHAPE = (4, 1)


@needs_gradients(batches=1)
def saliency(matrix: Matrix) -> np.ndarray:
    return np.abs(matrix.weight * matrix.gradient)


def sparse_model(vocabulary_size: int, units: int, sparsity: float | None = None) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            SparseEmbedding(vocabulary_size, units, sparsity=sparsity, embedding_dropout=0.1),
            SparseLSTM(
                units,
                activation="tanh",
                sparsity=sparsity,
                block_shape=BLOCK_SHAPE,
                kernel_regularizer=keras.regularizers.L2(1e-6),
                dropout=0.1,
                name="recurrent",
            ),
            SparseDense(vocabulary_size, "softmax", distribution="erk", mask_seed=1),
        ]
    )


def train(model: keras.Model, x: TensorLike, y: TensorLike) -> list[float]:
    optimizer = SNTASGD(keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.9), global_clipnorm=0.25)
    model.compile(optimizer, loss="sparse_categorical_crossentropy")
    methods: list[MaskCallback] = [SelfishRewiring(pruning_rate=0.5, schedule="cosine", redistribution=None)]
    averaging = NonMonotonicAveraging(monitor="val_loss", patience=2)
    history = model.fit(x, y, validation_data=(x, y), epochs=2, callbacks=[*methods, averaging])
    return [float(loss) for loss in history.history["loss"]]


def methods_of(batches: list[tuple[np.ndarray, np.ndarray]]) -> list[MaskCallback]:
    """Callbacks that look at gradients or at a schedule."""
    schedule = PolynomialDecay(0.0, 0.9, begin_step=0, end_step=100)
    return [
        RigL(gradient_data=batches, drop=saliency, frequency=100, stop_fraction=0.75),
        RigL(gradient_data=lambda step: batches[step % len(batches)]),
        SelfishRewiring(0.5, schedule=lambda step, total_steps: 0.5, frequency="epoch"),
        GMP(schedule),
    ]


def sizes(model: keras.Model) -> dict[str, int]:
    weights: list[MaskedWeight] = masked_weights(model)
    found: Report = report(model)
    return {weight.name: weight.active for weight in weights} | {"all": found.parameters.sparse}


class Gated(keras.layers.Layer):
    """A layer of the program's own."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

    def call(self, inputs: Any) -> Any:
        return keras.ops.sigmoid(keras.ops.matmul(inputs, self.kernel))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@sparse_form_of(Gated)
class SparseGated(SparseLayer, Gated):
    masked_names = ("kernel",)

    def call(self, inputs: Any) -> Any:
        with self.effective_weights():
            return super().call(inputs)


def own_layer(units: int) -> list[int]:
    spec = MaskSpec(0.75, block_shape=BLOCK_SHAPE)
    layer: SparseGated = SparseGated(units, sparsity=spec.sparsity, mask_seed=1)
    (copy,) = sparsify([Gated(units)], spec)
    for one in (layer, copy):
        one(np.ones((2, 8), "float32"))
    return [weight.active for one in (layer, copy) for weight in masked_weights(one)]


def sparse_copy(units: int) -> keras.Model:
    dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(units), keras.layers.Dense(4)])
    again, what_became = sparsify_again(dense, 0.5, layers=lambda layer: bool(layer.name), return_report=True)
    assert again.built
    assert not what_became.left_dense()
    return sparsify(dense, sparsity=0.75, block_shape=(4, 1), initial="random")


def export(model: keras.Model, folder: pathlib.Path) -> int:
    path: pathlib.Path = litert(strip(model), folder / "model.tflite", quantize="int8")
    return path.stat().st_size


def language_models() -> list[LanguageModel]:
    return [
        LanguageModel(100, units=[16, 8], cell="on_lstm", cell_options={"chunk_size": 4}, dropout=0.1),
        language_model("quick", vocabulary_size=100, units=16, sparsity=0.5, n_of_m=None),
    ]


def main() -> None:
    tokens = np.random.default_rng(1).integers(0, 20, (8, 7))
    x, y = tokens[:, :-1], tokens[:, -1]
    model = sparse_model(20, units=16, sparsity=0.75)
    losses = train(model, x, y)
    assert len(losses) == 2
    assert len(methods_of([(x, y)])) == 4
    assert sizes(model)["all"] > 0
    assert own_layer(16) == [32, 32]
    with tempfile.TemporaryDirectory() as folder:
        assert export(sparse_copy(16), pathlib.Path(folder)) > 0
    assert [one.architecture.vocabulary_size for one in language_models()] == [100, 100]
    print("done")


if __name__ == "__main__":
    main()
