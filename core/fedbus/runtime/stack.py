"""A whole federation on this machine: broker, services and workers as processes that end with this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedbus.base.errors import BusUnavailable
from fedbus.runtime.alive import Signs, without_signs
from fedbus.runtime.broker import Broker
from fedbus.runtime.claim import Claim
from fedbus.runtime.listening import LOOPBACK
from fedbus.runtime.logfile import is_long, put_aside, tail
from fedbus.runtime.rights import SERVICES
from fedbus.runtime.stackfile import STACK_LOCK, make_folder
from fedbus.runtime.tied import Lifeline

BROKER = "broker"
STANDBY = "standby"
STOP_S = 10.0
# Who is ended by these has no last words: the end of the log would be about something else.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class LocalStack:
    """Starts the processes that a person would start by hand, in one folder.

    Each writes its log to `<folder>/logs/<name>.log`, the broker to `<folder>/broker/log`. They end with
    this process, however it ends. `Supervisor` starts again what dies. `restart`, `stop` and
    `kill` may overlap.

    Args:
        folder: made if missing; one stack a folder.
        listen: where the broker listens, as `Broker` takes it.
    """

    def __init__(self, folder: Path, *, listen: str = f"{LOOPBACK}:0") -> None:
        self.folder = folder.expanduser().absolute()
        self.broker = Broker(self.folder, listen=listen)
        self._claim: Claim | None = None
        # A supervisor may start something again, in a thread, while another one stops it all.
        self._changing = threading.Lock()
        self._commands: dict[str, list[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lifelines: dict[str, Lifeline] = {}
        self.signs = Signs()  # of life

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def open(self) -> None:
        """Start the broker; the processes are started one by one.

        Raises:
            ConfigError: another stack runs in the folder.
        """
        make_folder(self.folder)
        self._claim = Claim(self.folder / STACK_LOCK, f"another stack runs in {self.folder}")
        try:
            self.broker.start()
            (self.folder / "logs").mkdir(exist_ok=True)
        except BaseException:
            self.stop()
            raise

    def start_services(self, names: Sequence[str] = SERVICES) -> None:
        """Start all services, or only some of them."""
        for name in names:
            self.start(name, self._service(name))

    def start_standby(self) -> None:
        """Start a second aggregator, which works when the first one does not."""
        self.start(STANDBY, self._service("aggregator"))

    def _service(self, name: str) -> list[str]:
        return [sys.executable, "-m", f"fedbus_{name}", "--dir", str(self.folder)]

    def start_worker(self, name: str, *flags: str) -> None:
        """Start a worker that joins this stack."""
        state = ["--state", str(self.folder / "workers"), "--dir", str(self.folder)]
        self.start(name, [sys.executable, "-m", "fedbus_worker", "join", "--name", name, *state, *flags])

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process under a name; it ends with this one."""
        lifeline = Lifeline()
        with self.log_of(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                lifeline.wrap(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=lifeline.pass_fds,
                start_new_session=True,
                # The stack's own credentials count, whatever the caller's environment says.
                env={
                    **without_signs({key: value for key, value in os.environ.items() if key != "FEDBUS_URL"}),
                    **self.signs.environment(name),
                },
            )
        lifeline.handed_over()
        self._lifelines[name] = lifeline
        self._commands[name] = list(command)

    def restart(self, name: str) -> int:
        """Start the broker or a process again, as it was started; one that still runs is ended first.

        Returns:
            Its process id.

        Raises:
            BusUnavailable: the broker does not come up.
        """
        with self._changing:
            if self._claim is None:
                raise BusUnavailable("the stack was stopped")
            if name == BROKER:
                self.broker.start()
                self.write_pids()
                return self.broker.pid
            if name in self._lifelines:  # else it could not be started the last time
                self._lifelines.pop(name).close()
                self._processes.pop(name).wait()
            self.start(name, self._commands[name])
            self.write_pids()
            return self._lifelines[name].pid() or self.pid(name)

    def pid(self, name: str) -> int:
        """Process id of the watchdog around a process; signals sent to it are passed on."""
        return self._processes[name].pid

    def write_pids(self) -> None:
        """Let `stack.json` name the processes that run."""
        pids = {name: lifeline.pid() for name, lifeline in self._lifelines.items()}
        self.broker.note_processes({name: pid for name, pid in pids.items() if pid is not None})

    @property
    def names(self) -> list[str]:
        """The broker and all processes that were started."""
        return [BROKER, *self._processes]

    def log_of(self, name: str) -> Path:
        """The file that the broker or a process writes its log to."""
        return self.folder / "broker" / "log" if name == BROKER else self.folder / "logs" / f"{name}.log"

    def trim_logs(self) -> dict[str, str]:
        """Put aside logs that have grown long; the broker looks after its own.

        Returns:
            Processes whose log cannot be kept short, and why.
        """
        failed = {}
        for name in list(self._processes):
            try:
                if is_long(path := self.log_of(name)):
                    put_aside(path)
            except OSError as error:
                failed[name] = str(error)
        return failed

    def dead(self) -> list[str]:
        """The broker and processes that ended, though nobody stopped them."""
        ended = [name for name, process in self._processes.items() if process.poll() is not None]
        return ended if self.broker.running() else [BROKER, *ended]

    def how_it_ended(self, name: str) -> str:
        """Words for how a dead process ended; with the end of its log where it may say why."""
        code = self.broker.exit_code() if name == BROKER else self._processes[name].returncode
        if _signal_of(code) in _FROM_OUTSIDE:
            return _ended(code)
        with contextlib.suppress(OSError):
            lines = tail(self.log_of(name), 2000).decode(errors="replace").split("\n")
            last = " | ".join([line.strip() for line in lines if line.strip()][-2:])
            return f"{_ended(code)} (its log ends: {last[-300:]})" if last else _ended(code)
        return _ended(code)

    def check(self) -> None:
        """Notice a process that ended.

        Raises:
            BusUnavailable: one did; quotes the end of its log.
        """
        for name in self.dead():
            raise BusUnavailable(f"{name} {self.how_it_ended(name)}")

    def stop(self) -> None:
        """Stop everything: workers first, so that they can say goodbye, then services, the broker last."""
        with self._changing:
            self._stop()

    def _stop(self) -> None:
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
        self.signs.close()
        self.broker.stop()
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def kill(self) -> None:
        """SIGKILL everything; a `stop` that waits in another thread then returns."""
        for name in self.names:
            self.end(name)

    def end(self, name: str) -> None:
        """SIGKILL the broker or a process, and all that it started; one that was stopped ends too."""
        if name == BROKER:
            self.broker.kill()
        elif (lifeline := self._lifelines.get(name)) and (group := lifeline.pid()) is not None:
            # A process leads the group of all that it started, such as a trainer.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
            # Its watchdog may have been stopped with it, and would never say that it ended.
            self._processes[name].send_signal(signal.SIGCONT)


def _signal_of(code: int | None) -> int:
    """The signal that an exit code tells of; a watchdog's is 128 + n where signal n ended its command."""
    return -code if code is not None and code < 0 else (code or 0) - 128


def _ended(code: int | None) -> str:
    try:
        return f"was ended by {signal.Signals(_signal_of(code)).name}"
    except ValueError:
        return f"ended with code {code}"
