"""SIGINT and SIGTERM end a command within seconds, with its finished work in place."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

__all__ = ["ended_by_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_GRACE = 10.0
"""Seconds that cleaning up may take."""

_NONE = b"\0"
"""No signal has this number."""


@contextmanager
def ended_by_signals(sentence: str) -> Iterator[None]:
    """End the process at SIGINT or SIGTERM, with exit status 130 or 143.

    The first signal raises KeyboardInterrupt in the block, so that files and locks are closed; further
    signals change nothing. The exception alone is not enough: libraries can lose it (in a destructor,
    or as an ImportError), and cleaning up can wait for a thread that never ends. So the signal also
    wakes a thread, which ends the process if it is still running some seconds later.

    SIGTERM does the same, since Lightning alone would note it and go on to the end of a test. A signal
    that was ignored before, such as SIGINT in a background job, stays ignored.

    Args:
        sentence: Printed at the end.
    """
    taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    received: list[int] = []
    with _watched(taken, sentence):
        before = {number: signal.signal(number, _handler(received)) for number in taken}
        try:
            yield
        except BaseException:
            if received:
                _end(received[0], sentence)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _handler(received: list[int]) -> "signal._HANDLER":
    process = os.getpid()

    def handle(number: int, _: object) -> None:
        in_fork = os.getpid() != process  # a data worker, say, which behaves as without this handler
        if in_fork and number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)
        if in_fork or len(received) == 1:
            raise KeyboardInterrupt

    return handle


@contextmanager
def _watched(numbers: Sequence[int], sentence: str) -> Iterator[None]:
    """Wake a thread when a signal arrives; it runs even where the main thread is busy in C."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget_in_fork)
    threading.Thread(target=_watch, args=(read, numbers, sentence), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(write, _NONE)


def _watch(read: int, numbers: Sequence[int], sentence: str) -> None:
    while (byte := os.read(read, 1)) != _NONE:
        if byte[0] in numbers:
            threading.Event().wait(_GRACE)
            _leave(byte[0], sentence)


def _forget_in_fork() -> None:
    """Keep a fork from waking its parent's thread when the fork gets a signal."""
    signal.set_wakeup_fd(-1)


def _end(number: int, sentence: str) -> NoReturn:
    """Do what the interpreter does at its end, except waiting for threads.

    With `sys.exit`, the interpreter would also send itself SIGINT if KeyboardInterrupt was raised in an `exec`.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 there is no public way
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _leave(number, sentence)


def _leave(number: int, sentence: str) -> NoReturn:
    # Not through Python's buffers: a stopped thread may have their locks.
    with suppress(OSError):
        os.write(2, f"{sentence}\n".encode())
    os._exit(128 + number)
