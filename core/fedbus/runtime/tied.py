"""Child processes that end with this process, even when it is killed with SIGKILL."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_WATCHDOG = Path(__file__).with_name("watchdog.py")
# How long a watchdog may take to start its command, on a busy machine.
_START_S = 10.0


class Lifeline:
    """A socket pair that a child's watchdog listens on: the child lives while this process holds its end.

    Use with any way of starting a process, one lifeline per child:

        line = Lifeline()
        process = subprocess.Popen(line.wrap(command), pass_fds=line.pass_fds, start_new_session=True)
        line.handed_over()
        ...
        line.close()            # SIGTERM to the child and all it started; SIGKILL 5 s later
        process.wait()

    The process is the watchdog; signals sent to it reach the child, and its exit code is the child's.
    """

    def __init__(self) -> None:
        self._theirs, self._ours = socket.socketpair()
        self._pid: int | None = None

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """Descriptors that the watchdog must inherit."""
        return (self._theirs.fileno(),)

    def wrap(self, command: Sequence[str | os.PathLike[str]]) -> list[str]:
        """The command line that runs `command` under a watchdog."""
        watchdog = [sys.executable, "-I", "-S", str(_WATCHDOG), str(self._theirs.fileno())]
        return [*watchdog, *(os.fspath(part) for part in command)]

    def handed_over(self) -> None:
        """Close this process's copy of the watchdog's end; call it once the watchdog was started."""
        self._theirs.close()

    def pid(self) -> int | None:
        """Process id of the child itself, which its watchdog tells; None where it never started."""
        if self._pid is None:
            with contextlib.suppress(OSError):  # no answer in time, or closed
                self._ours.settimeout(_START_S)
                told = self._ours.recv(32)
                self._pid = int(told) if told.strip().isdigit() else None
        return self._pid

    def close(self) -> None:
        """Let go: the child is told to end."""
        self.handed_over()
        self._ours.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
