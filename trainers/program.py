"""The frame of a trainer: from the command line to an exit status, with errors of one sentence."""

import sys
import time

from absl import app, flags, logging

from trainers.workdir import RunError, Workdir


def run(kind, settings_from_flags, train, errors=()):
    """Runs a trainer.

    Args:
        kind: What is trained, such as "language model".
        settings_from_flags: Function that returns the settings of the run, a dict of JSON values.
        train: Function of the settled settings and the `Workdir`.
        errors: Further exception classes whose message is for the user.
    """

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"arguments must be flags. Received: {' '.join(argv[1:])}")
        began = time.perf_counter()
        try:
            settings = settings_from_flags()
            workdir = Workdir(flags.FLAGS.workdir, kind)
            workdir.prepare()
            train(workdir.settle(settings), workdir)
        except (RunError, ValueError, OSError, *errors) as error:
            if logging.get_verbosity() >= logging.DEBUG:
                raise
            sys.exit(f"error: {error}")
        logging.info("Finished in %.0f s", time.perf_counter() - began)

    flags.mark_flag_as_required("workdir")
    logging.set_verbosity(logging.INFO)
    app.run(main)
