"""Child processes that end with this process, even when it is killed with SIGKILL."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_WATCHDOG = Path(__file__).with_name("watchdog.py")


class Lifeline:
    """A pipe that a child's watchdog listens on: the child lives while this process holds its end.

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
        self._read, self._write = os.pipe()

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """Descriptors that the watchdog must inherit."""
        return (self._read,)

    def wrap(self, command: Sequence[str | os.PathLike[str]]) -> list[str]:
        """The command line that runs `command` under a watchdog."""
        watchdog = [sys.executable, "-I", "-S", str(_WATCHDOG), str(self._read)]
        return [*watchdog, *(os.fspath(part) for part in command)]

    def handed_over(self) -> None:
        """Close this process's copy of the watchdog's end; call it once the watchdog was started."""
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def close(self) -> None:
        """Let go: the child is told to end."""
        self.handed_over()
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
