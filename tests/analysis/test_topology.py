"""Distances of connectivities: by hand, by trying all permutations, of networks with their units shuffled."""

import itertools
import sys

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies

import keras_selfish
from keras_selfish import LanguageModel, SparseDense, SparseGRU, masked_weights, strip
from keras_selfish.analysis import topology_distance

pytestmark = pytest.mark.backends("tensorflow", "jax")

# Inputs of two units in two networks, 5/12 apart if the first of one is matched to the second of the other.
HIDDEN = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
OTHER_HIDDEN = np.array([[0, 1], [0, 1], [1, 1], [0, 0]], bool)


def drawn(seed, density=0.4, **shapes):
    """Masks by path; a double underscore stands for the slash."""
    generator = np.random.default_rng(seed)
    return {path.replace("__", "/"): generator.random(shape) < density for path, shape in shapes.items()}


def language_model_masks(seed, units=(8, 12), words=30, gates=4, density=0.3):
    shapes = {"embedding__embeddings": (words, 10)}
    inputs = 10
    for index, width in enumerate(units):
        shapes[f"lstm_{index}__kernel"] = (inputs, gates * width)
        shapes[f"lstm_{index}__recurrent_kernel"] = (width, gates * width)
        inputs = width
    return drawn(seed, density, **shapes, decoder__kernel=(inputs, words))


def shuffled_language_model(masks, gates=4, seed=0):
    """The same network with its features and hidden units in another order."""
    generator = np.random.default_rng(seed)
    found, below = {}, None
    for path, mask in masks.items():
        if path.endswith("recurrent_kernel"):
            found[path] = columns_in_order(mask[below], below, gates)
        elif path.startswith("lstm"):
            own = generator.permutation(mask.shape[1] // gates)
            found[path] = columns_in_order(mask[below], own, gates)
            below = own
        elif path.startswith("embedding"):
            below = generator.permutation(mask.shape[1])
            found[path] = mask[:, below]
        else:
            found[path] = mask[below]
    return found


def columns_in_order(mask, order, gates):
    parts = np.split(mask, gates, axis=1)
    return np.concatenate([part[:, order] for part in parts], axis=1)


def edits(one, other):
    """The distance of two units by sets of (input, gate)."""
    union = one | other
    return len(one ^ other) / len(union) if union else 0.0


def sets(kernel):
    """The inputs of each column."""
    return [set(np.flatnonzero(column)) for column in kernel.T]


def test_two_units_by_hand():
    a = {"hidden/kernel": HIDDEN, "outputs/kernel": np.array([[1, 0, 0], [0, 0, 1]], bool)}
    b = {"hidden/kernel": OTHER_HIDDEN, "outputs/kernel": np.array([[0, 0, 1], [1, 0, 1]], bool)}
    found = topology_distance(a, b)
    # The outputs see (in the order of a): {0}, {}, {1} and {0}, {}, {0, 1}.
    assert [layer.distance for layer in found.layers] == pytest.approx([5 / 12, (0 + 0 + 1 / 2) / 3])
    assert [layer.order.tolist() for layer in found.layers] == [[1, 0], [0, 1, 2]]
    assert found.distance == pytest.approx((5 / 12 + 1 / 6) / 2)
    in_place = topology_distance(a, b, match="none")
    assert [layer.distance for layer in in_place.layers] == pytest.approx([7 / 8, (1 + 0 + 1 / 2) / 3])


def test_a_recurrent_layer_by_hand():
    """Two units with two gates: in the other network they are swapped, and one connection is new."""
    kernel = np.array([[1, 0, 0, 1], [0, 1, 0, 0]], bool)  # gate 0: units 0, 1; gate 1: units 0, 1
    recurrent = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], bool)
    a = {"rnn/kernel": kernel, "rnn/recurrent_kernel": recurrent}
    other = columns_in_order(recurrent[[1, 0]], [1, 0], 2)
    other[0, 0] = True  # unit 1 of a, now unit 0, sees itself in gate 0, too
    b = {"rnn/kernel": columns_in_order(kernel, [1, 0], 2), "rnn/recurrent_kernel": other}
    # Unit 1 of a has three inputs, that of b one more.
    found = topology_distance(a, b)
    assert [(layer.name, layer.units) for layer in found.layers] == [("rnn", 2)]
    assert found.layers[0].order.tolist() == [1, 0]
    assert found.distance == pytest.approx((0 + 1 / 4) / 2)


def test_the_table():
    a = {"hidden/kernel": HIDDEN, "outputs/kernel": np.eye(2, 1000, dtype=bool)}
    b = {"hidden/kernel": OTHER_HIDDEN, "outputs/kernel": np.eye(2, 1000, dtype=bool)[::-1]}
    assert str(topology_distance(a, b)) == (
        "layer    units  distance\n"
        "hidden       2    0.4167\n"
        "outputs  1,000    0.0000\n"
        "network           0.2083"
    )


@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_units_in_another_order_are_the_same_network(seed, gates):
    masks = language_model_masks(seed, gates=gates)
    other = shuffled_language_model(masks, gates, seed)
    assert topology_distance(masks, other).distance == topology_distance(other, masks).distance == 0
    assert topology_distance(masks, other, match="none").distance > 0.5
    # One connection moved, in the decoder, is seen there only.
    place = tuple(np.argwhere(other["decoder/kernel"])[0])
    other["decoder/kernel"][place] = False
    found = [layer.distance for layer in topology_distance(masks, other).layers]
    assert found[:-1] == [0, 0, 0]
    assert 0 < found[-1] < 0.05


def test_units_with_the_same_inputs_are_told_apart_by_their_outputs():
    masks = drawn(0, hidden__kernel=(20, 12), next__kernel=(12, 16), outputs__kernel=(16, 30))
    masks["hidden/kernel"][:, :6] = False
    masks["hidden/kernel"][:, 6:9] = masks["hidden/kernel"][:, 9:10]
    first, second = (np.random.default_rng(seed).permutation(units) for seed, units in ((1, 12), (2, 16)))
    other = {
        "hidden/kernel": masks["hidden/kernel"][:, first],
        "next/kernel": masks["next/kernel"][first][:, second],
        "outputs/kernel": masks["outputs/kernel"][second],
    }
    assert topology_distance(masks, other).distance == 0


@pytest.mark.parametrize("seed", range(4))
def test_no_permutation_brings_units_nearer(seed):
    shapes = {"first__kernel": (9, 5), "second__kernel": (5, 4), "outputs__kernel": (4, 6)}
    a, b = drawn(seed, **shapes), drawn(seed + 10, **shapes)
    found = topology_distance(a, b)
    rows = slice(None)
    for layer, path in zip(found.layers, a, strict=True):
        mine, others = sets(a[path]), sets(b[path][rows])
        distances = {
            order: np.mean([edits(mine[unit], others[match]) for unit, match in enumerate(order)])
            for order in itertools.permutations(range(len(mine)))
        }
        least = distances[tuple(range(6))] if path == "outputs/kernel" else min(distances.values())
        assert layer.distance == pytest.approx(least, abs=1e-7)
        assert layer.distance == pytest.approx(distances[tuple(layer.order)])
        rows = layer.order


@pytest.mark.parametrize("seed", range(4))
def test_recurrent_units_are_matched_by_their_kernel(seed):
    a, b = (language_model_masks(number, units=(5,), words=7) for number in (seed, seed + 10))
    features, layer, _ = topology_distance(a, b).layers
    kernel, others = a["lstm_0/kernel"], b["lstm_0/kernel"][features.order]
    by_unit = [
        [set.union(*({(gate, i) for i in found[gate * 5 + unit]} for gate in range(4))) for unit in range(5)]
        for found in (sets(kernel), sets(others))
    ]
    sums = {
        order: sum(edits(by_unit[0][unit], by_unit[1][match]) for unit, match in enumerate(order))
        for order in itertools.permutations(range(5))
    }
    assert sums[tuple(layer.order)] == pytest.approx(min(sums.values()), abs=1e-6)
    # The distance is that of both kernels in this order.
    other = columns_in_order(np.vstack([others, b["lstm_0/recurrent_kernel"][layer.order]]), layer.order, 4)
    mine = np.vstack([kernel, a["lstm_0/recurrent_kernel"]])
    stacked = [
        [set(zip(*np.nonzero(array.reshape(-1, 4, 5)[..., unit]), strict=True)) for unit in range(5)]
        for array in (mine, other)
    ]
    assert layer.distance == pytest.approx(np.mean([edits(*pair) for pair in zip(*stacked, strict=True)]))


@hypothesis.given(
    seeds=strategies.tuples(strategies.integers(0, 99), strategies.integers(0, 99)),
    densities=strategies.tuples(strategies.floats(0, 1), strategies.floats(0, 1)),
    units=strategies.lists(strategies.integers(1, 6), min_size=1, max_size=2),
    match=strategies.sampled_from(["hidden", "all", "none"]),
)
def test_it_is_symmetric_and_within_bounds(seeds, densities, units, match):
    a, b = (
        language_model_masks(seed, units=units, words=5, density=density)
        for seed, density in zip(seeds, densities, strict=True)
    )
    found, reverse = topology_distance(a, b, match), topology_distance(b, a, match)
    assert found == reverse
    assert 0 <= found.distance <= 1
    for layer, back in zip(found.layers, reverse.layers, strict=True):
        assert layer.order[back.order].tolist() == list(range(layer.units))
    assert topology_distance(a, a, match).distance == 0


def test_random_masks_are_as_far_apart_as_their_density_says():
    a, b = (language_model_masks(seed, (64, 64), words=400, density=0.33) for seed in (0, 1))
    expected = 1 - 0.33 / (2 - 0.33)
    assert topology_distance(a, b, match="none").distance == pytest.approx(expected, abs=0.01)
    assert expected - 0.08 < topology_distance(a, b).distance < expected


def test_outputs_are_matched_on_request():
    a = {"hidden": HIDDEN, "outputs": np.eye(2, dtype=bool)}
    b = {"hidden": HIDDEN, "outputs": np.eye(2, dtype=bool)[:, ::-1]}
    assert topology_distance(a, b).distance == 0.5
    assert topology_distance(a, b, match="all").distance == 0


def test_words_are_not_matched():
    """They have their order, and features change theirs."""
    masks = drawn(0, embedding__embeddings=(12, 5))
    words = {"embedding/embeddings": masks["embedding/embeddings"][::-1]}
    features = {"embedding/embeddings": masks["embedding/embeddings"][:, ::-1]}
    assert topology_distance(masks, features).distance == 0
    assert topology_distance(masks, words).distance > 0.2


def test_the_decoder_of_an_embedding_comes_last():
    paths = {"words__embeddings": (30, 6), "words__reverse_embeddings": (8, 30), "rnn__kernel": (6, 8)}
    masks = drawn(0, **paths, rnn__recurrent_kernel=(8, 8))
    features, units = np.random.default_rng(1).permutation(6), np.random.default_rng(2).permutation(8)
    other = {
        "words/embeddings": masks["words/embeddings"][:, features],
        "words/reverse_embeddings": masks["words/reverse_embeddings"][units],
        "rnn/kernel": masks["rnn/kernel"][features][:, units],
        "rnn/recurrent_kernel": masks["rnn/recurrent_kernel"][units][:, units],
    }
    found = topology_distance(masks, other)
    assert found.distance == 0
    assert [layer.name for layer in found.layers] == ["words", "rnn", "words/reverse_embeddings"]


def test_each_depth_of_a_highway_network_is_in_the_order_of_its_units():
    shapes = {"rhn__kernel": (20, 16)} | {f"rhn__recurrent_kernel_{depth}": (8, 16) for depth in range(3)}
    masks = drawn(0, **shapes, outputs__kernel=(8, 5))
    order = np.random.default_rng(1).permutation(8)
    other = {
        path: columns_in_order(mask[order] if "recurrent" in path else mask, order, 2)
        for path, mask in masks.items()
        if path.startswith("rhn")
    }
    other["outputs/kernel"] = masks["outputs/kernel"][order]
    assert topology_distance(masks, other).distance == 0


def test_ordered_neurons_stay_in_place():
    def network(seed):
        kernels = drawn(seed, kernel=(10, 40), recurrent_kernel=(8, 40))
        ends = [4, 8, 16, 24, 32]
        gates = {f"rnn/{name}": np.split(mask, ends, axis=1) for name, mask in kernels.items()}
        named = {path: dict(enumerate(parts)) for path, parts in gates.items()}
        return named | drawn(seed, outputs__kernel=(8, 5))

    a, b = network(0), network(1)
    assert topology_distance(a, b).layers == topology_distance(a, b, match="none").layers
    assert topology_distance(a, b).layers[0].units == 40
    # It is enough if one of them tells its gates.
    whole = {path: np.hstack(list(gates.values())) if "rnn" in path else gates for path, gates in b.items()}
    assert topology_distance(a, whole) == topology_distance(a, b)


def test_experts_are_like_gates():
    shapes = {"mos__prior_kernel": (12, 3), "mos__latent_kernel": (12, 15), "mos__decoder_kernel": (5, 40)}
    masks = drawn(0, hidden__kernel=(20, 12), **shapes)
    units, latent = np.random.default_rng(1).permutation(12), np.random.default_rng(2).permutation(5)
    other = {
        "hidden/kernel": masks["hidden/kernel"][:, units],
        "mos/prior_kernel": masks["mos/prior_kernel"][units],
        "mos/latent_kernel": columns_in_order(masks["mos/latent_kernel"][units], latent, 3),
        "mos/decoder_kernel": masks["mos/decoder_kernel"][latent],
    }
    assert topology_distance(masks, other).distance == 0
    assert topology_distance(masks, other | {"mos/prior_kernel": masks["mos/prior_kernel"]}).distance > 0


def test_filters_are_units():
    """Of convolutions, one for each channel among them, whose last image is flattened."""
    masks = drawn(
        0,
        first__kernel=(3, 3, 2, 6),
        second__depthwise_kernel=(3, 3, 6, 2),
        second__pointwise_kernel=(1, 1, 12, 5),
        outputs__kernel=(4 * 5, 7),
    )
    first, second = np.random.default_rng(1).permutation(6), np.random.default_rng(2).permutation(5)
    pairs = np.stack([2 * first, 2 * first + 1], axis=1).ravel()
    other = {
        "first/kernel": masks["first/kernel"][..., first],
        "second/depthwise_kernel": masks["second/depthwise_kernel"][..., first, :],
        "second/pointwise_kernel": masks["second/pointwise_kernel"][..., pairs, :][..., second],
        "outputs/kernel": masks["outputs/kernel"].reshape(4, 5, 7)[:, second].reshape(20, 7),
    }
    assert topology_distance(masks, other).distance == 0


def masks_of(model):
    return {weight.name: keras.ops.convert_to_numpy(weight.mask) for weight in masked_weights(model)}


@pytest.mark.parametrize(
    "options",
    [{}, {"tied": True}, {"cell": "rhn"}, {"experts": 2, "tied": True}],
    ids=["untied", "tied", "highway", "mixture"],
)
def test_language_models(options):
    a, b = (LanguageModel(20, units=8, batch_size=2, sparsity=0.6, seed=seed, **options) for seed in (0, 1))
    found = topology_distance(a, b)
    assert found == topology_distance(masks_of(a), masks_of(b))
    assert topology_distance(a, masks_of(a)).distance == 0
    assert topology_distance(strip(a), b).distance == pytest.approx(found.distance)
    assert 0.4 < found.distance < 1


def test_a_layer_without_masks_does_not_count():
    """Its units are all alike, so those above stay in the order that they have."""

    def network(sparsity=0.5, seed=0):
        layers = [
            SparseDense(6, sparsity=0.5, mask_seed=seed, name="first"),
            SparseDense(6, sparsity=sparsity, mask_seed=seed, name="second"),
            SparseDense(6, sparsity=0.5, mask_seed=seed, name="third"),
        ]
        return keras.Sequential([keras.Input((8,)), *layers])

    a, b = network(0.0, 1), network(0.0, 2)
    assert [layer.name.rpartition("/")[2] for layer in topology_distance(a, b).layers] == ["first", "third"]
    assert topology_distance(a, b).layers[1] == topology_distance(a, b, match="none").layers[1]
    # Of one that has masks in the other network, all connections exist: half of them are edits.
    assert topology_distance(network(0.0), network(0.5), match="none").layers[1].distance == pytest.approx(
        0.5
    )


def test_convolutions_and_einsum_layers_of_a_model():
    def network(seed):
        options = {"sparsity": 0.5, "mask_seed": seed}
        return keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                keras_selfish.SparseConv2D(4, 3, **options),
                keras_selfish.SparseDepthwiseConv2D(3, padding="same", depth_multiplier=2, **options),
                keras_selfish.SparseConv2DTranspose(5, 2, **options),
                keras.layers.Flatten(),
                SparseDense(7, **options),
                keras_selfish.SparseEinsumDense("ab,cb->ac", (3,), **options),
            ]
        )

    found = topology_distance(network(0), network(1))
    assert [layer.units for layer in found.layers] == [4, 8, 5, 7, 3]
    assert 0 < found.distance < 1
    assert topology_distance(network(0), network(0)).distance == 0


@pytest.mark.parametrize("kind", ["residual", "bidirectional", "attention"])
def test_networks_with_branches_are_compared_in_place(kind):
    def network(seed):
        inputs = keras.Input((5, 8))
        if kind == "bidirectional":
            layer = SparseGRU(4, return_sequences=True, sparsity=0.5, mask_seed=seed)
            hidden = keras.layers.Bidirectional(layer, name=kind)(inputs)
        elif kind == "attention":
            attention = keras_selfish.SparseMultiHeadAttention(2, 4, sparsity=0.5, mask_seed=seed, name=kind)
            hidden = attention(inputs, inputs)
        else:
            hidden = SparseDense(8, sparsity=0.5, mask_seed=seed)(inputs)
            hidden = keras.layers.Add(name=kind)([inputs, hidden])
        return keras.Model(inputs, SparseDense(3, sparsity=0.5, mask_seed=seed)(hidden))

    a, b = network(0), network(1)
    with pytest.raises(
        ValueError, match=f"`a` must have layers that follow one another.*'{kind}'.*match='none'"
    ):
        topology_distance(a, b)
    assert 0.3 < topology_distance(a, b, match="none").distance < 1


MASKS = {"hidden/kernel": HIDDEN, "outputs/kernel": np.ones((2, 3), bool)}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "`b` must have masks, but has none"),
        ({"hidden/kernel": HIDDEN}, "same order. Received: 2 and 1 weights"),
        (
            {"hidden/kernel": HIDDEN.T, "outputs/kernel": np.ones((4, 3), bool)},
            r"hidden/kernel of shape \(4, 2\) and hidden/kernel of shape \(2, 4\); compare networks of one",
        ),
        ({"hidden/kernel": HIDDEN, "outputs/recurrent_kernel": np.ones((2, 3), bool)}, "of the same kinds"),
        ({"hidden/kernel": np.ones(3, bool)}, r"b\['hidden/kernel'\] of shape \(3,\) of bool; give masks"),
        ({"hidden/kernel": 0.5 * HIDDEN}, r"shape \(4, 2\) of float64; give masks, such as `weight != 0`"),
        ({"hidden/kernel": {}}, "no gates"),
        (
            {"hidden/kernel": {"i": HIDDEN, "f": HIDDEN[:2]}},
            r"shape \(4, 2\) of bool, shape \(2, 2\) of bool",
        ),
        ([HIDDEN], "`b` must be a built model or layer, or a mapping from paths to masks. Received"),
    ],
)
def test_what_cannot_be_compared(other, message):
    with pytest.raises(ValueError, match=message):
        topology_distance(MASKS, other)


def test_layers_that_do_not_follow_one_another():
    masks = drawn(0, first__kernel=(4, 3), second__kernel=(4, 3))
    message = "second with 4 inputs after first with 3 units; compare others with match='none'"
    with pytest.raises(ValueError, match=message):
        topology_distance(masks, masks)
    assert topology_distance(masks, masks, match="none").distance == 0
    with pytest.raises(ValueError, match="`match` must be"):
        topology_distance(masks, masks, match="some")


def test_a_model_without_masks_or_variables():
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="`a` must have masks, but has none"):
        topology_distance(dense, dense)
    with pytest.raises(ValueError, match="must be built"):
        topology_distance(keras.Sequential([SparseDense(3, sparsity=0.5)]), MASKS)


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)  # importing it raises
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras_selfish\[topology\]'"):
        topology_distance(MASKS, MASKS)
    assert topology_distance(MASKS, MASKS, match="none").distance == 0


def test_masks_are_compared_without_a_backend(run_python):
    code = """
        import sys
        import numpy as np
        from keras_selfish.analysis import topology_distance
        masks = {"kernel": np.eye(3, dtype=bool)}
        print(topology_distance(masks, masks, match="all").distance)
        print([name for name in ("keras", "tensorflow", "jax") if name in sys.modules])
    """
    assert run_python(code) == "0.0\n[]\n"
