"""Arrays that are stored without their most frequent value."""

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from keras_selfish.packing import SMALLEST_PACKED, pack, pack_masked, unpack_masked, unpacked

DTYPES = ("bool", "int8", "float16", ml_dtypes.bfloat16, "float32", "float64", "complex64", "complex128")


def bits(array):
    return array.dtype, array.shape, array.tobytes()


def size(store):
    return sum(array.nbytes for array in store.values())


def array_of(dtype, shape, density, seed):
    """One value, and any bits of others where a random number is below the density."""
    generator = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    highest = 2 if dtype.kind == "b" else 256
    of_bytes = generator.integers(0, highest, (2, *shape, dtype.itemsize), dtype="uint8")
    others = of_bytes.view(dtype)[..., 0]
    return np.where(generator.random(shape) < density, others[0], others[1].flat[0] if others.size else 0)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 60), max_size=3).map(tuple),
    density=st.sampled_from([0.0, 0.1, 0.33, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_any_array_comes_back_bit_for_bit(dtype, shape, density, seed):
    array = array_of(dtype, shape, density, seed)
    store = {}
    pack(store, "a", array)
    assert bits(unpacked(store)["a"]) == bits(array)
    assert size(store) <= array.nbytes + 64


@pytest.mark.parametrize("common", [0.0, -0.0, -1.0, np.nan])
def test_what_is_stored_is_what_differs(common):
    array = np.full((100, 100), common, "float32")
    array[:, 3] = np.arange(100)
    array[7, 3] = -0.0  # which is not 0.0
    store = {}
    pack(store, "a", array)
    different = array.view("uint32") != np.float32(common).view("uint32")
    assert {key: value.size for key, value in store.items()} == {
        "a": 1 + different.sum(),
        "a_bits": 1250,
        "a_shape": 2,
    }
    np.testing.assert_array_equal(store["a"][1:], array[different])
    assert bits(unpacked(store)["a"]) == bits(array)


def test_small_arrays_and_those_without_a_frequent_value_are_stored_as_they_are():
    store, small = {}, np.zeros(SMALLEST_PACKED - 1)
    numbers = np.random.default_rng(0).normal(size=10_000)
    pack(store, "small", small)
    pack(store, "numbers", numbers)
    assert set(store) == {"small", "numbers"}
    assert store["small"] is small
    assert store["numbers"] is numbers


def test_arrays_of_earlier_versions_are_read_as_they_are():
    store = {"0": np.eye(64), "1": np.eye(64, dtype=bool)}
    assert {key: bits(array) for key, array in unpacked(store).items()} == {
        key: bits(array) for key, array in store.items()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a_bits": np.zeros(7, "uint8")},
            r"bits of 'a' must be 1250 bytes .* Received: uint8 of shape \(7,\)",
        ),
        ({"a_bits": np.zeros(1250)}, r"bits of 'a' must be 1250 bytes .* Received: float64"),
        ({"a_shape": np.array([100, 101])}, r"bits of 'a' must be 1263 bytes .* \(100, 101\)"),
        ({"a": np.zeros(5, "float32")}, r"values of 'a' must be as many as its bits tell, 100\. .*\(4,\)"),
        ({"a": np.zeros(0, "float32")}, r"values of 'a' must be as many as its bits tell, 100"),
        ({"a": None}, r"must have values. Received: a shape without any for 'a'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_sentence(changes, message):
    store = {}
    pack(store, "a", np.eye(100, dtype="float32"))
    store = {key: value for key, value in {**store, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as caught:
        unpacked(store)
    assert "\n" not in str(caught.value)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    density=st.sampled_from([0.0, 0.33, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_masked_weights_come_back_bit_for_bit(shape, density, seed):
    generator = np.random.default_rng(seed)
    mask = generator.random(shape) < density
    weight = np.where(mask, generator.normal(size=shape).astype("float32"), np.float32(0))
    weight[mask & (generator.random(shape) < 0.2)] = -0.0
    store, arrays = {}, {"0": weight, "1": np.ones(3), "2": mask}
    pack_masked(store, arrays, [("0", "2")])
    assert store["0"].shape == (mask.sum(),)
    assert store["2"].nbytes == -(-mask.size // 8)
    loaded = unpack_masked(store, [("0", "2", shape)], "layer")
    assert {key: bits(array) for key, array in loaded.items()} == {k: bits(a) for k, a in arrays.items()}


@pytest.mark.parametrize("outside", [1.0, -0.0])
def test_a_weight_that_is_not_zero_outside_its_mask_is_stored_whole(outside):
    weight, mask = np.full((4, 6), outside, "float32"), np.zeros((4, 6), bool)
    mask[1] = True
    store = {}
    pack_masked(store, {"0": weight, "m": mask}, [("0", "m")])
    loaded = unpack_masked(store, [("0", "m", (4, 6))], "layer")
    assert (bits(loaded["0"]), bits(loaded["m"])) == (bits(weight), bits(mask))
