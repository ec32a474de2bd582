"""Published settings, as data.

A preset has two parts: arguments of the model, and arguments of its training. Importing this module loads
neither Keras nor a backend.
"""

PRESETS = {
    # Liu et al. 2021, arXiv 2101.09048: Penn Treebank, 73.79 / 71.65 validation / test perplexity.
    "ptb_lstm": {
        "model": {
            "units": 1500,
            "layers": 2,
            "dropout": 0.65,
            "sparsity": 0.67,
            "distribution": "uniform",
            "block_shape": (1, 1),
            "tied": False,
        },
        "training": {
            "dataset": "ptb",
            "epochs": 100,
            "batch_size": 20,
            "bptt": 35,
            "learning_rate": 40.0,
            "clipnorm": 0.25,
            "weight_decay": 1.2e-6,
            "pruning_rate": 0.8,
            "patience": 5,
        },
    },
    # Ours: a few minutes on two cores, on the text that every Python carries.
    "quick": {
        "model": {
            "units": 128,
            "layers": 2,
            "dropout": 0.3,
            "sparsity": 0.67,
            "distribution": "uniform",
            "block_shape": (1, 1),
            "tied": False,
        },
        "training": {
            "dataset": "python_docs",
            "epochs": 12,
            "batch_size": 10,
            "bptt": 35,
            "learning_rate": 20.0,
            "clipnorm": 0.25,
            "weight_decay": 1.2e-6,
            "pruning_rate": 0.8,
            "patience": 5,
        },
    },
}


def preset(name):
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
