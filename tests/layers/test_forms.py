"""Layers of a user's own that `sparsify` and `strip` know, and what the layers of the package derive from."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import MaskSpec, SelfishRewiring, masked_weights, sparsify, strip
from keras_selfish.export import saved_model
from keras_selfish.layers import SparseDense, SparseLayer, SparseLSTM, sparse_form_of
from keras_selfish.layers.forms import PLAIN_FORMS, SPARSE_FORMS

# A plain layer and its sparse form, as a user writes them.


@keras.saving.register_keras_serializable(package="test_forms")
class Gated(keras.layers.Layer):
    """Values times the logistic function of gates, one kernel for both."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 2 * self.units), name="kernel")
        self.bias = self.add_weight(shape=(2 * self.units,), initializer="zeros", name="bias")

    def call(self, inputs):
        values, gates = ops.split(ops.matmul(inputs, self.kernel) + self.bias, 2, axis=-1)
        return values * ops.sigmoid(gates)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="test_forms")
@sparse_form_of(Gated)
class SparseGated(SparseLayer, Gated):
    masked_names = ("kernel",)
    gates = ("value", "gate")

    def call(self, inputs):
        with self.effective_weights():
            return super().call(inputs)


class Bilinear(keras.layers.Layer):
    """Two kernels, and an argument that its sparse form alone has."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        for name in ("left", "right"):
            setattr(self, name, self.add_weight(shape=(input_shape[-1], self.units), name=name))

    def call(self, inputs):
        return ops.matmul(inputs, self.left) * ops.matmul(inputs, self.right)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@sparse_form_of(Bilinear, without=("note",))
class SparseBilinear(SparseLayer, Bilinear):
    masked_names = ("left", "right")

    def __init__(self, units, note="", **kwargs):
        super().__init__(units, **kwargs)
        self.note = note

    def build(self, input_shape):
        self.plan_masks(dict.fromkeys(self.masked_names, (input_shape[-1], self.units)))
        super().build(input_shape)

    def get_config(self):
        return {**super().get_config(), "note": self.note}


X = np.random.default_rng(1).normal(size=(24, 5, 8)).astype("float32")
Y = X[:, -1, :3]


def model_of_gates():
    return keras.Sequential(
        [
            keras.Input((5, 8)),
            keras.layers.TimeDistributed(Gated(8, name="inner")),
            Bilinear(8),
            keras.layers.Flatten(),
            Gated(3, name="outer"),
        ]
    )


def numpy_of(variable):
    return ops.convert_to_numpy(variable)


@pytest.mark.backends("tensorflow", "jax")
def test_a_layer_of_ones_own_from_sparsify_to_strip(tmp_path):
    plain = model_of_gates()
    sparse = sparsify(plain, 0.75)
    names = [type(layer).__name__ for layer in (sparse.layers[0].layer, *sparse.layers[1:])]
    assert names == ["SparseGated", "SparseBilinear", "Flatten", "SparseGated"]
    weights = masked_weights(sparse)
    assert [weight.gates for weight in weights] == [("value", "gate"), (), (), ("value", "gate")]
    assert [weight.active for weight in weights] == [32, 16, 16, 60]
    kernel = numpy_of(plain.layers[0].layer.kernel)
    largest = np.sort(np.abs(kernel), axis=None)[-32:]
    np.testing.assert_array_equal(np.sort(np.abs(numpy_of(weights[0].weight)), axis=None)[-32:], largest)

    before = [numpy_of(weight.mask) for weight in weights]
    sparse.compile("adam", "mse")
    sparse.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[SelfishRewiring(pruning_rate=0.5)])
    for weight, mask in zip(weights, before, strict=True):
        assert weight.active == mask.sum()
        assert (numpy_of(weight.weight)[~numpy_of(weight.mask)] == 0).all()
        assert (numpy_of(weight.mask) != mask).any()

    sparse.save(tmp_path / "model.keras")
    with keras.saving.custom_object_scope({"SparseBilinear": SparseBilinear}):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = sparse.predict(X, verbose=0)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
    for mine, its in zip(sparse.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(numpy_of(mine), numpy_of(its))

    stripped = strip(loaded)
    names = [type(layer).__name__ for layer in (stripped.layers[0].layer, *stripped.layers[1:])]
    assert names == ["Gated", "Bilinear", "Flatten", "Gated"]
    assert [weight.shape for weight in stripped.weights] == [weight.shape for weight in plain.weights]
    np.testing.assert_array_equal(stripped.predict(X, verbose=0), expected)
    again = sparsify(stripped, initial="nonzero")
    for weight, other in zip(masked_weights(again), weights, strict=True):
        np.testing.assert_array_equal(numpy_of(weight.mask), numpy_of(other.weight) != 0)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        saved_model(loaded, tmp_path / "served")
        served = tf.saved_model.load(str(tmp_path / "served"))
        (outputs,) = served.signatures["serving_default"](tf.constant(X)).values()
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_an_own_layer_is_masked():
    import tensorflow as tf

    layer = SparseGated(4, sparsity=0.5, mask_seed=1)
    layer.build((None, 8))
    (weight,) = masked_weights(layer)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(X[:, 0]))
    gradient, mask = tape.gradient(loss, weight.weight.value).numpy(), numpy_of(weight.mask)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


def test_a_layer_may_add_its_weights_in_its_constructor(tmp_path):
    class Early(keras.layers.Layer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units
            self.kernel = self.add_weight(shape=(units, units), name="kernel")

        def call(self, inputs):
            return ops.matmul(inputs, self.kernel)

        def get_config(self):
            return {**super().get_config(), "units": self.units}

    @sparse_form_of(Early)
    class SparseEarly(SparseLayer, Early):
        masked_names = ("kernel",)

    (mask,) = MaskSpec(0.75).random_masks([(8, 8)], seed=3)
    np.testing.assert_array_equal(SparseEarly(8, sparsity=0.75, mask_seed=3).kernel_mask, mask)
    plain = keras.Sequential([keras.Input((8,)), Early(8)])
    sparse = sparsify(plain, 0.75)
    assert [weight.active for weight in masked_weights(sparse)] == [16]
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"SparseEarly": SparseEarly})
    np.testing.assert_array_equal(loaded.predict(X[:, 0], verbose=0), sparse.predict(X[:, 0], verbose=0))
    np.testing.assert_array_equal(strip(loaded).layers[0].kernel, sparse.layers[0].kernel)


def test_own_layers_draw_the_masks_that_their_mask_arguments_say():
    layer = SparseBilinear(8, "two", sparsity=0.75, distribution="erk", block_shape=(4, 1), mask_seed=3)
    layer.build((None, 8))
    shared = MaskSpec(0.75, "erk", (4, 1)).random_masks([(8, 8), (8, 8)], seed=3)
    for weight, mask in zip(masked_weights(layer), shared, strict=True):
        np.testing.assert_array_equal(numpy_of(weight.mask), mask)
    copy = SparseBilinear.from_config(layer.get_config())
    assert (copy.mask_spec, copy.note) == (layer.mask_spec, "two")
    with pytest.raises(
        ValueError, match=r"`block_shape` must divide the matrix: own/left has shape \(6, 8\)"
    ):
        SparseBilinear(8, block_shape=(4, 1), name="own").build((None, 6))


def test_a_misfit_of_ones_own_stays_dense():
    _, report = sparsify(model_of_gates(), 0.5, block_shape=(1, 4), return_report=True)
    assert report.left_dense() == ["outer: blocks (1, 4) do not divide kernel (40 × 6)"]


def test_the_latest_registration_counts():
    @sparse_form_of(Gated)
    class Another(SparseLayer, Gated):
        masked_names = ("kernel",)

    try:
        model = keras.Sequential([keras.Input((8,)), Gated(4)])
        sparse = sparsify(model, 0.5)
        assert type(sparse.layers[0]) is Another
        assert type(strip(sparse).layers[0]) is Gated
    finally:
        SPARSE_FORMS[Gated] = SparseGated
        del PLAIN_FORMS[Another]


def test_a_class_that_is_not_registered_is_not_stripped():
    class Derived(SparseGated):
        pass

    model = keras.Sequential([keras.Input((8,)), Derived(4)])
    with pytest.raises(ValueError, match=r"registered by `sparse_form_of`. Received: .* of class Derived"):
        strip(model)
    own = type("Own", (Gated,), {})
    left, sparse = sparsify([own(4), Gated(4)], 0.5)
    assert (type(left), type(sparse)) == (own, SparseGated)


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match=r"`plain_class` must be the class of .* Received: .*Dense'"):
        sparse_form_of("keras.layers.Dense")
    with pytest.raises(ValueError, match=r"must derive from .*SparseLayer.*Received: Plain"):

        @sparse_form_of(Gated)
        class Plain(Gated):
            pass

    assert SPARSE_FORMS[Gated] is SparseGated


def test_a_form_of_a_layer_of_keras_is_found_in_wrappers():
    @sparse_form_of(keras.layers.UnitNormalization)
    class SparseScaling(SparseLayer, keras.layers.UnitNormalization):
        """A form of a layer of Keras's that the package has none of; it masks nothing."""

    try:
        model = keras.Sequential(
            [keras.Input((5, 8)), keras.layers.TimeDistributed(keras.layers.UnitNormalization())]
        )
        sparse = sparsify(model, 0.5)
        assert type(sparse.layers[0].layer) is SparseScaling
        assert type(strip(sparse).layers[0].layer) is keras.layers.UnitNormalization
    finally:
        del SPARSE_FORMS[keras.layers.UnitNormalization]


class Accumulator(keras.layers.Layer):
    """A recurrent cell."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, input_shape):
        for name, size in (("kernel", input_shape[-1]), ("recurrent_kernel", self.units)):
            setattr(self, name, self.add_weight(shape=(size, self.units), name=name))

    def call(self, inputs, states):
        state = ops.tanh(ops.matmul(inputs, self.kernel) + ops.matmul(states[0], self.recurrent_kernel))
        return state, [state]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@sparse_form_of(Accumulator)
class SparseAccumulator(SparseLayer, Accumulator):
    masked_names = ("kernel", "recurrent_kernel")

    def build(self, input_shape):
        self.plan_masks({"kernel": (input_shape[-1], self.units), "recurrent_kernel": (self.units,) * 2})
        super().build(input_shape)


@pytest.mark.backends("tensorflow", "jax")
def test_a_cell_of_ones_own_in_a_layer_of_keras():
    plain = keras.Sequential([keras.Input((5, 8)), keras.layers.RNN([Accumulator(8), Accumulator(4)])])
    sparse = sparsify(plain, MaskSpec(0.5, mask_seed=1))
    assert [weight.active for weight in masked_weights(sparse)] == [32, 32, 16, 8]
    sparse.compile("sgd", "mse")
    sparse.fit(X, X[:, -1, :4], batch_size=8, epochs=1, verbose=0, callbacks=[SelfishRewiring()])
    for weight in masked_weights(sparse):
        assert (numpy_of(weight.weight)[~numpy_of(weight.mask)] == 0).all()
        assert (numpy_of(weight.weight) != 0).any()
    stripped = strip(sparse)
    assert [type(cell) for cell in stripped.layers[0].cell.cells] == [Accumulator, Accumulator]
    np.testing.assert_array_equal(stripped.predict(X, verbose=0), sparse.predict(X, verbose=0))


# What the layers of the package derive from.


CELLS = (keras.layers.GRUCell, keras.layers.LSTMCell, keras.layers.SimpleRNNCell)


def derived_from(layer_class):
    for each in layer_class.__subclasses__():
        yield each
        yield from derived_from(each)


def classes():
    """All layers and models of the package, those that are not exported, too."""
    found = {*derived_from(keras.Layer), *derived_from(SparseLayer)}
    return [each for each in found if is_ours(each)]


def is_ours(layer_class):
    return layer_class.__module__.startswith("keras_selfish.")


def ours(layer_class):
    return [base.__name__ for base in layer_class.__mro__[1:] if is_ours(base)]


def test_no_layer_has_more_than_four_ancestors_of_ours():
    assert {each.__name__: ours(each) for each in classes() if len(ours(each)) > 4} == {}
    assert len(classes()) > 40
    assert ours(SparseLSTM) == ["SparseRecurrent", "RunsSparseCell", "SparseLayer"]


def test_a_sparse_layer_is_the_layer_that_it_is_the_form_of():
    foreign = {
        sparse_class.__name__
        for plain_class, sparse_class in SPARSE_FORMS.items()
        if not issubclass(sparse_class, plain_class)
    }
    assert foreign == set()
    assert isinstance(SparseLSTM(4), keras.layers.LSTM)
    assert isinstance(SparseDense(4), keras.layers.Dense)


def test_only_sparse_forms_of_a_cell_derive_from_it():
    """Others would take no more from it than its arguments."""
    of_cells = [each for each in classes() if issubclass(each, CELLS)]
    assert {each.__name__ for each in of_cells if SPARSE_FORMS.get(each.plain_class) is not each} == set()
    assert len(of_cells) == len(CELLS)
