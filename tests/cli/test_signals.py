"""SIGINT and SIGTERM end a process within seconds, whatever becomes of the exception."""

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import atexit, hashlib, os, signal, sys, threading, time
from bigain.cli import signals

def quiet():
    time.sleep(60)

def lost():
    for _ in range(60):
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            pass

def another_error():
    try:
        time.sleep(60)
    except KeyboardInterrupt as error:
        raise ImportError("numpy failed to initialise") from error

def another_status():
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(1)

def endless_cleaning_up():
    try:
        time.sleep(60)
    finally:
        time.sleep(60)

def endless_thread():
    threading.Thread(target=time.sleep, args=(60,)).start()
    time.sleep(60)

def endless_exit():
    atexit.register(time.sleep, 60)
    time.sleep(60)

def in_exec():
    # Where this is interrupted, the interpreter would end by SIGINT whatever its exit status.
    exec("time.sleep(60)")

def busy_in_c():
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 1_000_000_000)

def taken_by_lightning():
    # As Lightning does for the length of a run.
    ours = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *given: (None, ours(*given)))
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    time.sleep(60)

signals._GRACE = 1
with signals.ended_by_signals("interrupted, and that is all."):
    print("ready", flush=True)
    {work}()
print("whole", flush=True)
"""
WORK = (
    *("quiet", "lost", "another_error", "another_status", "endless_cleaning_up", "endless_thread", "endless_exit"),
    *("in_exec", "busy_in_c", "taken_by_lightning"),
)


def started(program, *, sigint=signal.default_int_handler):
    """Start a program, and wait until it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's job in the background ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("numbers", "status"), [([2, 2], 130), ([15], 143)], ids=str)
@pytest.mark.parametrize("work", WORK)
def test_a_process_ends_within_seconds_and_says_one_sentence(work, numbers, status):
    process, start = started(PROGRAM.format(work=work)), time.monotonic()
    try:
        for number in numbers:
            os.kill(process.pid, number)
            time.sleep(0.02)
        _, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert time.monotonic() - start < 10
    assert (process.returncode, error) == (status, "interrupted, and that is all.\n")


def test_what_is_ignored_stays_ignored():
    """`nohup bigain ... &` goes on when the terminal's other jobs are interrupted."""
    process = started(PROGRAM.format(work="(lambda: time.sleep(1))"), sigint=signal.SIG_IGN)
    os.kill(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20) == ("whole\n", "")
    assert process.returncode == 0


def test_a_fork_has_signals_of_its_own():
    """Loaders of data are stopped by SIGTERM: that ends them, and not the process that they work for."""
    work = "forks"
    program = PROGRAM.replace(
        "def quiet():",
        """
def forks():
    child = os.fork()
    if not child:
        time.sleep(60)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    time.sleep(2)

def quiet():""",
    )
    process = started(program.format(work=work))
    assert process.communicate(timeout=20) == ("whole\n", "")
    assert process.returncode == 0


def test_an_error_stays_what_it_is():
    program = PROGRAM.format(work="int").replace("int()", "int('x')")
    process = started(program)
    _, error = process.communicate(timeout=20)
    assert "ValueError" in error
    assert process.returncode == 1
