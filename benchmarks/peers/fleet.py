"""The processes of a peer: started with their logs in one folder, watched, and stopped whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedbus.runtime.tied import Lifeline

from peers.logs import last_words
from peers.trial import TrialFailed
from peers.watch import end_all

POLL_S = 0.1
STOP_S = 10.0
GROUP = 10


class Fleet:
    """Processes that end with this one.

    Args:
        folder: for the logs.
        variables: for the environment of each process.
        limit_s: counted from now; `wait` fails after it.
    """

    def __init__(self, folder: Path, variables: dict[str, str], limit_s: float) -> None:
        self.roots: dict[str, int] = {}
        self._folder = folder
        self._environment = {**os.environ, **variables}
        self._deadline = time.monotonic() + limit_s
        self._limit_s = limit_s
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lifelines: list[Lifeline] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not leave anything behind.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self, name: str, command: Sequence[str], variables: dict[str, str] | None = None) -> None:
        """Start a process that should stay.

        Raises:
            TrialFailed: its program cannot be run.
        """
        lifeline = Lifeline()
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                lifeline.wrap(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=lifeline.pass_fds,
                start_new_session=True,
                env={**self._environment, **(variables or {})},
            )
        lifeline.handed_over()
        self._lifelines.append(lifeline)
        pid = lifeline.pid()
        if pid is None:
            raise TrialFailed(f"{name} does not start")
        self.roots[name] = pid

    def start_clients(self, names: Sequence[str], start: Callable[[str], None], sign: str) -> None:
        """Start clients, a few at a time, each few when those before them have joined.

        Args:
            names: of the clients.
            start: starts one, by its name.
            sign: what the log of a client says when it has joined.

        Raises:
            TrialFailed: a process ended, or it takes too long.
        """
        for first in range(0, len(names), GROUP):
            group = names[first : first + GROUP]
            for name in group:
                start(name)
            self.wait(
                f"all {len(names)} clients",
                lambda group=group: all(sign in self.log(name) for name in group),  # type: ignore[misc]
            )

    def run(self, command: Sequence[str]) -> str:
        """Run a command to its end and return what it printed.

        Raises:
            TrialFailed: it exits with another code than 0, or takes too long.
        """
        name = " ".join([Path(command[0]).name, *command[1:3]])
        try:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                timeout=max(1.0, self._deadline - time.monotonic()),
            )
        except subprocess.TimeoutExpired as error:
            raise TrialFailed(f"{name} took too long") from error
        told = done.stdout.decode(errors="replace")
        if done.returncode:
            raise TrialFailed(f"{name}: exit code {done.returncode}: {last_words(told)}")
        return told

    def wait(self, what: str, there: Callable[[], bool]) -> None:
        """Wait until something is there; `what` names it.

        Raises:
            TrialFailed: a process ended, or it takes too long.
        """
        while not there():
            self._check()
            if time.monotonic() > self._deadline:
                raise TrialFailed(f"{what} did not come within {self._limit_s:g} s")
            time.sleep(POLL_S)

    def log(self, name: str) -> str:
        """What a process printed."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def _check(self) -> None:
        ended = [name for name, process in self._processes.items() if process.poll() is not None]
        if ended:
            code = self._processes[ended[0]].returncode
            raise TrialFailed(
                f"{len(ended)} of {len(self._processes)} processes ended, the first of them, {ended[0]}, "
                f"with code {code}: {last_words(self.log(ended[0]))}"
            )

    def _stop(self) -> None:
        for lifeline in self._lifelines:
            lifeline.close()
        deadline = time.monotonic() + STOP_S
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        end_all()  # what its own parent left behind
        for process in self._processes.values():
            process.wait()


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that nobody uses right now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
