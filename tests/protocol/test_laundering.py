"""A worker names a subject of others as the place for an answer; nothing may be stored or delivered there.

The broker checks where a client publishes, not where it asks to be answered. Inside the services' account
such an answer is stored (the last test shows that this suite would notice); the accounts' split keeps
workers from it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from fedbus.base.clock import random_token
from fedbus.bus import Bus
from fedbus.bus.provision import provision
from nats.aio.subscription import Subscription
from support.natsd import Stack
from support.raw import Raw, raws

# Stream, a subject of it that A must not reach, who may write it, and a fresh subject of the same stream.
STORES = [
    ("FB_ROUNDS", "fb.round.r.1.log.planner", "planner", "fb.round.{}.1.log.planner"),
    ("FB_ANNOUNCE", "fb.announce.r", "planner", "fb.announce.{}"),
    ("FB_INBOX", "fb.inbox.B", "planner", "fb.inbox.{}"),
    ("FB_UPDATES", "fb.update.forged.1.B.0.t.0", "B", "fb.update.{}.1.B.0.t.0"),
    ("FB_UPDATES", "fb.update.forged.1.B.0.t.manifest", "B", "fb.update.{}.1.B.0.t.0"),
    ("FB_MODELS", "fb.model.c.forged", "aggregator", "fb.model.c.{}"),
    ("FB_MODELS", "fb.model.m.forged", "aggregator", "fb.model.m.{}"),
    ("FB_EVENTS", "fb.event.forged", "enroll", "fb.event.{}"),
    ("FB_TELEMETRY", "fb.otel.B", "B", "fb.otel.B"),
    ("KV_FB_RUNS", "$KV.FB_RUNS.forged", "planner", "$KV.FB_RUNS.{}"),
    ("KV_FB_ROSTER", "$KV.FB_ROSTER.forged", "enroll", "$KV.FB_ROSTER.{}"),
    ("KV_FB_REGISTRY", "$KV.FB_REGISTRY.forged", "evaluator", "$KV.FB_REGISTRY.{}"),
]
# What core subscribers act on.
LIVE = [
    "fb.log.r.1.planner",
    "fb.manifest.r.1.B.0.t",
    "fb.worker.B.beat",
    "fb.worker.B.progress",
    "fb.otel.B",
    "fb.api.planner.start",
    "fb.api.enroll.invite",
    "$SRV.PING",
]
# Everything that a worker may publish, and how many messages of its own that stores in which stream.
VECTORS = {
    "update": ("fb.update.{}.1.A.0.t.0", b"x", "FB_UPDATES"),
    "manifest": ("fb.update.{}.1.A.0.t.manifest", b"x", "FB_UPDATES"),
    "model": ("$JS.API.DIRECT.GET.FB_MODELS.fb.model.c.bait", b"", None),
    "no-model": ("$JS.API.DIRECT.GET.FB_MODELS.fb.model.c.none", b"", None),
    "announcements": (
        "$JS.API.DIRECT.GET.FB_ANNOUNCE",
        b'{"multi_last":["fb.announce.bait"],"batch":9}',
        None,
    ),
    "inbox": ("$JS.API.DIRECT.GET.FB_INBOX.fb.inbox.A", b"", None),
    "beat": ("fb.worker.A.beat", b"x", None),
    "progress": ("fb.worker.A.progress", b"x", None),
    "spans": ("fb.otel.A", b"x", "FB_TELEMETRY"),
}


@dataclass(frozen=True)
class Field:
    """An attacker, the parties it attacks, and ears on everything that services listen to."""

    attacker: Raw
    parties: dict[str, Raw]
    ears: list[Subscription]

    async def counts(self, stream: str) -> tuple[int, int]:
        state = (await self.parties["planner"].api(f"STREAM.INFO.{stream}"))["state"]
        return state["last_seq"], state["messages"]

    async def launder(self, party: Raw, vector: str, target: str) -> None:
        """Publish with `target` as reply, then once more for ourselves: that answer comes after the first."""
        subject, body, _ = VECTORS[vector]
        await party.publish(subject.format(random_token()), body, reply=target)
        if vector in ("beat", "progress"):
            await party.flush()
        else:
            await party.ask(subject.format(random_token()), body)

    async def heard(self) -> set[str]:
        """Subjects that reached a service's subscriptions."""
        for name in ("planner", "enroll"):
            await self.parties[name].flush()
        messages = [await ear.next_msg() for ear in self.ears for _ in range(ear.pending_msgs)]
        return {message.subject for message in messages}


@asynccontextmanager
async def field(stack: Stack) -> AsyncIterator[Field]:
    bus = await Bus.connect(stack.credentials("planner"))
    await provision(bus)
    await bus.close()
    names = ("A", "B", "planner", "aggregator", "evaluator", "enroll")
    async with raws(*map(stack.credentials, names)) as clients:
        parties = dict(zip(names, clients, strict=True))
        await parties["planner"].ask("fb.announce.bait", b"bait")
        await parties["planner"].ask("fb.inbox.A", b"bait")
        await parties["aggregator"].ask("fb.model.c.bait", b"bait")
        ears = await parties["planner"].listen(
            "fb.log.>",
            "fb.manifest.>",
            "fb.worker.*.beat",
            "fb.worker.*.progress",
            "fb.api.planner.>",
            "$SRV.>",
        )
        ears += await parties["enroll"].listen("fb.otel.*")
        yield Field(parties["A"], parties, ears)


async def stored_besides(arena: Field, stream: str, writer: str, fresh: str, before: tuple[int, int]) -> int:
    """How many messages the stream took since `before`; one written now is a barrier and not counted."""
    acknowledged = json.loads(
        (await arena.parties[writer].ask(fresh.format(random_token()), b"barrier")).data
    )
    last, messages = await arena.counts(stream)
    assert acknowledged["seq"] == last
    assert messages - before[1] <= last - before[0]
    return last - before[0] - 1


@pytest.mark.parametrize(("stream", "target", "writer", "fresh"), STORES, ids=[store[1] for store in STORES])
async def test_nothing_of_a_workers_is_stored(
    stack: Stack, stream: str, target: str, writer: str, fresh: str
) -> None:
    async with field(stack) as arena:
        for vector, (_, _, own) in VECTORS.items():
            before = await arena.counts(stream)
            await arena.launder(arena.attacker, vector, target)
            stored = await stored_besides(arena, stream, writer, fresh, before)
            assert stored == (2 if own == stream else 0), f"{vector} was answered into {target}"
        assert arena.attacker.refused == []
        before = await arena.counts(stream)
        assert not await arena.attacker.may_publish(target, b"forged")
        assert await stored_besides(arena, stream, writer, fresh, before) == 0


@pytest.mark.parametrize("target", LIVE)
async def test_no_service_hears_a_laundered_answer(stack: Stack, target: str) -> None:
    async with field(stack) as arena:
        for vector in VECTORS:
            await arena.launder(arena.attacker, vector, target)
            assert target not in await arena.heard(), f"{vector} was answered into {target}"
        assert not await arena.attacker.may_publish(target, b"forged")
        assert target not in await arena.heard()


async def test_this_suite_would_notice(stack: Stack) -> None:
    """A service can do it, beside the streams; so the counting and the listening above are not blind."""
    target = f"fb.round.{random_token()}.1.log.planner"
    async with field(stack) as arena:
        before = await arena.counts("FB_ROUNDS")
        await arena.launder(arena.parties["evaluator"], "model", target)
        stored = await stored_besides(arena, "FB_ROUNDS", "planner", "fb.round.{}.1.log.planner", before)
        assert stored == 1
        await arena.launder(arena.parties["evaluator"], "model", "fb.worker.B.beat")
        assert "fb.worker.B.beat" in await arena.heard()
