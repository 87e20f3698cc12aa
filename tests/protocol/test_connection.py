"""The connection on a real broker, over each kind of link: what nats-py 2.16 does wrong stays behind it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest
from fedbus.base.clock import random_token
from fedbus.base.errors import AuthRefused, BusUnavailable, ConfigError, PayloadTooLarge
from fedbus.bus import Bus, Message
from fedbus.bus import link as links
from fedbus.bus.credentials import Credentials
from fedbus.bus.lean import LeanLink
from fedbus.bus.stock import StockLink
from fedbus.bus.store import get, put
from fedbus_schemas import subjects
from nats.errors import SlowConsumerError
from support.buses import buses, parties, until
from support.natsd import Stack, broker
from support.proxy import proxy
from support.raw import raw, send_bytes

MIB = 1 << 20


@pytest.fixture(params=["lean", "nats-py"], autouse=True)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs over both."""
    monkeypatch.setenv("FEDBUS_CLIENT", request.param)
    return str(request.param)


async def test_the_setting_chooses_the_link(stack: Stack, client: str) -> None:
    async with parties(stack, "w-kind") as (worker,):
        assert type(worker.link) is {"lean": LeanLink, "nats-py": StockLink}[client]
        assert worker.link.server_version[0].isdigit()


async def test_an_unknown_client_is_refused(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBUS_CLIENT", "natspy")
    with pytest.raises(ConfigError, match="FEDBUS_CLIENT is 'natspy'") as refused:
        await Bus.connect(stack.credentials("planner"))
    assert refused.value.hint == "use lean or nats-py"


def chunk_of(worker: str, leaf: int | str = 0) -> str:
    return subjects.update(f"conn-{random_token()}", 1, worker, "0", "t", leaf)


def nowhere() -> Credentials:
    # A free port could be taken by a neighbour in the meantime; on port 1 nobody listens.
    return Credentials(url="nats://127.0.0.1:1", user="A", password="x")


async def test_an_absent_broker_is_an_error_in_time() -> None:
    """Trap 15: nats-py's first connect tries for two minutes, or for ever."""
    began = time.monotonic()
    with pytest.raises(BusUnavailable, match=r"within 0\.5 s.*(refused|Connect call failed)"):
        await Bus.connect(nowhere(), wait_s=0.5)
    assert time.monotonic() - began < 10


async def test_a_mute_server_is_an_error_in_time() -> None:
    """A greeting that never comes; the socket is closed behind us."""
    ended = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(BusUnavailable):
        await Bus.connect(nowhere().model_copy(update={"url": f"nats://127.0.0.1:{port}"}), wait_s=0.3)
    async with asyncio.timeout(5):
        await ended.wait()
    server.close()


async def test_a_wrong_password_is_refused_at_once(stack: Stack) -> None:
    """Trap 15: nats-py goes on trying after an authorization violation."""
    wrong = stack.credentials("planner").model_copy(update={"password": "wrong"})
    began = time.monotonic()
    with pytest.raises(AuthRefused, match="planner"):
        await Bus.connect(wrong)
    assert time.monotonic() - began < 10


async def test_a_killed_broker_fails_what_is_pending_and_comes_back(tmp_path: Path) -> None:
    """Traps 1, 7 and 14: no request hangs, nothing is buffered unseen, no count of attempts ends it."""
    async with broker(tmp_path) as own, parties(own, "planner", "enroll", "w") as (planner, enroll, worker):
        heard: list[bytes] = []
        ups = 0

        async def hook() -> None:
            nonlocal ups
            ups += 1

        await enroll.subscribe(subjects.ALL_BEATS, lambda message: heard.append(message.data))
        await planner.subscribe(subjects.api("planner", "mute"), lambda _: None)
        await enroll.on_up(hook)
        async with buses(own.credentials("operator")) as (operator,):
            pending = [
                asyncio.create_task(operator.request(subjects.api("planner", "mute"), timeout_s=50))
                for _ in range(20)
            ]
            await operator.flush()
            own.kill()
            began = time.monotonic()
            failed = await asyncio.gather(*pending, return_exceptions=True)
            assert time.monotonic() - began < 10
            assert {type(each) for each in failed} == {BusUnavailable}
            assert all(each.retryable for each in failed if isinstance(each, BusUnavailable))
            await until(lambda: not worker.connected, "the worker sees it too")
            with pytest.raises(BusUnavailable, match="not connected"):
                await worker.publish(subjects.beat("w"), b"into the void")
            with pytest.raises(BusUnavailable):
                await worker.flush()
        await asyncio.to_thread(own.restart)
        began = time.monotonic()
        await asyncio.gather(enroll.wait_up(), worker.wait_up(), planner.wait_up())
        assert time.monotonic() - began < 10
        await until(lambda: ups == 2, "the hook ran again")
        await enroll.flush()
        await worker.publish(subjects.beat("w"), b"again")
        await until(lambda: heard == [b"again"], "the renewed subscription hears")


async def test_the_broker_closing_on_us_is_not_for_good(stack: Stack) -> None:
    """Traps 2 and 3: after most `-ERR` nats-py stays closed, whatever its reconnect settings say."""
    async with parties(stack, "w-err") as (worker,):
        before = worker.link
        # Headers count against max_payload at the broker, not in nats-py; ours refuses this locally.
        await before.publish(chunk_of("w-err"), bytes(before.max_payload), headers={"a": "b"})
        await until(lambda: worker.connected and worker.link is not before, "closed, and open again")
        assert before.closed
        await worker.flush()


async def test_a_credential_taken_away_and_given_back(tmp_path: Path) -> None:
    """Trap 3: a revoked client waits, and is back once it is allowed again."""
    async with broker(tmp_path) as own, buses(own.credentials("w")) as (worker,):
        config = own.folder / "broker" / "accounts.conf"
        allowed = config.read_text()
        taken = allowed.replace(worker.credentials.password, "another-password")
        assert taken != allowed
        config.write_text(taken)
        os.kill(own.broker.pid, signal.SIGHUP)
        await until(
            lambda: not worker.connected and "refuses" in str(worker.last_error), "cut off and refused"
        )
        config.write_text(allowed)
        os.kill(own.broker.pid, signal.SIGHUP)
        async with asyncio.timeout(10):
            await worker.wait_up()
        await worker.flush()


async def test_too_large_is_refused_here_and_the_limit_itself_passes(stack: Stack) -> None:
    """Trap 2: the broker would close the connection for a payload and headers above its limit."""
    async with parties(stack, "w-large") as (worker,):
        link, subject = worker.link, chunk_of("w-large")
        with pytest.raises(PayloadTooLarge, match=str(worker.max_message)):
            await worker.request(subject, bytes(worker.max_message + 1))
        with pytest.raises(PayloadTooLarge):
            await worker.publish(subjects.beat("w-large"), bytes(worker.max_message + 1))
        with pytest.raises(PayloadTooLarge):
            await worker.request(subject, b"", headers={"a": "b" * 5000})
        # Payload and headers just under the limit, both at once.
        headers = {"Nats-Expected-Last-Subject-Sequence": "0", "a": "b" * 4000}
        reply = await worker.request(subject, bytes(worker.max_message), headers=headers)
        assert b'"seq"' in reply.data
        assert worker.link is link


async def test_a_slow_subscriber_gets_everything(stack: Stack) -> None:
    """Trap 4: over its limit nats-py drops messages, and only its error callback knows."""
    errors: list[Exception] = []
    opened = asyncio.Event()
    payload = bytes(MIB)

    async def wait(_: object) -> None:
        await opened.wait()

    async def note(error: Exception) -> None:
        errors.append(error)

    async with (
        parties(stack, "planner", "evaluator") as (planner, evaluator),
        raw(stack.credentials("evaluator")) as plain,
    ):
        plain.nc._error_cb = note
        limited = await plain.nc.subscribe("fb.worker.*.beat", cb=wait, pending_bytes_limit=8 * MIB)
        await plain.flush()
        seen: list[int] = []

        def slow(message: Message) -> None:
            time.sleep(0.005)
            seen.append(message.data[0])

        await evaluator.subscribe(subjects.ALL_BEATS, slow)
        async with buses(stack.credentials("w-slow")) as (worker,):
            for i in range(32):
                await worker.publish(subjects.beat("w-slow"), bytes([i]) + payload)
        await until(lambda: len(seen) == 32, "all 32 arrive")
        assert seen == list(range(32))
        if isinstance(evaluator.link, StockLink):  # without a limit there is nothing to overrun
            ours = evaluator.link.client._subs.values()
            assert {(sub._pending_bytes_limit, sub._pending_queue.maxsize) for sub in ours} == {(0, 0)}
        await until(lambda: len(errors) > 0, "the plain client drops")
        assert any(isinstance(error, SlowConsumerError) for error in errors)
        opened.set()
        assert limited.pending_msgs < 32
        assert planner.connected


async def test_headers_stay_the_callers(stack: Stack) -> None:
    """Trap 8: nats-py adds to the dict that it is given."""
    async with parties(stack, "w-headers") as (worker,):
        headers = {"Nats-Expected-Last-Subject-Sequence": "0"}
        await worker.request(chunk_of("w-headers"), b"x", headers=headers)
        await worker.request(chunk_of("w-headers"), b"x", headers=headers)
        assert headers == {"Nats-Expected-Last-Subject-Sequence": "0"}


async def test_a_refused_subject_is_an_answer_and_not_a_time_out(stack: Stack) -> None:
    async with parties(stack, "w-refused") as (worker,):
        began = time.monotonic()
        with pytest.raises(AuthRefused, match="refuses fb"):
            await worker.request(chunk_of("Somebody-Else"), b"x", timeout_s=30)
        with pytest.raises(AuthRefused, match="refuses fb"):
            await worker.subscribe("fb.round.>", lambda _: None)
        assert time.monotonic() - began < 10
        await worker.flush()


async def test_nobody_serves(stack: Stack) -> None:
    async with parties(stack, "operator") as (operator,):
        with pytest.raises(BusUnavailable, match="nobody serves"):
            await operator.request(subjects.api("enroll", "nothing"))
        with pytest.raises(BusUnavailable, match="nobody serves"):
            await operator.request_all("$JS.API.DIRECT.GET.NO_STREAM", b"{}")


async def test_a_stored_header_is_no_status(stack: Stack) -> None:
    """A worker may store `Status: 503` with its update: a reader must not take that for an absent broker."""
    async with parties(stack, "w-status", "aggregator") as (worker, aggregator):
        for status in ("503", "404"):
            subject = chunk_of("w-status", "manifest")
            forged = {"Status": status, "Nats-Sequence": "1000000", "Nats-Subject": "fb.forged"}
            stored = json.loads((await worker.request(subject, b"", headers=forged)).data)
            async with asyncio.timeout(5):
                message = await get(aggregator, subjects.UPDATES, subject)
            assert (message.data, message.status) == (b"", None)
            assert message.headers["Nats-Subject"] == subject
            assert int(message.headers["Nats-Sequence"]) == stored["seq"] < 1000000


async def test_no_subject_and_no_header_deafens_a_service(stack: Stack) -> None:
    """A worker chooses the end of its subjects, and its headers: nats-py stops at what is no text."""
    run = f"deaf-{random_token()}"
    heard: list[tuple[str, str | None]] = []
    async with parties(stack, "aggregator") as (aggregator,):
        link = aggregator.link
        await aggregator.subscribe(
            subjects.MANIFEST_COPIES,
            lambda message: heard.append((message.subject, message.headers.get("X"))),
        )
        where = f"fb.update.{run}.1.A.0.".encode()
        blocks = (
            b"NATS/1.0\r\nX: \xff\r\n\r\n",
            b"NATS/1.0 503 \xff\r\n\r\n",
            b"NATS/1.0\r\nX: last\r\n\r\n",
        )
        tokens = (b"\xff", b"a\x0b1", b"last")
        lines = [b"PUB %s%s.manifest 1\r\nx\r\n" % (where, token) for token in (b"\xfe", b"b\x0b1")]
        for token, block in zip(tokens, blocks, strict=True):
            sizes = (where, token, len(block), len(block) + 1)
            lines.append(b"HPUB %s%s.manifest %d %d\r\n" % sizes + block + b"x\r\n")
        await send_bytes(stack.credentials("A"), *lines)
        await until(lambda: any(subject.endswith("last") for subject, _ in heard), "the last is heard")
        assert aggregator.link is link
    ours = f"fb.manifest.{run}.1.A.0."
    assert heard == [
        (f"{ours}\ufffd", None),
        (f"{ours}b\x0b1", None),
        (f"{ours}\ufffd", "\ufffd"),
        (f"{ours}a\x0b1", None),
        (f"{ours}last", "last"),
    ]


async def test_flush_means_processed(stack: Stack) -> None:
    """One flush of nats-py goes out ahead of what was just published, and proves nothing."""
    async with parties(stack, "evaluator", "w-flush") as (evaluator, worker):
        heard: list[bytes] = []
        await evaluator.subscribe(subjects.ALL_BEATS, lambda message: heard.append(message.data))
        for i in range(50):
            await worker.publish(subjects.beat("w-flush"), str(i).encode() + bytes(100_000))
            await worker.flush()
            await evaluator.flush()
            await until(lambda i=i: len(heard) == i + 1, "there after both flushes", 1)  # type: ignore[misc]


async def test_a_hook_that_goes_takes_no_other_with_it(stack: Stack) -> None:
    async with parties(stack, "w-hooks") as (worker,):
        ran: list[str] = []

        async def once() -> None:
            ran.append("once")
            if len(ran) > 2:
                worker.off_up(once)

        async def always() -> None:
            ran.append("always")

        await worker.flush()  # no hook is run for the first connect any more
        await worker.on_up(once)
        await worker.on_up(always)
        worker.link.abort()
        await until(lambda: ran == ["once", "always"] * 2, "both ran again")
        worker.link.abort()
        await until(lambda: ran == [*["once", "always"] * 2, "always"], "one is left")


async def test_a_cancelled_flush_does_no_harm(stack: Stack) -> None:
    """A PONG that finds its waiter cancelled ends nats-py's reader: connected, and deaf."""
    async with parties(stack, "w-cancel") as (worker,):
        link = worker.link
        for _ in range(20):
            flush = asyncio.create_task(worker.flush())
            await asyncio.sleep(0)
            flush.cancel()
            await asyncio.gather(flush, return_exceptions=True)
        assert await put(worker, chunk_of("w-cancel"), b"x", expected=0) > 0
        await worker.flush()
        assert worker.link is link


async def test_a_half_open_link_is_noticed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves, nothing breaks: idle, or with megabytes unsent, where nats-py's own close hangs."""
    monkeypatch.setattr(links, "PING_S", 0.1)
    monkeypatch.setattr(links, "STALE_S", 0.5)
    async with proxy(stack.url) as between, parties(stack, "w-half", through=between) as (worker,):
        for sent in (0, 16):
            link = worker.link
            between.flowing.clear()
            uploads = [
                asyncio.create_task(worker.request(chunk_of("w-half", i), bytes(MIB), timeout_s=50))
                for i in range(sent)
            ]
            await until(lambda: not worker.connected, "the stall is noticed", 8)
            failed = await asyncio.gather(*uploads, return_exceptions=True)
            assert {type(each) for each in failed} <= {BusUnavailable}
            between.cut()
            between.flowing.set()
            async with asyncio.timeout(10):
                await worker.wait_up()
            await worker.flush()
            assert worker.link is not link


async def test_a_slow_link_is_not_a_dead_one(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PONG may wait behind megabytes; as long as bytes move the link lives."""
    monkeypatch.setattr(links, "PING_S", 0.1)
    monkeypatch.setattr(links, "STALE_S", 1.5)
    async with (
        proxy(stack.url, rate=4 * MIB) as between,
        parties(stack, "w-narrow", through=between) as (worker,),
    ):
        link, subject = worker.link, chunk_of("w-narrow", "")
        await asyncio.gather(*(put(worker, f"{subject}{i}", bytes(MIB), expected=0) for i in range(12)))
        assert worker.link is link
        assert between.links == 1


async def test_closing_takes_a_bounded_time(stack: Stack) -> None:
    """On a stalled link with unsent bytes, nats-py's close never returns; what waits for room ends, too."""
    async with proxy(stack.url) as between, parties(stack):
        worker = await Bus.connect(between.credentials(stack.credentials("w-close")))
        between.flowing.clear()
        subject = subjects.beat("w-close")
        await worker.publish(subject, bytes(MIB))
        waiting = [asyncio.create_task(worker.publish(subject, bytes(MIB))) for _ in range(16)]
        await asyncio.sleep(0)
        began = time.monotonic()
        await worker.close()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(each) for each in ended} <= {type(None), BusUnavailable}
        assert time.monotonic() - began < 10


async def test_what_was_published_last_goes_out_before_closing(stack: Stack) -> None:
    async with parties(stack, "evaluator") as (evaluator,):
        heard: list[bytes] = []
        await evaluator.subscribe(subjects.ALL_BEATS, lambda message: heard.append(message.data))
        async with buses(stack.credentials("w-last")) as (worker,):
            for _ in range(8):
                await worker.publish(subjects.beat("w-last"), bytes(MIB))
            await worker.publish(subjects.beat("w-last"), b"leaving")
        await until(lambda: b"leaving" in heard, "the last message arrives")
