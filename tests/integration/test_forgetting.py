"""A worker that stays for months remembers what is announced, and no more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fedbus.bus import Message
from fedbus.bus.hearing import hear_progress
from fedbus.bus.store import get_last, put
from fedbus.runtime.child import Trainer
from fedbus_planner.post import post_announcement
from fedbus_schemas import subjects
from fedbus_schemas.log import Member
from fedbus_schemas.messages import Announcement, Progress
from fedbus_worker import agent as agents
from fedbus_worker.agent import Agent
from support.buses import Ask, Tapped, parties, until
from support.natsd import Stack
from support.rounds import NOW, plan

PLAN = plan(task="noop")


class Reading(Tapped):
    """Counts how often all was read that is announced: the inbox is read after it."""

    times = 0

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        self.times += subject.endswith(subjects.inbox("w-stays"))
        return await ask()


def news(number: int, state: str) -> Announcement:
    return Announcement(
        run="again", round=number, state=state, plan=PLAN, plan_digest=PLAN.digest(), base=None,
        run_at=1_000_000.0,
        members=[Member(worker="w-stays")], opened_at=NOW, deadline_s=60.0, traceparent="",
    )  # fmt: skip


async def test_a_run_that_is_announced_no_more_is_forgotten(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "BEAT_S", 0.01)
    heard: list[Progress] = []
    async with parties(stack, "planner") as (planner,), Trainer(tmp_path / "path") as trainer:
        bus = await Reading.connect(stack.credentials("w-stays"))
        # As the planner posts it, but for a second and not for a day.
        closed = news(3, "closed").model_dump_json(by_alias=True).encode()
        await put(planner, subjects.announce("again"), closed, ttl_s=1)
        await hear_progress(planner, heard.append)
        working = asyncio.create_task(Agent(bus, trainer, tmp_path).run())
        try:
            await until(lambda: bus.times >= 2, "it has read the announcement")
            async with asyncio.timeout(20):
                while await get_last(planner, subjects.ANNOUNCE, subjects.announce("again")):
                    pass
            before = bus.times
            await until(lambda: bus.times >= before + 2, "it has read that there is none")
            await post_announcement(planner, news(0, "open"))
            await until(lambda: bool(heard), "it takes part in another run of that name")
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await bus.close()
    assert (heard[0].run, heard[0].round) == ("again", 0)
