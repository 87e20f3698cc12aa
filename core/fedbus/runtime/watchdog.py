"""Run a command that ends when this program's parent ends, however that happens: `watchdog.py FD COMMAND...`.

FD is one end of a socket pair whose other end only the parent holds, so its end of file means that the parent
is gone, on every system. Then the command's process group gets SIGTERM and, 5 s later, SIGKILL.
The command's process id is written to FD, once.
On Linux the kernel also ends the command when this program itself is killed. SIGTERM, SIGINT and SIGHUP are
passed on. Exits with the command's exit code, or 128 plus the number of the signal that ended it.

Imports the standard library only: it is started with `python -I -S`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from types import FrameType

GRACE_S = 5.0
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Start the command and stay until it has ended; returns its exit code."""
    lifeline, command = int(arguments[0]), arguments[1:]
    os.set_inheritable(lifeline, False)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (*_PASSED_ON, signal.SIGCHLD):
        signal.signal(number, note)
    child = _start(command)
    with contextlib.suppress(OSError):  # the parent is gone: the loop notices
        os.write(lifeline, b"%d\n" % child)
    watched, kill_at = [lifeline, wake_read], float("inf")
    while True:
        wait = None if kill_at == float("inf") else max(0.0, kill_at - time.monotonic())
        ready = select.select(watched, [], [], wait)[0]
        if wake_read in ready:
            os.read(wake_read, 4096)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _signal_group(child, signal.SIGKILL)  # whatever the command left behind
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        while arrived:
            passed_on = arrived.pop(0)
            if passed_on != signal.SIGCHLD:
                _signal_group(child, passed_on)
        if lifeline in ready:
            watched.remove(lifeline)
            _signal_group(child, signal.SIGTERM)
            kill_at = time.monotonic() + GRACE_S
        elif time.monotonic() >= kill_at:
            _signal_group(child, signal.SIGKILL)
            kill_at = float("inf")


def _start(command: list[str]) -> int:
    """Fork and run the command in a process group of its own; returns its process id."""
    parent = os.getpid()
    # No signal may be noted by the copy of this program that lives between fork and exec.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child:
        # Both sides set the group, so that it exists for whoever comes first.
        with contextlib.suppress(OSError):
            os.setpgid(child, child)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return child
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (*_PASSED_ON, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _die_with(parent)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _die_with(parent: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(127)


def _signal_group(group: int, number: int) -> None:
    # The group may be gone; macOS says EPERM for one that holds only zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
