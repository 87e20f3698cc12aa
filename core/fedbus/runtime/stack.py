"""A whole federation on this machine: broker, services and workers as processes that end with this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedbus.base.errors import BusUnavailable
from fedbus.runtime.broker import Broker
from fedbus.runtime.tied import Lifeline

SERVICES = ("planner", "aggregator", "evaluator")
STOP_S = 10.0


class LocalStack:
    """Starts the processes that a person would start by hand, in one folder.

    Each writes its log to `<folder>/logs/<name>.log`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.broker = Broker(self.folder)
        self._commands: dict[str, list[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lifelines: dict[str, Lifeline] = {}

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def open(self) -> None:
        """Start the broker; the processes are started one by one."""
        self.broker.start()
        (self.folder / "logs").mkdir(exist_ok=True)

    def start_services(self, names: Sequence[str] = SERVICES) -> None:
        """Start planner, aggregator and evaluator, or only some of them."""
        for name in names:
            self.start(name, [sys.executable, "-m", f"fedbus_{name}", "--dir", str(self.folder)])

    def start_worker(self, name: str, *flags: str) -> None:
        """Start a worker that joins this stack."""
        state = ["--state", str(self.folder / "workers"), "--dir", str(self.folder)]
        self.start(name, [sys.executable, "-m", "fedbus_worker", "join", "--name", name, *state, *flags])

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process under a name; it ends with this one."""
        lifeline = Lifeline()
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                lifeline.wrap(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=lifeline.pass_fds,
                start_new_session=True,
                # The stack's own credentials count, whatever the caller's environment says.
                env={key: value for key, value in os.environ.items() if key != "FEDBUS_URL"},
            )
        lifeline.handed_over()
        self._lifelines[name] = lifeline
        self._commands[name] = list(command)

    def restart(self, name: str) -> None:
        """Start a process again, as it was started; one that still runs is ended first."""
        self._lifelines.pop(name).close()
        self._processes.pop(name).wait()
        self.start(name, self._commands[name])

    def pid(self, name: str) -> int:
        """Process id of the watchdog around a process; signals sent to it are passed on."""
        return self._processes[name].pid

    def check(self) -> None:
        """Notice a process that ended.

        Raises:
            BusUnavailable: one did; quotes the end of its log.
        """
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                log = (self.folder / "logs" / f"{name}.log").read_text(errors="replace").splitlines()[-5:]
                raise BusUnavailable(f"{name} ended with code {code}: " + " | ".join(log))

    def stop(self) -> None:
        """Stop everything: workers first, so that they can say goodbye, the broker last."""
        for name in reversed(list(self._processes)):
            with contextlib.suppress(ProcessLookupError):
                self._processes[name].send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for lifeline in self._lifelines.values():
            lifeline.close()
        self._processes = {}
        self._lifelines = {}
        self.broker.stop()
