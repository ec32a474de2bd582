import keras
import numpy as np
import pytest

from keras_selfish.variables import fill, view

pytestmark = pytest.mark.backends("tensorflow", "jax", "torch")

LARGE, SMALL = (300, 400), (3, 4)


def draw(shape, dtype="float32", seed=0):
    generator = np.random.default_rng(seed)
    variable = keras.Variable(generator.normal(size=shape), dtype=dtype, trainable=False)
    return variable, generator.random(shape) < 0.3


def float32(variable):
    return keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))


@pytest.mark.parametrize("shape", [LARGE, SMALL])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fill(shape, dtype):
    variable, positions = draw(shape, dtype)
    expected = np.where(positions, 2.0, float32(variable))
    fill(variable, positions, 2.0)
    np.testing.assert_array_equal(float32(variable), expected)
    fill(variable, ~positions, keras.Variable(3, dtype="int64", trainable=False))
    np.testing.assert_array_equal(float32(variable), np.where(positions, 2.0, 3.0))


@pytest.mark.parametrize("shape", [LARGE, SMALL])
def test_a_view_stays_as_it_is_when_the_variable_changes(shape):
    variable, positions = draw(shape)
    seen = view(variable)
    before = seen.copy()
    fill(variable, positions, 0.0)
    np.testing.assert_array_equal(seen, before)
    np.testing.assert_array_equal(view(variable), np.where(positions, 0.0, before))


@pytest.mark.parametrize("dtype", ["bool", "float32", "float64", "bfloat16", "int32"])
def test_view(dtype):
    variable, _ = draw(LARGE, dtype)
    np.testing.assert_array_equal(view(variable), keras.ops.convert_to_numpy(variable))


@pytest.mark.backends("tensorflow")  # which alone writes in place
def test_large_variables_are_read_and_written_where_they_stand():
    def stands():
        before = view(variable).ctypes.data
        fill(variable, positions, 0.0)
        return view(variable).ctypes.data == before

    variable, positions = draw(LARGE)
    variable.assign(np.ones(LARGE))
    # TensorFlow's threads may still hold what was read, and a variable that is shared is written anew.
    assert any(stands() for _ in range(20))


@pytest.mark.backends("tensorflow")
def test_every_replica_is_filled(two_replicas):
    with two_replicas.scope():
        variable, positions = draw(LARGE)
    expected = np.where(positions, 5.0, view(variable))
    fill(variable, positions, 5.0)
    for value in variable.value.values:
        np.testing.assert_array_equal(value, expected)
