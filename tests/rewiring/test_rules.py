"""The rules of the published methods, each by hand."""

import types

import numpy as np
import pytest

from keras_selfish.rewiring import rules

WEIGHT = np.array([[0.5, -0.1, 0.0, 0.0], [0.2, -0.9, 0.3, 0.0]], np.float32)
MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)
GRADIENT = np.array([[1.0, -2.0, 3.0, -4.0], [0.1, 0.0, -0.5, 0.25]], np.float32)


def matrix(weight=WEIGHT, mask=MASK, block_shape=(1, 1), seed=0):
    return rules.Matrix(
        weight,
        mask,
        types.SimpleNamespace(block_shape=block_shape, n_of_m=None),
        gradient=GRADIENT,
        generator=np.random.default_rng(seed),
    )


def test_magnitude():
    np.testing.assert_array_equal(rules.magnitude(matrix()), np.abs(WEIGHT))


def test_magnitude_by_sign():
    positive, negative = rules.magnitude_by_sign(matrix())
    inf = np.inf
    np.testing.assert_array_equal(positive, np.float32([[0.5, inf, inf, inf], [0.2, inf, 0.3, inf]]))
    # A weight of zero, that nothing has trained yet, stands with the negative ones.
    np.testing.assert_array_equal(negative, np.float32([[inf, 0.1, 0, 0], [inf, 0.9, inf, 0]]))


def test_magnitude_by_sign_of_blocks():
    positive, negative = rules.magnitude_by_sign(matrix(block_shape=(2, 1)))
    np.testing.assert_allclose(positive, [[np.hypot(0.5, 0.2), np.inf, 0.3, np.inf]], rtol=1e-6)
    np.testing.assert_allclose(negative, [[np.inf, np.hypot(0.1, 0.9), np.inf, 0.0]], rtol=1e-6)


def test_sensitivity():
    np.testing.assert_allclose(rules.sensitivity(matrix()), [[0.5, 0.2, 0, 0], [0.02, 0, 0.15, 0]], rtol=1e-6)


def test_magnitude_and_gradient():
    """The connections have a mean magnitude of 0.4 and gradients of 0.72 on average."""
    scores = rules.magnitude_and_gradient(matrix())
    expected = [
        0.5 / 0.4 + 1 / 0.72,
        0.1 / 0.4 + 2 / 0.72,
        0.2 / 0.4 + 0.1 / 0.72,
        0.9 / 0.4,
        0.3 / 0.4 + 0.5 / 0.72,
    ]
    np.testing.assert_allclose(scores[MASK], expected, rtol=1e-6)
    without = rules.magnitude_and_gradient(matrix(weight=np.zeros_like(WEIGHT)))
    np.testing.assert_allclose(without, np.abs(GRADIENT) / 0.72, rtol=1e-6)


@pytest.mark.parametrize("rule", [rules.gradient, rules.momentum])
def test_growth_by_gradient(rule):
    np.testing.assert_array_equal(rule(matrix()), np.abs(GRADIENT))


def test_random_growth_has_no_scores():
    assert rules.random(matrix()) is None


def test_guided_growth_looks_at_as_many_places_as_there_are_connections():
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], bool)
    subsets = set()
    for seed in range(50):
        scores = rules.guided(matrix(mask=mask, seed=seed))
        chosen = scores >= 0
        assert chosen.sum() == 2
        assert not (chosen & mask).any()
        np.testing.assert_array_equal(scores[chosen], np.abs(GRADIENT)[chosen])
        subsets.add(tuple(np.flatnonzero(chosen)))
    assert len(subsets) > 8  # of 15


def test_redistribution():
    kept = np.array([[1, 0, 0, 0], [1, 1, 0, 0]], bool)
    left = matrix(np.where(kept, WEIGHT, 0), kept)
    assert rules.nonzeros(left) == 3.0
    assert rules.mean_magnitude(left) == pytest.approx((0.5 + 0.2 + 0.9) / 3)
    assert rules.mean_momentum(left) == pytest.approx((1.0 + 0.1 + 0.0) / 3)


def test_a_matrix_that_lost_everything_has_no_share():
    nothing = matrix(np.zeros_like(WEIGHT), np.zeros_like(MASK))
    for rule in filter(None, rules.REDISTRIBUTION_RULES.values()):
        assert rule(nothing) == 0.0


def test_batches_needed():
    assert rules.batches_needed(rules.magnitude, rules.random, None) == 0
    assert rules.batches_needed(rules.magnitude, rules.gradient, rules.mean_momentum) == 10
