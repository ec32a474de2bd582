"""Published settings, as values of `Architecture` and `Training`.

Importing this module loads neither Keras nor a backend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from keras_selfish import checks
from keras_selfish.data import DATASETS
from keras_selfish.models.architecture import Architecture
from keras_selfish.settings import check_settings, setting, whole_numbers

VOCABULARY_SIZES = {"ptb": 10_000, "wikitext2": 33_278}


@dataclasses.dataclass(frozen=True)
class Training:
    """How a language model is trained. The defaults are what most published models share.

    Args:
        dataset: Name of the corpus (see `keras_selfish.data.load_corpus`).
        epochs: Epochs of training.
        batch_size: Columns that the corpus is read in.
        bptt: Time steps of a window.
        random_lengths: Whether windows vary in length, and learning rates with them.
        learning_rate: Learning rate of `SNTASGD`.
        clipnorm: Largest global norm of the gradient; 0 does not clip.
        clip_norm_of: As in `SNTASGD`; None for its default.
        averaged_rate: As in `SNTASGD`; None for its default.
        weight_decay: L2 penalty, added to the gradient.
        pruning_rate: Fraction of the connections that the first rewiring moves, in (0, 1); None for the
            method's default.
        patience: Validations without a better one before averaging begins.
        restart_epochs: Epochs after which averaging begins anew.
        evaluation_columns: Columns that validation and test are read in; None for `batch_size`.

    Raises:
        ValueError: for an argument out of range.
    """

    dataset: str = setting(
        "ptb",
        "Corpus; text is all UTF-8 files in --data_dir, python_docs needs none.",
        choices=sorted(DATASETS),
    )
    epochs: int = setting(100, "Epochs of training, in all.", at_least=1)
    batch_size: int = setting(20, "Columns the corpus is read in, over all replicas.", at_least=1)
    bptt: int = setting(35, "Time steps of a window, through which gradients flow.", at_least=1)
    random_lengths: bool = setting(False, "Whether windows vary in length, and learning rates with them.")
    learning_rate: float = setting(40.0, "Learning rate of SNT-ASGD.", at_least=0.0)
    clipnorm: float = setting(0.25, "Largest global norm of the gradient; 0 does not clip.", at_least=0.0)
    clip_norm_of: Literal["dense", "active"] | None = setting(
        None, "Gradient whose norm is clipped: that of all positions, as published, or of the active ones."
    )
    averaged_rate: Literal["current", "first"] | None = setting(
        None,
        "Learning rate of averaged steps with random lengths: the step's own, or that of the first averaged "
        "one.",
    )
    weight_decay: float = setting(1.2e-6, "L2 penalty, added to the gradient.", at_least=0.0)
    pruning_rate: float | None = setting(
        0.5,
        "Fraction of connections moved by the first rewiring, in (0, 1); by default as --preset says for "
        "--method=selfish, and as published for the other methods.",
        within="(0, 1)",
    )
    patience: int = setting(5, "Epochs without a better validation before averaging begins.", at_least=1)
    restart_epochs: Sequence[int] = setting(
        (),
        "Epochs after which averaging begins anew, such as 500,1000.",
        words=whole_numbers("positive whole numbers, such as 500,1000"),
        check=lambda epochs, name: checks.integers(name, epochs),
    )
    evaluation_columns: int | None = setting(
        None,
        "Columns that validation and test are read in, over all replicas; by default --batch_size.",
        at_least=1,
    )

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass(frozen=True)
class Preset:
    """The settings of a published model.

    Args:
        architecture: Its `Architecture`, for the vocabulary of the corpus that it was published with.
        training: Its `Training`.
    """

    architecture: Architecture
    training: Training


def _preset(training: Training, **model: Any) -> Preset:
    return Preset(Architecture(VOCABULARY_SIZES.get(training.dataset, 10_000), **model), training)


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

_SMALL = Training(epochs=14, patience=2)
# Windows of random lengths, as the AWD-LSTM family is trained.
_RANDOM = Training(bptt=70, random_lengths=True, learning_rate=15.0, evaluation_columns=10)
_SMALL_RANDOM = dataclasses.replace(_SMALL, random_lengths=True, learning_rate=15.0)

PRESETS: dict[str, Preset] = {
    # Liu et al. 2021, arXiv 2101.09048: Penn Treebank, 73.79 / 71.65 validation / test perplexity.
    "ptb_lstm": _preset(Training(pruning_rate=0.8), units=1500, layers=2, dropout=0.65, sparsity=0.67),
    # Same source: 62.10 / 60.35. The model: Zilly et al. 2017, arXiv 1607.03474.
    "ptb_rhn": _preset(
        Training(epochs=500, learning_rate=15.0),
        cell="rhn",
        cell_options={"depth": 10, "coupled": True, "recurrent_dropout": 0.25},
        units=830,
        layers=1,
        input_dropout=0.65,
        output_dropout=0.65,
        locked=True,
        embedding_dropout=0.2,
        sparsity=0.528,
        tied=True,
    ),
    # Same source: 58.17 / 56.31. The model: Shen et al. 2019, arXiv 1810.09536.
    "ptb_onlstm": _preset(
        dataclasses.replace(_RANDOM, epochs=1000, restart_epochs=(500, 1000)),
        cell="on_lstm",
        cell_options={"chunk_size": 10, "weight_drop": 0.45, **_DROP_CONNECT},
        units=[1150, 1150, 400],
        embedding_units=400,
        input_dropout=0.5,
        hidden_dropout=0.3,
        output_dropout=0.45,
        **_AWD,
        **_ON_LSTM,
    ),
    # Merity et al. 2018, arXiv 1708.02182: WikiText-2, dense, 68.6 / 65.8. Sparsity and rewiring are ours.
    "wt2_awd_lstm": _preset(
        dataclasses.replace(_RANDOM, dataset="wikitext2", epochs=750, batch_size=80, learning_rate=30.0),
        cell_options={"weight_drop": 0.5},
        units=[1150, 1150, 400],
        embedding_units=400,
        input_dropout=0.65,
        hidden_dropout=0.2,
        output_dropout=0.4,
        **_AWD,
    ),
    # Liu et al. 2021: WikiText-2, 65.96 / 63.05. The model: Yang et al. 2018, arXiv 1711.03953, patience,
    # output, word and weight dropout, AR and TAR being the defaults of their code (zihangdai/mos, main.py).
    # The sources leave open the pruning rate: chosen by us.
    "wt2_awd_lstm_mos": _preset(
        dataclasses.replace(_RANDOM, dataset="wikitext2", epochs=1000, batch_size=15),
        cell_options={"weight_drop": 0.5},
        units=[1150, 1150, 650],
        embedding_units=300,
        input_dropout=0.55,
        hidden_dropout=0.2,
        output_dropout=0.4,
        latent_dropout=0.29,
        experts=15,
        **_AWD,
    ),
    # Ours, from here on: sizes that two cores train, on the Penn Treebank, and dropout to match.
    "ptb_lstm_small": _preset(
        dataclasses.replace(_SMALL, pruning_rate=0.8), units=256, layers=2, dropout=0.25, sparsity=0.67
    ),
    # To be exported to LiteRT in int8, whose kernel skips blocks of 16 (docs/serving.md).
    "ptb_lstm_blocks": _preset(
        Training(epochs=40, pruning_rate=0.8),
        units=656,
        layers=2,
        dropout=0.4,
        sparsity=0.9,
        block_shape=(16, 1),
    ),
    "ptb_rhn_small": _preset(
        dataclasses.replace(_SMALL, learning_rate=15.0),
        cell="rhn",
        cell_options={"depth": 4, "coupled": True, "recurrent_dropout": 0.1},
        units=256,
        layers=1,
        input_dropout=0.2,
        output_dropout=0.25,
        locked=True,
        embedding_dropout=0.05,
        sparsity=0.528,
        tied=True,
    ),
    "ptb_onlstm_small": _preset(
        _SMALL_RANDOM,
        cell="on_lstm",
        cell_options={"chunk_size": 10, "weight_drop": 0.1, **_DROP_CONNECT},
        units=[250, 200],
        embedding_units=200,
        **_SMALL_AWD,
        **_ON_LSTM,
    ),
    "wt2_awd_lstm_small": _preset(
        dataclasses.replace(_SMALL_RANDOM, learning_rate=20.0),
        cell_options={"weight_drop": 0.1},
        units=[256, 256, 200],
        embedding_units=200,
        **_SMALL_AWD,
    ),
    "wt2_awd_lstm_mos_small": _preset(
        _SMALL_RANDOM,
        cell_options={"weight_drop": 0.1},
        units=[256, 200],
        embedding_units=120,
        latent_dropout=0.1,
        experts=3,
        **_SMALL_AWD,
    ),
    # A few minutes on two cores, on the text that every Python carries.
    "quick": _preset(
        Training(dataset="python_docs", epochs=12, batch_size=10, learning_rate=20.0, pruning_rate=0.8),
        units=128,
        layers=2,
        dropout=0.3,
        sparsity=0.67,
    ),
}


def preset(name: str) -> Preset:
    """The settings of a preset.

    Args:
        name: One of the keys of `PRESETS`.

    Raises:
        ValueError: if there is no such preset.

    Example:

    >>> preset("ptb_lstm").architecture.units, preset("ptb_lstm").training.pruning_rate
    (1500, 0.8)
    """
    return PRESETS[checks.one_of("preset", name, sorted(PRESETS))]


def register_preset(
    name: str, base: str, model: dict[str, Any] | None = None, training: dict[str, Any] | None = None
) -> None:
    """Adds a preset to `PRESETS`, where `language_model` and the trainer find it.

    The trainer lists the presets that there are when it is imported.

    Args:
        name: Its name.
        base: Name of the preset that has all other settings.
        model: Settings of `Architecture` in which it differs. Default None.
        training: Settings of `Training` in which it differs. Default None.

    Raises:
        ValueError: for a name that is taken, an unknown base, a setting that there is not, or one out of
            range.

    Example:

    >>> register_preset("ptb_lstm_tiny", base="ptb_lstm_small", model={"units": 64}, training={"epochs": 2})
    >>> preset("ptb_lstm_tiny").architecture.units, preset("ptb_lstm_tiny").training.epochs
    (64, 2)
    >>> del PRESETS["ptb_lstm_tiny"]
    """
    if name in PRESETS:
        raise ValueError(f"`name` must be new. Received: name={name!r}, which is a preset already")
    parts = preset(base)
    changed_training = _with("training", parts.training, training)
    size = {"vocabulary_size": VOCABULARY_SIZES.get(changed_training.dataset, 10_000)}
    PRESETS[name] = Preset(_with("model", parts.architecture, model, **size), changed_training)


def _with(argument, settings, changes, **own):
    """Settings with changes, of the names that a user may give."""
    known = [field.name for field in dataclasses.fields(settings) if field.name != "vocabulary_size"]
    for name in changes or {}:
        if name not in known:
            raise ValueError(f"`{argument}` must be settings of {', '.join(known)}. Received: {name!r}")
    return dataclasses.replace(settings, **own, **(changes or {}))
