"""Folders that are replaced as a whole."""

import os
import shutil

# What TensorFlow writes into the folder of a SavedModel.
SAVED_MODEL_ENTRIES = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra", "debug"}


def check_free(path):
    """Raises `FileExistsError` unless a path is free, an empty folder or a SavedModel."""
    if not os.path.lexists(path):
        return
    entries = {entry.name for entry in path.iterdir()} if path.is_dir() else None
    is_saved_model = entries is not None and "saved_model.pb" in entries and entries <= SAVED_MODEL_ENTRIES
    if not is_saved_model and entries != set():
        raise FileExistsError(
            f"`path` must be free or a SavedModel, which is replaced. Received: path={str(path)!r}, where "
            "there is something else; move it away or choose another path"
        )


def replace(path, write):
    """Has a folder written beside its place and moves it there, so that there is never half of it.

    Args:
        path: Where the folder belongs.
        write: Function that is given the path of a folder that does not exist yet, and writes it.
    """
    path = path.resolve()
    # Names of their own: what a killed export has left is found and removed by the next one.
    part = path.with_name(f".{path.name}.part")
    previous = path.with_name(f".{path.name}.previous")
    _remove(part)
    try:
        write(part)
        if path.exists():
            _remove(previous)
            os.replace(path, previous)
        os.replace(part, path)
    finally:
        _remove(part)
    _remove(previous)


def _remove(folder):
    if folder.exists():
        shutil.rmtree(folder)
