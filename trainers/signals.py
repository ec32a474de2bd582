"""SIGINT and SIGTERM: a program says in one line what is kept, and ends.

Python runs signal handlers in its main thread, which may be inside a training step, a compiler or an export
for long. So the handler does nothing, and a thread that waits for the signal's number ends the process: all
that is written takes its place in one step, and nothing needs to be tidied up.
"""

import contextlib
import os
import signal
import socket
import sys
import threading

SECONDS = 10.0  # that a checkpoint is waited for

_last_words = None
_sockets = None
_ending = threading.Event()


def watch():
    """Has SIGINT and SIGTERM end this program with one line and exit status 130 or 143.

    A signal that the program was started to ignore stays ignored, as by a shell that runs it behind others.
    """
    global _sockets
    if _sockets is not None or threading.current_thread() is not threading.main_thread():
        return
    _sockets = receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(receiver,), name="signals", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


@contextlib.contextmanager
def last_words(function):
    """A context in which a signal's line ends with what a function says.

    Args:
        function: Called in another thread with the seconds that it may wait; returns the end of the sentence.
    """
    global _last_words
    before, _last_words = _last_words, function
    try:
        yield
    finally:
        _last_words = before


def wait_for_end():
    """Does not return if a signal has come, which is about to end this program."""
    if _ending.is_set():
        threading.Event().wait()


def _wait(receiver):
    number = _next(receiver)
    _ending.set()
    threading.Thread(target=_end, args=(number,), name="last words", daemon=True).start()
    os._exit(128 + _next(receiver))  # a second signal does not wait


def _next(receiver):
    while True:
        number = receiver.recv(1)[0]
        if number in (signal.SIGINT, signal.SIGTERM):
            return number


def _end(number):
    words = f": {_last_words(SECONDS)}" if _last_words is not None else ""
    flushing = threading.Thread(target=sys.stdout.flush, daemon=True)
    flushing.start()
    flushing.join(0.5)  # who should read it may have stopped to
    os.write(2, f"Interrupted by {signal.Signals(number).name}{words}\n".encode())
    os._exit(128 + number)
