"""The settings of a run of the trainer of image classifiers."""

import dataclasses
import typing
from typing import Literal

from absl import flags

from keras_selfish import masks
from keras_selfish.data import IMAGE_DATASETS
from keras_selfish.settings import check_settings, setting
from keras_selfish.typing import Distribution
from trainers import settings
from trainers.files import absolute_path
from trainers.image_batches import AUGMENTATIONS, PADDING
from trainers.image_methods import METHODS
from trainers.methods import check_distribution, check_options, summaries

FLAGS = flags.FLAGS

# Those with hidden dense layers first.
NETWORKS = ("lenet_300_100", "lenet_5", "vgg_16", "resnet_18", "resnet_34", "mobilenet")
WITH_HIDDEN_DENSE = NETWORKS[:3]
# The digits are only some 1500 training images: without more and smaller steps nothing is learned of them.
_OF_DATASETS = {"digits": {"epochs": 60, "batch_size": 32}}
_OF_OTHERS = {"epochs": 20, "batch_size": 128}
# Whose images are others, or none, in a mirror.
_OF_DIGITS = ("digits", "mnist")


# Epochs before the first turn of the switcher, but no larger part of training than this.
WARMUP_EPOCHS, WARMUP = 1.0, 0.05


class Turns(typing.NamedTuple):
    """Numbers of steps of a run with a switcher.

    Args:
        warmup: Of the network, before the first turn of the switcher.
        after: All from there on.
        ramp: Of the switcher, in which the sparsity is approached.
        task: Of the network, in all.
    """

    warmup: int
    after: int
    ramp: int
    task: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Args:
        schedule_epochs: Epochs of the schedules: those that the run began with.
    """

    network: str = setting("lenet_300_100", "The network.", choices=NETWORKS)
    dataset: str = setting(
        "digits", "The images; digits come with scikit-learn.", choices=sorted(IMAGE_DATASETS)
    )
    data_dir: str | None = setting(
        None, "Folder with the data set's files, or an .npz file; else downloaded.", text=absolute_path
    )
    augmentation: str = setting(
        "none",
        f"What is done to training images in each epoch. crop: each is padded by {PADDING} black pixels and "
        "cropped to its size at a random place; crop_flip: half of them are mirrored besides, left to right "
        "(not for digits, which are none in a mirror).",
        choices=AUGMENTATIONS,
    )
    method: str = setting(
        "switcher", lambda: f"How the dense layers become sparse.\n{summaries(METHODS)}", choices=METHODS
    )
    width: float = setting(1.0, "Factor of all numbers of filters and units, over 0.", within="(0, inf)")
    sparsity: float = setting(0.9, "Fraction of zeros in the dense layers; negative: the loss decides.")
    distribution: Distribution = setting(
        "uniform",
        "How the dense layers share the connections of a method that is sparse from its first step.",
    )
    epochs: int | None = setting(
        None,
        "Epochs of training; by default 20, of digits 60. Raised afterwards, it adds --finetune_epochs.",
        at_least=1,
    )
    finetune_epochs: int = setting(2, "Epochs with a fixed structure after them.", at_least=0)
    batch_size: int | None = setting(None, "Images of a step; by default 128, of digits 32.", at_least=1)
    learning_rate: float = setting(
        2e-3, "Initial rate of AdamW; it falls to a hundredth along a cosine.", at_least=0.0
    )
    weight_decay: float = setting(0.02, "Weight decay of AdamW.", at_least=0.0)
    switcher_learning_rate: float = setting(1e-3, "Learning rate of the switcher's Adam.", at_least=0.0)
    task_steps: int = setting(40, "Steps of a turn of the network.", at_least=1)
    switcher_steps: int = setting(4, "Steps of a turn of the switcher.", at_least=1)
    warmup_epochs: float | None = setting(
        None,
        "Epochs before the first turn of the switcher; by default 1, of fewer than 20 --epochs a twentieth.",
        at_least=0.0,
    )
    ramp: float = setting(
        0.4,
        "Part of training in which --sparsity is approached, in [0, 1], or what the first turn leaves of it.",
        within="[0, 1]",
    )
    architecture: Literal["contextual", "attention", "convolution", "weight"] = setting(
        "contextual", "What the switcher sees of a weight's surroundings."
    )
    estimator: Literal["straight_through", "hard_concrete"] = setting(
        "straight_through", "The switches' gradient."
    )
    pruning_rate: float | None = setting(
        None,
        "Fraction of connections moved by the first rewiring, in (0, 1); by default the method's.",
        within="(0, 1)",
    )
    validation_fraction: float = setting(
        0.1, "Part of the training images to validate on, in [0, 1).", within="[0, 0.9]"
    )
    seed: int = setting(
        0, "Seed of weights, masks, the order of images and rewiring.", at_least=0, at_most=2**32 - 1
    )
    strategy: str = setting(
        "none",
        "data_parallel: on JAX, batches are divided among all devices of this process.",
        choices=("none", "data_parallel"),
    )
    schedule_epochs: int | None = None

    def __post_init__(self):
        check_settings(self, "--{}")
        for name, value in _OF_DATASETS.get(self.dataset, _OF_OTHERS).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # a frozen dataclass settles its own fields

    to_json = settings.to_json

    @classmethod
    def from_json(cls, content):
        """The settings that `to_json` has made a dict of, also in an earlier version.

        Raises:
            ValueError: for a name that is none of a setting, or a value that it cannot have.
        """
        (found,) = settings.split(content, cls)
        return cls(**found)

    @property
    def turn(self):
        """Steps of a turn of the network and one of the switcher."""
        return self.task_steps + self.switcher_steps

    def turns(self, steps_per_epoch):
        """The steps of a run with a switcher, as `Turns`."""
        steps = self.schedule_epochs * steps_per_epoch
        brief = min(WARMUP_EPOCHS, WARMUP * self.schedule_epochs)
        epochs = brief if self.warmup_epochs is None else self.warmup_epochs
        warmup = int(epochs * steps_per_epoch)
        after = steps - warmup
        return Turns(
            warmup=warmup,
            after=after,
            ramp=int(min(self.ramp * steps, after) * self.switcher_steps / self.turn),
            task=warmup + int(after * self.task_steps / self.turn),
        )


def settings_from_flags():
    """The settings of the run.

    Raises:
        ValueError: for flags that are out of range, or say nothing to each other.
    """
    run = settings.given(Settings)
    found = Settings(**run)
    found = dataclasses.replace(found, schedule_epochs=found.epochs)
    method = METHODS[found.method]
    if found.sparsity >= 0 or not method.switched:
        masks.check_sparsity(found.sparsity, "--sparsity")
    check_distribution(found.distribution, found.method, METHODS)
    check_options({"pruning_rate": found.pruning_rate}, found.method, method)
    if found.augmentation == "crop_flip" and found.dataset in _OF_DIGITS:
        raise ValueError(
            "--augmentation=crop_flip needs images that stay what they are in a mirror, as digits do not. "
            f"Received: --augmentation=crop_flip --dataset={found.dataset}; use --augmentation=crop"
        )
    if found.method == "switcher_neuron" and found.network not in WITH_HIDDEN_DENSE:
        raise ValueError(
            "--method=switcher_neuron needs a network with hidden dense layers, a LeNet or VGG-16. Received: "
            f"--network={found.network}"
        )
    return found
