"""The lock of a run's folder, which the operating system releases however the process ends."""

import contextlib
import json
import os
import socket

from absl import logging

from trainers.files import RunError, read_json, writing

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None


class Lock:
    """A file that one process at a time holds.

    Args:
        path: `pathlib.Path` of the file. It is there while the lock is held, and is left by a process that
            was killed, which holds it no longer.
    """

    def __init__(self, path):
        self.path = path
        self._file = None

    def acquire(self):
        """Takes the lock.

        Raises:
            RunError: if another process has it.
        """
        if fcntl is None:
            logging.warning("Nothing keeps two runs out of one --workdir: this system has no file locks")
            return
        while True:
            with writing(self.path):
                file = open(self.path, "a+b")  # noqa: SIM115  it stays open while the lock is held
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise RunError(
                    "--workdir must be used by one run at a time. Received: "
                    f"{self.path.parent}, in which {self._holder()} trains; wait for it or end it, or choose "
                    "another --workdir"
                ) from None
            except OSError as error:
                file.close()
                logging.warning("Nothing keeps two runs out of one --workdir: %s", error.strerror)
                return
            if self._is_at_path(file):
                break
            file.close()  # its holder has just removed it
        self._file = file
        try:
            with writing(self.path):
                file.truncate(0)
                file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
                file.flush()
        except RunError:
            self.release()
            raise

    def release(self):
        """Removes the file and gives the lock back, if it was taken."""
        file, self._file = self._file, None
        if file is not None:
            self.path.unlink(missing_ok=True)  # while it is held: who opens it anew makes a new one
            with contextlib.suppress(OSError):  # of what could not be written
                file.close()

    def _is_at_path(self, file):
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _holder(self):
        try:
            holder = read_json(self.path)
            return f"process {int(holder['pid'])} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"  # which has not written its name yet
