"""Published settings, as data.

A preset has two parts: arguments of the model, and arguments of its training. Importing this module loads
neither Keras nor a backend.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_selfish.models.architecture import Architecture

VOCABULARY_SIZES = {"ptb": 10_000, "wikitext2": 33_278}

_TRAINING = {
    "dataset": "ptb",
    "batch_size": 20,
    "bptt": 35,
    "random_lengths": False,
    "clipnorm": 0.25,
    "weight_decay": 1.2e-6,
    "pruning_rate": 0.5,
    "patience": 5,
    "restart_epochs": (),
    "evaluation_columns": None,
}

# What the models of the AWD-LSTM family share, at the published sizes and at ours.
_AWD = {"locked": True, "embedding_dropout": 0.1, "ar": 2.0, "tar": 1.0, "sparsity": 0.55, "tied": True}
_SMALL_AWD = {
    **_AWD,
    "input_dropout": 0.15,
    "hidden_dropout": 0.15,
    "output_dropout": 0.2,
    "embedding_dropout": 0.05,
}
# Where the code of the ON-LSTM differs from that of the AWD-LSTM.
_DROP_CONNECT = {"weight_drop_scaling": "inference"}
_ON_LSTM = {"ar_before_dropout": True, "kernel_limit": "inputs"}
_SMALL = {**_TRAINING, "epochs": 14, "patience": 2}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Liu et al. 2021, arXiv 2101.09048: Penn Treebank, 73.79 / 71.65 validation / test perplexity.
    "ptb_lstm": {
        "model": {"units": 1500, "layers": 2, "dropout": 0.65, "sparsity": 0.67},
        "training": {**_TRAINING, "epochs": 100, "learning_rate": 40.0, "pruning_rate": 0.8},
    },
    # Same source: 62.10 / 60.35. The model: Zilly et al. 2017, arXiv 1607.03474.
    "ptb_rhn": {
        "model": {
            "cell": "rhn",
            "cell_options": {"depth": 10, "coupled": True, "recurrent_dropout": 0.25},
            "units": 830,
            "layers": 1,
            "input_dropout": 0.65,
            "output_dropout": 0.65,
            "locked": True,
            "embedding_dropout": 0.2,
            "sparsity": 0.528,
            "tied": True,
        },
        "training": {**_TRAINING, "epochs": 500, "learning_rate": 15.0},
    },
    # Same source: 58.17 / 56.31. The model: Shen et al. 2019, arXiv 1810.09536.
    "ptb_onlstm": {
        "model": {
            "cell": "on_lstm",
            "cell_options": {"chunk_size": 10, "weight_drop": 0.45, **_DROP_CONNECT},
            "units": [1150, 1150, 400],
            "embedding_units": 400,
            "input_dropout": 0.5,
            "hidden_dropout": 0.3,
            "output_dropout": 0.45,
            **_AWD,
            **_ON_LSTM,
        },
        "training": {
            **_TRAINING,
            "epochs": 1000,
            "bptt": 70,
            "random_lengths": True,
            "learning_rate": 15.0,
            "restart_epochs": (500, 1000),
            "evaluation_columns": 10,
        },
    },
    # Merity et al. 2018, arXiv 1708.02182: WikiText-2, dense, 68.6 / 65.8. Sparsity and rewiring are ours.
    "wt2_awd_lstm": {
        "model": {
            "cell_options": {"weight_drop": 0.5},
            "units": [1150, 1150, 400],
            "embedding_units": 400,
            "input_dropout": 0.65,
            "hidden_dropout": 0.2,
            "output_dropout": 0.4,
            **_AWD,
        },
        "training": {
            **_TRAINING,
            "dataset": "wikitext2",
            "epochs": 750,
            "batch_size": 80,
            "bptt": 70,
            "random_lengths": True,
            "learning_rate": 30.0,
            "evaluation_columns": 10,
        },
    },
    # Liu et al. 2021: WikiText-2, 65.96 / 63.05. The model: Yang et al. 2018, arXiv 1711.03953, patience,
    # output, word and weight dropout, AR and TAR being the defaults of their code (zihangdai/mos, main.py).
    # The sources leave open the pruning rate: chosen by us.
    "wt2_awd_lstm_mos": {
        "model": {
            "cell_options": {"weight_drop": 0.5},
            "units": [1150, 1150, 650],
            "embedding_units": 300,
            "input_dropout": 0.55,
            "hidden_dropout": 0.2,
            "output_dropout": 0.4,
            "latent_dropout": 0.29,
            "experts": 15,
            **_AWD,
        },
        "training": {
            **_TRAINING,
            "dataset": "wikitext2",
            "epochs": 1000,
            "batch_size": 15,
            "bptt": 70,
            "random_lengths": True,
            "learning_rate": 15.0,
            "evaluation_columns": 10,
        },
    },
    # Ours, from here on: sizes that two cores train, on the Penn Treebank, and dropout to match.
    "ptb_lstm_small": {
        "model": {"units": 256, "layers": 2, "dropout": 0.25, "sparsity": 0.67},
        "training": {**_SMALL, "learning_rate": 40.0, "pruning_rate": 0.8},
    },
    # To be exported to LiteRT in int8, whose kernel skips blocks of 16 (docs/serving.md).
    "ptb_lstm_blocks": {
        "model": {"units": 656, "layers": 2, "dropout": 0.4, "sparsity": 0.9, "block_shape": (16, 1)},
        "training": {**_TRAINING, "epochs": 40, "learning_rate": 40.0, "pruning_rate": 0.8},
    },
    "ptb_rhn_small": {
        "model": {
            "cell": "rhn",
            "cell_options": {"depth": 4, "coupled": True, "recurrent_dropout": 0.1},
            "units": 256,
            "layers": 1,
            "input_dropout": 0.2,
            "output_dropout": 0.25,
            "locked": True,
            "embedding_dropout": 0.05,
            "sparsity": 0.528,
            "tied": True,
        },
        "training": {**_SMALL, "learning_rate": 15.0},
    },
    "ptb_onlstm_small": {
        "model": {
            "cell": "on_lstm",
            "cell_options": {"chunk_size": 10, "weight_drop": 0.1, **_DROP_CONNECT},
            "units": [250, 200],
            "embedding_units": 200,
            **_SMALL_AWD,
            **_ON_LSTM,
        },
        "training": {**_SMALL, "random_lengths": True, "learning_rate": 15.0},
    },
    "wt2_awd_lstm_small": {
        "model": {
            "cell_options": {"weight_drop": 0.1},
            "units": [256, 256, 200],
            "embedding_units": 200,
            **_SMALL_AWD,
        },
        "training": {**_SMALL, "random_lengths": True, "learning_rate": 20.0},
    },
    "wt2_awd_lstm_mos_small": {
        "model": {
            "cell_options": {"weight_drop": 0.1},
            "units": [256, 200],
            "embedding_units": 120,
            "latent_dropout": 0.1,
            "experts": 3,
            **_SMALL_AWD,
        },
        "training": {**_SMALL, "random_lengths": True, "learning_rate": 15.0},
    },
    # A few minutes on two cores, on the text that every Python carries.
    "quick": {
        "model": {"units": 128, "layers": 2, "dropout": 0.3, "sparsity": 0.67},
        "training": {
            **_TRAINING,
            "dataset": "python_docs",
            "epochs": 12,
            "batch_size": 10,
            "learning_rate": 20.0,
            "pruning_rate": 0.8,
        },
    },
}


def preset(name: str) -> dict[str, dict[str, Any]]:
    """The settings of a preset.

    Args:
        name: One of the keys of `PRESETS`.

    Returns:
        A dict with the parts `"model"` and `"training"`, each a new dict.

    Raises:
        ValueError: if there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(sorted(PRESETS))}. Received: preset={name!r}")
    return {part: dict(settings) for part, settings in PRESETS[name].items()}


def register_preset(
    name: str, base: str, model: dict[str, Any] | None = None, training: dict[str, Any] | None = None
) -> None:
    """Adds a preset to `PRESETS`, where `language_model` and the trainer find it.

    The trainer lists the presets that there are when it is imported.

    Args:
        name: Its name.
        base: Name of the preset that has all other settings.
        model: Settings of `Architecture` in which it differs. Default None.
        training: Settings of training in which it differs. Default None.

    Raises:
        ValueError: for a name that is taken, an unknown base, or a setting that there is not.

    Example:

    >>> register_preset("ptb_lstm_tiny", base="ptb_lstm_small", model={"units": 64}, training={"epochs": 2})
    >>> preset("ptb_lstm_tiny")["model"]
    {'units': 64, 'layers': 2, 'dropout': 0.25, 'sparsity': 0.67}
    >>> del PRESETS["ptb_lstm_tiny"]
    """
    if name in PRESETS:
        raise ValueError(f"`name` must be new. Received: name={name!r}, which is a preset already")
    parts = preset(base)
    architecture = [field.name for field in dataclasses.fields(Architecture)]
    for part, known, changes in (
        ("model", architecture[1:], model or {}),
        ("training", list(parts["training"]), training or {}),
    ):
        for setting in changes:
            if setting not in known:
                raise ValueError(f"`{part}` must be settings of {', '.join(known)}. Received: {setting!r}")
        parts[part].update(changes)
    Architecture(VOCABULARY_SIZES.get(parts["training"]["dataset"], 10_000), **parts["model"])
    PRESETS[name] = parts
