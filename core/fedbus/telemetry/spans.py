"""Making spans: a process's finished ones, until they are taken.

A span made inside another one is handed over together with it, when the outer one ends. So nobody ever
sees a span whose parent died with its process: a worker killed in training leaves nothing, and the one
that follows it leaves a whole task.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fedbus.base.clock import Clock, SystemClock, random_token
from fedbus.telemetry.allowed import MOST_ERROR, MOST_EVENTS, STOPPED
from fedbus.telemetry.model import Span, SpanEvent, SpanRef, Value

# Spans of a party that cannot send are dropped above this: telemetry never costs memory without bound.
MOST_WAITING = 2000


class OpenSpan:
    """A span under way. One of nobody's is measured, and kept by nobody."""

    def __init__(self, owner: Spans | None, ref: SpanRef, attributes: dict[str, Value]) -> None:
        self.owner = owner
        self.ref = ref
        self.attributes = attributes
        self.error: str | None = None
        self.events: list[SpanEvent] = []
        self.inner: list[Span] = []

    def event(self, name: str, at: float | None = None, **attributes: Value) -> None:
        """Add an event, such as a stored chunk: chunks are never spans of their own."""
        if self.owner is None:
            return
        if len(self.events) < MOST_EVENTS:
            self.events.append(SpanEvent(name, self.owner.now() if at is None else at, attributes))
        else:
            self.attributes["events_dropped"] = int(self.attributes.get("events_dropped", 0)) + 1

    def fail(self, reason: str) -> None:
        """Say that it failed, and why."""
        self.error = reason[:MOST_ERROR]


_NOWHERE = SpanRef("0" * 32, "0" * 16)
_current: ContextVar[OpenSpan | None] = ContextVar("fedbus_span", default=None)


class Spans:
    """A process's finished spans.

    Args:
        service: `planner` and so on, or `worker`.
        party: the service's or the worker's name.
        clock: the machine's by default.
        on: whether spans are made at all.
    """

    def __init__(self, service: str, party: str, clock: Clock | None = None, *, on: bool = True) -> None:
        self._service = service
        self._worker = party if service == "worker" else None
        self._clock = clock or SystemClock()
        self.pid = os.getpid()
        self._done: list[Span] = []
        self.on = on
        self.dropped = 0

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock.now()

    @contextmanager
    def span(self, name: str, parent: SpanRef | None, **attributes: Value) -> Iterator[OpenSpan]:
        """Measure a block as a child of another party's span. An error marks it failed, and goes on.

        Args:
            name: one of `fedbus.telemetry.allowed.NAMES`.
            parent: the span above it; None: it is not recorded.
            **attributes: what is known at its beginning.
        """
        if parent is None or not self.on:
            yield OpenSpan(None, _NOWHERE, attributes)
            return
        open_span = OpenSpan(self, SpanRef(parent.trace_id, random_token(8)), attributes)
        with self._measured(name, parent.span_id, open_span):
            yield open_span

    @contextmanager
    def _measured(self, name: str, parent_id: str, open_span: OpenSpan) -> Iterator[None]:
        outer, started = _current.get(), self.now()
        token = _current.set(open_span)
        try:
            yield
        except asyncio.CancelledError:
            # Nothing failed: the round was over, perhaps with the update that was just being confirmed.
            open_span.attributes["code"] = STOPPED
            raise
        except BaseException as error:
            open_span.fail(f"{type(error).__name__}: {error}".removesuffix(": "))
            raise
        finally:
            _current.reset(token)
            done = self.make(
                name,
                SpanRef(open_span.ref.trace_id, parent_id),
                started,
                self.now(),
                open_span.attributes,
                span_id=open_span.ref.span_id,
                events=tuple(open_span.events),
                error=open_span.error,
            )
            whole = [*open_span.inner, done]
            if outer is not None and outer.ref == SpanRef(done.trace_id, parent_id):
                outer.inner += whole
            else:
                self.add(*whole)

    def make(
        self,
        name: str,
        parent: SpanRef,
        start: float,
        end: float,
        attributes: dict[str, Value] | None = None,
        *,
        span_id: str | None = None,
        events: tuple[SpanEvent, ...] = (),
        error: str | None = None,
    ) -> Span:
        """A finished span of this process, times as given. A clock that was set back shows as no time."""
        return Span(
            name=name,
            service=self._service,
            worker=self._worker,
            pid=self.pid,
            trace_id=parent.trace_id,
            span_id=span_id or random_token(8),
            parent_id=parent.span_id,
            start=start,
            end=max(start, end),
            attributes=attributes or {},
            events=events,
            error=error,
        )

    def add(self, *spans: Span) -> None:
        """Keep finished spans until they are taken: all, or none when there are too many."""
        if not self.on:
            return
        if len(self._done) + len(spans) > MOST_WAITING:
            self.dropped += len(spans)
            return
        self._done += spans

    def take(self) -> list[Span]:
        """All finished spans, once."""
        done, self._done = self._done, []
        return done


@contextmanager
def step(name: str, **attributes: Value) -> Iterator[OpenSpan]:
    """Measure a block as a child of the span under way in this task or thread; outside of one, for nobody."""
    outer = _current.get()
    if outer is None or outer.owner is None:
        yield OpenSpan(None, _NOWHERE, attributes)
        return
    with outer.owner.span(name, outer.ref, **attributes) as span:
        yield span


def note(**attributes: Value) -> None:
    """Add attributes to the span under way, if there is one."""
    span = _current.get()
    if span is not None:
        span.attributes.update(attributes)
