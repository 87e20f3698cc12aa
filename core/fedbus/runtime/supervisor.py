"""Starts again what dies of a stack, and says so: the same for `fedbus up`, `fedbus demo` and notebooks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

from fedbus.base.errors import BusUnavailable, FedbusError
from fedbus.runtime.alive import SILENT_S
from fedbus.runtime.disk import DiskWatch
from fedbus.runtime.probe import Answer, probe
from fedbus.runtime.restarts import Restarts
from fedbus.runtime.silence import Silence
from fedbus.runtime.stack import BROKER, LocalStack

POLL_S = 0.1
PROBE_S = 2.0  # that the broker has to answer
ROOM_S = 60.0  # between looks at whether the disk has room for more than the broker may store


class Supervisor:
    """Watches the processes of a stack until cancelled.

    Args:
        stack: its broker runs, its processes were started.
        say: told one line for each process that ended and was started again, and when the disk runs low.
        patience: give up once a process ended so often in a row; None: never.
    """

    def __init__(self, stack: LocalStack, say: Callable[[str], None], patience: int | None = None) -> None:
        self._stack = stack
        self._say = say
        self._patience = patience
        self._restarts = Restarts(random.Random().random)
        self._disk = DiskWatch(stack.folder, "the broker stores nothing more, and runs wait")
        self._refusing = False
        self._room_due = 0.0
        self._untrimmed: set[str] = set()  # processes whose log cannot be put aside
        self._ends: dict[str, tuple[str, float]] = {}  # how it ended, and when
        self._silence = Silence(SILENT_S)
        self._hung: dict[str, str] = {}  # what is said of those that were ended because they hang

    async def run(self) -> None:
        """Look after the processes, for ever.

        Raises:
            BusUnavailable: the patience with one of them is over; says how it ended.
        """
        for name in self._stack.names:
            self._restarts.started(name, time.monotonic())
        asking = asyncio.create_task(self._ask_broker())
        try:
            await self._look_after()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _look_after(self) -> None:
        while True:
            for name in self._stack.dead():
                if not self._restarts.down(name):
                    self._silence.forget(name)
                    self._stack.signs.forget(name)
                    self._note_end(name, self._hung.pop(name, "") or self._stack.how_it_ended(name))
            self._end_what_hangs()
            for name in self._restarts.due(time.monotonic()):
                await self._start_again(name)
            await self._trim_logs()
            await self._look_at_disk()
            await asyncio.sleep(POLL_S)

    def _end_what_hangs(self) -> None:
        """End what gives no sign of life any more; then it is dead, and started again as such."""
        now = time.monotonic()
        for name in self._stack.signs.heard():
            self._silence.hear(name, now)
        for name in self._silence.hanging(now):
            self._silence.forget(name)
            self._hung[name] = f"gave no sign of life for over {SILENT_S:g} s, and was ended"
            self._stack.end(name)

    async def _ask_broker(self) -> None:
        """Have the broker give signs of life, too: it answers who asks."""
        while True:
            try:
                credentials = self._stack.broker.accounts.credentials("operator")
                heard = await asyncio.to_thread(probe, credentials, PROBE_S) is not Answer.SILENT
            except Exception:  # we could not ask: that says nothing of the broker
                heard = self._stack.broker.running()
            if heard:
                self._silence.hear(BROKER, time.monotonic())
            await asyncio.sleep(PROBE_S)

    async def _trim_logs(self) -> None:
        failed = await asyncio.to_thread(self._stack.trim_logs)
        for name in failed.keys() - self._untrimmed:
            self._say(f"warning[log-long]: the log of {name} cannot be kept short, {failed[name]}")
        self._untrimmed = set(failed)

    async def _look_at_disk(self) -> None:
        """Have the broker refuse writes before the disk does, and take what there is room for."""
        if (news := self._disk.look()) is not None:
            level = "error" if news.code == "disk-full" else "warning"
            self._say(f"{level}[{news.code}]: {news.reason}")
        room_due = not self._disk.full and time.monotonic() >= self._room_due
        if (self._disk.full != self._refusing or room_due) and self._stack.broker.running():
            self._room_due = time.monotonic() + ROOM_S
            # It may fail on a disk without any space: it is tried again at the next look.
            with contextlib.suppress(FedbusError, OSError):
                await asyncio.to_thread(self._stack.broker.refuse_writes, self._disk.full)
                self._refusing = self._disk.full

    def _note_end(self, name: str, how: str) -> None:
        now = time.monotonic()
        self._ends.setdefault(name, (how, now))
        self._restarts.ended(name, now)
        if self._patience is not None and self._restarts.failures(name) >= self._patience:
            raise BusUnavailable(
                f"{name} {how}, {self._patience} times in a row",
                hint=f"its log is {self._stack.log_of(name)}",
            )

    async def _start_again(self, name: str) -> None:
        how, ended_at = self._ends.pop(name)
        try:
            pid = await asyncio.to_thread(self._stack.restart, name)
        except (FedbusError, OSError) as error:
            self._restarts.started(name, time.monotonic())
            self._say(f"{name} {how}; could not be started again, and will be tried again: {error}")
            self._note_end(name, f"could not be started again: {error}")
            return
        now = time.monotonic()
        self._restarts.started(name, now)
        self._say(f"{name} {how}; started again after {now - ended_at:.1f} s as process {pid}")
