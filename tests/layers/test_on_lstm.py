"""Sparse LSTMs with ordered neurons against a loop in NumPy and differences."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import CarriedState, SparseONLSTM, SparseONLSTMCell, strip
from keras_selfish.analysis import report
from keras_selfish.layers import HoistedRNN
from keras_selfish.masks import masked_weights

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf

also_on_jax = pytest.mark.backends("tensorflow", "jax")
# JAX computes in float32 unless told otherwise when it starts.
TOLERANCE = 1e-12 if BACKEND == "tensorflow" else 1e-5

BATCH, TIME, FEATURES, UNITS, CHUNK = 3, 4, 5, 6, 2
CHUNKS = UNITS // CHUNK
PADDING = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)
ALL = {"return_sequences": True, "return_state": True, "return_distances": True}


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def built(**options):
    """A layer in float64 with other weights than those that it starts from."""
    options = {"sparsity": 0.4, "mask_seed": 1, "dtype": "float64", **ALL, **options}
    layer = SparseONLSTM(UNITS, CHUNK, **options)
    layer.build((None, None, FEATURES))
    for index, weight in enumerate(layer.trainable_weights):
        weight.assign(draw(*weight.shape, seed=index))
    for masked_weight in masked_weights(layer):
        masked_weight.project()
    return layer


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_step(total, c):
    """The published equations for one text, unit by unit; returns h, c and the two distances."""
    exponentials = np.exp(total[: 2 * CHUNKS])
    at_input, at_forget = exponentials[:CHUNKS], exponentials[CHUNKS:]
    master_input = [1 - at_input[: k + 1].sum() / at_input.sum() for k in range(CHUNKS)]
    master_forget = [at_forget[: k + 1].sum() / at_forget.sum() for k in range(CHUNKS)]
    output, candidate, input_, forget = np.split(total[2 * CHUNKS :], 4)
    h, c = np.zeros(UNITS), c.copy()
    for unit in range(UNITS):
        m_i, m_f = master_input[unit // CHUNK], master_forget[unit // CHUNK]
        both = m_i * m_f
        kept = sigmoid(forget[unit]) * both + (m_f - both)
        written = sigmoid(input_[unit]) * both + (m_i - both)
        c[unit] = kept * c[unit] + written * np.tanh(candidate[unit])
        h[unit] = sigmoid(output[unit]) * np.tanh(c[unit])
    return h, c, 1 - np.mean(master_forget), np.mean(master_input)


def numpy_loop(layer, sequences, initial, padding=None, recurrent_kernel=None, seen=(None, None)):
    kernel, recurrent, *bias = (ops.convert_to_numpy(weight) for weight in layer.trainable_weights)
    recurrent = recurrent if recurrent_kernel is None else recurrent_kernel
    seen_inputs, seen_states = (np.ones((BATCH, 1)) if mask is None else mask for mask in seen)
    outputs, distances, last = [], [], []
    for row in range(len(sequences)):
        h, c = (state[row] for state in initial)
        for time in range(sequences.shape[1]):
            forget = input_ = np.nan
            if padding is None or padding[row, time]:
                total = (sequences[row, time] * seen_inputs[row]) @ kernel
                total = total + (h * seen_states[row]) @ recurrent + (bias[0] if bias else 0.0)
                h, c, forget, input_ = numpy_step(total, c)
            outputs.append(h)
            distances.append((forget, input_))
        last.append((h, c))
    by_time = (len(sequences), sequences.shape[1], -1)
    forget, input_ = np.moveaxis(np.reshape(distances, by_time), -1, 0)
    h, c = np.moveaxis(np.array(last), 1, 0)
    return [np.reshape(outputs, by_time), h, c, forget, input_]


def assert_equals(results, expected, padding=None):
    real = np.ones((BATCH, TIME), bool) if padding is None else padding
    for result, value in zip(results, expected, strict=True):
        result = ops.convert_to_numpy(result)
        if result.shape[:2] == (BATCH, TIME):
            result, value = result[real], value[real]
        np.testing.assert_allclose(result, value, rtol=0, atol=TOLERANCE)


def arguments():
    return draw(BATCH, TIME, FEATURES), [draw(BATCH, UNITS, seed=seed) for seed in (1, 2)]


@also_on_jax
@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"sparsity": 0.0}], ids=str)
@pytest.mark.parametrize("padding", [None, PADDING], ids=["plain", "padded"])
def test_equals_a_loop_in_numpy(options, padding):
    layer = built(**options)
    sequences, initial = arguments()
    mask = None if padding is None else ops.convert_to_tensor(padding)
    results = layer(sequences, initial_state=initial, mask=mask)
    assert_equals(results, numpy_loop(layer, sequences, initial, padding), padding)


@also_on_jax
def test_dropout_masks_are_those_of_all_steps(monkeypatch):
    layer = built(dropout=0.5, recurrent_dropout=0.5)
    sequences, initial = arguments()
    seen = [2.0 * (draw(BATCH, size, seed=8) > 0) for size in (FEATURES, UNITS)]
    monkeypatch.setattr(layer.cell, "get_dropout_mask", lambda _: ops.convert_to_tensor(seen[0]))
    monkeypatch.setattr(layer.cell, "get_recurrent_dropout_mask", lambda _: ops.convert_to_tensor(seen[1]))
    results = layer(sequences, initial_state=initial, training=True)
    expected = numpy_loop(layer, sequences, initial, seen=seen)
    assert_equals(results, expected)
    assert np.abs(expected[0] - numpy_loop(layer, sequences, initial)[0]).max() > 0.01


@also_on_jax
def test_weight_drop_is_drawn_once_per_call():
    layer = built(weight_drop=0.4, seed=7)
    sequences, initial = arguments()
    kernel = ops.convert_to_numpy(layer.cell.recurrent_kernel)
    generator = keras.random.SeedGenerator(7)
    calls = []
    for _ in range(2):
        numbers = keras.random.uniform(kernel.shape, dtype="float32", seed=generator)
        dropped = np.where(ops.convert_to_numpy(numbers) >= 0.4, kernel / 0.6, 0)
        assert_equals(
            layer(sequences, initial_state=initial, training=True),
            numpy_loop(layer, sequences, initial, recurrent_kernel=dropped),
        )
        kept = dropped != 0
        np.testing.assert_allclose(dropped[kept], kernel[kept] / 0.6, rtol=1e-6)
        assert 0.25 < 1 - kept.sum() / np.count_nonzero(kernel) < 0.55
        calls.append(kept)
    assert (calls[0] != calls[1]).any()
    plain = layer(sequences, initial_state=initial, training=False)
    assert_equals(plain, numpy_loop(layer, sequences, initial))


@also_on_jax
def test_weight_drop_that_is_made_good_in_inference():
    """As published: in training what is left is as it is, in inference all is multiplied by what is kept."""
    layer = built(weight_drop=0.4, weight_drop_scaling="inference", seed=7)
    sequences, initial = arguments()
    kernel = ops.convert_to_numpy(layer.cell.recurrent_kernel)
    numbers = keras.random.uniform(kernel.shape, dtype="float32", seed=keras.random.SeedGenerator(7))
    left = np.where(ops.convert_to_numpy(numbers) >= 0.4, kernel, 0)
    assert 0 < np.count_nonzero(left) < np.count_nonzero(kernel)
    for training, recurrent in ((True, left), (False, 0.6 * kernel)):
        assert_equals(
            layer(sequences, initial_state=initial, training=training),
            numpy_loop(layer, sequences, initial, recurrent_kernel=recurrent),
        )
    copy = SparseONLSTM.from_config(layer.get_config())
    assert copy.cell.weight_drop_scaling == "inference"
    stripped = strip(
        keras.Sequential(
            [
                keras.Input((TIME, FEATURES)),
                SparseONLSTM.from_config(
                    {**layer.get_config(), "return_state": False, "return_distances": False}
                ),
            ]
        )
    )
    assert stripped.layers[0].cell.weight_drop_scaling == "inference"


def test_weight_drop_needs_our_loop():
    loop = HoistedRNN(SparseONLSTMCell(UNITS, CHUNK, weight_drop=0.5))
    loop(draw(BATCH, TIME, FEATURES))
    with pytest.raises(ValueError, match=r"`weight_drop` .* Received: weight_drop=0\.5; use a layer"):
        loop(draw(BATCH, TIME, FEATURES), training=True)


def test_gradient_equals_differences(assert_gradients_are_differences):
    layer = built()
    sequences, _ = arguments()
    factors = [draw(*shape, seed=5) for shape in ((BATCH, TIME, UNITS), (BATCH, TIME))]
    weights = layer.trainable_weights

    def loss():
        outputs, _, c, forget, input_ = layer(sequences, mask=tf.constant(PADDING))
        by_time = tf.reduce_sum(forget * factors[1]) + tf.reduce_sum(input_ * factors[1] ** 2)
        return tf.reduce_sum(outputs * factors[0]) + tf.reduce_sum(c**2) + by_time

    assert_gradients_are_differences(loss, weights)


@also_on_jax
def test_gates_of_different_widths():
    layer = SparseONLSTM(4, 2, sparsity=0.5, name="layer")
    layer.build((None, None, 2))
    kernel, recurrent = masked_weights(layer)
    assert (kernel.shape, recurrent.shape) == ((2, 20), (4, 20))
    mask = np.zeros((2, 20), bool)
    mask[:, 1:5] = True  # half of master_input, all of master_forget and a fourth of o
    kernel.mask.assign(mask)
    densities = {"master_input": 0.5, "master_forget": 1, "o": 0.25, "c": 0, "i": 0, "f": 0}
    assert kernel.gate_densities() == densities
    gates = report(layer).weights[0].gates
    assert [(gate.name, gate.shape, gate.non_zeros) for gate in gates] == [
        ("master_input", (2, 2), 2),
        ("master_forget", (2, 2), 4),
        ("o", (2, 4), 2),
        ("c", (2, 4), 0),
        ("i", (2, 4), 0),
        ("f", (2, 4), 0),
    ]


@also_on_jax
@pytest.mark.parametrize("return_state", [True, False])
def test_distances_in_a_model(return_state):
    inputs = keras.Input((None, FEATURES))
    layer = SparseONLSTM(UNITS, CHUNK, **{**ALL, "return_state": return_state}, zero_output_for_mask=True)
    results = layer(keras.layers.Masking()(inputs))
    states = 2 * return_state
    assert [tuple(result.shape) for result in results] == [
        (None, None, UNITS),
        *[(None, UNITS)] * states,
        *[(None, None)] * 2,
    ]
    model = keras.Model(inputs, results)
    data = draw(BATCH, TIME, FEATURES) * PADDING[..., None]
    *_, forget, input_ = model.predict(data, verbose=0)
    for distance in (forget, input_):
        assert distance.shape == (BATCH, TIME)
        assert (distance[~PADDING] == 0).all()
        assert ((distance[PADDING] > 0) & (distance[PADDING] < 1)).all()


def test_distances_are_no_state_to_carry():
    with pytest.raises(ValueError, match=r"outputs and states only\. Received: .* return_distances=True"):
        CarriedState(SparseONLSTM(UNITS, CHUNK, **ALL), batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 4}, r"`chunk_size` .* Received: chunk_size=4, units=6"),
        ({"chunk_size": 0}, r"`chunk_size` .* Received: chunk_size=0"),
        ({"chunk_size": 2.0}, r"`chunk_size` .* Received: chunk_size=2\.0"),
        ({"chunk_size": 2, "weight_drop_scaling": "both"}, r"`weight_drop_scaling` must be .*'both'"),
        ({"chunk_size": 2, "weight_drop": 1.0}, r"`weight_drop` .* Received: weight_drop=1\.0"),
        ({"chunk_size": 2, "return_distances": True}, r"`return_distances` needs return_sequences=True"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SparseONLSTM(UNITS, **options)
