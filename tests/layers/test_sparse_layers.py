"""Each sparse layer against its Keras parent: same numbers at sparsity 0, same masked numbers above."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_selfish
from keras_selfish import strip
from keras_selfish.layers import (
    SparseDense,
    SparseEmbedding,
    SparseGRU,
    SparseGRUCell,
    SparseLSTM,
    SparseLSTMCell,
    SparseReversibleEmbedding,
    SparseSimpleRNN,
    SparseSimpleRNNCell,
)
from keras_selfish.masks import masked_weights

RECURRENT = {SparseLSTM: 2, SparseGRU: 1, SparseSimpleRNN: 1}  # number of states
CELLS = {SparseLSTMCell: 2, SparseGRUCell: 1, SparseSimpleRNNCell: 1}
BATCH, TIME, FEATURES, UNITS = 3, 4, 4, 6


def sequences(seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(BATCH, TIME, FEATURES)).astype(dtype)


def states(count, seed=1):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(BATCH, UNITS)).astype("float32") for _ in range(count)]


def layer_and_parent(sparse_class, *args, sparsity=0.0, inputs=None, **options):
    """A sparse layer, and its Keras parent with the same weights, whose zeros are baked in."""
    if sparse_class in RECURRENT or sparse_class in CELLS:
        options["recurrent_initializer"] = "zeros"  # an orthogonal one takes longer than the rest
    layer = sparse_class(*args, sparsity=sparsity, mask_seed=7, **options)
    parent = layer.plain_class(*args, **options)
    # Recurrent activations of inputs of all sizes: biases and kernels that are not what Keras starts from.
    shape = (BATCH, TIME, FEATURES) if inputs is None else inputs
    layer.build(shape)
    parent.build(shape)
    generator = np.random.default_rng(2)
    for weight in parent.weights:
        weight.assign(generator.normal(scale=0.5, size=weight.shape))
    copy_weights(parent, layer)
    return layer, parent


def copy_weights(parent, layer):
    """Copies dense weights to a sparse layer, masks them there and then also in the dense one."""
    masks = {id(masked_weight.mask) for masked_weight in masked_weights(layer)}
    weights = [weight for weight in layer.weights if id(weight) not in masks]
    for weight, dense in zip(weights, parent.weights, strict=True):
        weight.assign(dense)
        if hasattr(weight, "masked_weight"):
            weight.masked_weight.project()
        dense.assign(weight)


def outputs_and_gradients(layer, inputs, **call):
    """Outputs, and gradients of a loss in which every output counts differently, by weights and inputs."""
    inputs = tf.convert_to_tensor(inputs)
    with tf.GradientTape() as tape:
        if inputs.dtype.is_floating:
            tape.watch(inputs)
        outputs = tf.nest.flatten(layer(inputs, **call))
        generator = np.random.default_rng(3)
        loss = sum(
            tf.reduce_sum(tf.cast(output, "float32") * generator.normal(size=output.shape))
            for output in outputs
        )
    variables = [weight.value for weight in layer.trainable_weights]
    sources = variables + ([inputs] if inputs.dtype.is_floating else [])
    gradients = [tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(loss, sources)]
    return [output.numpy() for output in outputs], gradients


def assert_equal(results, expected, exact=True):
    for result, value in zip(results, expected, strict=True):
        if exact:
            np.testing.assert_array_equal(result, value)
        else:
            np.testing.assert_allclose(result, value, rtol=2e-5, atol=2e-6)


def is_exact(sparse_class):
    # The loops over whole sequences, which `test_recurrent.py` compares, add in another order than Keras's.
    return sparse_class not in RECURRENT


def test_use_cudnn_is_checked_and_kept():
    with pytest.raises(ValueError, match=r"`use_cudnn` must be .* Received: use_cudnn='maybe'"):
        SparseLSTM(4, use_cudnn="maybe")
    layer = SparseGRU.from_config(SparseGRU(4, use_cudnn=False).get_config())
    assert layer.use_cudnn is False
    assert SparseLSTM(4).supports_jit is False
    assert SparseLSTM(4, use_cudnn=False).supports_jit is True
    if not tf.config.list_physical_devices("GPU"):
        for sparse_class in (SparseLSTM, SparseGRU):
            with pytest.raises(ValueError, match="use_cudnn=True was specified, but cuDNN is not supported"):
                sparse_class(4, use_cudnn=True)(sequences())


@pytest.mark.parametrize("sparse_class", RECURRENT)
def test_all_arguments_of_keras_are_kept(sparse_class):
    arguments = {
        "units": 6,
        "activation": "relu",
        "use_bias": False,
        "kernel_initializer": "he_normal",
        "recurrent_initializer": "glorot_uniform",
        "bias_initializer": "ones",
        "kernel_regularizer": "l1",
        "recurrent_regularizer": "l2",
        "bias_regularizer": "l1",
        "kernel_constraint": "max_norm",
        "recurrent_constraint": "unit_norm",
        "bias_constraint": "non_neg",
        "dropout": 0.1,
        "recurrent_dropout": 0.2,
        "seed": 3,
        "return_sequences": True,
        "return_state": True,
        "go_backwards": True,
        "stateful": True,
        "unroll": True,
        "zero_output_for_mask": True,
    }
    if sparse_class is not SparseSimpleRNN:
        arguments |= {"recurrent_activation": "hard_sigmoid", "use_cudnn": False}
    if sparse_class is SparseGRU:
        arguments["reset_after"] = False
    if sparse_class is SparseLSTM:
        arguments["unit_forget_bias"] = False
    layer, parent = (one(**arguments, name="layer") for one in (sparse_class, sparse_class.plain_class))
    expected = parent.get_config() | {"seed": 3}  # which Keras 3.15 forgets in its SimpleRNN
    assert {name: layer.get_config()[name] for name in expected} == expected
    expected = parent.cell.get_config() | {"name": layer.cell.name}
    assert {name: layer.cell.get_config()[name] for name in expected} == expected


@pytest.mark.parametrize("sparsity", [0.0, 0.5], ids=["dense", "sparse"])
@pytest.mark.parametrize("sparse_class", CELLS)
def test_cells(sparse_class, sparsity):
    cell, parent = layer_and_parent(sparse_class, UNITS, sparsity=sparsity, inputs=(BATCH, FEATURES))
    inputs, initial = sequences()[:, 0], states(CELLS[sparse_class])
    outputs, gradients = outputs_and_gradients(cell, inputs, states=initial)
    expected_outputs, expected_gradients = outputs_and_gradients(parent, inputs, states=initial)
    for index, masked_weight in enumerate(masked_weights(cell)):
        expected_gradients[index] *= np.asarray(masked_weight.mask)
    assert_equal(outputs, expected_outputs)
    assert_equal(gradients, expected_gradients)


@pytest.mark.parametrize("sparse_class", CELLS)
def test_cells_in_a_keras_rnn(sparse_class):
    """The kernels are masked in a loop that is not ours, too."""
    cell, parent = layer_and_parent(sparse_class, UNITS, sparsity=0.5, inputs=(BATCH, FEATURES))

    def results(layer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(sequences()) ** 2)
        return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])

    # As a graph the loop is another one than that of eager execution.
    run = tf.function(results, autograph=False) if sparse_class is SparseSimpleRNNCell else results
    gradients = run(keras.layers.RNN(cell))
    expected = run(keras.layers.RNN(parent))
    for gradient, dense, masked_weight in zip(gradients, expected, masked_weights(cell), strict=False):
        mask = np.asarray(masked_weight.mask)
        assert np.abs(dense.numpy()[~mask]).max() > 0
        np.testing.assert_allclose(gradient, dense * mask, rtol=1e-5, atol=1e-6)
        assert (gradient.numpy()[~mask] == 0).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.5], ids=["dense", "sparse"])
@pytest.mark.parametrize("options", [{}, {"use_bias": False, "activation": "relu"}], ids=str)
@pytest.mark.parametrize("rank", [2, 3])
def test_dense(rank, options, sparsity):
    layer, parent = layer_and_parent(SparseDense, UNITS, sparsity=sparsity, **options)
    inputs = sequences() if rank == 3 else sequences()[0]
    outputs, gradients = outputs_and_gradients(layer, inputs)
    expected_outputs, expected_gradients = outputs_and_gradients(parent, inputs)
    for masked_weight in masked_weights(layer):
        expected_gradients[0] *= np.asarray(masked_weight.mask)
    assert_equal(outputs, expected_outputs)
    assert_equal(gradients, expected_gradients)


@pytest.mark.parametrize("sparsity", [0.0, 0.5], ids=["dense", "sparse"])
@pytest.mark.parametrize("mask_zero", [False, True])
@pytest.mark.parametrize("sparse_class", [SparseEmbedding, SparseReversibleEmbedding])
def test_embeddings(sparse_class, mask_zero, sparsity):
    layer, parent = layer_and_parent(sparse_class, 10, UNITS, sparsity=sparsity, mask_zero=mask_zero)
    tokens = np.array([[1, 9, 1], [3, 0, 0]])  # repeated ones, whose gradients add up
    outputs, gradients = outputs_and_gradients(layer, tokens)
    expected_outputs, expected_gradients = outputs_and_gradients(parent, tokens)
    for masked_weight in masked_weights(layer):
        expected_gradients[0] *= np.asarray(masked_weight.mask)
    assert_equal(outputs, expected_outputs)
    assert_equal(gradients, expected_gradients)
    padding = getattr(layer(tokens), "_keras_mask", None)
    if mask_zero:
        np.testing.assert_array_equal(padding, tokens != 0)
    else:
        assert padding is None


def test_the_gradient_of_an_embedding_is_one_of_rows():
    """A dense one would cost a pass over the whole vocabulary at every step."""
    layer = SparseEmbedding(1000, UNITS)
    layer.build()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(np.array([[1, 5]])))
    assert isinstance(tape.gradient(loss, layer.embeddings.value), tf.IndexedSlices)


@pytest.mark.parametrize("options", [{}, {"logit_soft_cap": 2.0}, {"reverse_dtype": "float64"}], ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.5], ids=["dense", "sparse"])
def test_tied_embeddings(sparsity, options):
    """Embedding and decoder: the gradients of both uses of the matrix add up."""
    layer, parent = layer_and_parent(SparseReversibleEmbedding, 10, UNITS, sparsity=sparsity, **options)
    tokens = np.array([[1, 9, 1], [3, 0, 0]])

    def results(layer):
        with tf.GradientTape() as tape:
            logits = layer(tf.tanh(layer(tokens)), reverse=True)
            loss = tf.reduce_sum(tf.cast(logits, "float32") * np.arange(60.0).reshape(logits.shape))
        gradient = tape.gradient(loss, layer.trainable_weights[0].value)
        return logits.numpy(), tf.convert_to_tensor(gradient).numpy()

    logits, gradient = results(layer)
    expected_logits, expected_gradient = results(parent)
    mask = np.asarray(masked_weights(layer)[0].mask) if sparsity else 1
    np.testing.assert_array_equal(logits, expected_logits)
    np.testing.assert_array_equal(gradient, expected_gradient * mask)
    assert (gradient != 0).any(1).all()  # every row, those of tokens that did not occur as well


def test_initial_weights_of_an_embedding():
    weights = np.random.default_rng(1).normal(size=(10, 4)).astype("float32")
    for given in (weights, [weights]):
        layer = SparseEmbedding(10, 4, sparsity=0.5, mask_seed=1, weights=given)
        mask = np.asarray(masked_weights(layer)[0].mask)
        np.testing.assert_array_equal(layer.embeddings, weights * mask)
    np.testing.assert_array_equal(SparseEmbedding(10, 4, sparsity=0, weights=weights).embeddings, weights)


def test_an_untied_reversible_embedding_masks_both_matrices(tmp_path):
    layer = SparseReversibleEmbedding(10, 4, tie_weights=False, sparsity=0.5, mask_seed=1)
    tokens = np.array([[1, 2, 3]])
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layer])
    embedded = layer(tokens)
    reverse = ops.convert_to_numpy(layer.reverse_embeddings)
    assert [(w.shape, w.active) for w in masked_weights(layer)] == [((10, 4), 20), ((4, 10), 20)]
    assert np.count_nonzero(reverse) == 20
    logits = ops.convert_to_numpy(layer(embedded, reverse=True))
    np.testing.assert_allclose(logits, ops.convert_to_numpy(embedded) @ reverse, rtol=1e-5, atol=1e-7)

    model.save(tmp_path / "untied.keras")
    loaded = keras.models.load_model(tmp_path / "untied.keras").layers[0]
    plain = strip(model).layers[0]
    assert type(plain) is keras.layers.ReversibleEmbedding
    for other in (loaded, plain):
        np.testing.assert_array_equal(other.reverse_embeddings, reverse)
        np.testing.assert_array_equal(other(embedded, reverse=True), logits)


@pytest.mark.parametrize("sparse_class", RECURRENT)
def test_bidirectional(sparse_class):
    layer = keras.layers.Bidirectional(sparse_class(UNITS, sparsity=0.5, mask_seed=3, return_sequences=True))
    dense = keras.layers.Bidirectional(sparse_class.plain_class(UNITS, return_sequences=True))
    layer.build((BATCH, TIME, FEATURES))
    dense.build((BATCH, TIME, FEATURES))
    copy_weights(dense, layer)
    masks = [np.asarray(masked_weight.mask) for masked_weight in masked_weights(layer)]
    assert len(masks) == 4
    assert (masks[0] != masks[2]).any()  # the two directions are connected differently
    assert (masks[1] != masks[3]).any()
    outputs, gradients = outputs_and_gradients(layer, sequences())
    expected_outputs, expected_gradients = outputs_and_gradients(dense, sequences())
    masks = iter(masks)
    for index, gradient in enumerate(expected_gradients[:-1]):
        if gradient.ndim == 2 and index % 3 < 2:
            expected_gradients[index] = gradient * next(masks)
    assert_equal(outputs, expected_outputs, is_exact(sparse_class))
    assert_equal(gradients, expected_gradients, is_exact(sparse_class))


def test_bidirectional_round_trip_keeps_both_directions():
    layer = keras.layers.Bidirectional(
        SparseLSTM(4, mask_seed=3), backward_layer=SparseLSTM(4, go_backwards=True)
    )
    copy = keras.layers.Bidirectional.from_config(layer.get_config())
    assert copy.forward_layer.get_config() == layer.forward_layer.get_config()
    assert copy.backward_layer.get_config() == layer.backward_layer.get_config()
    assert (copy.forward_layer.mask_seed, copy.backward_layer.mask_seed) == (3, None)


@pytest.mark.parametrize("sparsity", [0.0, 0.5], ids=["dense", "sparse"])
def test_time_distributed(sparsity):
    layer, parent = layer_and_parent(SparseDense, UNITS, sparsity=sparsity, inputs=(BATCH, FEATURES))
    outputs, gradients = outputs_and_gradients(keras.layers.TimeDistributed(layer), sequences())
    expected_outputs, expected_gradients = outputs_and_gradients(parent, sequences())
    for masked_weight in masked_weights(layer):
        expected_gradients[0] *= np.asarray(masked_weight.mask)
    assert_equal(outputs, expected_outputs, exact=False)
    assert_equal(gradients, expected_gradients, exact=False)


def masks_in(body):
    """How often a function takes, reads or combines booleans of the shape of a kernel."""
    arguments = [argument.type for argument in body.signature.input_arg]
    reads = [node for node in body.node_def if node.attr["dtype"].type == tf.bool.as_datatype_enum]
    return arguments.count(tf.bool.as_datatype_enum) + len(reads)


@pytest.mark.parametrize(
    ("sparse_class", "options"),
    [
        (SparseLSTM, {}),
        (SparseLSTM, {"activation": "relu"}),  # Keras's loop, not our own
        (SparseGRU, {}),
        (SparseSimpleRNN, {}),
    ],
    ids=["LSTM", "LSTM in Keras's loop", "GRU", "SimpleRNN"],
)
def test_the_mask_is_never_applied_inside_the_loop(sparse_class, options, loop_bodies):
    @tf.function
    def gradients(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(inputs))
        return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])

    spec = tf.TensorSpec((BATCH, None, FEATURES))
    layer = sparse_class(UNITS, sparsity=0.5, **options)
    layer.build(spec.shape)
    bodies = loop_bodies(gradients, spec)
    assert len(bodies) == 2  # forward and backward
    assert [masks_in(body) for body in bodies] == [0, 0]

    # The count sees masks where there are any: a bare cell has them in its loop.
    layer = keras.layers.RNN(sparse_class.cell_class(UNITS, sparsity=0.5))
    layer.build(spec.shape)
    assert max(masks_in(body) for body in loop_bodies(tf.function(lambda inputs: layer(inputs)), spec)) > 0


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("sparse_class", [*RECURRENT, SparseDense])
def test_half_precision(sparse_class, policy):
    layer, parent = layer_and_parent(sparse_class, UNITS, sparsity=0.5, dtype=policy)
    outputs, gradients = outputs_and_gradients(layer, sequences())
    expected_outputs, expected_gradients = outputs_and_gradients(parent, sequences())
    assert outputs[0].dtype == expected_outputs[0].dtype == keras.DTypePolicy(policy).compute_dtype
    for masked_weight, gradient, dense in zip(
        masked_weights(layer), gradients, expected_gradients, strict=False
    ):
        assert gradient.dtype == masked_weight.weight.dtype
        mask = np.asarray(masked_weight.mask)
        assert (gradient[~mask] == 0).all()
        np.testing.assert_allclose(
            gradient[mask].astype(float), dense[mask].astype(float), rtol=0.2, atol=0.2
        )
    tolerance = 0 if is_exact(sparse_class) else 0.05  # our loops keep states in float32
    np.testing.assert_allclose(outputs[0].astype(float), expected_outputs[0].astype(float), atol=tolerance)


@pytest.mark.parametrize("sparse_class", [SparseEmbedding, SparseReversibleEmbedding])
def test_half_precision_of_embeddings(sparse_class):
    layer, parent = layer_and_parent(sparse_class, 10, UNITS, sparsity=0.5, dtype="mixed_bfloat16")
    outputs, gradients = outputs_and_gradients(layer, np.array([[1, 2, 2]]))
    expected_outputs, expected_gradients = outputs_and_gradients(parent, np.array([[1, 2, 2]]))
    assert outputs[0].dtype == "bfloat16"
    assert_equal(outputs, expected_outputs)
    mask = np.asarray(masked_weights(layer)[0].mask)
    np.testing.assert_array_equal(gradients[0], expected_gradients[0] * mask)


@pytest.mark.parametrize("sparse_class", [*RECURRENT, *CELLS, SparseDense])
def test_config_round_trip(sparse_class):
    layer = sparse_class(
        8,
        sparsity=0.75,
        distribution="erk",
        block_shape=(2, 1),
        mask_seed=4,
        kernel_regularizer="l2",
        activation="relu",
        dtype="mixed_bfloat16",
        name="layer",
    )
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copy) is sparse_class
    assert copy.get_config() == layer.get_config()
    assert (copy.sparsity, copy.distribution, copy.block_shape, copy.mask_seed) == (0.75, "erk", (2, 1), 4)
    shape = (2, 8) if sparse_class in CELLS else (2, 3, 8)
    layer.build(shape)
    copy.build(shape)
    for mine, other in zip(masked_weights(layer), masked_weights(copy), strict=True):
        np.testing.assert_array_equal(mine.mask, other.mask)
        assert np.asarray(mine.mask).reshape(-1, 2, mine.shape[1]).any(1).mean() == mine.active / np.prod(
            mine.shape
        )


@pytest.mark.parametrize("sparse_class", [SparseEmbedding, SparseReversibleEmbedding])
def test_config_round_trip_of_embeddings(sparse_class):
    layer = sparse_class(8, 4, sparsity=0.5, block_shape=(1, 2), mask_seed=4, mask_zero=True, name="layer")
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copy) is sparse_class
    assert copy.get_config() == layer.get_config()
    assert copy.block_shape == (1, 2)


# Kernel (4, 16) and recurrent kernel (16, 16) have 64 and 256 weights, of which a quarter is 80. Erdős–Rényi
# shares them as 4 + 16 to 16 + 16, which is 30.8 to 49.2.
@pytest.mark.parametrize(
    ("distribution", "counts"), [("uniform", [16, 64]), ("erdos_renyi", [31, 49]), ("erk", [31, 49])]
)
def test_how_the_kernels_of_a_layer_share_its_connections(distribution, counts):
    layer = SparseSimpleRNN(16, sparsity=0.75, distribution=distribution)
    layer.build((None, None, 4))
    assert [weight.active for weight in masked_weights(layer)] == counts


@pytest.mark.parametrize("sparse_class", [SparseDense, SparseLSTM, SparseLSTMCell])
def test_masks_follow_their_seed(sparse_class):
    def masks(seed):
        layer = sparse_class(8, mask_seed=seed)
        layer.build((2, 3, 8) if sparse_class is not SparseLSTMCell else (2, 8))
        return np.concatenate([np.asarray(weight.mask).ravel() for weight in masked_weights(layer)])

    np.testing.assert_array_equal(masks(1), masks(1))
    assert (masks(1) != masks(2)).any()
    assert (masks(None) != masks(None)).any()
    keras.utils.set_random_seed(5)
    drawn = masks(None)
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(masks(None), drawn)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseLSTM(4, sparsity=1.2), r"`sparsity` .* Received: sparsity=1\.2"),
        (lambda: SparseGRU(4, sparsity=float("nan")), r"`sparsity` .* Received: sparsity=nan"),
        (lambda: SparseDense(4, distribution="rigl"), r"`distribution` .* Received: distribution='rigl'"),
        (lambda: SparseEmbedding(4, 4, block_shape=4), r"`block_shape` .* Received: block_shape=4"),
        (lambda: SparseLSTM(4, mask_seed=-1), r"`mask_seed` .* Received: mask_seed=-1$"),
        (lambda: SparseDense(4, mask_seed=0.5), r"`mask_seed` .* Received: mask_seed=0\.5"),
        (
            lambda: SparseDense(6, block_shape=(4, 1), name="decoder").build((2, 6)),
            r"`block_shape` .* decoder/kernel has shape \(6, 6\)\. Received: block_shape=\(4, 1\)",
        ),
        (
            lambda: SparseLSTM(6, block_shape=(4, 1)).build((2, 3, 8)),  # the recurrent kernel's rows
            r"lstm_cell/recurrent_kernel has shape \(6, 24\)",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_within_another_dtype_the_outputs_are_those_of_keras():
    for name, arguments in (
        ("Dense", (3,)),
        ("EinsumDense", ("ab,bc->ac", 3)),
        ("Conv1D", (3, 2)),
        ("LSTM", (3,)),
        ("GRU", (3,)),
        ("SimpleRNN", (3,)),
    ):
        x = np.ones((2, 3, 4) if "Dense" in name else (2, 3, 5, 4), "float32")
        plain = getattr(keras.layers, name)(*arguments)
        sparse = getattr(keras_selfish.layers, f"Sparse{name}")(*arguments)
        dtypes = [
            keras.layers.TimeDistributed(layer, dtype="mixed_float16")(x).dtype for layer in (plain, sparse)
        ]
        assert dtypes[0] == dtypes[1], name


@pytest.mark.parametrize("sparse_class", RECURRENT)
def test_pure_float16_is_no_less_exact_than_in_keras(sparse_class):
    generator = np.random.default_rng(1)
    layer, parent = layer_and_parent(sparse_class, UNITS, sparsity=0.5, dtype="float16")
    exact = sparse_class.plain_class(UNITS, dtype="float64")
    exact.build((BATCH, TIME, FEATURES))
    for weight, half in zip(exact.weights, parent.weights, strict=True):
        weight.assign(ops.cast(half, "float64"))
    errors = [0.0, 0.0]
    for _ in range(20):
        x = generator.normal(size=(BATCH, 10, FEATURES)).astype("float16")
        for index, one in enumerate((layer, parent)):
            errors[index] += np.square(np.asarray(one(x), "float64") - np.asarray(exact(x))).sum()
    assert 0 < errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize(
    ("sparse_class", "arguments", "x"),
    [
        (SparseDense, (6,), sequences()),
        (SparseEmbedding, (10, 6), np.array([[1, 2]])),
        (SparseReversibleEmbedding, (10, 6), np.array([[1, 2]])),
        (keras_selfish.layers.SparseEinsumDense, ("abc,cd->abd", (None, 6)), sequences()),
    ],
)
def test_quantization_at_sparsity_zero_is_that_of_keras_and_refused_above(
    sparse_class, arguments, x, tmp_path
):
    layer, parent = layer_and_parent(sparse_class, *arguments, inputs=x.shape)
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=str(x.dtype)), layer])
    model.quantize("int8")
    parent.quantize("int8")
    np.testing.assert_array_equal(model(x), parent(x))
    model.save(tmp_path / "int8.keras")
    loaded = keras.models.load_model(tmp_path / "int8.keras")
    np.testing.assert_array_equal(loaded(x), parent(x))

    masked = sparse_class(*arguments, sparsity=0.5)
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=str(x.dtype)), masked])
    before = model(x)
    with pytest.raises(NotImplementedError, match=r"must have sparsity 0 to be quantized.* of sparsity 0\.5"):
        masked.quantize("int8")
    with pytest.warns(UserWarning, match="must have sparsity 0 to be quantized"):
        model.quantize("int8")
    np.testing.assert_array_equal(model(x), before)
    stripped = strip(model)
    stripped.quantize("int8")
    (weight,) = masked_weights(model)
    name = "embeddings" if "Embedding" in sparse_class.__name__ else "kernel"
    quantized = np.asarray(getattr(stripped.layers[0], name))
    assert quantized.dtype == "int8"
    assert not quantized[~np.asarray(weight.mask)].any()


def test_quantization_of_a_class_of_ones_own_is_refused_as_in_keras():
    class MyDense(SparseDense):
        pass

    layer = MyDense(3, sparsity=0.0)
    layer.build((None, 4))
    with pytest.raises(NotImplementedError, match="MyDense does not have a `quantize`"):
        layer.quantize("int8")
