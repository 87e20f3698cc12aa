"""How much a broker may store after it was started again, and when its disk has more room than it had."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fedbus.base.errors import StreamFull
from fedbus.bus import Bus
from fedbus.bus.provision import provision
from fedbus.bus.store import free_bytes, persist, put
from fedbus.runtime import broker as brokers
from fedbus.runtime.broker import Broker
from fedbus_schemas import subjects
from support.buses import buses
from support.natsd import Stack, broker

MIB = 1 << 20
ROOM = 1000 * MIB
LESS = 2 * MIB  # than what is stored


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the disk has room for, last."""
    found = [ROOM]
    monkeypatch.setattr(brokers, "storage_limit", lambda store: found[-1])
    return found


async def fill(stack: Stack) -> None:
    """Store 4 MiB."""
    async with buses(*map(stack.credentials, ("planner", "aggregator"))) as (planner, aggregator):
        await provision(planner)
        for number in range(4):
            await put(aggregator, subjects.model_chunk(str(number)), bytes(MIB))


async def takes_writes(bus: Bus, wanted: bool) -> None:
    """Return once the broker takes writes, or refuses them."""
    async with asyncio.timeout(20):
        while True:
            try:
                taken = await persist(bus, lambda: free_bytes(bus, subjects.MODELS)) > 0
            except StreamFull:
                taken = False
            if taken == wanted:
                return


async def test_a_broker_started_again_on_a_full_disk_refuses_writes_and_takes_them_later(
    tmp_path: Path, limits: list[int]
) -> None:
    async with broker(tmp_path) as stack:
        await fill(stack)
        async with buses(stack.credentials("aggregator")) as (bus,):
            await asyncio.to_thread(stack.broker.refuse_writes, True)
            await takes_writes(bus, False)
            limits.append(LESS)
            await asyncio.to_thread(stack.kill)
            await asyncio.to_thread(stack.restart)
            await bus.wait_up()
            await takes_writes(bus, False)
            await asyncio.to_thread(stack.broker.refuse_writes, False)
            await takes_writes(bus, True)
            await put(bus, subjects.model_chunk("after"), bytes(MIB))


async def test_a_stack_started_on_a_fuller_disk_takes_writes_once_there_is_room(
    tmp_path: Path, limits: list[int]
) -> None:
    async with broker(tmp_path) as stack:
        await fill(stack)
    limits.append(LESS)
    again = Broker(stack.folder)
    await asyncio.to_thread(again.start)
    try:
        async with buses(again.accounts.credentials("aggregator")) as (bus,):
            await takes_writes(bus, False)
            limits.append(10 * ROOM)
            await asyncio.to_thread(again.refuse_writes, False)
            await takes_writes(bus, True)
            await put(bus, subjects.model_chunk("after"), bytes(MIB))
    finally:
        await asyncio.to_thread(again.stop)
