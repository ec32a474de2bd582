"""Several workers that train one model: which of them this process is, and what becomes of it when one dies.

TensorFlow tells the others soon that a process has ended. One that hangs, or never begins, it may wait for
without end; so a process watches how long this one has been waiting (`watcher.py`).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys

from absl import logging

from trainers.files import RunError

# Jobs of TF_CONFIG's cluster, in the order in which TensorFlow numbers their processes.
JOBS = ("chief", "worker")
# Without the site-packages that it does not need.
START_WATCHER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from trainers.watcher import main; main()"
REPOSITORY = str(pathlib.Path(__file__).resolve().parents[1])
EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of the processes that train a model together.

    Attributes:
        index: Its number among them, from 0.
        number: How many they are.
    """

    index: int = 0
    number: int = 1

    @property
    def is_chief(self):
        """Whether it is the one that writes."""
        return self.index == 0

    @classmethod
    def of(cls, strategy):
        """The worker that this process is in a run with this --strategy.

        Raises:
            ValueError: if it is to be one of several, and TF_CONFIG does not say which.
        """
        if strategy != "multi_worker":
            return cls()
        given = os.environ.get("TF_CONFIG", "")
        try:
            config = json.loads(given)
            cluster, task = config["cluster"], config["task"]
            processes = [(job, index) for job in JOBS for index in range(len(cluster.get(job, ())))]
            index = processes.index((task["type"], int(task["index"])))
            if not all(isinstance(cluster.get(job, []), list) for job in JOBS):
                raise TypeError("no list of addresses")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                "--strategy=multi_worker needs the environment variable TF_CONFIG, by which each process is "
                f"one of a cluster's workers, such as {EXAMPLE}. Received: TF_CONFIG={given!r}"
            ) from error
        return cls(index, len(processes))


class Workers:
    """All workers of a run, seen from one of them; of a run without others, nothing has to be done.

    Args:
        strategy: The run's --strategy.
        timeout: Seconds that this process may wait for others.
        workdir: The run's `Workdir`, which messages name.

    Attributes:
        worker: The `Worker` that this process is.
        wanted: Whether the run is to have workers, be it one.
    """

    def __init__(self, strategy, timeout, workdir):
        self.worker = Worker.of(strategy)
        self.wanted = strategy == "multi_worker"
        self.timeout = timeout
        self.workdir = workdir
        self._strategy = None
        self._watcher = None  # a process; None while others may take as long as they need

    @contextlib.contextmanager
    def together(self):
        """Within the block this process ends, with one sentence, if another one does.

        Raises:
            RunError: if another one has ended.
        """
        if not self.wanted:
            yield
            return
        import keras

        if keras.backend.backend() != "tensorflow":
            raise RunError(
                "--strategy=multi_worker needs Keras's TensorFlow backend. Received: backend "
                f"{keras.backend.backend()!r}; set KERAS_BACKEND=tensorflow"
            )
        import tensorflow as tf

        self._start_watcher()
        errors = tf.errors
        lost = (
            errors.UnavailableError,
            errors.AbortedError,
            errors.CancelledError,
            errors.DeadlineExceededError,
            errors.FailedPreconditionError,
        )
        try:
            yield
            self.wait_patiently()
        except errors.OpError as error:
            if not isinstance(error, lost) and "ollective" not in str(error):
                raise
            raise RunError(self._message("one has ended or cannot be reached")) from error

    def _start_watcher(self):
        message = self._message(f"others took over --worker_timeout={self.timeout:g} seconds")
        command = [sys.executable, "-S", "-c", START_WATCHER, REPOSITORY, str(os.getpid()), str(self.timeout)]
        # In a session of its own it does not get a terminal's Ctrl-C.
        self._watcher = subprocess.Popen(
            [*command, f"error: {message}"], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def hear(self):
        """Says that the others were there just now."""
        if self._watcher is None:
            return
        try:
            self._watcher.stdin.write(b".")
        except BrokenPipeError:
            logging.warning("Nobody watches any more whether other workers hang")
            self._watcher = None

    def wait_patiently(self):
        """From now on others may take as long as they need, as the chief does to export."""
        if self._watcher is not None:
            self._watcher.communicate()
            self._watcher = None

    def _message(self, what):
        return (
            f"All {self.worker.number} workers must run until the end. Received: in worker "
            f"{self.worker.index}, {what}; end those that are left and start all of them again with the same "
            f"--workdir={self.workdir.path}, where they resume"
        )

    def join(self):
        """Waits for all workers and returns the strategy by which they train together."""
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")  # it logs every collective operation that it makes
        try:
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise RunError(
                "TF_CONFIG must name addresses at which the workers listen, a free one of this machine for "
                f"this process. Received: TF_CONFIG={os.environ['TF_CONFIG']!r} ({_first_line(error)})"
            ) from error
        self.hear()
        return self._strategy

    def check_agreement(self, *things):
        """Refuses workers that would train something else than the others.

        Args:
            *things: JSON values on which all have to agree.

        Raises:
            RunError: in each worker, if they do not.
        """
        digest = hashlib.sha256(json.dumps(things, sort_keys=True).encode())
        digests = self._gather(int.from_bytes(digest.digest()[:7]))
        others = [str(index) for index, one in enumerate(digests) if one != digests[0]]
        if others:
            raise RunError(
                "All workers must get the same flags, the same corpus, and a --workdir that is one folder "
                f"for all of them. Received: --workdir={self.workdir.path}, with something else in worker "
                f"{', '.join(others)} than in worker 0"
            )

    def meet(self):
        """Returns when all workers have called it."""
        self._gather(0)

    def _gather(self, number):
        """What each worker passes, a list of integers."""
        if self._strategy is None:
            return [number]
        import tensorflow as tf

        def of_all():
            return tf.distribute.get_replica_context().all_gather(tf.constant([number], tf.int64), axis=0)

        gathered = tf.function(lambda: self._strategy.run(of_all))()
        found = self._strategy.experimental_local_results(gathered)[0].numpy().tolist()
        self.hear()
        return found[:: len(found) // self.worker.number]  # each of its replicas has passed it
