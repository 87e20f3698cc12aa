"""Making spans: a process's finished ones, until they are taken.

A span made inside another one is handed over together with it, when the outer one ends. So nobody ever
sees a span whose parent died with its process: a worker killed in training leaves nothing, and the one
that follows it leaves a whole task.
"""

from __future__ import annotations

import asyncio
import os
from contextvars import ContextVar
from typing import Self

from fedbus.base.clock import Clock, SystemClock, random_token
from fedbus.telemetry.allowed import MOST_ERROR, MOST_EVENTS, STOPPED
from fedbus.telemetry.model import Span, SpanEvent, SpanRef, Value

# Spans of a party that cannot send are dropped above this: telemetry never costs memory without bound.
MOST_WAITING = 2000


class OpenSpan:
    """A span under way, measured over a `with` block. One of nobody's is kept by nobody.

    An error marks it failed, and goes on.
    """

    # Not a generator, which takes three times as long: small rounds are made of many short blocks.
    __slots__ = (
        "_name",
        "_outer",
        "_parent_id",
        "_started",
        "attributes",
        "error",
        "events",
        "inner",
        "owner",
        "ref",
    )

    def __init__(self, owner: Spans | None, name: str, parent: SpanRef, attributes: dict[str, Value]) -> None:
        self.owner = owner
        self.ref = _NOWHERE if owner is None else SpanRef(parent.trace_id, random_token(8))
        self.attributes = attributes
        self.error: str | None = None
        self.events: list[SpanEvent] = []
        self.inner: list[Span] = []
        self._name = name
        self._parent_id = parent.span_id
        self._outer: OpenSpan | None = None
        self._started = 0.0

    def __enter__(self) -> Self:
        if self.owner is not None:
            self._outer, self._started = _current.get(), self.owner.now()
            _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.owner is None:
            return
        _current.set(self._outer)
        if isinstance(error, asyncio.CancelledError):
            # Nothing failed: the round was over, perhaps with the update that was just being confirmed.
            self.attributes["code"] = STOPPED
        elif error is not None:
            self.fail(f"{type(error).__name__}: {error}".removesuffix(": "))
        parent = SpanRef(self.ref.trace_id, self._parent_id)
        done = self.owner.make(
            self._name,
            parent,
            self._started,
            self.owner.now(),
            self.attributes,
            span_id=self.ref.span_id,
            events=tuple(self.events),
            error=self.error,
        )
        if self._outer is not None and self._outer.ref == parent:
            self._outer.inner += [*self.inner, done]
        else:
            self.owner.add(*self.inner, done)

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

    def span(self, name: str, parent: SpanRef | None, **attributes: Value) -> OpenSpan:
        """Measure a block as a child of another party's span.

        Args:
            name: one of `fedbus.telemetry.allowed.NAMES`.
            parent: the span above it; None: it is not recorded.
            **attributes: what is known at its beginning.
        """
        owner = self if self.on and parent is not None else None
        return OpenSpan(owner, name, parent or _NOWHERE, attributes)

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


def step(name: str, **attributes: Value) -> OpenSpan:
    """Measure a block as a child of the span under way in this task or thread; outside of one, for nobody."""
    outer = _current.get()
    owner, parent = (None, _NOWHERE) if outer is None else (outer.owner, outer.ref)
    return OpenSpan(owner, name, parent, attributes)


def note(**attributes: Value) -> None:
    """Add attributes to the span under way, if there is one."""
    span = _current.get()
    if span is not None:
        span.attributes.update(attributes)
