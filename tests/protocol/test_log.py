"""The round log on a real broker: one order for all writers, nothing lost or doubled, no copy missed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fedbus.base.clock import random_token
from fedbus.base.errors import AuthRefused
from fedbus.bus import Bus
from fedbus.bus import log as logs
from fedbus.bus.credentials import Credentials
from fedbus.bus.log import RoundLog, read_round
from fedbus.bus.store import JetStreamError, last_seq, list_subjects, persist, put
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Entry, Member, Opened, Rejected, WorkerLost, encode_entry
from fedbus_schemas.subjects import Service
from support.buses import parties, until
from support.natsd import Stack, broker
from support.proxy import proxy
from support.raw import raw


def fresh() -> RoundRef:
    return RoundRef(f"log-{random_token()}", 1)


def opened() -> Opened:
    return Opened(
        at=0,
        plan="0" * 64,
        base=None,
        members=[Member(worker="w"), *(Member(worker=f"w{i}") for i in range(1000))],
        target=1,
        quorum=1,
        deadline_s=1,
        trace_id="0" * 32,
        span_id="0" * 16,
    )


def lost(i: int) -> WorkerLost:
    return WorkerLost(at=0, worker=f"w{i}", code="test", reason="test")


def rejected(i: int) -> Rejected:
    return Rejected(at=0, worker="w", attempt=f"t{i}", code="test", reason="test")


async def insist(log: RoundLog, ref: RoundRef, author: Service, entry: Entry) -> list[bool]:
    """Append until it stands; what each try returned."""
    answers: list[bool] = []
    while not (answers and answers[-1]):
        answers.append(await log.append(ref, author, entry))
        assert len(answers) < 1000, f"{author} never gets in: {entry}"
    return answers


@asynccontextmanager
async def following(bus: Bus, from_seq: int | None = None) -> AsyncIterator[RoundLog]:
    log = RoundLog(bus, lambda _: None)
    await log.start(from_seq if from_seq is not None else await last_seq(bus, subjects.ROUNDS) + 1)
    try:
        yield log
    finally:
        await log.close()


async def stored(bus: Bus, ref: RoundRef) -> int:
    return sum((await list_subjects(bus, subjects.ROUNDS, subjects.log_of(ref.run, ref.number))).values())


async def test_two_writers_race_and_nothing_is_lost_or_doubled(stack: Stack) -> None:
    ref, count = fresh(), 100
    async with (
        parties(stack, "planner", "aggregator", "evaluator") as (planner, aggregator, evaluator),
        following(planner) as one,
        following(aggregator) as other,
        following(evaluator) as third,
    ):
        assert await one.append(ref, "planner", opened())
        overtaken = 0

        async def write(log: RoundLog, author: Service, entry: Entry) -> None:
            nonlocal overtaken
            while True:
                before = log.rounds[ref].last_seq if ref in log.rounds else 0
                if await log.append(ref, author, entry):
                    return
                assert log.rounds[ref].last_seq > before, "refused, and yet nobody was faster"
                overtaken += 1

        async def plan() -> None:
            for i in range(count):
                await write(one, "planner", lost(i))

        async def aggregate() -> None:
            for i in range(count):
                await write(other, "aggregator", rejected(i))

        await asyncio.gather(plan(), aggregate())
        assert overtaken > 0, "they never met: this test showed nothing"
        assert await stored(planner, ref) == 2 * count + 1
        truth = await read_round(planner, ref)
        assert [each.attempt for each in truth.rejected] == [f"t{i}" for i in range(count)]
        assert [each.worker for each in truth.lost] == [f"w{i}" for i in range(count)]
        assert truth.ignored == []
        for log in (one, other, third):
            await until(lambda log=log: log.rounds.get(ref) == truth, "all fold the same round")  # type: ignore[misc]
        assert await one.append(ref, "planner", lost(0)), "what stands in the log already is success"
        assert await stored(planner, ref) == 2 * count + 1


async def test_appends_over_three_kills_of_the_broker(tmp_path: Path) -> None:
    """Lost acknowledgements are recognised by key; and why nobody listens to `fb.round.>` itself."""
    ref, count = fresh(), 120
    async with (
        broker(tmp_path) as own,
        parties(own, "planner", "aggregator", "evaluator") as (planner, aggregator, evaluator),
        following(planner, 1) as one,
        following(aggregator, 1) as other,
        following(evaluator, 1) as third,
    ):
        await one.append(ref, "planner", opened())
        await refused_appends_are_heard_on_the_subject_and_not_in_the_copies(own, planner, third)

        progress = [0, 0]

        async def write(slot: int, log: RoundLog, author: Service) -> None:
            for i in range(count):
                await insist(log, ref, author, lost(i) if author == "planner" else rejected(i))
                progress[slot] += 1

        writing = asyncio.gather(write(0, one, "planner"), write(1, other, "aggregator"))
        for kill_at in (40, 100, 160):
            await until(lambda n=kill_at: sum(progress) >= n, f"{kill_at} appended")  # type: ignore[misc]
            assert sum(progress) < 2 * count
            own.kill()
            await asyncio.to_thread(own.restart)
        await writing
        truth = await persist(planner, lambda: read_round(planner, ref))
        assert [each.attempt for each in truth.rejected] == [f"t{i}" for i in range(count)]
        assert [each.worker for each in truth.lost] == [f"w{i}" for i in range(count)]
        assert truth.ignored == []
        assert await stored(planner, ref) == 2 * count + 1
        for log in (one, other, third):
            await until(lambda log=log: log.rounds.get(ref) == truth, "all fold the same round")  # type: ignore[misc]


async def refused_appends_are_heard_on_the_subject_and_not_in_the_copies(
    own: Stack, planner: Bus, follower: RoundLog
) -> None:
    """The broker gives core subscribers a message before the stream refuses it."""
    config = own.folder / "broker" / "accounts.conf"
    # A user that may listen to everything; no credential of ours can.
    system, fed, rest = config.read_text().partition('"FED"')
    spy_too = rest.replace('"users": [', '"users": [{"user": "spy", "password": "spy"},', 1)
    assert spy_too != rest
    config.write_text(system + fed + spy_too)
    os.kill(own.broker.pid, signal.SIGHUP)
    ref = fresh()
    leaf = subjects.log_of(ref.run, ref.number, "planner")
    async with raw(await allowed(Credentials(url=own.url, user="spy", password="spy"))) as spy:
        on_subject, copies = await spy.listen("fb.round.>", "fb.log.>")
        over = subjects.log_of(ref.run, ref.number)
        await put(planner, leaf, encode_entry(opened()), expected=0, over=over)
        with pytest.raises(JetStreamError, match="10071"):
            await put(planner, leaf, encode_entry(lost(1)), expected=0, over=over)
        heard = [await on_subject.next_msg(5) for _ in range(2)]
        assert [message.data for message in heard] == [encode_entry(opened()), encode_entry(lost(1))]
        await spy.flush()
        assert copies.pending_msgs == 1
        assert (await copies.next_msg(5)).data == encode_entry(opened())
    await until(lambda: ref in follower.rounds, "the follower has the entry")
    assert follower.rounds[ref].lost == []


async def allowed(credentials: Credentials) -> Credentials:
    """Wait until the broker knows a user."""
    async with asyncio.timeout(10):
        while True:
            try:
                bus = await Bus.connect(credentials)
            except AuthRefused:
                continue
            await bus.close()
            return credentials


async def test_a_lost_acknowledgement_is_recognised(stack: Stack) -> None:
    ref = fresh()
    async with (
        proxy(stack.url) as between,
        parties(stack, "planner", through=between) as (planner,),
        parties(stack, "evaluator") as (evaluator,),
        following(planner) as mine,
        following(evaluator) as other,
    ):
        between.answering.clear()
        appending = asyncio.create_task(mine.append(ref, "planner", opened()))
        await until(lambda: ref in other.rounds, "it is stored")
        assert not appending.done()
        between.cut()
        between.answering.set()
        async with asyncio.timeout(10):
            assert await appending is True
        assert await stored(evaluator, ref) == 1


async def test_a_write_that_never_arrived_is_no_success(stack: Stack) -> None:
    ref = fresh()
    async with (
        proxy(stack.url) as between,
        parties(stack, "planner", through=between) as (planner,),
        following(planner) as mine,
    ):
        between.flowing.clear()
        appending = asyncio.create_task(mine.append(ref, "planner", opened()))
        await asyncio.sleep(0)
        between.cut()
        between.flowing.set()
        async with asyncio.timeout(10):
            assert await appending is False
        assert await stored(planner, ref) == 0
        assert await mine.append(ref, "planner", opened()) is True


async def deafen(bus: Bus) -> None:
    """Stop the copies without breaking the connection."""
    for subscription in list(bus._subscriptions):
        if subscription.subject == subjects.LOG_COPIES:
            await bus.unsubscribe(subscription)
    await bus.flush()


async def test_lost_copies_are_read_from_the_stream(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = fresh()
    monkeypatch.setattr(logs, "RESYNC_S", 1000.0)
    async with (
        proxy(stack.url) as between,
        parties(stack, "planner") as (planner,),
        parties(stack, "evaluator", through=between) as (evaluator,),
        following(planner) as writer,
        following(evaluator) as follower,
    ):
        entries = iter(range(1000))

        async def append(count: int) -> None:
            for _ in range(count):
                assert await writer.append(ref, "planner", lost(next(entries)))

        def same() -> bool:
            return follower.rounds.get(ref) == writer.rounds[ref]

        assert await writer.append(ref, "planner", opened())
        await until(same, "copies arrive")
        # A gap that a later copy reveals.
        await deafen(evaluator)
        await append(3)
        await evaluator.subscribe(subjects.LOG_COPIES, follower._copy)
        assert not same()
        await append(1)
        await until(same, "the gap is read from the stream")
        # A link that breaks.
        between.answering.clear()
        await append(3)
        between.cut()
        between.answering.set()
        await until(same, "read after the reconnect")
        # A loss that nothing reveals: the slow tick.
        await deafen(evaluator)
        await append(3)
        monkeypatch.setattr(logs, "RESYNC_S", 0.05)
        follower._stale.set()  # end the wait that began with the long tick
        await until(same, "read by the tick")
        await append(1)
        await until(same, "and by the next one")


async def test_an_author_keeps_to_its_leaf(stack: Stack) -> None:
    ref = fresh()
    async with parties(stack, "evaluator") as (evaluator,), following(evaluator) as log:
        for author in ("aggregator", "planner"):
            with pytest.raises(AuthRefused, match=author):
                await log.append(ref, author, rejected(0))
        assert await stored(evaluator, ref) == 0


async def test_what_does_not_belong_is_skipped_and_reported(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    ref = fresh()
    leaf = subjects.log_of(ref.run, ref.number, "planner")
    async with (
        parties(stack, "planner", "aggregator") as (planner, aggregator),
        following(planner) as one,
        following(aggregator) as other,
    ):
        await one.append(ref, "planner", opened())
        await put(planner, leaf, b"\xff junk")
        await put(planner, leaf, encode_entry(rejected(1)))
        await put(planner, leaf, encode_entry(opened()))
        await until(lambda: ref in other.rounds and len(other.rounds[ref].ignored) == 3, "all three reported")
        malformed, wrong, again = other.rounds[ref].ignored
        assert "unreadable" in malformed
        assert "planner may not write 'rejected'" in wrong
        assert "repeats" in again
        assert caplog.text.count("log entry ignored") >= 3
        assert other.rounds[ref].rejected == []
        # The log goes on behind them.
        assert (await insist(other, ref, "aggregator", rejected(2)))[-1]
        assert [each.attempt for each in (await read_round(planner, ref)).rejected] == ["t2"]


async def test_a_start_folds_everything_first(stack: Stack) -> None:
    early, late, none = fresh(), fresh(), fresh()
    async with parties(stack, "planner", "aggregator") as (planner, aggregator):
        async with following(planner) as log:
            await log.append(early, "planner", opened())
            middle = await last_seq(planner, subjects.ROUNDS) + 1
            await log.append(late, "planner", opened())
            for i in range(50):
                await log.append(late, "planner", lost(i))
            whole = log.rounds[late]
        async with following(aggregator, middle) as from_middle:
            assert from_middle.rounds[late] == whole
            assert early not in from_middle.rounds
            assert set(from_middle.of(late.run)) == {1}
            from_middle.forget(late.run, 2)
            assert late not in from_middle.rounds
        assert await read_round(aggregator, late) == whole
        assert (await read_round(aggregator, none)).state is None


async def test_copies_come_in_order(stack: Stack) -> None:
    ref = fresh()
    async with (
        parties(stack, "planner") as (planner,),
        raw(stack.credentials("evaluator")) as listener,
        following(planner) as log,
    ):
        (copies,) = await listener.listen("fb.log.>")
        await log.append(ref, "planner", opened())
        for i in range(50):
            await log.append(ref, "planner", lost(i))
        name = f"fb.log.{ref.run}.1.planner"
        seqs: list[int] = []
        while len(seqs) < 51:
            message = await copies.next_msg(5)
            if message.subject == name:
                seqs.append(int((message.headers or {})["Nats-Sequence"]))
        assert seqs == sorted(set(seqs))
