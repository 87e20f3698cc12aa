"""Making spans: what is measured, what is handed over together, and what never is."""

from __future__ import annotations

import asyncio

import pytest
from fedbus.telemetry.model import Span, SpanRef
from fedbus.telemetry.spans import MOST_WAITING, Spans, note, step

PARENT = SpanRef("a" * 32, "b" * 16)


class Ticking:
    """A clock that goes one second further each time it is asked."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> float:
        self.at += 1.0
        return self.at

    def monotonic(self) -> float:
        return self.now()


def names(spans: list[Span]) -> list[str]:
    return [span.name for span in spans]


def test_a_block_is_measured() -> None:
    spans = Spans("worker", "w1", Ticking())
    with spans.span("task", PARENT, node="0") as task:
        task.event("chunk", bytes=5)
    (span,) = spans.take()
    assert (span.trace_id, span.parent_id, span.service, span.worker) == ("a" * 32, "b" * 16, "worker", "w1")
    assert (span.start, span.end) == (101.0, 103.0)
    assert span.attributes == {"node": "0"}
    assert (span.events[0].name, span.events[0].at, span.events[0].attributes) == (
        "chunk",
        102.0,
        {"bytes": 5},
    )
    assert span.error is None
    assert spans.take() == []


def test_steps_are_handed_over_with_what_they_are_steps_of() -> None:
    """Where the process dies before the task ends, nobody sees steps without it."""
    spans = Spans("worker", "w1")
    with spans.span("task", PARENT) as task:
        with step("download"), step("train"):
            note(examples=3)
        with step("upload"):
            assert spans.take() == []
    train, download, upload, whole = spans.take()
    assert names([train, download, upload, whole]) == ["train", "download", "upload", "task"]
    assert [s.parent_id for s in (download, upload)] == [task.ref.span_id] * 2
    assert train.parent_id == download.span_id
    assert train.attributes == {"examples": 3}


def test_a_failure_is_marked_and_goes_on() -> None:
    spans = Spans("worker", "w1")
    with pytest.raises(ValueError, match="no such file"), spans.span("task", PARENT), step("train"):
        raise ValueError("no such file")
    assert [(s.name, s.error) for s in spans.take()] == [
        ("train", "ValueError: no such file"),
        ("task", "ValueError: no such file"),
    ]


async def test_a_task_that_is_stopped_has_not_failed() -> None:
    spans = Spans("worker", "w1")
    begun = asyncio.Event()

    async def work() -> None:
        with spans.span("task", PARENT):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (stopped,) = spans.take()
    assert (stopped.error, stopped.attributes) == (None, {"code": "stopped"})


async def test_two_tasks_at_once_keep_their_steps_apart() -> None:
    spans = Spans("worker", "w1")
    both = asyncio.Barrier(2)

    async def work(name: str) -> None:
        with spans.span("task", PARENT, node=name):
            await both.wait()
            with step("train"):
                await both.wait()

    await asyncio.gather(work("0"), work("1"))
    made = spans.take()
    tasks = {s.span_id for s in made if s.name == "task"}
    assert {s.parent_id for s in made if s.name == "train"} == tasks


async def test_a_thread_knows_the_span_under_way() -> None:
    spans = Spans("worker", "w1")
    with spans.span("task", PARENT):
        await asyncio.to_thread(note, bytes=7)
    assert spans.take()[0].attributes == {"bytes": 7}


def test_without_a_parent_or_when_off_nothing_is_kept() -> None:
    off = Spans("worker", "w1", on=False)
    with off.span("task", PARENT) as span, step("train") as inner:
        span.event("chunk")
        inner.fail("no")
    off.add(off.make("task", PARENT, 1.0, 2.0))
    assert off.take() == []
    on = Spans("worker", "w1")
    with on.span("task", None), step("train"):
        note(bytes=1)
    with step("train"):
        note(bytes=1)
    assert on.take() == []


def test_a_clock_that_is_set_back_makes_no_negative_time() -> None:
    span = Spans("worker", "w1").make("task", PARENT, 5.0, 4.0)
    assert (span.start, span.end) == (5.0, 5.0)


def test_what_cannot_be_sent_is_bounded() -> None:
    spans = Spans("worker", "w1")
    for _ in range(MOST_WAITING + 5):
        spans.add(spans.make("task", PARENT, 1.0, 2.0))
    assert spans.dropped == 5
    assert len(spans.take()) == MOST_WAITING
    with spans.span("task", PARENT) as span:
        for _ in range(200):
            span.event("chunk")
    (made,) = spans.take()
    assert (len(made.events), made.attributes["events_dropped"]) == (128, 72)
