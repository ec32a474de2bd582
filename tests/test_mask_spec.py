"""The mask arguments: checked once, the same for all layers, and what they draw."""

import dataclasses

import numpy as np
import pytest

from keras_selfish.mask_spec import MASK_ARGUMENTS, MaskSpec


def test_defaults_are_settled():
    assert dataclasses.astuple(MaskSpec()) == (0.67, "uniform", (1, 1), None, None)
    assert MaskSpec(block_shape=[4, 1]).block_shape == (4, 1)
    assert MaskSpec(n_of_m=[2, 4]) == MaskSpec(0.5, n_of_m=(2, 4))
    assert MaskSpec(0, n_of_m=(2, 4)).n_of_m is None
    assert isinstance(MaskSpec(np.float32(0.5)).sparsity, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        MaskSpec().sparsity = 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"`sparsity` is the fraction of zeros .* Received: sparsity=1.0"),
        ({"sparsity": True}, r"`sparsity` is the fraction of zeros"),
        ({"sparsity": float("nan")}, r"`sparsity` is the fraction of zeros"),
        (
            {"distribution": "even"},
            r"`distribution` must be one of uniform, erdos_renyi, erk. Received: .*'even'",
        ),
        ({"block_shape": 4}, r"`block_shape` must be two positive integers .* Received: block_shape=4"),
        ({"block_shape": 4, "n_of_m": (2, 4)}, r"`block_shape` must be two positive integers"),
        ({"mask_seed": -1}, r"`mask_seed` must be a non-negative integer. Received: mask_seed=-1"),
        ({"n_of_m": (4, 2)}, r"`n_of_m` must be two integers"),
        (
            {"n_of_m": (2, 4), "sparsity": 0.6},
            r"`sparsity` must be left out or 0.5 .* Received: sparsity=0.6",
        ),
        ({"n_of_m": (2, 4), "distribution": "erk"}, r"`n_of_m` must stand alone"),
        ({"n_of_m": (2, 4), "block_shape": (4, 1)}, r"`n_of_m` must stand alone"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskSpec(**arguments)


@pytest.mark.parametrize(
    "spec", [MaskSpec(), MaskSpec(0.9, "erk", (4, 1), mask_seed=3), MaskSpec(n_of_m=(1, 4))]
)
def test_it_is_taken_out_of_arguments_and_put_back(spec):
    config = spec.get_config()
    assert ("n_of_m" in config) == (spec.n_of_m is not None)
    arguments = {**config, "units": 8}
    assert MaskSpec.taken_from(arguments) == spec
    assert arguments == {"units": 8}
    assert set(config) <= set(MASK_ARGUMENTS)


def test_counts_of_several_weights_are_exact_together():
    shapes = [(6, 10), (10, 10)]
    for distribution in ("uniform", "erk"):
        drawn = MaskSpec(0.67, distribution).random_masks(shapes, seed=1)
        assert sum(mask.sum() for mask in drawn) == round(0.33 * 160)
        weights = [np.random.default_rng(2).normal(size=shape) for shape in shapes]
        kept = MaskSpec(0.67, distribution).largest_masks(weights, seed=1)
        assert [mask.sum() for mask in kept] == [mask.sum() for mask in drawn]
        for mask, weight in zip(kept, weights, strict=True):
            assert np.abs(weight)[mask].min() > np.abs(weight)[~mask].max()


def test_the_seed_decides():
    spec = MaskSpec(0.5)
    one, same, other = (spec.random_masks([(8, 8), (8, 8)], seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one[0] != other[0]).any()
    assert (one[0] != one[1]).any()


def test_patterns():
    (mask,) = MaskSpec(n_of_m=(2, 4)).random_masks([(8, 3)], seed=1)
    np.testing.assert_array_equal(mask.reshape(2, 4, 3).sum(1), 2)
    (mask,) = MaskSpec(n_of_m=(1, 2)).largest_masks([np.array([[1.0], [-2.0]])], seed=1)
    np.testing.assert_array_equal(mask, [[False], [True]])
    with pytest.raises(
        ValueError, match=r"`n_of_m` must divide the input weights: kernel has shape \(6, 3\)"
    ):
        MaskSpec(n_of_m=(2, 4)).check((6, 3), "kernel")
