"""Command-line binaries that train the package's models."""

import sys

from trainers import signals

# So `python -m trainers.NAME` looks while it finds the module: what is imported next takes seconds.
if sys.argv[:1] == ["-m"]:
    signals.watch()
