"""The settings of a run of the language-model trainer."""

import dataclasses
from typing import Literal

from absl import flags

from keras_selfish import masks
from keras_selfish.models.architecture import Architecture
from keras_selfish.models.memory import check_memory
from keras_selfish.models.presets import PRESETS, Training, preset
from keras_selfish.rewiring.registry import METHODS, PRUNING_OPTIONS, REWIRING_OPTIONS
from keras_selfish.rewiring.rules import DROP_RULES, GROW_RULES, REDISTRIBUTION_RULES
from keras_selfish.rewiring.schedules import SCHEDULES
from keras_selfish.settings import check_settings, setting
from trainers import settings
from trainers.distribution import Worker
from trainers.distribution_jax import STRATEGIES
from trainers.files import absolute_path
from trainers.methods import check_distribution, check_options, summaries

FLAGS = flags.FLAGS

# What --preset says, unless a flag says otherwise.
OF_PRESETS = (Architecture, Training)


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """How connections change in training; what is None is as the method says."""

    method: str = setting(
        "selfish",
        lambda: f"How connections change in training.\n{summaries(METHODS)}",
        choices=METHODS,
    )
    drop: str | None = setting(
        None, "Which connections are dropped; by default as --method says.", choices=sorted(DROP_RULES)
    )
    grow: str | None = setting(
        None, "Which connections are grown; by default as --method says.", choices=sorted(GROW_RULES)
    )
    redistribution: str | None = setting(
        None,
        "By what the matrices share the connections that are grown; none gives each as many as it has lost. "
        "By default as --method says.",
        choices=sorted(REDISTRIBUTION_RULES),
    )
    rewiring_steps: int | None = setting(
        None, "Training steps between rewirings; by default as --method says.", at_least=1
    )
    schedule: str | None = setting(
        None, "Decay of the pruning rate; by default as --method says.", choices=SCHEDULES
    )
    reset_regrown: bool | None = setting(
        None, "Whether a weight dropped and regrown at once restarts at zero; by default as --method says."
    )
    gradient_batches: int | None = setting(
        None,
        "Batches that the gradient of --method=snip is taken over; one by default, as published.",
        at_least=1,
    )
    prune_embeddings: bool | None = setting(
        None,
        "Whether --method=snip prunes embeddings, too: words that are in none of its batches then lose all "
        "their connections. By default embeddings keep those that were drawn.",
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What a run is, besides its model and how that is trained."""

    preset: str = setting("quick", "Settings to begin from.", choices=sorted(PRESETS))
    data_dir: str | None = setting(
        None, "Folder with the corpus's files; without it, they are downloaded.", text=absolute_path
    )
    averaging: bool = setting(True, "Whether the weights are averaged once validation stops improving.")
    precision: Literal["float32", "mixed_bfloat16"] = setting("float32", "Type of the computations.")
    seed: int = setting(0, "Seed of weights, masks, dropout and rewiring.", at_least=0, at_most=2**32 - 1)
    strategy: str = setting(
        "none",
        "mirrored: tf.distribute over all visible GPUs. multi_worker: over the GPUs, or else CPUs, of all "
        "processes that the environment variable TF_CONFIG names. They are started with the same flags. "
        "--workdir must be a folder that all of them see, such as one on a network drive; only the "
        "first one writes to it. On JAX, over all devices: data_parallel divides batches, model_parallel "
        "every matrix.",
        choices=("none", "mirrored", "multi_worker", *STRATEGIES),
    )
    cpu_replicas: int = setting(0, "With --strategy mirrored: replicas on as many CPU devices.")


@dataclasses.dataclass(frozen=True)
class Settings(Training, MethodSettings, RunSettings):
    """All settings of a run.

    Args:
        architecture: The model's `Architecture`, but for the number of tokens, which the data decides.
        schedule_epochs: Epochs of the schedules: those that the run began with.
        workers: Number of processes with --strategy=multi_worker, else None.
    """

    architecture: Architecture = dataclasses.field(default_factory=lambda: Architecture(1))
    schedule_epochs: int | None = None
    workers: int | None = None

    def __post_init__(self):
        check_settings(self, "--{}")

    to_json = settings.to_json

    @classmethod
    def from_json(cls, content):
        """The settings that `to_json` has made a dict of, also in an earlier version.

        Raises:
            ValueError: for a name that is none of a setting, or a value that it cannot have.
        """
        model, others = settings.split(content, Architecture, cls)
        return cls(architecture=_architecture(**model), **others)

    def architecture_for(self, vocabulary_size):
        """The architecture for a vocabulary of so many tokens."""
        return dataclasses.replace(self.architecture, vocabulary_size=vocabulary_size)


def settings_from_flags():
    """The settings of the run: the preset's, in place of which the flags are taken that are given.

    Raises:
        ValueError: for flags that are out of range, or say nothing to each other.
    """
    published = preset(FLAGS.preset)
    model, training = published.architecture.get_config(), dataclasses.asdict(published.training)
    del model["vocabulary_size"]
    run = settings.given(MethodSettings) | settings.given(RunSettings)
    if run["method"] != "selfish":  # whose published rate the preset's is
        training["pruning_rate"] = None
    training |= settings.given(Training)
    found = Settings(
        architecture=_architecture(**model | settings.given(Architecture)),
        schedule_epochs=training["epochs"],
        workers=Worker.of(run["strategy"]).number if run["strategy"] == "multi_worker" else None,
        **training,
        **run,
    )
    _check(found)
    return found


def _architecture(**model):
    # Any number of tokens that blocks divide: how many there are is not known yet.
    tokens = masks.check_block_shape(model.get("block_shape", (1, 1)))[1]
    return Architecture(tokens, **model)


def _check(found):
    """Refuses settings that say nothing to each other, or the opposite."""
    check_memory(found.architecture, name="--{}")
    check_distribution(found.architecture.distribution, found.method, METHODS)
    given = {option: getattr(FLAGS, option) for option in (*REWIRING_OPTIONS, *PRUNING_OPTIONS)}
    check_options(given, found.method, METHODS[found.method])
    sparsity, pattern = FLAGS.sparsity, found.architecture.n_of_m
    if found.method != "dense" and not found.architecture.sparsity:
        raise ValueError(
            f"--sparsity must be over 0 with --method={found.method}. Received: --sparsity=0.0; "
            "use --method=dense for a model with all connections"
        )
    if found.method == "dense" and sparsity:
        raise ValueError(
            "--sparsity must be left out with --method=dense, which has all connections. "
            f"Received: --sparsity={sparsity}"
        )
    if pattern and sparsity is not None and abs(sparsity - found.architecture.sparsity) > 1e-9:
        n, m = pattern
        raise ValueError(
            f"--sparsity must be left out with --n_of_m={n},{m}, which makes it {1 - n / m}. "
            f"Received: --sparsity={sparsity}"
        )
    if FLAGS.export_text and not FLAGS.export:
        raise ValueError("--export_text needs --export. Received: --noexport --export_text")
    if found.cpu_replicas and found.strategy != "mirrored":
        raise ValueError(f"--cpu_replicas needs --strategy=mirrored. Received: --strategy={found.strategy}")
