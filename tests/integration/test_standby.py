"""Two aggregators: one works, the other stands by and takes over within seconds; nothing counts twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedbus.bus import Message
from fedbus.bus.lease import RENEW_S
from fedbus.bus.provision import LEASE_TTL_S
from fedbus_aggregator.service import Aggregator
from fedbus_schemas import subjects
from fedbus_schemas.messages import Announcement
from support.buses import Ask, Tapped
from support.federation import Parties, federation
from support.natsd import Stack
from support.roundlog import check_once
from support.scripted import Scripted

ELEMENTS = 300_000  # two chunks
NAMES = ("a", "b", "c")
# The broker looks for what has expired a few times in a second; the rest is the fold itself.
SLACK_S = 4.0


class Watch:
    """What one aggregator asks of the broker; it hangs where the test says so.

    Args:
        run: whose updates are noted.
        hangs_at: it hangs before it writes an entry of this kind in round 1.
    """

    def __init__(self, run: str, hangs_at: str = "nothing") -> None:
        self.wrote = asyncio.Event()  # the entry, after it hung; or was refused
        self.looked = asyncio.Event()  # at who holds the lease, which was not itself
        self.chunks: list[str] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        log = subjects.log_of(run, 1, "aggregator")
        updates = f"$JS.API.DIRECT.GET.{subjects.UPDATES}.fb.update.{run}."

        class Watched(Tapped):
            async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
                hangs = subject.startswith(log) and f'"kind":"{hangs_at}"'.encode() in data
                if hangs:
                    watch.may_go_on.clear()
                await watch.may_go_on.wait()
                if subject.startswith(updates) and not subject.startswith(f"{updates}0."):
                    watch.chunks.append(subject)
                if subject.startswith("fb.alive."):
                    watch.looked.set()
                try:
                    return await ask()
                finally:
                    if hangs:
                        watch.wrote.set()

        watch = self
        self.connection = Watched


class Gate:
    """The first worker sends at once, the others when the test says so."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def answer(self, worker: Scripted, news: Announcement) -> None:
        if worker.name != NAMES[0]:
            await self.opened.wait()
        await worker.send(worker.make(news, np.full(ELEMENTS, 1.0, np.float32)))


def plan(**more: Any) -> dict[str, Any]:
    return {"train": {"elements": ELEMENTS}, "cohort": {"min": len(NAMES)}, **more}


async def begin(
    parties: Parties, run: str, folder: Path, hangs_at: str = "nothing", **more: Any
) -> tuple[Gate, Watch, Watch]:
    """A round in which one update is accepted by the first aggregator, while a second one stands by."""
    gate, first, second = Gate(), Watch(run, hangs_at), Watch(run)
    await parties.aggregator.stop()
    await parties.aggregator.start(first.connection)
    for name in NAMES:
        await parties.script(name, gate.answer)
    await parties.start(plan(**more), run)
    await parties.until(lambda: parties.round(run, 1).accepted, "one is accepted")
    await parties.add("aggregator", lambda bus: Aggregator(bus, folder).run(), second.connection)
    async with asyncio.timeout(30):
        await second.looked.wait()
    return gate, first, second


async def until_second_accepted(parties: Parties, run: str) -> float:
    """When another update was accepted."""
    await parties.until(lambda: len(parties.round(run, 1).accepted) > 1, "another one accepts")
    return time.monotonic()


async def test_one_works_and_the_other_reads_no_update(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        gate, first, second = await begin(parties, "idle", tmp_path, rounds=3)
        gate.opened.set()
        report = await parties.finished("idle")
        await check_once(parties, report, workers=3, total=3.0)
        # A manifest and two chunks of three updates in three rounds.
        assert (len(first.chunks), second.chunks) == (27, [])


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
async def test_the_standby_goes_on_where_the_holder_crashed(
    stack: Stack, tmp_path: Path, strategy: str
) -> None:
    run = f"crashed-{strategy}"
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        gate, _, second = await begin(parties, run, tmp_path, strategy=strategy, rounds=2)
        began = time.monotonic()
        await parties.aggregator.crash()
        gate.opened.set()
        assert await until_second_accepted(parties, run) - began < RENEW_S + SLACK_S
        await check_once(parties, await parties.finished(run), workers=3, total=2.0)
        assert second.chunks


async def test_a_holder_that_hangs_is_replaced_and_does_no_harm_when_it_wakes_up(
    stack: Stack, tmp_path: Path
) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        gate, first, second = await begin(parties, "hangs", tmp_path, rounds=2)
        read = len(first.chunks)
        first.may_go_on.clear()
        gate.opened.set()
        began = time.monotonic()
        taken_over = await until_second_accepted(parties, "hangs") - began
        assert taken_over < LEASE_TTL_S + RENEW_S + SLACK_S
        # It wakes up with a manifest or two that it wanted to read, in a round that is over or nearly so.
        first.may_go_on.set()
        await check_once(parties, await parties.finished("hangs"), workers=3, total=2.0)
        assert len(second.chunks) > 9
        assert len(first.chunks) - read < len(second.chunks)


async def test_a_model_that_was_made_twice_counts_once(stack: Stack, tmp_path: Path) -> None:
    """The holder hangs with the model in its hands, and publishes it when another one has done so."""
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        gate, first, _ = await begin(parties, "made-twice", tmp_path, hangs_at="aggregated")
        gate.opened.set()
        report = await parties.finished("made-twice")
        assert not first.wrote.is_set()
        first.may_go_on.set()
        async with asyncio.timeout(30):
            await first.wrote.wait()
        await check_once(parties, report, workers=3, total=1.0)
