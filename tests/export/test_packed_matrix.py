import hypothesis
import hypothesis.extra.numpy
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from keras_selfish.export.packed_matrix import is_worth_packing, pack

pytestmark = pytest.mark.backends("tensorflow", "jax")


def unpacked(packed):
    """The matrix, value by value."""
    rows, columns = packed.shape
    block_rows, block_columns = packed.block_shape
    bits = "".join(f"{byte:08b}" for byte in packed.mask)
    values = list(packed.values)
    matrix = np.zeros(packed.shape, packed.values.dtype)
    for row in range(rows):
        for column in range(columns):
            block = row // block_rows * (columns // block_columns) + column // block_columns
            if bits[block] == "1":
                matrix[row, column] = values.pop(0)
    assert values == []
    return matrix


def sparse(shape, block_shape=(1, 1), density=0.3, seed=0):
    random = np.random.default_rng(seed)
    is_kept = random.random([side // block for side, block in zip(shape, block_shape, strict=True)]) < density
    return np.where(np.kron(is_kept, np.ones(block_shape)), random.normal(size=shape), 0).astype("float32")


def test_bits_and_values_stand_row_by_row():
    packed = pack(np.array([[0, 5, 0], [7, 0, -1], [0, 0, 2]], "float32"))
    assert packed.block_shape == (1, 1)
    assert [f"{byte:08b}" for byte in packed.mask] == ["01010100", "10000000"]
    assert packed.values.tolist() == [5, 7, -1, 2]
    numbers = np.array([5, 7, -1, 2], "<f4").tobytes()
    assert packed.to_bytes() == numbers + bytes([0b01010100, 0b10000000])


@pytest.mark.parametrize("block_shape", [(1, 1), (4, 1), (1, 4), (16, 1), (2, 2)])
def test_blocks_take_a_bit_each(block_shape):
    matrix = sparse((32, 64), block_shape)
    packed = pack(matrix)
    assert packed.block_shape == block_shape
    assert packed.mask.size == matrix.size // np.prod(block_shape) // 8
    np.testing.assert_array_equal(unpacked(packed), matrix)


@hypothesis.given(
    hypothesis.extra.numpy.arrays(
        np.uint32,
        st.tuples(st.integers(1, 8), st.integers(1, 8)),
        elements=st.one_of(st.just(0), st.integers(0, 2**32 - 1)),
    )
)
def test_any_bits_come_back(bits):
    """Denormals and NaNs, too; of a negative zero its sign may go."""
    matrix = bits.view("float32")
    result = unpacked(pack(matrix)).view("uint32")
    np.testing.assert_array_equal(np.where(matrix == 0, 0, result), np.where(matrix == 0, 0, bits))
    assert not unpacked(pack(matrix))[matrix == 0].any()


def test_bfloat16_is_rounded_to_nearest():
    matrix = np.concatenate([sparse((64, 64)), [[np.inf, np.nan, 1e-45, 3e38] * 16]]).astype("float32")
    matrix[0, :4] = np.array([0x3F808000, 0x3F818000, 0x3F818001, 0xBF808001], "uint32").view("float32")
    expected = matrix.astype(ml_dtypes.bfloat16).astype("float32")
    upper = unpacked(pack(matrix, "bfloat16")).astype("uint32") << 16
    np.testing.assert_array_equal(upper.view("float32"), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_int8_has_the_scales_that_err_less(axis):
    matrix = sparse((32, 48)) * np.exp2(np.arange((32, 48)[1 - axis], dtype="float32") / 4).reshape(
        (1, -1) if axis == 0 else (-1, 1)
    )
    matrix[3], matrix[:, 5] = 0, 0
    packed = pack(matrix, "int8")
    assert packed.scales.shape == ((1, 48) if axis == 0 else (32, 1))
    np.testing.assert_allclose(
        packed.scales, np.where((m := np.abs(matrix).max(axis, keepdims=True)) > 0, m / 127, 1), rtol=1e-6
    )
    difference = np.abs(unpacked(packed) * packed.scales - matrix)
    assert (difference <= packed.scales * 0.5001).all()
    assert np.abs(packed.values).max() == 127


def test_int8_needs_finite_weights():
    matrix = sparse((8, 8))
    matrix[1, 2] = np.nan
    with pytest.raises(ValueError, match='`packed` must be "float32" or "bfloat16" for weights that are not'):
        pack(matrix, "int8")


@pytest.mark.parametrize(
    ("shape", "density", "expected"),
    [((256, 256), 0.33, True), ((256, 256), 0.8, True), ((256, 256), 0.95, False), ((32, 32), 0.1, False)],
)
def test_only_large_sparse_matrices_are_worth_it(shape, density, expected):
    assert is_worth_packing(sparse(shape, density=density)) == expected
