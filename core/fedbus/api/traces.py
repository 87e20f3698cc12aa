"""A round's trace, from the spans that the broker keeps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import RunRecord
from fedbus_schemas.report import SpanEventReport, SpanReport, TraceReport

from fedbus.base.errors import UnknownRun
from fedbus.bus import Bus
from fedbus.bus.log import read_round
from fedbus.bus.runs import Runs
from fedbus.rounds.fold import Round
from fedbus.telemetry.model import Span
from fedbus.telemetry.ofround import round_spans
from fedbus.telemetry.stored import read_spans
from fedbus.telemetry.tree import Tree, build


@dataclass(frozen=True, slots=True)
class Trace:
    """A round's spans: `tree` to compute with, `report()` as the JSON that scripts may rely on."""

    ref: RoundRef
    trace_id: str
    tree: Tree

    def report(self) -> TraceReport:
        """The JSON contract."""
        return TraceReport(trace_id=self.trace_id, spans=[_span(span) for span in self.tree.spans])


class Found(NamedTuple):
    """A round that was opened, its run, and its spans in the order of arrival."""

    record: RunRecord
    round_: Round
    trace_id: str
    spans: list[Span]


async def read_trace(bus: Bus, ref: RoundRef) -> Trace:
    """The trace of a round, as far as it has come.

    Raises:
        UnknownRun: no such run, or it has no such round yet.
    """
    found = await find_spans(bus, ref)
    return Trace(ref, found.trace_id, build(found.spans))


async def find_spans(bus: Bus, ref: RoundRef) -> Found:
    """A round and its spans.

    What follows from the log is there even where the broker keeps its span no longer.

    Raises:
        UnknownRun: no such run, or it has no such round yet.
    """
    record, _ = await Runs(bus).get(ref.run)
    round_ = await read_round(bus, ref)
    if round_.opened is None:
        raise UnknownRun(
            f"{ref.run} has no round {ref.number}",
            hint=f"it is at round {record.open_round} of {record.plan.rounds}",
        )
    end = round_.finished or round_.aborted
    trace_id = round_.opened.trace_id
    stored = await read_spans(bus, trace_id, round_.opened.at, end.at if end else None)
    return Found(record, round_, trace_id, [*stored, *round_spans(ref, round_, pid=0)])


def _span(span: Span) -> SpanReport:
    events = [SpanEventReport(name=e.name, at=_iso(e.at), attributes=dict(e.attributes)) for e in span.events]
    return SpanReport(
        name=span.name,
        service=span.service,
        worker=span.worker,
        span_id=span.span_id,
        parent_id=span.parent_id,
        start=_iso(span.start),
        end=_iso(span.end),
        attributes=dict(span.attributes),
        events=events,
        error=span.error,
    )


def _iso(at: float) -> str:
    """To the microsecond: a span may be shorter than a millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
