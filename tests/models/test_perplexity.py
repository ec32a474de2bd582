"""Perplexity against a NumPy loop."""

import keras
import numpy as np
import pytest

from keras_selfish import Perplexity


def expected_perplexity(batches):
    total, tokens = 0.0, 0
    for targets, logits in batches:
        for target, row in zip(targets.ravel(), logits.reshape(-1, logits.shape[-1]), strict=True):
            total += np.log(np.exp(row.astype("float64")).sum()) - row[target]
            tokens += 1
    return np.exp(total / tokens)


def make_batches():
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, 6, (3, length)), rng.normal(size=(3, length, 6)).astype("float32") * 3)
        for length in (5, 5, 2)
    ]


def test_tokens_count_the_same_in_windows_of_any_length():
    metric = Perplexity()
    for targets, logits in make_batches():
        metric.update_state(targets, logits)
    assert float(metric.result()) == pytest.approx(expected_perplexity(make_batches()), rel=1e-5)
    metric.reset_state()
    assert float(metric.result()) == 1.0  # exp(0): nothing seen


def test_probabilities():
    metric = Perplexity(from_logits=False)
    for targets, logits in make_batches():
        metric.update_state(targets, keras.ops.softmax(logits))
    assert float(metric.result()) == pytest.approx(expected_perplexity(make_batches()), rel=1e-5)


def test_weights_leave_tokens_out():
    targets, logits = make_batches()[0]
    weights = np.ones(targets.shape, "float32")
    weights[:, 3:] = 0
    metric = Perplexity()
    metric.update_state(targets, logits, sample_weight=weights)
    assert float(metric.result()) == pytest.approx(
        expected_perplexity([(targets[:, :3], logits[:, :3])]), rel=1e-5
    )


def test_config():
    metric = Perplexity.from_config(Perplexity(from_logits=False, name="p").get_config())
    assert (metric.from_logits, metric.name) == (False, "p")
