"""A process of its own that ends its parent, with a message, unless it hears from it often enough.

A thread could not: while TensorFlow waits for workers to come, it holds the lock of Python's interpreter.
"""

import os
import select
import signal
import sys


def watch(parent, seconds, message):
    """Returns when standard input ends; ends the parent when nothing comes from there for so many seconds."""
    while select.select([sys.stdin], [], [], seconds)[0]:
        if not os.read(sys.stdin.fileno(), 4096):
            return
    print(message, file=sys.stderr, flush=True)
    if os.getppid() == parent:
        os.kill(parent, signal.SIGKILL)


def main():
    """Entry point: takes the parent's id, the seconds and the message from the command line."""
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
