import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_selfish import masks
from keras_selfish.layers import SparseDense, SparseEmbedding, SparseLSTM
from keras_selfish.masks import active_counts, masked_weights, random_mask, redraw_masks

# Two matrices that a density of 1/4 gives 20 of their 80 weights. Erdős–Rényi: (4 + 4) / 16 = 1/2 and
# (8 + 8) / 64 = 1/4, so the shares are 1/2 * 16 = 8 to 1/4 * 64 = 16, a third and two thirds of 20.
SMALL_AND_LARGE = [(4, 4), (8, 8)]
# A convolution and a matrix of 72 weights each; a density of 1/4 is 36 weights. Erdős–Rényi looks at
# (inputs, units): 6 / 8 = 3/4 to 18 / 72 = 1/4, so 27 to 9. ERK looks at all axes: 12 / 72 = 1/6 to
# 18 / 72 = 1/4, so 2/5 to 3/5 of 36, which is 14.4 to 21.6.
CONVOLUTION_AND_MATRIX = [(3, 3, 2, 4), (6, 12)]


@pytest.mark.parametrize(
    ("shapes", "sparsity", "distribution", "counts"),
    [
        ([(10, 10), (20, 5)], 0.67, "uniform", [33, 33]),
        ([(3, 3)] * 3, 0.5, "uniform", [5, 5, 4]),  # 3 * 4.5 = 13.5, and none is more than half off
        ([(650, 2600), (10_000, 650)], 0.67, "uniform", [557_700, 2_145_000]),
        (SMALL_AND_LARGE, 0.75, "uniform", [4, 16]),
        (SMALL_AND_LARGE, 0.75, "erdos_renyi", [7, 13]),
        (SMALL_AND_LARGE, 0.75, "erk", [7, 13]),
        (CONVOLUTION_AND_MATRIX, 0.75, "erdos_renyi", [27, 9]),
        (CONVOLUTION_AND_MATRIX, 0.75, "erk", [14, 22]),
        # 1 * 4 to 1/5 * 100 of 52 would be 8.7 to 43.3: the first has 4 weights only, the other the rest.
        ([(2, 2), (10, 10)], 0.5, "erdos_renyi", [4, 48]),
        # Both small ones saturate, one after the other: 63 - 4 - 9 are left for the third.
        ([(2, 2), (3, 3), (10, 10)], 1 - 63 / 113, "erk", [4, 9, 50]),
        ([(2, 2), (10, 10)], 0.9, "uniform", [1, 10]),  # never none: 0.4 is raised to 1
        ([(5, 5)], 0.99, "uniform", [1]),
    ],
)
def test_active_counts(shapes, sparsity, distribution, counts):
    assert active_counts(shapes, sparsity, distribution) == counts


@pytest.mark.parametrize(
    ("block_shape", "sparsity", "blocks"),
    [((4, 1), 0.5, 12), ((1, 4), 0.5, 12), ((2, 2), 0.5, 12), ((8, 12), 0.9, 1), ((4, 1), 0.67, 8)],
)
def test_counts_of_blocks(block_shape, sparsity, blocks):
    """A matrix (8, 12) has 24 blocks of four weights."""
    assert active_counts([(8, 12)], sparsity, block_shapes=[block_shape]) == [blocks]


def test_counts_of_different_blocks():
    # Half of 16 + 32 weights: 2 blocks of 4 in the first, 16 single weights in the second.
    assert active_counts([(4, 4), (4, 8)], 0.5, block_shapes=[(2, 2), (1, 1)]) == [2, 16]


shapes = st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple), min_size=1, max_size=5)
sparsities = st.floats(0, 1, exclude_max=True)
distributions = st.sampled_from(masks.DISTRIBUTIONS)
block_shapes = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(shapes, sparsities, distributions)
def test_counts_add_up(shapes, sparsity, distribution):
    counts = active_counts(shapes, sparsity, distribution)
    sizes = [int(np.prod(shape)) for shape in shapes]
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    total = (1 - sparsity) * sum(sizes)
    if all(count > 1 for count in counts):  # nothing had to be raised to one
        assert abs(sum(counts) - total) <= 0.5 + 1e-6
    else:
        assert sum(counts) >= total - 0.5 - 1e-6


@given(shapes, distributions)
def test_sparsity_zero_is_dense(shapes, distribution):
    assert active_counts(shapes, 0.0, distribution) == [int(np.prod(shape)) for shape in shapes]


@given(block_shapes, st.tuples(st.integers(1, 5), st.integers(1, 5)), st.data())
def test_random_mask(block_shape, grid, data):
    shape = (grid[0] * block_shape[0], grid[1] * block_shape[1])
    active = data.draw(st.integers(0, grid[0] * grid[1]))
    seed = data.draw(st.integers(0, 2**32))
    mask = random_mask(shape, active, seed, block_shape)
    assert mask.shape == shape
    assert mask.dtype == bool
    # Every block, cut out by hand, is whole or empty, and the exact number of them is whole.
    rows, units = block_shape
    blocks = [
        mask[i : i + rows, j : j + units] for i in range(0, shape[0], rows) for j in range(0, shape[1], units)
    ]
    assert all(block.all() or not block.any() for block in blocks)
    assert sum(block.all() for block in blocks) == active
    np.testing.assert_array_equal(mask, random_mask(shape, active, seed, block_shape))


@given(st.integers(0, 2**31))
def test_different_seeds_give_different_masks(seed):
    first, second = random_mask((40, 40), 800, seed), random_mask((40, 40), 800, seed + 1)
    # Two independent masks of density 1/2 agree at half of the positions: 800, standard deviation 20.
    assert 640 < np.count_nonzero(first == second) < 960
    assert (random_mask((40, 40), 800, [seed, 0]) != random_mask((40, 40), 800, [seed, 1])).any()


def test_random_masks_are_uniform():
    total = sum(random_mask((3, 4), 5, seed).astype(int) for seed in range(2000))
    # Each of 12 positions is drawn with probability 5/12: 833 times, standard deviation 22.
    assert abs(total - 2000 * 5 / 12).max() < 5 * 22


def test_masks_of_convolutions():
    mask = random_mask((3, 3, 4, 2), 9, 1, (2, 1))
    assert mask.sum() == 18
    np.testing.assert_array_equal(mask[:, :, 0::2], mask[:, :, 1::2])


def test_expand_and_view_blocks():
    blocks = np.array([[True, False], [False, True]])
    expanded = masks.expand_blocks(blocks, (2, 1))
    assert expanded.astype(int).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert masks.block_grid((4, 2), (2, 1)) == (2, 2)
    assert masks.block_view(expanded, (2, 1)).all(axis=(-3, -1)).tolist() == blocks.tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: active_counts([(4, 4)], 1.0), r"`sparsity`.* \[0, 1\)\. Received: sparsity=1\.0"),
        (lambda: active_counts([(4, 4)], -0.1), r"`sparsity`.* Received: sparsity=-0\.1"),
        (lambda: active_counts([(4, 4)], float("nan")), r"`sparsity`.* Received: sparsity=nan"),
        (lambda: active_counts([(4, 4)], "0.5"), r"`sparsity`.* Received: sparsity='0\.5'"),
        (lambda: active_counts([(4, 4)], True), r"`sparsity`.* Received: sparsity=True"),
        (lambda: active_counts([(4, 4)], None), r"`sparsity`.* Received: sparsity=None"),
        (
            lambda: active_counts([(4, 4)], 0.5, "normal"),
            r"`distribution` must be one of uniform, erdos_renyi, erk\. Received: distribution='normal'",
        ),
        (
            lambda: active_counts([(6, 4)], 0.5, block_shapes=[(4, 1)]),
            r"`block_shape` must divide the matrix.* \(6, 4\)\. Received: block_shape=\(4, 1\)",
        ),
        (lambda: random_mask((4, 4), 17, 1), r"`active` must be in \[0, 16\].* Received: active=17"),
        (lambda: random_mask((4, 4), -1, 1), r"`active` must be in \[0, 16\].* Received: active=-1"),
        (lambda: random_mask((4, 4), 1, 1, (0, 1)), r"`block_shape` must be two positive.*=\(0, 1\)"),
        (lambda: random_mask((4, 4), 1, 1, (1,)), r"`block_shape` must be two positive.*=\(1,\)"),
        (lambda: random_mask((4, 4), 1, 1, (1.0, 2)), r"`block_shape` must be two positive.*=\(1\.0, 2\)"),
        (lambda: masks.check_seed(-1), r"`seed` must be a non-negative integer\. Received: seed=-1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def dense_model(sparsity=0.5, **kwargs):
    layers = [SparseDense(units, sparsity=sparsity, mask_seed=1, **kwargs) for units in (4, 8, 8)]
    return keras.Sequential([keras.Input((4,)), *layers])


def test_distribute_gives_the_model_one_budget():
    model = dense_model()  # kernels (4, 4), (4, 8), (8, 8): 112 weights
    redraw_masks(model, 0.75, "erdos_renyi", seed=3)
    # 1/2 * 16 + 3/8 * 32 + 1/4 * 64 = 36 for 28 connections: 6.2, 9.3 and 12.4.
    assert [weight.active for weight in masked_weights(model)] == [6, 9, 13]
    for weight in masked_weights(model):
        np.testing.assert_array_equal(np.asarray(weight.weight) != 0, np.asarray(weight.mask))


def test_distribute_depends_on_its_seed_only():
    def drawn(seed):
        model = dense_model()
        redraw_masks(model, 0.5, seed=seed)
        return [np.asarray(weight.mask) for weight in masked_weights(model)]

    np.testing.assert_equal(drawn(1), drawn(1))
    assert any((a != b).any() for a, b in zip(drawn(1), drawn(2), strict=True))


def test_distribute_keeps_blocks_whole():
    model = dense_model(block_shape=(4, 1))
    redraw_masks(model, 0.5, "erk", seed=1)
    for weight in masked_weights(model):
        blocks = np.asarray(weight.mask).reshape(-1, 4, weight.shape[1])
        assert (blocks.all(1) == blocks.any(1)).all()
    assert sum(weight.active for weight in masked_weights(model)) == 56


def test_distribute_checks_before_it_changes_anything():
    model = dense_model()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"`sparsity` .* Received: sparsity=1\.5"):
        redraw_masks(model, 1.5)
    with pytest.raises(ValueError, match=r"`distribution` .* Received: distribution='rigl'"):
        redraw_masks(model, 0.5, "rigl")
    with pytest.raises(ValueError, match=r"`seed` .* Received: seed=-2"):
        redraw_masks(model, 0.5, seed=-2)
    np.testing.assert_equal(model.get_weights(), before)
    with pytest.raises(ValueError, match="`model` must have masked weights, but has none"):
        redraw_masks(dense_model(sparsity=0), 0.5)


def test_masked_weight_of_a_lstm():
    layer = SparseLSTM(2, sparsity=0.5, mask_seed=1)
    layer.build((None, None, 2))
    kernel, recurrent_kernel = masked_weights(layer)
    assert kernel.weight is layer.cell.kernel
    assert recurrent_kernel.weight is layer.cell.recurrent_kernel
    assert (kernel.shape, kernel.gates, kernel.gate_axis) == ((2, 8), ("i", "f", "c", "o"), -1)
    assert kernel.name.endswith("lstm_cell/kernel")
    # Gates i, f, c and o are two units wide each.
    kernel.mask.assign(np.array([[1, 1, 0, 0, 0, 1, 1, 0], [1, 1, 0, 0, 1, 1, 0, 0]], bool))
    assert kernel.gate_densities() == {"i": 1.0, "f": 0.0, "c": 0.75, "o": 0.25}
    assert kernel.active == 8
    kernel.weight.assign(np.arange(16.0).reshape(2, 8) + 1)
    kernel.project()
    assert np.asarray(kernel.weight).tolist() == [[1, 2, 0, 0, 0, 6, 7, 0], [9, 10, 0, 0, 13, 14, 0, 0]]


def test_masked_weight_without_gates():
    model = dense_model()
    assert masked_weights(model)[0].gate_densities() == {"all": 0.5}


def test_masked_weights_are_found_in_every_kind_of_model():
    inputs = keras.Input((3,), dtype="int32")
    shared = SparseDense(4, name="shared")
    inner = keras.Sequential([keras.Input((None, 4)), SparseLSTM(4, name="lstm"), shared], name="inner")
    embedded = SparseEmbedding(5, 4, name="embedding")(inputs)
    outputs = keras.layers.Dense(4)(shared(inner(embedded)))
    model = keras.Model(inputs, outputs)
    names = [weight.weight.path for weight in masked_weights(model)]
    assert len(names) == 4  # the shared kernel once
    assert ["/".join(name.split("/")[-2:]) for name in names] == [
        "embedding/embeddings",
        "lstm_cell/kernel",
        "lstm_cell/recurrent_kernel",
        "shared/kernel",
    ]

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [model, keras.layers.TimeDistributed(SparseDense(2))]

        def call(self, inputs):
            outputs = self.blocks[0](inputs)
            return self.blocks[1](outputs[:, None])

    subclassed = Subclassed()
    assert len(masked_weights(subclassed)) == 4  # the rest is not built yet
    subclassed(np.zeros((2, 3), "int32"))
    assert masked_weights(subclassed)[:4] == masked_weights(model)
    assert len(masked_weights(subclassed)) == 5
    assert masked_weights(keras.layers.Dense(2)) == []


@given(
    active=st.integers(0, 12),
    block_shape=st.sampled_from([(1, 1), (2, 1), (1, 2)]),
    values=st.lists(st.integers(-2, 2), min_size=24, max_size=24),
)
def test_the_largest_blocks_are_counted_exactly_with_ties(active, block_shape, values):
    weight = np.array(values, "float32").reshape(4, 6)
    mask = masks.largest_mask(weight, active, 3, block_shape)
    np.testing.assert_array_equal(mask, masks.largest_mask(weight, active, 3, block_shape))
    height, width = block_shape
    blocks = mask.reshape(4 // height, height, 6 // width, width)
    np.testing.assert_array_equal(blocks.all((1, 3)), blocks.any((1, 3)))
    chosen = blocks.all((1, 3))
    assert chosen.sum() == active
    norms = np.square(weight).reshape(blocks.shape).sum((1, 3))
    if 0 < active < chosen.size:
        assert norms[chosen].min() >= norms[~chosen].max()


def test_what_has_no_largest_blocks():
    with pytest.raises(ValueError, match=r"`weight` must be numbers\. Received: NaN"):
        masks.largest_mask(np.array([[1.0, np.nan]]), 1, 0)
    with pytest.raises(ValueError, match=r"`active` must be in \[0, 2\], .* Received: active=3"):
        masks.largest_mask(np.ones((1, 2)), 3, 0)


def test_a_vector_has_no_blocks():
    assert masks.active_counts([(8,), (4, 4)], 0.5) == [4, 8]
    assert masks.random_mask((8,), 3, 0).sum() == 3
    with pytest.raises(ValueError, match=r"`block_shape` must be \(1, 1\) for a vector"):
        masks.random_mask((8,), 3, 0, (2, 1))
