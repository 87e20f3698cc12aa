"""What may be said in a span, and by whom. Anything else is taken out before a span is shown or passed on.

A worker writes its spans itself, and where they go is another organisation's tool: neither a name, a path
nor a figure of its data leaves because somebody added an attribute. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import get_args

from fedbus_schemas.base import one_line
from fedbus_schemas.subjects import Service

from fedbus.telemetry.model import Span, SpanEvent, Value

WORKER = "worker"
# A worker cannot write a round's root, though it knows its id.
NAMES: dict[str, frozenset[str]] = {
    "planner": frozenset({"round", "select", "announce", "collect", "aggregate", "finish"}),
    "aggregator": frozenset({"verify", "fold", "publish-model"}),
    "evaluator": frozenset({"evaluate"}),
    "enroll": frozenset(),
    WORKER: frozenset({"task", "evaluate", "download", "train", "encode", "upload"}),
}
EVENTS = frozenset({"chunk"})
ATTRIBUTES: dict[str, type] = {
    "run": str,
    "round": int,
    "cohort": int,
    "accepted": int,
    "lost": int,
    "rejected": int,
    "reason": str,
    "code": str,
    "worker": str,
    "node": str,
    "attempt": str,
    "bytes": int,
    "examples": int,
    "updates": int,
    "chunk": int,
    "events_dropped": int,
}
# The `code` of a span that was broken off, such as the task of a worker that was not waited for.
STOPPED = "stopped"
MOST_TEXT = 256
MOST_ERROR = 500
MOST_EVENTS = 128
MOST_NUMBER = 1 << 53
LATEST = 1e10  # seconds since 1970: beyond the year 2286, a time is not one


def service_of(party: str) -> str:
    """Which kind of party publishes under a name. The broker lets nobody publish under another's."""
    return party if party in get_args(Service) else WORKER


def cleaned(span: Span, party: str) -> Span | None:
    """A span as it may be kept, or None when nothing of it may.

    Args:
        span: as its maker wrote it; who it says that made it is not believed.
        party: who published it, by the subject that the broker checked.
    """
    service = service_of(party)
    if span.name not in NAMES[service] or not 0 <= span.start <= span.end < LATEST:
        return None
    if (span.parent_id is None) != (span.name == "round"):
        return None
    attributes = clean_attributes(span.attributes)
    if service == WORKER and "worker" in attributes:
        attributes["worker"] = party
    events = (e for e in span.events if e.name in EVENTS and 0 <= e.at < LATEST)
    return replace(
        span,
        service=service,
        worker=party if service == WORKER else None,
        pid=span.pid if 0 <= span.pid < 1 << 31 else 0,
        attributes=attributes,
        events=tuple(_clean_events(events)),
        error=None if span.error is None else printable(span.error, MOST_ERROR),
    )


def clean_attributes(attributes: Mapping[str, Value]) -> dict[str, Value]:
    """Attributes on the list, of the type on the list, within bounds."""
    kept: dict[str, Value] = {}
    for name, kind in ATTRIBUTES.items():
        value = attributes.get(name)
        if kind is str and isinstance(value, str):
            kept[name] = printable(value, MOST_TEXT)
        elif kind is int and isinstance(value, int | float) and abs(value) <= MOST_NUMBER:
            kept[name] = int(value)
    return kept


def printable(text: str, most: int) -> str:
    """Text without what could steer a terminal, in one line, of bounded length."""
    return one_line(text[:most])


def _clean_events(events: Iterable[SpanEvent]) -> Iterable[SpanEvent]:
    for count, event in enumerate(events):
        if count == MOST_EVENTS:
            return
        yield SpanEvent(event.name, event.at, clean_attributes(event.attributes))
