"""Write-once puts, bounded windows and reads by subject, on a real broker that is killed on purpose."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fedbus.base.clock import random_token
from fedbus.base.errors import AuthRefused, BusError, NotAcked, StreamFull, StreamMissing
from fedbus.bus import Bus, Message
from fedbus.bus import store as stores
from fedbus.bus.store import (
    STREAM_FULL,
    TOO_BUSY,
    WRONG_LAST,
    JetStreamError,
    Publisher,
    call,
    get,
    get_all,
    get_last,
    last_seq,
    leader_get,
    list_subjects,
    parse_answer,
    purge,
    put,
)
from fedbus_schemas import subjects
from support.answers import STORED, answering, error, subject_of
from support.buses import parties, until
from support.natsd import Stack, broker
from support.proxy import proxy
from support.raw import publish_bytes, raw

KIB, MIB = 1 << 10, 1 << 20
UPDATES = subjects.UPDATES


def prefix(worker: str) -> str:
    """Subject of a fresh update, less its last token."""
    return subjects.update(f"store-{random_token()}", 1, worker, "0", "t", "")


def payload(i: int, size: int = 256 * KIB) -> bytes:
    return random.Random(i).randbytes(size)


async def items(where: str, count: int, size: int = 256 * KIB) -> AsyncIterator[tuple[str, bytes]]:
    for i in range(count):
        yield f"{where}{i}", payload(i, size)


async def test_a_subject_is_written_once(tmp_path: Path) -> None:
    """Nobody overwrites: not with our expectation, not without headers, not after a kill of the broker."""
    async with broker(tmp_path) as own, parties(own, "w", "aggregator") as (worker, aggregator):
        subject = prefix("w") + "0"
        seq = await put(worker, subject, b"first", expected=0)

        async def refused(data: bytes, expected: int | None) -> int:
            with pytest.raises((JetStreamError, StreamFull)) as caught:
                await put(worker, subject, data, expected=expected)
            assert (await get(aggregator, UPDATES, subject)).data == b"first"
            return caught.value.err_code if isinstance(caught.value, JetStreamError) else STREAM_FULL

        assert await refused(b"second", 0) == WRONG_LAST
        # Without the expectation the stream itself refuses, and "already there" reads as "full".
        assert await refused(b"second", None) == STREAM_FULL
        assert await refused(b"second", seq) == STREAM_FULL
        # For the publisher it is there: its subject names its own bytes.
        await Publisher(worker).put(subject, b"first")
        own.kill()
        await asyncio.to_thread(own.restart)
        await worker.wait_up()
        assert await refused(b"second", 0) == WRONG_LAST
        assert await refused(b"second", None) == STREAM_FULL
        await Publisher(worker).put(subject, b"first")
        assert await list_subjects(aggregator, UPDATES, subject) == {subject: 1}


async def test_nobody_claims_anothers_message_id(stack: Stack) -> None:
    """Ids are stream-wide, so with ids one worker has another's chunk acknowledged and not stored."""
    mine, its, junk = prefix("w-victim"), prefix("w-thief"), f"id-{random_token()}"
    async with parties(stack, "w-victim", "aggregator") as (victim, aggregator):
        async with raw(stack.credentials("w-thief")) as thief:
            await thief.ask(f"{its}0", b"junk", **{"Nats-Msg-Id": junk})
        async with raw(stack.credentials("w-victim")) as plain:
            # The attack is real where ids are used ...
            claimed = json.loads((await plain.ask(f"{mine}0", b"chunk", **{"Nats-Msg-Id": junk})).data)
            assert claimed["duplicate"] is True
        with pytest.raises(StreamMissing):
            await get(aggregator, UPDATES, f"{mine}0")
        # ... and void where they are not.
        await Publisher(victim).put(f"{mine}0", b"chunk")
        stored = await get(aggregator, UPDATES, f"{mine}0")
        assert stored.data == b"chunk"
        assert "Nats-Msg-Id" not in stored.headers


async def test_no_message_of_the_publisher_carries_an_id(stack: Stack) -> None:
    async with (
        answering(stack, lambda *_: STORED) as answers,
        parties(stack, "operator") as (operator,),
    ):
        await Publisher(operator).put_all(items(subject_of(""), 5, 10))
        assert answers.headers == [{stores.EXPECTED: "0"}] * 5


async def test_a_lost_acknowledgement_is_made_up_for(stack: Stack) -> None:
    """Stored, and the link cut before we hear of it: the repeat finds our bytes there."""
    async with (
        proxy(stack.url) as between,
        parties(stack, "w-lost", through=between) as (worker,),
        parties(stack, "aggregator") as (aggregator,),
    ):
        subject = prefix("w-lost") + "0"
        between.answering.clear()
        sending = asyncio.create_task(Publisher(worker).put(subject, b"bytes"))
        stored = (await get_soon(aggregator, subject)).data
        assert not sending.done()
        between.cut()
        between.answering.set()
        async with asyncio.timeout(10):
            await sending
        assert stored == b"bytes"
        assert await list_subjects(aggregator, UPDATES, subject) == {subject: 1}


async def get_soon(bus: Bus, subject: str) -> Message:
    async with asyncio.timeout(10):
        while True:
            try:
                return await get(bus, UPDATES, subject)
            except StreamMissing:
                continue


async def test_everything_is_stored_once_though_the_broker_dies_twice(tmp_path: Path) -> None:
    """Trap 1: nats-py's own in-flight publishes never end after a broken connection.

    And a reader that is in the middle goes on where it was.
    """
    count, where = 100, prefix("w")
    async with broker(tmp_path) as own, parties(own, "w", "aggregator") as (worker, aggregator):
        stored: list[str] = []
        publisher = Publisher(worker, window_bytes=4 * MIB)
        sending = asyncio.create_task(
            publisher.put_all(items(where, count), lambda subject, _: stored.append(subject))
        )
        for kill_at in (20, 60):
            await until(lambda n=kill_at: len(stored) >= n, f"{kill_at} stored")  # type: ignore[misc]
            assert len(stored) < count
            own.kill()
            await asyncio.to_thread(own.restart)
        await sending
        await aggregator.wait_up()
        names = [f"{where}{i}" for i in range(count)]
        assert sorted(stored) == sorted(names)
        assert await list_subjects(aggregator, UPDATES, f"{where}*") == dict.fromkeys(names, 1)
        assert (await call(aggregator, f"STREAM.INFO.{UPDATES}"))["state"]["messages"] == count

        read: list[bytes] = []
        async for data in get_all(aggregator, UPDATES, names):
            read.append(hashlib.sha256(data).digest())
            if len(read) == 30:
                own.kill()
                await asyncio.to_thread(own.restart)
        assert read == [hashlib.sha256(payload(i)).digest() for i in range(count)]


async def test_the_window_bounds_what_is_in_flight(stack: Stack) -> None:
    async with (
        answering(stack, lambda *_: STORED) as answers,
        parties(stack, "operator") as (operator,),
    ):
        answers.gate = asyncio.Event()
        publisher = Publisher(operator, window_bytes=1000)
        sending = asyncio.create_task(publisher.put_all(items(subject_of(""), 25, 100)))
        most = 0
        while not sending.done():
            await until(lambda: sending.done() or answers.held_bytes >= 500, "half a window is asked", 5)
            await operator.flush()
            most = max(most, answers.held_bytes)
            await answers.release()
        await sending
        assert most == 1000
        assert set(answers.asked.values()) == {1}
        # One message that is larger than the window goes alone.
        answers.gate = None
        await publisher.put(subject_of("big"), bytes(5000))
        assert answers.asked["big"] == 1


async def test_a_busy_broker_halves_the_window(stack: Stack) -> None:
    async with (
        answering(stack, lambda _, n: error(TOO_BUSY) if n <= 2 else STORED) as answers,
        parties(stack, "operator") as (operator,),
    ):
        publisher = Publisher(operator, window_bytes=8000)
        await publisher.put(subject_of("busy"), bytes(1000))
        assert answers.asked["busy"] == 3
        assert publisher.window == 8000 // 4 + 1000
        # Never below one message, and never above where it began.
        await publisher.put(subject_of("large"), bytes(7000))
        assert publisher.window == 8000
        answers.gate = asyncio.Event()
        waiting = [asyncio.create_task(publisher.put(subject_of(f"x{i}"), bytes(4000))) for i in range(3)]
        await until(lambda: answers.held_bytes == 8000, "the window is full again")
        answers.gate = None
        await answers.release()
        await asyncio.gather(*waiting)
        assert publisher.window == 8000


async def test_an_unknown_refusal_is_raised_as_itself(stack: Stack) -> None:
    """Not as a group of exceptions, and not repeated."""
    async with (
        answering(stack, lambda *_: error(10100)) as answers,
        parties(stack, "operator", "w-wrong") as (operator, worker),
    ):
        with pytest.raises(JetStreamError, match="10100") as caught:
            await Publisher(operator).put_all(items(subject_of(""), 3, 10))
        assert caught.value.err_code == 10100
        assert max(answers.asked.values()) == 1
        with pytest.raises(AuthRefused):
            await Publisher(worker).put_all(items(prefix("Somebody-Else"), 3, 10))


def test_answers_of_the_broker() -> None:
    assert parse_answer(b'{"seq": 4}') == {"seq": 4}
    with pytest.raises(StreamFull, match="no room"):
        parse_answer(json.dumps(error(STREAM_FULL, "no room")).encode())
    with pytest.raises(JetStreamError) as caught:
        parse_answer(json.dumps(error(WRONG_LAST)).encode())
    assert caught.value.err_code == WRONG_LAST
    with pytest.raises(BusError, match="unreadable"):
        parse_answer(b"\xff")


async def test_full_waits_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10077 until there is room. What is there already is success, full or not."""
    monkeypatch.setattr(stores, "FULL_PAUSE_S", 0.05)
    async with broker(tmp_path) as own, parties(own, "w", "planner") as (worker, planner):
        have = (await call(planner, f"STREAM.INFO.{UPDATES}"))["config"]
        await call(planner, f"STREAM.UPDATE.{UPDATES}", {**have, "max_bytes": 1 * MIB})
        old, new = prefix("w"), prefix("w")
        publisher = Publisher(worker)
        await publisher.put_all(items(old, 3))
        sending = asyncio.create_task(publisher.put_all(items(new, 3)))
        await until(lambda: publisher.full is not None, "it says that it waits")
        assert "full" in str(publisher.full)
        await Publisher(worker).put(f"{old}0", payload(0))
        assert not sending.done()
        assert await purge(planner, UPDATES, f"{old}*") == 3
        async with asyncio.timeout(10):
            await sending
        assert publisher.full is None
        assert await list_subjects(planner, UPDATES, f"{new}*") == {f"{new}{i}": 1 for i in range(3)}
        assert await purge(planner, UPDATES, f"{old}*") == 0

        # More subjects than the broker lists at once.
        async with parties(own, "enroll") as (enroll,):
            for i in range(100_005):
                await enroll.publish(f"fb.event.many.{i}", b"")
                if i % 5000 == 0:
                    await put(enroll, "fb.event.barrier", b"")
            await put(enroll, "fb.event.barrier", b"")
            found = await list_subjects(enroll, subjects.EVENTS, "fb.event.many.>")
        assert len(found) == 100_005
        assert set(found.values()) == {1}


async def test_reads_keep_their_order_and_their_bound(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async with parties(stack, "w-read", "aggregator") as (worker, aggregator):
        where = prefix("w-read")
        await Publisher(worker).put_all(items(where, 40, KIB))
        names = [f"{where}{i}" for i in reversed(range(40))]
        flying = most = 0
        request = aggregator.request

        async def counted(subject: str, **more: float) -> Message:
            nonlocal flying, most
            flying += 1
            most = max(most, flying)
            try:
                return await request(subject, **more)  # type: ignore[arg-type]
            finally:
                flying -= 1

        monkeypatch.setattr(aggregator, "request", counted)
        read = [data async for data in get_all(aggregator, UPDATES, names, in_flight=5)]
        assert read == [payload(i, KIB) for i in reversed(range(40))]
        assert (most, flying) == (5, 0)

        names[20] = f"{where}none"
        chunks = get_all(aggregator, UPDATES, names)
        for i in reversed(range(20, 40)):
            assert await anext(chunks) == payload(i, KIB)
        with pytest.raises(StreamMissing, match="none"):
            await anext(chunks)
        chunks = get_all(aggregator, UPDATES, names)
        await anext(chunks)
        await chunks.aclose()
        assert flying == 0


async def test_the_last_of_every_subject(stack: Stack) -> None:
    first, second = f"last-{random_token()}", f"last-{random_token()}"
    async with parties(stack, "planner", "w-last-of") as (planner, worker):
        for body in (b"old", b"new"):
            await put(planner, subjects.announce(first), body)
        await put(planner, subjects.announce(second), b"")
        for bus in (planner, worker):
            found = await get_last(bus, subjects.ANNOUNCE, subjects.ALL_ANNOUNCEMENTS)
            told = {m.headers["Nats-Subject"]: m.data for m in found}
            assert len(told) == len(found)
            assert (told[subjects.announce(first)], told[subjects.announce(second)]) == (b"new", b"")
            assert await get_last(bus, subjects.ANNOUNCE, subjects.announce("never-announced")) == []


async def test_more_subjects_than_the_broker_answers_at_once(stack: Stack) -> None:
    """More than 1024 runs may be announced: a closed round's announcement stays for a day."""
    async with parties(stack, "aggregator", "w-many") as (aggregator, worker):
        where = prefix("w-many")
        await Publisher(worker).put_all(items(where, 1025, 1))
        found = await get_last(aggregator, UPDATES, f"{where}*")
        assert {m.headers["Nats-Subject"]: m.data for m in found} == {
            f"{where}{i}": payload(i, 1) for i in range(1025)
        }
        # A request that the broker refuses must not read as "nothing is announced".
        with pytest.raises(BusError, match="408"):
            await get_last(aggregator, UPDATES, "")


async def test_subjects_of_any_bytes_are_heard_and_listed(stack: Stack) -> None:
    """A worker chooses the end of its subjects: no service may lose its link by it, or read for ever."""
    run = f"store-{random_token()}"
    tokens = [b"\xff", b"\xfe", b"a\x0b1", b"last"]
    heard: list[str] = []
    async with parties(stack, "aggregator") as (aggregator,):
        link = aggregator.link
        await aggregator.subscribe(subjects.MANIFEST_COPIES, lambda message: heard.append(message.subject))
        bytes_ = [f"fb.update.{run}.1.A.0.".encode() + token + b".manifest" for token in tokens]
        await publish_bytes(stack.credentials("A"), *bytes_)
        await until(lambda: heard[-1:] == [f"fb.manifest.{run}.1.A.0.last"], "the last is heard")
        assert aggregator.link is link
        async with asyncio.timeout(5.0):
            pattern = subjects.update(run, 1, "*", "*", "*", "manifest")
            listed = await list_subjects(aggregator, UPDATES, pattern)
    assert [subjects.parse_update(subject)[4] for subject in listed] == ["a\x0b1", "last", "\ufffd"]


async def test_reads_from_the_leader(stack: Stack) -> None:
    async with parties(stack, "w-lead", "aggregator") as (worker, aggregator):
        where = prefix("w-lead")
        first = await put(worker, f"{where}0", b"a", expected=0)
        second = await put(worker, f"{where}1", b"", expected=0)
        assert await leader_get(aggregator, UPDATES, {"last_by_subj": f"{where}0"}) == (
            first,
            f"{where}0",
            b"a",
        )
        following = {"seq": first + 1, "next_by_subj": f"{where}*"}
        assert await leader_get(aggregator, UPDATES, following) == (second, f"{where}1", b"")
        assert await leader_get(aggregator, UPDATES, {"last_by_subj": f"{where}2"}) is None
        assert await last_seq(aggregator, UPDATES) >= second
        direct = await get(aggregator, UPDATES, f"{where}0")
        assert (direct.data, int(direct.headers["Nats-Sequence"])) == (b"a", first)


async def test_an_append_over_a_filter(stack: Stack) -> None:
    """One order over several subjects: the expectation is taken over the filter."""
    run = f"over-{random_token()}"
    over = subjects.log_of(run, 1)
    async with parties(stack, "planner", "aggregator") as (planner, aggregator):
        first = await put(planner, subjects.log_of(run, 1, "planner"), b"?", expected=0, over=over)
        mine = subjects.log_of(run, 1, "aggregator")
        with pytest.raises(JetStreamError) as caught:
            await put(aggregator, mine, b"?", expected=0, over=over)
        assert caught.value.err_code == WRONG_LAST
        assert await put(aggregator, mine, b"?", expected=first, over=over) > first


async def test_no_answer_in_time_is_said(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wedged stream answers nothing while the connection lives; the publisher goes on asking."""
    monkeypatch.setattr(stores, "ACK_TIMEOUT_S", 0.2)
    async with (
        answering(stack, lambda _, n: STORED if n > 2 else None) as answers,
        parties(stack, "operator") as (operator,),
    ):
        with pytest.raises(NotAcked, match=r"0\.2 s"):
            await put(operator, subject_of("wedged"), b"")
        await Publisher(operator).put(subject_of("wedged"), b"")
        assert answers.asked["wedged"] == 3
