"""The commands that a person types, as real processes that a test starts and stops."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.natsd import wait_until

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str


class Shell:
    """A folder to type commands in; what runs in the background logs to `<name>.log` there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str, env: dict[str, str] | None = None, timeout_s: float = 100.0) -> Done:
        """Run a command to its end; a name without a path is one of this environment's."""
        done = subprocess.run(
            _located(command),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **(env or {})},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, name: str, *command: str) -> None:
        """Start a command in the background."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                _located(command), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def says(self, name: str, text: str, timeout_s: float = 30.0) -> None:
        """Return once a background command has printed something; fail when it ends or is silent."""

        def said() -> bool:
            assert self._running[name].poll() is None, f"{name} ended: {self.log(name)}"
            return text in self.log(name)

        wait_until(said, f"{name} says {text!r}", timeout_s)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a background command."""
        self._running[name].send_signal(number)

    def wait(self, name: str, timeout_s: float = 20.0) -> int:
        """The exit code of a background command that ends by itself."""
        return self._running.pop(name).wait(timeout_s)

    def stop(self) -> dict[str, int]:
        """SIGTERM all, the last one first; returns their exit codes."""
        codes: dict[str, int] = {}
        for name, process in reversed(self._running.items()):
            process.terminate()
            try:
                codes[name] = process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        self._running = {}
        return codes


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    """A shell whose background commands end with the block."""
    typed = Shell(folder)
    try:
        yield typed
    finally:
        typed.stop()


def _located(command: tuple[str, ...]) -> list[str]:
    name, *rest = command
    return [sys.executable if name == "python" else str(BIN / name) if "/" not in name else name, *rest]
