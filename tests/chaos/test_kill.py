"""`kill -9` of each process of a federation in mid-round: started again, the run ends as if nothing was.

Real processes, as `fedbus demo` starts them, and models so large that there is a middle to be killed in.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from fedbus.api.federation import Federation
from fedbus.bus import Bus
from fedbus.bus.log import read_round
from fedbus.bus.models import load_values, read_manifest
from fedbus.bus.store import list_subjects
from fedbus.codec.grid import Grid
from fedbus.runtime.stack import LocalStack
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import decode_entry
from fedbus_schemas.report import RunReport
from fedbus_schemas.update import TensorSpec
from support.natsd import wait_until
from support.processes import alive, processes
from support.roundlog import entries

WORKERS = ("w1", "w2")
LARGE, SMALLER = 25_000_000, 10_000_000  # 100 and 40 MB


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Five processes: broker, planner, aggregator, two workers. Each test starts one again."""
    stack = LocalStack(tmp_path_factory.mktemp("kill"))
    stack.open()
    try:
        stack.start_services(["planner", "aggregator"])
        for name in WORKERS:
            stack.start_worker(name)
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(stack.folder)  # more than a gigabyte


def kill(stack: LocalStack, name: str) -> None:
    """SIGKILL a process itself, not its watchdog, and return when it is gone."""
    if name == "broker":
        os.kill(stack.broker.pid, signal.SIGKILL)
        wait_until(lambda: not stack.broker.running(), "the broker is gone")
        return
    (pid,) = [each.pid for each in processes() if each.parent == stack.pid(name)]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), f"{name} is gone")


@asynccontextmanager
async def operating(stack: LocalStack) -> AsyncIterator[tuple[Federation, Bus]]:
    bus = await Bus.connect(stack.broker.accounts.credentials("operator"))
    try:
        yield Federation(bus), bus
    finally:
        await bus.close()


async def uploaded(bus: Bus, run: str, worker: str = "*") -> list[str]:
    """What is stored of the updates of round 1: chunk numbers, and `manifest`."""
    stored = await list_subjects(bus, subjects.UPDATES, subjects.update(run, 1, worker, "*", "*", "*"))
    return [subjects.parse_update(subject)[5] for subject in stored]


async def in_mid_upload(bus: Bus, run: str, chunks: int, worker: str = "*") -> None:
    """Return when so many chunks of round 1 are stored; fail when none is missing any more."""
    async with asyncio.timeout(40):
        while True:
            stored = await uploaded(bus, run, worker)
            if len(stored) >= chunks:
                break
            await asyncio.sleep(0.01)
    assert stored.count("manifest") < len(WORKERS), f"{run}: too quick for this test: {len(stored)} messages"


async def check(bus: Bus, report: RunReport, elements: int) -> None:
    """Each worker counts once, and the model is the mean of what they say that they added."""
    run = report.run
    assert report.state == "finished", f"{run}: {report.reason}"
    counts = Counter(u.worker for r in report.rounds for u in r.accepted_updates)
    assert counts == dict.fromkeys(WORKERS, 1), f"{run}: {counts}"
    keys = [key for each in await entries(bus, run, 1) for key in decode_entry(each.data).keys]
    assert len(keys) == len(set(keys)), f"{run}: {keys}"
    chunks = len(Grid.of([TensorSpec(name="w", shape=(elements,), dtype="float32")]).spans)
    once = dict.fromkeys([*map(str, range(chunks)), "manifest"], len(WORKERS))
    assert Counter(await uploaded(bus, run)) == once, f"{run}: what is stored is not one update of each"
    accepted = (await read_round(bus, RoundRef(run, 1))).accepted
    expected = np.mean([update.metrics["added"] for update in accepted])
    assert report.model
    model = await load_values(bus, await read_manifest(bus, report.model))
    assert len(model) == elements
    assert model.min() == model.max(), run
    np.testing.assert_allclose(model[0], expected, atol=1e-6, err_msg=run)


async def begin(federation: Federation, run: str, elements: int) -> None:
    plan: dict[str, Any] = {
        "task": "noop",
        "rounds": 1,
        "seed": elements,
        "train": {"elements": elements},
        "codec": {"up": "dense"},
        "cohort": {"min": len(WORKERS)},
        "close": {"deadline_s": 50.0},
        "evaluate": {"central": False},
        "retain": {"rounds": 0},
    }
    await federation.start(plan, run)


async def finish(federation: Federation, bus: Bus, run: str, elements: int) -> None:
    async with asyncio.timeout(50):
        async for report in federation.watch(run):
            last = report
    await check(bus, last, elements)


async def test_aggregator_and_planner(local: LocalStack) -> None:
    """The aggregator dies while 100 MB are under way, the planner before the last manifest."""
    async with operating(local) as (federation, bus):
        await begin(federation, "kill-services", LARGE)
        for chunks, victim in ((10, "aggregator"), (60, "planner")):
            await in_mid_upload(bus, "kill-services", chunks)
            await asyncio.to_thread(kill, local, victim)
            await asyncio.to_thread(local.restart, victim)
        await finish(federation, bus, "kill-services", LARGE)


async def test_worker(local: LocalStack) -> None:
    """It goes on with the upload that it had begun: no chunk of a second attempt is ever stored."""
    async with operating(local) as (federation, bus):
        await begin(federation, "kill-worker", SMALLER)
        await in_mid_upload(bus, "kill-worker", 5, "w1")
        await asyncio.to_thread(kill, local, "w1")
        await asyncio.to_thread(local.restart, "w1")
        await finish(federation, bus, "kill-worker", SMALLER)


async def test_broker(local: LocalStack) -> None:
    """Nobody but the broker is started again, and nobody is lost."""
    async with operating(local) as (federation, bus):
        await begin(federation, "kill-broker", SMALLER)
        await in_mid_upload(bus, "kill-broker", 10)
        await asyncio.to_thread(kill, local, "broker")
        await asyncio.to_thread(local.broker.start)
        await finish(federation, bus, "kill-broker", SMALLER)
        assert (await federation.round("kill-broker", 1)).lost == []
        local.check()
