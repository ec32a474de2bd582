"""What a switcher computes, against loops; that tiles change nothing; and its use on other networks."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import SwitchedDense, SwitcherNetwork
from keras_selfish.switcher.architectures import ARCHITECTURES

on_jax_too = pytest.mark.backends("tensorflow", "jax")
SLOW_ON_JAX = [pytest.mark.slow] if keras.backend.backend() == "jax" else []

WEIGHTS = (np.random.default_rng(0).normal(size=(13, 7)) * 0.1).astype("float32")
EVERY = sorted(ARCHITECTURES)


def switcher_of(architecture="contextual", **arguments):
    """A switcher whose every parameter is random."""
    switcher = SwitcherNetwork(architecture, **arguments)
    switcher.build()
    generator = np.random.default_rng(3)
    for variable in switcher.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    return switcher


def parameters_of(switcher):
    return {
        v.path.rpartition("/")[2]: ops.convert_to_numpy(v).astype(float) for v in switcher.trainable_variables
    }


def figures(values, scale):
    magnitudes = np.abs(values)
    three = (magnitudes.mean(), np.sqrt((values**2).mean()), magnitudes.max())
    return np.log(np.array(three) / scale + 1e-3), three[1] / scale + 1e-3


def loop_logits(architecture, weights, p):
    """One connection after the other."""
    weights = weights.astype(float)
    scale = np.sqrt((weights**2).mean())
    rows, row_scales = zip(*(figures(row, scale) for row in weights), strict=True)
    columns, column_scales = zip(*(figures(column, scale) for column in weights.T), strict=True)
    rows, columns = np.array(rows), np.array(columns)

    def softmax(x):
        x = np.exp(x - x.max(0))
        return x / x.sum(0)

    def pooled(summary, side):
        latents = softmax(summary @ p[f"{side}_queries"]).T @ summary
        return summary @ p[f"{side}_summary"] + latents.reshape(-1) @ p[f"{side}_latents"]

    if architecture == "contextual":
        from_rows, from_columns = pooled(rows, "rows"), pooled(columns, "columns")
    if architecture == "attention":
        r, c = rows @ p["rows_summary"], columns @ p["columns_summary"]
        shares = np.abs(weights)
        attended = (shares / shares.sum(1, keepdims=True)) @ np.maximum(c, 0)
        from_rows = r + attended @ p["rows_attended"]
        attended = (shares / shares.sum(0)).T @ np.maximum(r, 0)
        from_columns = c + attended @ p["columns_attended"]

    def own(i, j):
        if not (0 <= i < weights.shape[0] and 0 <= j < weights.shape[1]):
            return np.array([0.0, 0.0, np.log(1e-3)])  # a weight of zero beyond the edge
        w = weights[i, j] / scale
        return np.array([w, abs(w), np.log(abs(w) + 1e-3)])

    logits = np.empty(weights.shape)
    for i, j in np.ndindex(weights.shape):
        features = own(i, j)
        if architecture == "convolution":
            hidden = p["hidden_bias"] + sum(
                own(i + di, j + dj) @ p["hidden"][di + 1, dj + 1] for di in (-1, 0, 1) for dj in (-1, 0, 1)
            )
        elif architecture == "weight":
            hidden = features @ p["hidden"] + p["hidden_bias"]
        else:
            standing = [features[1] / row_scales[i], features[1] / column_scales[j]]
            features = np.concatenate([features, standing])
            hidden = features @ p["hidden"] + p["hidden_bias"] + from_rows[i] + from_columns[j]
        logits[i, j] = (np.maximum(hidden, 0) @ p["output"] + features @ p["direct"] + p["output_bias"])[0]
    return logits


@on_jax_too
@pytest.mark.parametrize("architecture", EVERY)
@pytest.mark.parametrize("tile_size", [40, 10_000])
def test_logits_are_those_of_a_loop(architecture, tile_size):
    switcher = switcher_of(architecture, tile_size=tile_size)
    expected = loop_logits(architecture, WEIGHTS, parameters_of(switcher))
    np.testing.assert_allclose(ops.convert_to_numpy(switcher(WEIGHTS)), expected, rtol=1e-3, atol=1e-3)
    expected = loop_logits(architecture, WEIGHTS.T, parameters_of(switcher))
    np.testing.assert_allclose(ops.convert_to_numpy(switcher(WEIGHTS.T)), expected, rtol=1e-3, atol=1e-3)


def gradients(switcher, graph=False):
    """The gradient of a sum over what `switched` returns, by an optimizer's step of one."""
    direction = np.random.default_rng(4).normal(size=WEIGHTS.shape).astype("float32")

    class Sum(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.switcher = switcher

        def call(self, inputs):
            return inputs * ops.sum(self.switcher.switched(ops.convert_to_tensor(WEIGHTS))[0] * direction)

    before = [ops.convert_to_numpy(v) for v in switcher.trainable_variables]
    model = keras.Sequential([keras.Input((1,)), Sum()])
    eager = not graph and keras.backend.backend() == "tensorflow"
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: p, run_eagerly=eager)
    model.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))
    return [b - ops.convert_to_numpy(v) for b, v in zip(before, switcher.trainable_variables, strict=True)]


@on_jax_too
@pytest.mark.parametrize("architecture", [pytest.param(name, marks=SLOW_ON_JAX) for name in EVERY])
def test_tiles_change_no_gradient(architecture):
    whole = gradients(switcher_of(architecture, tile_size=10_000))
    tiled = gradients(switcher_of(architecture, tile_size=30), graph=True)
    assert all(np.abs(gradient).max() > 0 for gradient in whole)
    for one, other in zip(tiled, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@on_jax_too
def test_gradient_of_the_last_bias_by_hand():
    switcher = switcher_of("weight", tile_size=30)
    logits = loop_logits("weight", WEIGHTS, parameters_of(switcher))
    sigmoid = 1 / (1 + np.exp(-logits))
    direction = np.random.default_rng(4).normal(size=WEIGHTS.shape)
    expected = (direction * WEIGHTS * sigmoid * (1 - sigmoid)).sum()
    named = dict(
        zip(
            [v.path.rpartition("/")[2] for v in switcher.trainable_variables],
            gradients(switcher),
            strict=True,
        )
    )
    np.testing.assert_allclose(named["output_bias"], [expected], rtol=1e-4)


@on_jax_too
def test_switched_weights_mask_and_count_agree():
    switcher = switcher_of(tile_size=30)
    switched, mask, counted = switcher.switched(ops.convert_to_tensor(WEIGHTS), threshold=0.5)
    mask = ops.convert_to_numpy(mask)
    assert 0 < mask.sum() < mask.size == counted.size
    np.testing.assert_array_equal(mask, ops.convert_to_numpy(switcher(WEIGHTS)) > 0.5)
    np.testing.assert_array_equal(ops.convert_to_numpy(switched), WEIGHTS * mask)
    assert float(counted.is_open) == mask.sum()


@pytest.mark.parametrize("architecture", EVERY)
def test_parameters_do_not_grow_with_the_layer(architecture):
    switcher = switcher_of(architecture)
    before = switcher.count_params()
    switcher(np.ones((50, 40), "float32"))
    assert switcher.count_params() == before < 400


@pytest.mark.parametrize("granularity", ["connection", "neuron"])
def test_the_scale_of_a_matrix_does_not_matter(granularity):
    switcher = switcher_of(granularity=granularity)
    small, large = (ops.convert_to_numpy(switcher(WEIGHTS * factor)) for factor in (1.0, 32.0))
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["weight", "contextual", "attention"])
def test_the_order_of_inputs_and_units_does_not_matter(architecture):
    switcher = switcher_of(architecture)
    generator = np.random.default_rng(5)
    order = np.ix_(generator.permutation(13), generator.permutation(7))
    logits = ops.convert_to_numpy(switcher(WEIGHTS))
    np.testing.assert_allclose(
        ops.convert_to_numpy(switcher(WEIGHTS[order])), logits[order], rtol=1e-3, atol=1e-3
    )


def test_units_of_larger_weights_begin_with_larger_logits():
    switcher = SwitcherNetwork(granularity="neuron")
    switcher.build()
    logits, scales = switcher.units(ops.convert_to_tensor(WEIGHTS * np.arange(1, 8, dtype="float32")))
    assert np.all(np.diff(ops.convert_to_numpy(logits)) > 0)
    np.testing.assert_allclose(ops.convert_to_numpy(scales), 1, atol=0.3)  # nothing is learned yet


def test_config_and_weights(tmp_path):
    switcher = switcher_of("attention", hidden_units=5, tile_size=17)
    inputs = keras.Input(batch_shape=(13, 7))
    keras.Model(inputs, switcher(inputs)).save(tmp_path / "switcher.keras")
    loaded = keras.models.load_model(tmp_path / "switcher.keras").layers[-1]
    assert loaded.get_config() == switcher.get_config()
    np.testing.assert_array_equal(*(ops.convert_to_numpy(one(WEIGHTS)) for one in (switcher, loaded)))


@pytest.mark.parametrize(
    "arguments",
    [{"architecture": "none"}, {"granularity": "layer"}, {"hidden_units": 0}, {"tile_size": 1.5}],
)
def test_bad_arguments(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be .* Received: {name}="):
        SwitcherNetwork(**arguments)


# On a network that it has not seen


@on_jax_too
@pytest.mark.parametrize("layer_shares", [pytest.param("magnitude", marks=SLOW_ON_JAX), "logits"])
def test_prune_sets_switches_exactly_to_the_target(layer_shares):
    model = keras.Sequential([keras.Input((20,)), SwitchedDense(11), SwitchedDense(9), keras.layers.Dense(2)])
    sparsities = switcher_of().prune(model, target_sparsity=0.7, layer_shares=layer_shares)
    active = [layer.masked_weight.active for layer in model.layers[:2]]
    assert sum(active) == 220 + 99 - round(0.7 * 319) + (round(0.3 * 319) - (319 - round(0.7 * 319)))
    for layer, count in zip(model.layers[:2], active, strict=True):
        assert sparsities[layer.name] == pytest.approx(1 - count / np.prod(layer.mask.shape))


def test_prune_leaves_each_layer_its_share_of_the_largest_weights():
    """Two layers whose weights are 1 to 6 and 10 to 60: of the six largest, five are the second one's."""
    model = keras.Sequential([keras.Input((2,)), SwitchedDense(3), SwitchedDense(2)])
    first, second = model.layers
    first.set_weights([np.arange(1.0, 7).reshape(2, 3), *first.get_weights()[1:]])
    second.set_weights([np.array([[5.5, 10], [20, 30], [40, 50]]), *second.get_weights()[1:]])
    switcher = switcher_of()
    switcher.prune(model, target_sparsity=0.5)
    for layer, count in ((first, 1), (second, 5)):
        logits = ops.convert_to_numpy(switcher(ops.convert_to_tensor(layer.kernel)))
        best = np.zeros(logits.size, bool)
        best[np.argsort(logits.ravel())[-count:]] = True
        np.testing.assert_array_equal(
            ops.convert_to_numpy(layer.mask).astype(bool), best.reshape(logits.shape)
        )
    with pytest.raises(ValueError, match=r"`layer_shares` must be one of .* Received: layer_shares='size'"):
        switcher.prune(model, 0.5, layer_shares="size")


def test_prune_decides_by_the_sign_of_the_logit():
    model = keras.Sequential([keras.Input((20,)), SwitchedDense(11)])
    switcher = switcher_of()
    switcher.prune(model)
    layer = model.layers[0]
    logits = ops.convert_to_numpy(switcher(ops.convert_to_tensor(layer.kernel)))
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.mask), logits > 0)


def test_prune_plain_layers_but_the_last():
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(10), keras.layers.Dense(5)])
    switcher_of().prune(model, target_sparsity=0.6)
    assert [np.count_nonzero(ops.convert_to_numpy(layer.kernel)) for layer in model.layers] == [80, 50]


def test_prune_units():
    model = keras.Sequential(
        [keras.Input((20,)), SwitchedDense(10, granularity="neuron"), keras.layers.Dense(5)]
    )
    assert switcher_of(granularity="neuron").prune(model, target_sparsity=0.5)["switched_dense"] == 0.5
    mask = ops.convert_to_numpy(model.layers[0].mask)
    assert set(mask.sum(0)) == {0, 20}


@pytest.mark.parametrize("layers", [[keras.layers.Dense], [SwitchedDense]])
def test_prune_refuses_what_it_cannot_prune(layers):
    granularity = "neuron" if layers == [SwitchedDense] else "connection"
    model = keras.Sequential([keras.Input((20,)), *(layer(3) for layer in layers)])
    with pytest.raises(ValueError, match="`model` must have"):
        SwitcherNetwork(granularity=granularity).prune(model)
