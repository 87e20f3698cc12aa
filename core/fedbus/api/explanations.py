"""Where the time of a round went, from its log and the spans that the broker keeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import Waiting
from fedbus_schemas.report import ExplainReport, HintReport, PaceReport, PathStepReport, RoundReport

from fedbus.api.traces import find_spans
from fedbus.base.clock import SystemClock
from fedbus.bus import Bus
from fedbus.rounds.report import round_report
from fedbus.telemetry.explaining import Pace, explain
from fedbus.telemetry.tree import build


async def read_explanation(
    bus: Bus, ref: RoundRef, ask_waiting: Callable[[str], Awaitable[Waiting]]
) -> ExplainReport:
    """Explain a round.

    Args:
        bus: the connection, as the operator.
        ref: which.
        ask_waiting: what a run waits for, which is told of a round that is not over.

    Raises:
        UnknownRun: no such run, or it has no such round yet.
    """
    found = await find_spans(bus, ref)
    report = round_report(ref.number, found.round_)
    told = explain(found.round_, build(found.spans).spans, found.record.plan, SystemClock().now())
    opened = found.round_.opened
    assert opened is not None
    why: Waiting | RoundReport = report
    if report.state in ("open", "closing"):
        why = await ask_waiting(ref.run)
    whole = max(told.seconds, 1e-9)
    return ExplainReport(
        run=ref.run,
        round=ref.number,
        state=report.state,
        code=why.code,
        reason=why.reason,
        seconds=round(told.seconds, 6),
        path=[
            PathStepReport(
                name=step.name,
                party=step.party,
                seconds=round(step.seconds, 6),
                share=round(step.seconds / whole, 4),
            )
            for step in told.path
        ],
        last=told.last.worker if told.last else None,
        last_did=told.last.longest if told.last else None,
        workers=[_pace(pace, opened.at) for pace in told.paces],
        hints=[HintReport(code=h.code, reason=h.reason, saves_s=round(h.saves_s, 6)) for h in told.hints],
    )


def _pace(pace: Pace, opened_at: float) -> PaceReport:
    return PaceReport(
        worker=pace.worker,
        node=pace.seat[1],
        outcome=pace.outcome,
        settled_s=None if pace.settled_at is None else round(pace.settled_at - opened_at, 6),
        phases={name: round(pace.seconds(name), 6) for name in dict.fromkeys(s.name for s in pace.phases)},
        clock_s=round(pace.clock_s, 6),
    )
