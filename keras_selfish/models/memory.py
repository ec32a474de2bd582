"""The memory that a language model takes, computed from its settings before it is made."""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import pathlib
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_selfish.models.architecture import Architecture

FLOAT32, BOOL = 4, 1  # bytes
HELD = ("weights", "masks", "optimizer", "states", "logits")

_takes_memory = contextvars.ContextVar("takes_memory", default=True)


@contextlib.contextmanager
def traced_only():
    """A context in which models are traced for their shapes, take no memory, and may be of any size."""
    token = _takes_memory.set(False)
    try:
        yield
    finally:
        _takes_memory.reset(token)


def parameters(architecture):
    """The numbers of parameters of a `LanguageModel`, without making it.

    Args:
        architecture: An `Architecture`.

    Returns:
        A dict from `"tokens"` (embedding and decoder) and `"recurrent"` to a pair: the positions of weight
        matrices, which have masks unless `sparsity` is 0, and the biases.

    Example:

    >>> from keras_selfish.models import Architecture
    >>> parameters(Architecture(10_000, units=1500, layers=2))
    {'tokens': (30000000, 10000), 'recurrent': (36000000, 12000)}
    """
    features, units = architecture.token_units, architecture.layer_units
    sizes, options = architecture.recurrent_layer.sizes, architecture.cell_options or {}
    layers = [sizes(*pair, options) for pair in zip((features, *units), units, strict=False)]
    recurrent = tuple(map(sum, zip(*layers, strict=True)))
    return {"tokens": _tokens(architecture, features, units[-1]), "recurrent": recurrent}


def _tokens(architecture, features, units):
    vocabulary, experts = architecture.vocabulary_size, architecture.experts
    weights = (1 if architecture.tied else 2) * vocabulary * features
    biases = vocabulary if architecture.decoder_bias else 0
    if experts > 1:
        return weights + units * experts * (1 + features), biases + experts * features
    if not architecture.tied:
        weights += vocabulary * (units - features)  # the decoder reads the last layer
    return weights, biases


def training_bytes(
    architecture: Architecture,
    batch_size: int = 1,
    time_steps: int = 1,
    precision: str = "float32",
) -> dict[str, int]:
    """Bytes that training a `LanguageModel` with `SNTASGD` takes, without making it.

    What a step needs besides is more: activations of all layers, copies of weights in half precision.

    Args:
        architecture: An `Architecture`.
        batch_size: Columns of a batch. Default 1.
        time_steps: Time steps of a window. Default 1.
        precision: `"float32"` (default), or a policy in half precision, whose logits take half as much.

    Returns:
        A dict of bytes: `"weights"`, with biases; `"masks"`; `"optimizer"`, averages and births; `"states"`,
        the carried ones of training and evaluation; `"logits"` of a window; and `"gradients"`, which
        exist for a part of a step only.

    Example:

    >>> from keras_selfish.models import Architecture
    >>> sizes = training_bytes(Architecture(10_000, units=1500, layers=2), batch_size=20, time_steps=35)
    >>> {name: f"{size / 1e6:.0f} MB" for name, size in sizes.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'weights': '264 MB', 'masks': '66 MB', 'optimizer': '528 MB', 'states': '1 MB', 'logits': '28 MB',
     'gradients': '264 MB'}
    """
    return _total(_bytes_by_part(architecture, batch_size, time_steps, precision))


def _bytes_by_part(architecture, batch_size, time_steps, precision):
    """`training_bytes` apart for tokens, recurrent layers and the batch, a dict of dicts."""
    parts = {}
    for part, (weights, biases) in parameters(architecture).items():
        masked = weights if architecture.sparsity else 0
        every = FLOAT32 * (weights + biases)
        births = FLOAT32 * masked
        parts[part] = {
            "weights": every,
            "masks": BOOL * masked,
            "optimizer": every + births,
            "gradients": every,
        }
    states = architecture.recurrent_layer.states * sum(architecture.layer_units)
    logits = batch_size * time_steps * architecture.vocabulary_size
    parts["batch"] = {
        "states": 2 * FLOAT32 * batch_size * states,
        "logits": (FLOAT32 if precision == "float32" else FLOAT32 // 2) * logits,
    }
    return parts


def _total(parts):
    names = (*HELD, "gradients")
    return {name: sum(sizes.get(name, 0) for sizes in parts.values()) for name in names}


def check_memory(
    architecture: Architecture,
    batch_size: int = 1,
    time_steps: int = 1,
    precision: str = "float32",
    *,
    held: Sequence[str] = HELD,
    name: str = "`{}`",
    available: float | None = None,
) -> None:
    """Refuses a `LanguageModel` that cannot fit, before it takes any memory.

    It is generous: what is counted has to be there at the same time, and activations, gradients and the
    program itself are not counted.

    Args:
        architecture: An `Architecture`.
        batch_size: Columns of a batch. Default 1.
        time_steps: Time steps of a window. Default 1.
        precision: As in `training_bytes`.
        held: Which of `training_bytes` count. Default: all but gradients.
        name: How a setting is named, a format string. Default in backticks.
        available: Bytes of memory; None (default) asks the machine and its NVIDIA GPUs for the larger.

    Raises:
        ValueError: if more than the memory is needed; it names the settings that take most of it.
    """
    if not _takes_memory.get():
        return
    parts = _bytes_by_part(architecture, batch_size, time_steps, precision)
    needs = {part: sum(sizes.get(kind, 0) for kind in held) for part, sizes in parts.items()}
    large = _what_is_large(
        max(needs, key=lambda part: needs[part]), architecture, batch_size, time_steps, name
    )
    check_bytes(
        sum(needs.values()), *large, what=f"{', '.join(held[:-1])} and {held[-1]}", available=available
    )


def check_bytes(needed, name, received, *, what="weights", available=None):
    """Raises `ValueError` if more memory is needed than there is.

    Args:
        needed: Bytes.
        name: Setting that is to blame.
        received: It and others, with their values.
        what: What takes the memory, in the plural. Default "weights".
        available: As in `check_memory`.

    Raises:
        ValueError: if more is needed than is available.
    """
    if needed <= (host_memory() if available is None else available):
        return
    if available is None:
        available = max([host_memory(), *gpu_memory()])
    if needed > available:
        raise ValueError(
            f"{name} must fit into memory. Received: {received}, for which {what} alone take {_size(needed)} "
            f"of the {_size(available)} of memory; take less"
        )


def _what_is_large(part, architecture, batch_size, time_steps, name):
    """The name of the setting that takes most memory, and a description of it and others."""
    units, features = architecture.layer_units, architecture.embedding_units or 0
    if part == "batch":
        given = {"batch_size": batch_size}
    elif part == "tokens" and architecture.experts * units[-1] > architecture.vocabulary_size:
        given = {"experts": architecture.experts}
    elif features > max(units):
        given = {"embedding_units": features}
    else:
        given = {"units": architecture.units, "layers": len(units)}
    culprit = "bptt" if part == "batch" and time_steps > batch_size else next(iter(given))
    settings = [f"{name.strip('`').format(key)}={_listed(value)}" for key, value in given.items()]
    if part == "batch" and time_steps > 1:
        settings.append(f"windows of {time_steps:,} time steps")
    if architecture.vocabulary_size > 1:
        settings.append(f"a vocabulary of {architecture.vocabulary_size:,}")
    return name.format(culprit), ", ".join(settings)


def _listed(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _size(number):
    power = min(max(int(math.log10(number)) // 3, 2), 4)
    return f"{number / 1000**power:,.1f} {('MB', 'GB', 'TB')[power - 2]}"


def host_memory():
    """Bytes that this process can use at most, by the machine, its control group and its own limit."""
    limits = [math.inf, *control_groups()]
    with contextlib.suppress(AttributeError, ValueError):  # not on every system
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ImportError):
        import resource

        address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
        if address_space != resource.RLIM_INFINITY:
            limits.append(address_space)
    return min(limits)


def control_groups(root=pathlib.Path("/sys/fs/cgroup"), own=pathlib.Path("/proc/self/cgroup")):
    """The limits of the control groups that this process is in, of either version, in bytes."""
    try:
        entries = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        if controllers not in ("", "memory"):
            continue
        folder, file = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = pathlib.PurePosixPath(path.lstrip("/"))
        for level in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # a file of another namespace; "max"
                yield int((folder / level / file).read_text(encoding="utf-8"))


def gpu_memory():
    """Bytes of each NVIDIA GPU that a program may use, a list, without starting a backend."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return [2**20 * int(line) for line in listed.stdout.split() if line.isdigit()]
    return []
