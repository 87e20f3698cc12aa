"""Seconds, bytes, memory and CPU of a round: real processes on this machine, training that does nothing.

    python benchmarks/rounds.py                 # all settings; `make bench` adds --write
    python benchmarks/rounds.py --quick         # fewer rounds, at most 10 workers
    python benchmarks/rounds.py --only 4-small --telemetry off

For each setting a stack is started in a temporary folder. One short run warms it up, then one run is
measured, whose first rounds are left out of the times. Exits 1 when a run did not finish.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedbus.api.federation import Federation
from fedbus.base.errors import FedbusError
from fedbus.bus import Bus
from fedbus.bus.runs import Runs
from fedbus.bus.store import leader_get
from fedbus.runtime.server import find_server
from fedbus.runtime.stack import LocalStack
from fedbus_schemas import subjects
from fedbus_schemas.log import Accepted, Entry, decode_entry
from tables import Result, put, render
from usage import compare, reset_peaks, snapshot

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
WARM_UPS = 3
POLL_S = 0.25
GROUP = 10


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured: so many workers, a model of so many float32 numbers, so many rounds."""

    key: str
    label: str
    workers: int
    elements: int
    rounds: int
    quick: int | None
    codec: str = "dense"


SETTINGS = (
    Setting("4-small", "4 workers, 100 KB", 4, 25_000, 30, 10),
    Setting("10-small", "10 workers, 100 KB", 10, 25_000, 30, 10),
    Setting("50-small", "50 workers, 100 KB", 50, 25_000, 30, None),
    Setting("100-small", "100 workers, 100 KB", 100, 25_000, 30, None),
    Setting("4-large", "4 workers, 100 MB", 4, 25_000_000, 6, 2),
    Setting("4-large-ecq", "4 workers, 100 MB, ecq up, delta down", 4, 25_000_000, 10, 3, "ecq"),
)


class DidNotFinish(Exception):
    """A run did not do what was to be measured."""


def main() -> int:
    """Measure, print the tables, and write them where that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, at most 10 workers: a minute")
    parser.add_argument(
        "--only", action="append", choices=[each.key for each in SETTINGS], help="this setting; repeatable"
    )
    parser.add_argument("--telemetry", choices=["on", "off"], help="only so; both by default")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that one run may take")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{DOCS.name}")
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("memory and CPU are read from /proc, so this runs on Linux only")
    chosen = [each for each in SETTINGS if each.key in (options.only or [s.key for s in SETTINGS])]
    if options.quick:
        chosen = [each for each in chosen if each.quick is not None]
    results: list[Result] = []
    failed = False
    for setting in chosen:
        rounds = setting.quick if options.quick and setting.quick else setting.rounds
        for telemetry in [options.telemetry] if options.telemetry else ["on", "off"]:
            began = time.monotonic()
            name = f"{setting.label}, telemetry {telemetry}"
            try:
                results.append(asyncio.run(measure(setting, rounds, telemetry, options.timeout)))
                print(f"{name}: measured in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            except (DidNotFinish, FedbusError, OSError, TimeoutError, ValueError) as error:
                failed = True
                print(f"{name}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            except (KeyboardInterrupt, asyncio.CancelledError):
                print("stopped", file=sys.stderr)
                return 130
    if results:
        text = render(results, shlex.join(["python", "benchmarks/rounds.py", *sys.argv[1:]]), _today())
        print(text)
        if options.write and not failed:
            put(text, DOCS, "make bench")
    return 1 if failed else 0


async def measure(setting: Setting, rounds: int, telemetry: str, timeout_s: float) -> Result:
    """Start a stack, run the rounds and stop it.

    Raises:
        DidNotFinish: a run was aborted, takes too long, or had other rounds than it should.
        FedbusError: a process ended or does not answer.
        TimeoutError: not all workers are there in time.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    folder = Path(tempfile.mkdtemp(prefix="fedbus-bench-"))
    before = dict(os.environ)
    try:
        os.environ["FEDBUS_TELEMETRY"] = telemetry
        os.environ["FEDBUS_NATS_SERVER"] = str(_monitored(folder))
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            del os.environ[name]  # spans would be sent somewhere else, too
        async with LocalStack(folder / "stack") as stack:
            stack.start_services()
            return await _run(stack, setting, rounds, telemetry, timeout_s)
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def _monitored(folder: Path) -> Path:
    """A command that starts the broker with its monitoring port on, for the counts of bytes."""
    path = folder / "nats-server"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(str(find_server()))} -m -1 "$@"\n')
    path.chmod(0o700)
    return path


async def _run(stack: LocalStack, setting: Setting, rounds: int, telemetry: str, timeout_s: float) -> Result:
    credentials = stack.broker.accounts.credentials("operator")
    bus = await Bus.connect(credentials)
    try:
        async with await Federation.connect(credentials) as federation:
            await gather(stack, federation, setting.workers, timeout_s)
            await finish(stack, federation, bus, plan_of(setting, 1), "warm-up", timeout_s)
            first = snapshot()
            reset_peaks(list(first))
            traffic = await asyncio.to_thread(_traffic, stack)
            # One round more than there are intervals, and those that warm up.
            total = WARM_UPS + rounds + 1
            plan = {**plan_of(setting, total), "model": {"from": "warm-up"}}
            await finish(stack, federation, bus, plan, "measured", timeout_s)
            last = snapshot()
            now = await asyncio.to_thread(_traffic, stack)
        logs = [await _entries(bus, "measured", number) for number in range(1, total + 1)]
    finally:
        await bus.close()
    for number, entries in enumerate(logs, 1):
        _check(number, entries, setting.workers)
    measured = logs[WARM_UPS:]
    opened = [_at(entries, "opened")[0] for entries in measured]
    return Result(
        setting.label,
        telemetry,
        seconds=[end - begin for begin, end in pairwise(opened)],
        stages=[_stages(entries, end) for entries, end in zip(measured, opened[1:], strict=False)],
        entries=sum(map(len, logs)) / total,
        mb_in=(now[0] - traffic[0]) / total / 1e6,
        mb_out=(now[1] - traffic[1]) / total / 1e6,
        rounds=total,
        usage=compare(first, last),
    )


@asynccontextmanager
async def standing(workers: int, timeout_s: float) -> AsyncIterator[tuple[LocalStack, Federation, Bus]]:
    """A stack with so many workers in a temporary folder, and the operator's connections to it."""
    folder = Path(tempfile.mkdtemp(prefix="fedbus-bench-"))
    try:
        async with LocalStack(folder / "stack") as stack:
            stack.start_services()
            credentials = stack.broker.accounts.credentials("operator")
            bus = await Bus.connect(credentials)
            try:
                async with await Federation.connect(credentials) as federation:
                    await gather(stack, federation, workers, timeout_s)
                    yield stack, federation, bus
            finally:
                await bus.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plan_of(setting: Setting, rounds: int) -> dict[str, Any]:
    """A plan of so many rounds that wait for all workers, and score nothing."""
    return {
        "task": "noop",
        "rounds": rounds,
        "train": {"elements": setting.elements, "spread": 0.0 if setting.codec == "dense" else 1.0},
        "cohort": {"min": setting.workers},
        "codec": {"up": setting.codec, "down": setting.codec},
        "close": {"quorum": 1.0},
        "evaluate": {"central": False, "federated": False},
    }


async def gather(stack: LocalStack, federation: Federation, workers: int, timeout_s: float) -> None:
    """Start the workers, a few at a time: many starts at once would keep the services from answering.

    Raises:
        BusUnavailable: a service or a worker does not come up.
        TimeoutError: not all workers are there in time.
    """
    async with asyncio.timeout(timeout_s):
        for service in ("enroll", "planner"):
            await federation.wait_for(service, timeout_s)
        for first in range(1, workers + 1, GROUP):
            last = min(first + GROUP - 1, workers)
            for number in range(first, last + 1):
                stack.start_worker(f"w{number}")
            while len(await federation.members.workers()) < last:
                stack.check()
                await asyncio.sleep(POLL_S)


async def finish(
    stack: LocalStack, federation: Federation, bus: Bus, plan: dict[str, Any], name: str, timeout_s: float
) -> None:
    """Start a run and wait for its end, asking seldom so that the asking costs little.

    Raises:
        DidNotFinish: it was aborted, or takes too long.
        BusUnavailable: a process ended.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await federation.start(plan, name)
            while not (await Runs(bus).get(name))[0].done:
                stack.check()
                await asyncio.sleep(POLL_S)
            return
    report = await federation.run(name)
    raise DidNotFinish(
        f"run {name} is {report.state} after {len(report.rounds)} rounds and {timeout_s:g} s: {report.reason}"
    )


def _traffic(stack: LocalStack) -> tuple[int, int]:
    """Bytes that the broker received from its clients and sent to them, as it counts them itself."""
    (ports,) = (stack.folder / "broker").glob("*.ports")
    url = json.loads(ports.read_bytes())["monitoring"][0]
    with urllib.request.urlopen(f"{url}/varz", timeout=10) as answer:
        told = json.load(answer)
    return int(told["in_bytes"]), int(told["out_bytes"])


async def _entries(bus: Bus, run: str, number: int) -> list[Entry]:
    """A round's log, in its order."""
    entries, seq = [], 0
    pattern = subjects.log_of(run, number)
    while found := await leader_get(bus, subjects.ROUNDS, {"seq": seq + 1, "next_by_subj": pattern}):
        seq = found[0]
        entries.append(decode_entry(found[2]))
    return entries


def _check(number: int, entries: list[Entry], workers: int) -> None:
    """Refuse a round that is not what was to be measured."""
    kinds = {entry.kind for entry in entries}
    counted = sum(len(entry.updates) for entry in entries if isinstance(entry, Accepted))
    if kinds != {"opened", "accepted", "closing", "aggregated", "finished"} or counted != workers:
        raise DidNotFinish(f"round {number}: {counted} of {workers} updates; its log has {sorted(kinds)}")


def _at(entries: list[Entry], kind: str) -> list[float]:
    return [entry.at for entry in entries if entry.kind == kind]


def _stages(entries: list[Entry], end: float) -> list[float]:
    accepted = _at(entries, "accepted")
    marks = [_at(entries, "opened")[0], accepted[0], accepted[-1]]
    marks += [_at(entries, kind)[0] for kind in ("closing", "aggregated", "finished")]
    return [after - before for before, after in zip(marks, [*marks[1:], end], strict=True)]


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
