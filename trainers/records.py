"""What a run writes down for whoever reads about it later: what it ran with, and its masks.

Nothing of it is needed to go on with a run; a run of an earlier version lacks it.
"""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import zipfile
import zlib

import numpy as np

from keras_selfish.packing import pack, unpacked
from keras_selfish.version import __version__
from trainers.files import RunError, replace, write_json

ENVIRONMENT, FIRST_MASKS, LAST_MASKS = "environment.json", "masks-first.npz", "masks-last.npz"
ENVIRONMENT_FORMAT = "keras_selfish environment, version 1"
MASKS_FORMAT = "keras_selfish masks, version 1"
# What NumPy and zipfile raise, by where the damage is.
DAMAGES = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
CPU_INFO = pathlib.Path("/proc/cpuinfo")


def add_session(folder, first_epoch):
    """Adds what runs now to the environments of a run, of which it has several if it was continued.

    Args:
        folder: `pathlib.Path` of the run.
        first_epoch: The epoch that training begins with or goes on with, from 1.

    Raises:
        RunError: if what is there is damaged, or cannot be written.
    """
    path = folder / ENVIRONMENT
    sessions = [one for one in read_sessions(path) if one["first_epoch"] < first_epoch]
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    sessions.append({"first_epoch": first_epoch, "began": began, **environment()})
    write_json(path, {"format": ENVIRONMENT_FORMAT, "sessions": sessions})


def read_sessions(path):
    """The sessions of a run, a list of dicts; an empty one where none were written.

    Args:
        path: `pathlib.Path` of the file.

    Raises:
        RunError: if it is damaged.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != ENVIRONMENT_FORMAT:
            raise KeyError("format")
        sessions = [{**one, "first_epoch": int(one["first_epoch"])} for one in content["sessions"]]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise damaged(path, "what the run ran with") from error
    return sessions


def damaged(path, content):
    """The error of a file of a run that does not hold what it must."""
    return RunError(
        f"{path.name} in --workdir must hold {content}, but is damaged or foreign. Received: {path}; "
        "restore it, or remove it to go on without"
    )


def environment():
    """Versions, backend and hardware of this process, as a dict of JSON values; nothing that tells whose."""
    import keras

    backend = keras.backend.backend()
    versions = {name: _version(name) for name in ("keras", backend, "numpy")}
    return {
        "keras_selfish": __version__,
        **versions,
        "backend": backend,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerators": _accelerators(backend),
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # built into the interpreter's path by hand
        return "unknown"


def processor():
    """The name of the processor."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def _accelerators(backend):
    """Names of the GPUs and TPUs that the backend sees."""
    if backend == "tensorflow":
        import tensorflow as tf

        details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
        return [str(one.get("device_name", "GPU")) for one in details]
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    return []


@dataclasses.dataclass(frozen=True)
class StoredMask:
    """The mask of one weight.

    Args:
        name: Path of the weight.
        mask: Boolean array of the weight's shape.
        gates: Dict from the name of each gate to its width along `gate_axis`; empty where there are none.
        gate_axis: The axis along which gates are concatenated. Default the last.
    """

    name: str
    mask: np.ndarray
    gates: dict = dataclasses.field(default_factory=dict)
    gate_axis: int = -1

    def parts(self):
        """The gates of the mask, a dict from name to array; the whole under `"all"` where there are none."""
        if not self.gates:
            return {"all": self.mask}
        ends = np.cumsum(list(self.gates.values()))[:-1]
        return dict(zip(self.gates, np.split(self.mask, ends, self.gate_axis), strict=True))


def masks_of(weights):
    """The masks of a model as they are now.

    Args:
        weights: A list of `MaskedWeight`.

    Returns:
        A list of `StoredMask`.
    """
    from keras_selfish.variables import to_numpy

    found = []
    for weight in weights:
        mask = np.asarray(to_numpy(weight.mask), bool)
        width = mask.shape[weight.gate_axis] // max(1, len(weight.gates))
        widths = weight.gate_sizes or [width] * len(weight.gates)
        gates = {gate: int(width) for gate, width in zip(weight.gates, widths, strict=True)}
        found.append(StoredMask(weight.name, mask, gates, weight.gate_axis))
    return found


def write_masks(path, masks, epoch):
    """Stores masks as bits.

    Args:
        path: `pathlib.Path` of the file.
        masks: A list of `StoredMask`.
        epoch: The epoch after which they were so; 0 before the first.
    """
    described = [{"name": one.name, "gates": one.gates, "gate_axis": one.gate_axis} for one in masks]
    header = {"format": MASKS_FORMAT, "epoch": epoch, "masks": described}
    arrays = {"header": np.array(json.dumps(header))}
    for index, one in enumerate(masks):
        pack(arrays, str(index), one.mask)
    replace(path, lambda temporary: np.savez(temporary, **arrays))


def read_masks(path):
    """What `write_masks` has stored: the epoch, and the list of `StoredMask`.

    Raises:
        RunError: if the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = unpacked(stored)
        header = json.loads(str(arrays["header"]))
        if header["format"] != MASKS_FORMAT:
            raise KeyError("format")
        masks = [
            StoredMask(str(one["name"]), arrays[str(index)], dict(one["gates"]), int(one["gate_axis"]))
            for index, one in enumerate(header["masks"])
        ]
        for one in masks:
            widths = sum(one.gates.values()) or one.mask.shape[one.gate_axis]
            if one.mask.dtype != bool or one.mask.size == 0 or widths != one.mask.shape[one.gate_axis]:
                raise ValueError(one.name)
        return int(header["epoch"]), masks
    except (*DAMAGES, ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise damaged(path, "masks") from error
