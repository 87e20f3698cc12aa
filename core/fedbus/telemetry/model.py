"""A span as fedbus sees it, apart from how it travels. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Value = str | int | float
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class SpanRef(NamedTuple):
    """A place in a trace: what a child names as its parent. Ids in lower-case hex."""

    trace_id: str
    span_id: str

    @property
    def traceparent(self) -> str:
        """The W3C header."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    @classmethod
    def parse(cls, traceparent: str) -> SpanRef | None:
        """Read a W3C header; None when it is not one, or names nothing."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None or not (int(match[1], 16) and int(match[2], 16)):
            return None
        return cls(match[1], match[2])


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened within a span, such as a stored chunk."""

    name: str
    at: float
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span. Times are seconds since 1970.

    Attributes:
        name: `round`, `train` and so on; see `fedbus.telemetry.allowed`.
        service: `planner`, `aggregator`, `evaluator`, `enroll` or `worker`.
        worker: which worker; None for a service.
        pid: of the process that made it.
        trace_id: of the round.
        span_id: its own.
        parent_id: None for the root.
        start: when it began.
        end: when it ended.
        attributes: what is known about it.
        events: what happened within.
        error: why it failed; None: it did not.
    """

    name: str
    service: str
    worker: str | None
    pid: int
    trace_id: str
    span_id: str
    parent_id: str | None
    start: float
    end: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    error: str | None = None

    @property
    def party(self) -> str:
        """Who made it: a worker's name or a service's."""
        return self.worker or self.service
