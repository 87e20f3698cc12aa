"""How the aggregator knows what is stored: it hears it, and lists it where it may have missed something."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from fedbus.bus import Message
from fedbus.bus.connection import Callback, Subscription
from fedbus_aggregator import service
from fedbus_schemas import subjects
from support.buses import Ask, Tapped
from support.federation import federation
from support.natsd import Stack
from support.scripted import honest

ONES = np.ones(25_000, np.float32)


class Deaf(Tapped):
    """Hears nothing of how round 1 of the run `deaf` was opened, and counts how often updates are listed."""

    listed = 0
    hears: asyncio.Event

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        type(self).listed += subject == f"$JS.API.STREAM.INFO.{subjects.UPDATES}"
        return await ask()

    async def subscribe(self, subject: str, callback: Callback, queue: str = "") -> Subscription:
        def heard(message: Message) -> None:
            opening = message.subject == "fb.log.deaf.1.planner" and b'"opened"' in bytes(message.data)
            if not opening:
                callback(message)

        made = await super().subscribe(subject, heard, queue)
        if subject == subjects.MANIFEST_COPIES:
            self.hears.set()
        return made


@pytest.fixture(autouse=True)
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An aggregator that has just started takes itself for one that runs long; it lists nothing again."""
    monkeypatch.setattr(service, "UNSURE_S", 0.0)
    monkeypatch.setattr(service, "RESYNC_S", 1000.0)
    Deaf.listed = 0
    Deaf.hears = asyncio.Event()


async def test_rounds_whose_opening_was_heard_are_not_listed(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.aggregator.stop()
        await parties.aggregator.start(Deaf)
        await Deaf.hears.wait()
        await parties.script("a", honest(ONES))
        await parties.finished(await parties.start({"rounds": 8}, "heard"))
        assert Deaf.listed == 0


async def test_a_round_of_which_something_was_heard_too_early_is_listed(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.aggregator.stop()
        await parties.aggregator.start(Deaf)
        await Deaf.hears.wait()
        run = await parties.start({}, "deaf")
        await parties.waits(run, "have 0 of 1")
        monkeypatch.setattr(service, "UNSURE_S", 1000.0)
        await parties.script("a", honest(ONES))
        assert (await parties.finished(run)).rounds[0].accepted == 1
        assert Deaf.listed == 1
