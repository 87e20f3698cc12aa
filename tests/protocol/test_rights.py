"""What the broker lets each party do: the declared rights, tried one by one with plain clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats.micro
import pytest
from fedbus.base.clock import random_token
from fedbus.bus import Bus
from fedbus.bus.provision import provision
from fedbus.runtime.rights import SERVICES, STREAMS
from nats.micro.request import Request
from support.natsd import Stack
from support.raw import Raw, raw, raws

# Every subject that a party could gain from, and who may publish it.
ANSWERING = SERVICES  # they have commands, or answer a ping
WRITERS: dict[str, str | tuple[str, ...] | None] = {
    "fb.round.r.1.log.planner": "planner",
    "fb.round.r.1.log.aggregator": "aggregator",
    "fb.round.r.1.log.evaluator": "evaluator",
    "fb.announce.r": "planner",
    "fb.inbox.B": "planner",
    "fb.update.r.1.B.0.t.0": "B",
    "fb.update.r.1.B.0.t.manifest": "B",
    "fb.worker.B.beat": "B",
    "fb.worker.B.progress": "B",
    "fb.otel.B": "B",
    "fb.otel.planner": "planner",
    "fb.otel.aggregator": "aggregator",
    "fb.otel.evaluator": "evaluator",
    "fb.otel.enroll": "enroll",
    "fb.update.r.1.B.0.t.evaluation": "B",
    "fb.model.c.x": ("aggregator", "operator"),
    "fb.model.m.x": ("aggregator", "operator"),
    "fb.event.joined": "enroll",
    "fb.lease.aggregator": "aggregator",
    "fb.lease.planner": None,
    "fb.alive.aggregator.x": "aggregator",
    "fb.alive.planner.x": None,
    "$KV.FB_RUNS.r": "planner",
    "$KV.FB_ROSTER.B": "enroll",
    "$KV.FB_REGISTRY.stable": "evaluator",
    "fb.log.r.1.planner": None,
    "fb.manifest.r.1.B.0.t": None,
    "fb.api.planner.start": "operator",
    "fb.api.aggregator.replay": "operator",
    "fb.api.enroll.invite": "operator",
    "fb.api.enroll.revoke": "operator",
    "fb.api.enroll.join": "operator",  # and who holds an invitation
    "_R_.x": "enroll",
    "_INBOX_A.x": None,
    "_INBOX_operator.x": ANSWERING,
    "$SYS.REQ.SERVER.PING": None,
    "$JS.ACK.FB_ROUNDS.c.1.1.1.1.1": None,
}
PARTIES = (*SERVICES, "operator", "A", "B")


@asynccontextmanager
async def provisioned(stack: Stack) -> AsyncIterator[None]:
    bus = await Bus.connect(stack.credentials("planner"))
    try:
        await provision(bus)
        yield
    finally:
        await bus.close()


@pytest.mark.parametrize("name", PARTIES)
async def test_each_subject_has_one_writer(stack: Stack, name: str) -> None:
    async with provisioned(stack), raw(stack.credentials(name)) as party:
        allowed = {subject for subject in WRITERS if await party.may_publish(subject)}
    assert allowed == {s for s, who in WRITERS.items() if name in (who if isinstance(who, tuple) else (who,))}


@pytest.mark.parametrize("name", PARTIES)
async def test_only_the_planner_shapes_streams_and_nobody_deletes(stack: Stack, name: str) -> None:
    verbs = ("CREATE", "UPDATE", "DELETE", "PURGE", "RESTORE", "SNAPSHOT", "MSG.DELETE", "LEADER.STEPDOWN")
    tries = [f"$JS.API.STREAM.{verb}.{stream}" for verb in verbs for stream in STREAMS]
    tries += [
        f"$JS.API.CONSUMER.{verb}.{stream}" for verb in ("CREATE", "NAMES", "LIST") for stream in STREAMS
    ]
    tries += [f"$JS.API.CONSUMER.CREATE.{stream}.c.fb.>" for stream in STREAMS]
    tries += [f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.c" for stream in STREAMS]
    planners = {f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE") for stream in STREAMS}
    planners.add("$JS.API.STREAM.PURGE.FB_UPDATES")
    async with raw(stack.credentials(name)) as party:
        # The body is not JSON: what is let through does nothing.
        allowed = {subject for subject in tries if await party.may_publish(subject, b"?")}
    assert allowed == (planners if name == "planner" else set())


@pytest.mark.parametrize("name", PARTIES)
async def test_who_may_listen(stack: Stack, name: str) -> None:
    service = name in SERVICES
    expected = {
        ">": False,
        "*": False,
        "fb.>": False,
        "fb.round.>": False,
        "fb.update.>": False,
        "fb.model.>": False,
        "fb.inbox.*": False,
        "fb.inbox.B": name == "B",
        "fb.inbox.A": name == "A",
        "fb.announce.*": name in ("A", "B", "operator"),
        "fb.log.>": service or name == "operator",
        "fb.manifest.>": service,
        "fb.worker.*.beat": service,
        "fb.worker.*.progress": service or name == "operator",
        "fb.otel.*": name == "enroll",
        "fb.alive.aggregator.*": name == "aggregator",
        "fb.lease.*": False,
        "fb.api.planner.>": name == "planner",
        "fb.api.aggregator.>": name == "aggregator",
        "fb.api.enroll.>": name == "enroll",
        "fb.api.enroll.join": name == "enroll",
        "$SRV.>": name in ANSWERING,
        "$KV.>": False,
        "$JS.>": False,
        "$SYS.>": False,
        "_INBOX.>": False,
        "_INBOX_B.>": name == "B",
        "_INBOX_operator.>": name == "operator",
        "_R_.>": False,
    }
    async with raw(stack.credentials(name)) as party:
        assert {subject: await party.may_subscribe(subject) for subject in expected} == expected


async def test_a_worker_reads_only_what_is_its_own(stack: Stack) -> None:
    async with (
        provisioned(stack),
        raws(stack.credentials("A"), stack.credentials("planner")) as (worker, planner),
    ):
        await planner.ask("fb.inbox.B", b"for B only")
        await planner.ask("fb.inbox.A", b"for A")
        everything = json.dumps({"multi_last": ["fb.inbox.*"], "batch": 9}).encode()
        for subject in (
            "$JS.API.INFO",
            "$JS.API.STREAM.NAMES",
            "$JS.API.STREAM.LIST",
            "$JS.API.DIRECT.GET.FB_INBOX",
            "$JS.API.DIRECT.GET.FB_INBOX.fb.inbox.B",
            "$JS.API.DIRECT.GET.FB_INBOX.fb.inbox.*",
            "$JS.API.DIRECT.GET.FB_MODELS",
            "$JS.API.DIRECT.GET.KV_FB_RUNS.$KV.FB_RUNS.r",
            *(f"$JS.API.DIRECT.GET.{stream}.fb.>" for stream in STREAMS),
            *(f"$JS.API.STREAM.MSG.GET.{stream}" for stream in STREAMS),
            *(f"$JS.API.STREAM.INFO.{stream}" for stream in STREAMS),
            *(f"$JS.API.DIRECT.GET.{stream}" for stream in STREAMS if stream != "FB_ANNOUNCE"),
        ):
            assert not await worker.may_publish(subject, everything), subject
        # A body cannot widen what the subject asks for.
        for body in (
            everything,
            b'{"last_by_subj":"fb.inbox.B"}',
            b'{"seq":1}',
            b'{"next_by_subj":"fb.inbox.B"}',
        ):
            answer = await worker.ask("$JS.API.DIRECT.GET.FB_INBOX.fb.inbox.A", body)
            assert answer.data in (b"", b"for A")
            assert (answer.headers or {}).get("Nats-Subject") in (None, "fb.inbox.A")


async def test_a_worker_does_its_work(stack: Stack) -> None:
    run, digest = random_token(), random_token()
    names = ("A", "planner", "aggregator", "enroll")
    async with (
        provisioned(stack),
        raws(*map(stack.credentials, names)) as (worker, planner, aggregator, enroll),
    ):
        announced, told = await worker.listen("fb.announce.*", "fb.inbox.A")
        beats, progress, spans = await enroll.listen("fb.worker.*.beat", "fb.worker.*.progress", "fb.otel.*")
        (manifests,) = await aggregator.listen("fb.manifest.>")
        await planner.ask(f"fb.announce.{run}", b"round 1")
        await planner.ask("fb.inbox.A", b"notice")
        await aggregator.ask(f"fb.model.c.{digest}", b"weights")
        assert (await announced.next_msg(10)).data == b"round 1"
        assert (await told.next_msg(10)).data == b"notice"

        assert (await worker.ask(f"$JS.API.DIRECT.GET.FB_MODELS.fb.model.c.{digest}")).data == b"weights"
        assert (await worker.ask("$JS.API.DIRECT.GET.FB_INBOX.fb.inbox.A")).data == b"notice"
        assert (f"fb.announce.{run}", b"round 1") in await announcements(worker)

        for leaf in ("0", "manifest"):
            subject = f"fb.update.{run}.1.A.0.t.{leaf}"
            first = json.loads((await worker.ask(subject, b"bytes", **{EXPECTED: "0"})).data)
            again = json.loads((await worker.ask(subject, b"other", **{EXPECTED: "0"})).data)
            assert first["stream"] == "FB_UPDATES"
            assert again["error"]["err_code"] == 10071
        assert (await manifests.next_msg(10)).subject == f"fb.manifest.{run}.1.A.0.t"
        for subject, seen in (
            ("fb.worker.A.beat", beats),
            ("fb.worker.A.progress", progress),
            ("fb.otel.A", spans),
        ):
            await worker.publish(subject, run.encode())
            assert (await seen.next_msg(10)).data == run.encode()
        assert worker.refused == []


async def test_commands_are_answered_to_the_operator_and_nowhere_else(stack: Stack) -> None:
    run = random_token()
    async with provisioned(stack), raws(stack.credentials("operator"), stack.credentials("planner")) as both:
        operator, planner = both
        answered = asyncio.Event()

        async def answer(request: Request) -> None:
            await request.respond(b"started")
            answered.set()

        service = await nats.micro.add_service(planner.nc, name="planner", version="1.0.0")
        await service.add_endpoint(name="start", subject="fb.api.planner.start", handler=answer)
        await planner.flush()
        assert (await operator.ask("fb.api.planner.start", b"plan")).data == b"started"
        assert json.loads((await operator.ask("$SRV.PING")).data)["name"] == "planner"
        answered.clear()
        # Beyond the own inbox an answer would be an entry of the log.
        await operator.publish("fb.api.planner.start", b"plan", reply=f"fb.round.{run}.1.log.aggregator")
        await answered.wait()
        await planner.flush()
        assert any(f"fb.round.{run}" in text for text in planner.refused)
        await service.stop()


EXPECTED = "Nats-Expected-Last-Subject-Sequence"


async def announcements(worker: Raw) -> list[tuple[str, bytes]]:
    """Read the last announcement of every run: one request, several answers."""
    inbox = worker.nc.new_inbox()
    (answers,) = await worker.listen(inbox)
    body = json.dumps({"multi_last": ["fb.announce.*"], "batch": 1000}).encode()
    await worker.publish("$JS.API.DIRECT.GET.FB_ANNOUNCE", body, reply=inbox)
    found = []
    while True:
        message = await answers.next_msg(10)
        headers = message.headers or {}
        if headers.get("Status"):  # 204: that was all; anything else is an error
            assert headers["Status"] == "204"
            return found
        found.append((headers["Nats-Subject"], message.data))
