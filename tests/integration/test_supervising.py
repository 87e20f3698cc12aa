"""What a supervised stack does about logs that grow and a disk that others fill."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from fedbus.api.federation import Federation
from fedbus.base.errors import StreamFull
from fedbus.runtime import alive
from fedbus.runtime import supervisor as supervisors
from fedbus.runtime.disk import GIB
from fedbus.runtime.logfile import MOST_LOG_BYTES
from fedbus.runtime.stack import LocalStack
from fedbus.runtime.stackfile import read_stack
from fedbus.runtime.supervisor import Supervisor
from support.natsd import wait_until

NOISE = f"""
import pathlib, signal, sys
for _ in range({3 * MOST_LOG_BYTES // 10_000}):
    sys.stdout.write("x" * 9_999 + "\\n")
sys.stdout.flush()
pathlib.Path(sys.argv[1]).touch()
signal.pause()
"""
PLAN = {"task": "noop", "rounds": 1, "cohort": {"min": 1}}


class Usage(NamedTuple):
    """What `shutil.disk_usage` says."""

    total: int
    used: int
    free: int


@asynccontextmanager
async def supervised(folder: Path) -> AsyncIterator[tuple[LocalStack, list[str]]]:
    """A stack with a broker, and what its supervisor says."""
    said: list[str] = []
    async with LocalStack(folder / "stack") as stack:
        supervising = asyncio.create_task(Supervisor(stack, said.append).run())
        try:
            yield stack, said
        finally:
            supervising.cancel()
            await asyncio.gather(supervising, return_exceptions=True)


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, lambda: bool(condition()), what)


async def started(federation: Federation, name: str) -> bool:
    """Start a run, if the broker stores it."""
    with suppress(StreamFull):
        return bool(await federation.start(PLAN, name))
    return False


async def test_a_process_that_logs_much_does_not_fill_the_disk(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (stack, _):
        done = tmp_path / "done"
        stack.start("noisy", [sys.executable, "-c", NOISE, str(done)])
        log = stack.log_of("noisy")
        old = log.with_suffix(".log.old")
        await until(done.exists, "it has said all that it has to say")
        await until(lambda: log.stat().st_size <= MOST_LOG_BYTES, "its log is short")
        await until(old.exists, "the rest is kept")
        assert old.stat().st_size <= MOST_LOG_BYTES


async def test_what_cannot_be_looked_after_is_told_of_once_and_the_rest_is(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (stack, said):
        stack.start("quiet", [sys.executable, "-c", "import signal; signal.pause()"])
        logs = stack.log_of("quiet").parent
        logs.rename(tmp_path / "moved")
        logs.touch()
        await until(lambda: said, "the log cannot be read")
        assert said[0].startswith("warning[log-long]: the log of quiet cannot be kept short, ")
        assert "Not a directory" in said[0]
        stack.broker.kill()
        await until(lambda: len(said) == 2, "the broker is started again")
        assert said[1].startswith("broker was ended by SIGKILL; started again")


async def test_what_hangs_is_ended_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (alive, supervisors):
        monkeypatch.setattr(module, "SILENT_S", 2.0)
    monkeypatch.setattr(supervisors, "PROBE_S", 0.2)
    async with supervised(tmp_path) as (stack, said):
        stack.start_services(["planner"])
        async with await Federation.connect(stack.broker.accounts.credentials("operator")) as federation:
            await federation.wait_for("planner", 30)
            run = await federation.start(PLAN)
            stack.write_pids()
            for name in ("planner", "broker"):
                known = read_stack(stack.folder)
                assert known is not None
                before = known.processes["planner"] if name == "planner" else known.broker_pid
                assert before is not None
                said.clear()
                os.kill(before, signal.SIGSTOP)
                await until(lambda: said, f"{name} is started again")
                assert said[0].startswith(f"{name} gave no sign of life for over 2 s, and was ended; started")
                with pytest.raises(ProcessLookupError):
                    os.kill(before, 0)
            await federation.wait_for("planner", 30)
            assert (await federation.run(run)).state == "waiting"
            # What is well is left alone: it gives signs, and the broker answers.
            assert not any("planner" in line for line in said)


async def test_a_broker_may_store_more_once_its_disk_has_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = [Usage(100 * GIB, 0, 6 * GIB)]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk[0])
    monkeypatch.setattr(supervisors, "ROOM_S", 0.0)
    async with supervised(tmp_path) as (stack, said):

        def limit() -> int:
            known = read_stack(stack.folder)
            return known.max_file if known else 0

        assert 0 < limit() <= GIB
        disk[0] = Usage(100 * GIB, 0, 50 * GIB)
        await until(lambda: limit() > 44 * GIB, "the limit follows")
        disk[0] = Usage(100 * GIB, 0, 6 * GIB)
        await asyncio.to_thread(stack.broker.refuse_writes, False)
        assert limit() > 44 * GIB, "others took the space: the watch for a full disk is enough"
        assert not said


async def test_on_a_full_disk_writes_are_refused_with_a_reason_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = [Usage(100 * GIB, 0, 50 * GIB)]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk[0])
    async with supervised(tmp_path) as (stack, said):
        stack.start_services(["planner"])
        async with await Federation.connect(stack.broker.accounts.credentials("operator")) as federation:
            before = await federation.start(PLAN)
            disk[0] = Usage(100 * GIB, 0, 2 * GIB)
            await until(lambda: said, "the disk is low")
            assert said[0].startswith("warning[disk-low]: 2.00 of 100.0 GiB are free in ")
            disk[0] = Usage(100 * GIB, 0, GIB // 8)
            number = 0
            while await started(federation, f"more-{number}"):
                number += 1  # the broker hears of it a moment later
            with pytest.raises(StreamFull, match="the broker has no space for its store"):
                await federation.start(PLAN)
            assert (await federation.run(before)).state == "waiting", "what is stored can be read"
            assert said[1].startswith("error[disk-full]: ")
            assert said[1].endswith("the broker stores nothing more, and runs wait, until there is more")
            stack.write_pids()
            known = read_stack(stack.folder)
            assert known is not None
            os.kill(known.processes["planner"], signal.SIGKILL)
            await until(lambda: len(said) == 3, "the planner is started again, also now")
            disk[0] = Usage(100 * GIB, 0, 50 * GIB)
            await until(lambda: len(said) == 4, "there is room")
            assert said[3].startswith("warning[disk-room]: ")
            while not await started(federation, "after-it"):
                pass  # the broker hears of this too a moment later
            assert [each.run for each in await federation.runs()][-1] == "after-it"
