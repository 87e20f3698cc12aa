"""What the holder of an invitation can do at the broker: ask enroll to be let in, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fedbus.base.clock import random_token
from fedbus.bus import Bus, Credentials
from fedbus.bus.joinstring import invite_user
from fedbus.bus.provision import provision
from fedbus.runtime.broker import add_invite, remove_invites
from fedbus.runtime.probe import Answer, probe
from fedbus.runtime.rights import JOIN, STREAMS
from nats.aio.msg import Msg
from support.natsd import Stack
from support.raw import Raw, raw, raws

FORBIDDEN = [
    "fb.round.r.1.log.planner", "fb.announce.r", "fb.inbox.B", "fb.update.r.1.B.0.t.0", "fb.worker.B.beat",
    "fb.worker.B.progress", "fb.otel.B", "fb.model.c.x", "fb.event.joined", "$KV.FB_ROSTER.worker.B",
    "fb.log.r.1.planner", "fb.api.enroll.invite", "fb.api.enroll.revoke", "fb.api.enroll.invites",
    "fb.api.planner.start", "$SRV.PING", "$SRV.INFO.enroll", "_INBOX_operator.x", "_INBOX_B.x", "_R_.x",
    "$JS.API.INFO", "$JS.API.DIRECT.GET.FB_ANNOUNCE", "$JS.API.DIRECT.GET.FB_MODELS.fb.model.c.x",
    "$JS.API.DIRECT.GET.FB_INBOX.fb.inbox.B", "$SYS.REQ.SERVER.PING", "x",
    *(f"$JS.API.STREAM.{verb}.{name}" for verb in ("INFO", "CREATE", "PURGE", "MSG.GET") for name in STREAMS),
]  # fmt: skip
UNHEARD = [
    ">", "*", "fb.>", "fb.announce.*", "fb.inbox.B", "fb.log.>", "fb.manifest.>", "fb.worker.*.beat",
    "fb.otel.*", "fb.event.>", "fb.api.>", "fb.api.enroll.join", "$SRV.>", "$KV.>", "$JS.>", "_INBOX.>",
    "_INBOX_B.>", "_INBOX_operator.>", "_R_.>",
]  # fmt: skip


@pytest.fixture
def holder(stack: Stack) -> Credentials:
    return add_invite(stack.folder, invite_user(random_token(6)), random_token(24))


@asynccontextmanager
async def answering(stack: Stack) -> AsyncIterator[tuple[Raw, list[Msg], asyncio.Event]]:
    """A plain client that answers `join` as enroll."""
    seen: list[Msg] = []
    heard = asyncio.Event()
    bus = await Bus.connect(stack.credentials("planner"))
    await provision(bus)
    await bus.close()
    async with raw(stack.credentials("enroll")) as enroll:

        async def answer(message: Msg) -> None:
            seen.append(message)
            await message.respond(b"in")
            heard.set()

        await enroll.nc.subscribe(JOIN, cb=answer)
        await enroll.flush()
        yield enroll, seen, heard


async def test_it_asks_and_hears_the_answer(stack: Stack, holder: Credentials) -> None:
    async with answering(stack), raw(holder) as party:
        assert (await party.ask(JOIN, b"let me in")).data == b"in"
        assert party.refused == []


async def test_everything_else_is_refused(stack: Stack, holder: Credentials) -> None:
    stack.credentials("B")
    async with raw(holder) as party:
        assert {s: await party.may_publish(s, b"{}") for s in FORBIDDEN} == dict.fromkeys(FORBIDDEN, False)
        assert {s: await party.may_subscribe(s) for s in UNHEARD} == dict.fromkeys(UNHEARD, False)
        assert await party.may_subscribe(f"{holder.inbox_prefix}.>")


async def test_a_worker_cannot_ask_to_be_let_in(stack: Stack) -> None:
    async with raw(stack.credentials("B")) as worker:
        assert not await worker.may_publish(JOIN, b"{}")


async def test_nobody_hears_the_answers_to_another_invitation(stack: Stack, holder: Credentials) -> None:
    other = add_invite(stack.folder, invite_user(random_token(6)), random_token(24))
    async with raws(holder, other) as (mine, theirs):
        assert not await mine.may_subscribe(f"{other.inbox_prefix}.>")
        assert not await theirs.may_publish(f"{holder.inbox_prefix}.x")


@pytest.mark.parametrize(
    ("stream", "target"),
    [
        ("FB_ROUNDS", "fb.round.{}.1.log.planner"),
        ("FB_ANNOUNCE", "fb.announce.{}"),
        ("FB_INBOX", "fb.inbox.{}"),
        ("FB_UPDATES", "fb.update.{}.1.B.0.t.0"),
        ("FB_MODELS", "fb.model.c.{}"),
        ("FB_EVENTS", "fb.event.{}"),
        ("KV_FB_ROSTER", "$KV.FB_ROSTER.worker.{}"),
        ("KV_FB_RUNS", "$KV.FB_RUNS.{}"),
        ("KV_FB_REGISTRY", "$KV.FB_REGISTRY.{}"),
    ],
)
async def test_no_answer_is_stored(stack: Stack, holder: Credentials, stream: str, target: str) -> None:
    """The broker does not check where a client asks to be answered: the accounts' split must."""
    async with answering(stack) as (enroll, _, heard), raw(holder) as party:

        async def last() -> int:
            info = await enroll.api(f"STREAM.INFO.{stream}")
            return int(info["state"]["last_seq"])

        before = await last()
        await party.publish(JOIN, b"x", reply=target.format(random_token()))
        await heard.wait()
        await enroll.flush()
        assert await last() == before
        # Nor by what the holder may not publish: the request itself is all that arrived.
        assert json.loads((await enroll.ask("$JS.API.INFO")).data)["type"].endswith("account_info_response")


async def test_a_removed_holder_is_cut_and_stays_out(stack: Stack, holder: Credentials) -> None:
    worker = stack.credentials("B")
    async with raws(holder, worker) as (party, other):
        ended = asyncio.Event()

        async def closed() -> None:
            ended.set()

        party.nc.options["closed_cb"] = closed
        party.nc._closed_cb = closed
        await asyncio.to_thread(remove_invites, stack.folder, {holder.user})
        await ended.wait()
        await other.flush()
        assert await asyncio.to_thread(probe, holder) is Answer.REFUSED
        assert await asyncio.to_thread(probe, worker) is Answer.ACCEPTED
