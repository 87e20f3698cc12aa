"""The bridge: what parties publish arrives at an OTLP/HTTP receiver, cleaned; what is hostile does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from fedbus.base.clock import SystemClock
from fedbus.bus import Bus, Credentials
from fedbus.bus.provision import provision
from fedbus.telemetry.endpoint import read_endpoint
from fedbus.telemetry.model import Span
from fedbus.telemetry.otlp import MOST_BYTES, encode
from fedbus.telemetry.stored import read_spans
from fedbus_enroll.bridge import Bridge
from fedbus_schemas import subjects
from support.natsd import wait_until
from support.otlp import receiver

AT = 1_700_000_000.0


def span(name: str = "task", worker: str = "b1", own: int = 1, trace: str = "b" * 32) -> Span:
    about = {"worker": worker, "bytes": 5}
    return Span(name, "worker", worker, 77, trace, f"{own:016x}", "c" * 16, AT, AT + 1, about)


@asynccontextmanager
async def bridging(
    credentials: Callable[[str], Credentials], url: str, **variables: str
) -> AsyncIterator[Bridge]:
    """A bridge that listens."""
    bus = await Bus.connect(credentials("enroll"))
    bridge = Bridge(bus, read_endpoint({"OTEL_EXPORTER_OTLP_ENDPOINT": url, **variables}), (0.01, 0.01))
    task = asyncio.create_task(bridge.run())
    try:
        await asyncio.sleep(0)  # it subscribes, and the broker hears of that before it hears of the flush
        await bus.flush()
        yield bridge
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition, "it is sent or dropped")


@asynccontextmanager
async def party(credentials: Callable[[str], Credentials], name: str) -> AsyncIterator[Bus]:
    bus = await Bus.connect(await asyncio.to_thread(credentials, name))
    try:
        yield bus
    finally:
        await bus.close()


async def test_spans_arrive_with_the_name_that_the_broker_checked(
    credentials: Callable[[str], Credentials],
) -> None:
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=s%20ecret"}
    with receiver() as to:
        async with bridging(credentials, to.url, **headers) as bridge, party(credentials, "b1") as worker:
            forged = replace(span(), worker="b2", attributes={"worker": "b2", "patient": "Jane Doe"})
            await worker.publish(subjects.otel("b1"), encode([forged]))
            await until(lambda: bool(to.spans))
            (found,) = to.spans
            assert (found.service, found.instance, found.pid) == ("fedbus-worker", "b1", 77)
            assert found.attributes == {"worker": "b1"}
            path, sent, _ = to.posts[0]
            assert (path, sent["Content-Type"], sent["x-key"]) == (
                "/v1/traces",
                "application/x-protobuf",
                "s ecret",
            )
            assert (bridge.sent, bridge.dropped) == (1, 0)


async def test_hostile_telemetry_is_dropped_and_counted(credentials: Callable[[str], Credentials]) -> None:
    with receiver() as to:
        async with bridging(credentials, to.url) as bridge, party(credentials, "b1") as worker:
            large = encode([span(own=i + 1) for i in range(3000)])
            assert len(large) > MOST_BYTES
            service = replace(span("fold"), service="aggregator", worker=None)
            root = replace(span("round"), service="planner", worker=None, parent_id=None)
            for data in (large, b"junk", b"", b"\xff" * 1000, encode([service]), encode([root])):
                await worker.publish(subjects.otel("b1"), data)
            await worker.publish(subjects.otel("b1"), encode([span(own=9)]))
            await until(lambda: bridge.sent == 1)
            assert [found.span_id for found in to.spans] == [f"{9:016x}"]
            assert bridge.dropped == 6


async def test_a_receiver_that_is_busy_is_tried_again(credentials: Callable[[str], Credentials]) -> None:
    with receiver() as to:
        to.answers = [503, 429]
        async with bridging(credentials, to.url) as bridge, party(credentials, "b1") as worker:
            await worker.publish(subjects.otel("b1"), encode([span()]))
            await until(lambda: bridge.sent == 1)
            assert len(to.spans) == 1
            to.answers = [503, 503, 503, 503]
            await worker.publish(subjects.otel("b1"), encode([span(own=2)]))
            await until(lambda: bridge.dropped == 1)
            to.answers = [400]  # what it does not understand it will not understand later
            await worker.publish(subjects.otel("b1"), encode([span(own=3)]))
            await until(lambda: bridge.dropped == 2)
            assert len(to.spans) == 1


async def test_a_receiver_that_is_not_there_is_said_once(
    credentials: Callable[[str], Credentials], caplog: pytest.LogCaptureFixture
) -> None:
    with receiver() as to:
        pass
    with caplog.at_level(logging.WARNING, "fedbus_enroll"):
        async with bridging(credentials, to.url) as bridge, party(credentials, "b1") as worker:
            for own in range(1, 6):
                await worker.publish(subjects.otel("b1"), encode([span(own=own)]))
                await until(lambda own=own: bridge.dropped == own)  # type: ignore[misc]  # bound at once
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3  # at 1, 2 and 4 messages
    assert "1 messages with spans dropped" in said[0]
    assert f"{to.url}/v1/traces cannot be reached" in said[0]


async def test_without_a_receiver_it_does_nothing(credentials: Callable[[str], Credentials]) -> None:
    async with party(credentials, "enroll") as bus:
        async with asyncio.timeout(5):
            await Bridge(bus).run()


async def test_what_is_stored_is_found_by_trace(credentials: Callable[[str], Credentials]) -> None:
    """More than one batch of other rounds' spans lies around it, and spans that came late behind it."""
    async with party(credentials, "planner") as planner, party(credentials, "operator") as operator:
        await provision(planner)
        async with party(credentials, "b1") as b1, party(credentials, "b2") as b2:
            wanted, other = "d" * 32, "e" * 32
            for bus, name in ((b1, "b1"), (b2, "b2")):
                await bus.publish(subjects.otel(name), encode([span(worker=name, own=1, trace=wanted)]))
                for _ in range(300):
                    await bus.publish(subjects.otel(name), encode([span(worker=name, trace=other)]))
                await bus.publish(subjects.otel(name), b"junk " + bytes.fromhex(wanted))
                await bus.publish(subjects.otel(name), encode([span(worker=name, own=2, trace=wanted)]))
                await bus.flush()
            since = SystemClock().now() - 1.0
            found = await read_spans(operator, wanted, since)
            assert [(s.worker, int(s.span_id, 16)) for s in found] == [
                ("b1", 1),
                ("b1", 2),
                ("b2", 1),
                ("b2", 2),
            ]
            assert await read_spans(operator, "f" * 32, since) == []
            assert await read_spans(operator, wanted, since + 1e6) == []
