"""Presets that a user adds."""

import dataclasses

import pytest

from keras_selfish.models import language_model, presets


@pytest.fixture(autouse=True)
def _own_table(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", dict(presets.PRESETS))


def test_a_preset_differs_from_its_base_in_what_is_given():
    base = presets.preset("wt2_awd_lstm_small")
    small = {"units": [12, 8], "embedding_units": 8}
    presets.register_preset("mine", "wt2_awd_lstm_small", small, {"bptt": 9})
    found = presets.preset("mine")
    changed = {"units": (12, 8), "embedding_units": 8}
    assert found.architecture.get_config() == dataclasses.replace(base.architecture, **changed).get_config()
    assert found.training == dataclasses.replace(base.training, bptt=9)
    assert presets.preset("wt2_awd_lstm_small") == base
    assert language_model("mine", 50).architecture.layer_units == (12, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quick", "ptb_lstm"), r"`name` must be new. Received: name='quick'"),
        (("mine", "none"), r"`preset` must be one of .*Received: preset='none'"),
        (("mine", "quick", {"unit": 3}), r"`model` must be settings of units, .*Received: 'unit'"),
        (("mine", "quick", {"vocabulary_size": 3}), r"`model` must be settings of"),
        (("mine", "quick", None, {"epoch": 3}), r"`training` must be settings of .*Received: 'epoch'"),
        (("mine", "quick", {"dropout": 2.0}), r"`dropout` must be .*\[0, 1\)"),
    ],
)
def test_what_makes_no_preset_is_refused_and_not_added(arguments, message):
    before = set(presets.PRESETS)
    with pytest.raises(ValueError, match=message):
        presets.register_preset(*arguments)
    assert set(presets.PRESETS) == before
