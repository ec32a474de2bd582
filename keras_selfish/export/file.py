"""Files that are replaced as a whole."""

import contextlib
import os


def check_free(path, kind, is_kind):
    """Raises an error unless a file can be written at a path without a loss.

    Args:
        path: `pathlib.Path`.
        kind: Kind of the file, for the message.
        is_kind: Function that tells of a file whether it is of this kind, and so may be replaced.

    Raises:
        FileNotFoundError: if the folder does not exist.
        FileExistsError: if there is something else.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"`path` must be in a folder that exists. Received: path={str(path)!r}; make its folder first"
        )
    if os.path.lexists(path) and not (path.is_file() and is_kind(path)):
        raise FileExistsError(
            f"`path` must be free or a file of {kind}, which is replaced. Received: path={str(path)!r}, "
            "where there is something else; move it away or choose another path"
        )


@contextlib.contextmanager
def replacing(path):
    """A context with a path to write to, which takes the place of `path` at its end, if all went well."""
    target = path.resolve()  # a link stays one
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
