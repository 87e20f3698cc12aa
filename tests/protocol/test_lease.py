"""A lease: one holder, another one soon after it stops, hangs or dies, and no traffic without work."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fedbus.base.clock import SystemClock
from fedbus.bus import Bus, Message
from fedbus.bus.lease import RENEW_S, Lease
from fedbus.bus.provision import LEASE_TTL_S, provision
from fedbus.bus.store import put
from fedbus_schemas import subjects
from support.buses import Ask, Tapped, until
from support.natsd import Stack, broker

CLOCK = SystemClock()
# The broker looks for what has expired a few times in a second.
SLACK_S = 2.0


class Counting(Tapped):
    """Counts what is asked of the broker."""

    asked = 0

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        self.asked += 1
        return await ask()


class Instance:
    """A lease on a connection of its own."""

    def __init__(self, bus: Counting) -> None:
        self.bus = bus
        self.taken: list[float] = []
        self.lease = Lease(bus, "aggregator", lambda: self.taken.append(CLOCK.monotonic()), CLOCK)

    @property
    def held(self) -> bool:
        return self.lease.held

    async def close(self) -> None:
        await self.lease.close()
        await self.bus.close()


@asynccontextmanager
async def instances(stack: Stack, count: int = 2) -> AsyncIterator[list[Instance]]:
    planner = await Bus.connect(stack.credentials("planner"))
    await provision(planner)
    await planner.close()
    made: list[Instance] = []
    try:
        for _ in range(count):
            bus = await Counting.connect(stack.credentials("aggregator"))
            assert isinstance(bus, Counting)
            made.append(Instance(bus))
            await made[-1].lease.start()
        yield made
    finally:
        for each in made:
            await each.close()


async def first_holds(first: Instance, *others: Instance) -> None:
    first.lease.want(True)
    await until(lambda: first.held, "the first one holds it")
    for other in others:
        other.lease.want(True)
    await until(lambda: all(each.bus.asked >= 3 for each in others), "the others have looked")
    assert not any(each.held for each in others)


@pytest.mark.parametrize("crashes", [False, True])
async def test_another_takes_it_when_the_holder_stops_or_crashes(
    stack: Stack, crashes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedbus.bus.lease")
    async with instances(stack) as (first, second):
        await first_holds(first, second)
        began = CLOCK.monotonic()
        await (first.bus.close() if crashes else first.close())
        await until(lambda: second.held, "the second one holds it")
        assert second.taken[0] - began < LEASE_TTL_S, "nobody waited until it expired"
        *_, standing, took_over = [r.getMessage() for r in caplog.records if r.name == "fedbus.bus.lease"]
        assert standing.startswith("standing by: process ")
        assert standing.endswith(" is the aggregator that works")
        assert took_over.startswith("took over from the aggregator of process ")


async def test_another_takes_it_when_the_holder_hangs_and_it_does_not_come_back(stack: Stack) -> None:
    async with instances(stack) as (first, second):
        await first_holds(first, second)
        began = CLOCK.monotonic()
        first.lease.want(False)  # its connection lives, and it renews no more
        await until(lambda: second.held, "the second one holds it")
        assert not first.held, "its time was over before"
        assert LEASE_TTL_S - RENEW_S <= second.taken[0] - began <= LEASE_TTL_S + RENEW_S + SLACK_S
        asked = first.bus.asked
        first.lease.want(True)
        await until(lambda: first.bus.asked >= asked + 3, "the first one has looked again")
        assert (first.held, second.held) == (False, True)


async def test_it_costs_nothing_without_work_and_is_there_at_once_with_it(stack: Stack) -> None:
    async with instances(stack) as (first, second):
        await first_holds(first, second)
        for each in (first, second):
            each.lease.want(False)
        await until(lambda: not first.held, "it is over")
        quiet = [each.bus.asked for each in (first, second)]
        # The stream has forgotten it by the time that somebody else could have taken it.
        async with instances(stack, 1) as (third,):
            third.lease.want(True)
            await until(lambda: third.held, "a third one holds it")
        assert [each.bus.asked for each in (first, second)] == quiet
        second.lease.want(True)
        await until(lambda: second.held, "the second one holds it")


async def test_nobody_holds_it_without_a_broker_and_one_does_with_it(tmp_path: Path) -> None:
    async with broker(tmp_path) as own, instances(own, 3) as all_of_them:
        for each in all_of_them:
            each.lease.want(True)
        await until(lambda: any(each.held for each in all_of_them), "one holds it")
        own.kill()
        await until(lambda: not any(each.held for each in all_of_them), "nobody holds it")
        own.restart()
        await until(lambda: any(each.held for each in all_of_them), "one holds it again")
        assert sum(each.held for each in all_of_them) == 1


async def test_what_nobody_can_read_is_told_once_and_expires(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    async with instances(stack, 1) as (only,):
        # What an earlier test left may still be there.
        only.lease.want(True)
        await until(lambda: only.held, "it holds it")
        await put(only.bus, subjects.lease("aggregator"), b"not a holder")
        await until(lambda: not only.held, "it lost it")
        await until(lambda: only.held, "it holds it again")
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith("the lease cannot be had: ")
