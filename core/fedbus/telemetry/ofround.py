"""The spans of a round that follow from its log alone: the root, and what the planner waited for. Pure.

They are made when the round has ended, by whichever planner ended it. Their ids follow from the root's, which
stands in `opened`, so a planner that makes them again makes the same.
"""

from __future__ import annotations

import hashlib

from fedbus_schemas.ids import RoundRef

from fedbus.rounds.fold import Round
from fedbus.telemetry.model import Span, SpanRef, Value


def root_of(round_: Round) -> SpanRef | None:
    """Where every party hangs its spans of a round; None before it is opened."""
    opened = round_.opened
    return None if opened is None else SpanRef(opened.trace_id, opened.span_id)


def round_spans(ref: RoundRef, round_: Round, pid: int) -> list[Span]:
    """The root and its planner's spans, the root first; empty while the round is under way.

    `collect` is the time in which updates are waited for, `aggregate` that in which the model is,
    `finish` what passes until the planner has said that the round is over. The aggregator's and
    the workers' spans lie within.
    """
    opened, end = round_.opened, round_.finished or round_.aborted
    if opened is None or end is None:
        return []
    base: dict[str, Value] = {"run": ref.run, "round": ref.number}

    def span(name: str, start: float, until: float, attributes: dict[str, Value]) -> Span:
        own = opened.span_id if name == "round" else _derived(opened.span_id, name)
        parent = None if name == "round" else opened.span_id
        failed = round_.aborted.reason if name == "round" and round_.aborted else None
        # Entries of two hosts: a clock that is behind makes a phase short, never negative.
        start, until = max(start, opened.at), max(start, until, opened.at)
        return Span(
            name, "planner", None, pid, opened.trace_id, own, parent, start, until, attributes, error=failed
        )

    spans = [span("round", opened.at, end.at, {**base, **_outcome(round_)})]
    collected = round_.closing or round_.aborted
    if collected is not None:
        why: dict[str, Value] = {"code": collected.code, "reason": collected.reason}
        spans.append(span("collect", opened.at, collected.at, base | why))
    if round_.closing:
        made = round_.aggregated or end
        spans.append(span("aggregate", round_.closing.at, made.at, dict(base)))
    if round_.aggregated:
        spans.append(span("finish", round_.aggregated.at, end.at, dict(base)))
    return spans


def _outcome(round_: Round) -> dict[str, Value]:
    told: dict[str, Value] = {
        "cohort": len(round_.members),
        "accepted": len(round_.counted),
        "lost": len(round_.lost),
        "rejected": len(round_.rejected),
    }
    why = round_.aborted or round_.closing
    if why is not None:
        told |= {"code": why.code, "reason": why.reason}
    return told


def _derived(span_id: str, name: str) -> str:
    return hashlib.sha256(f"{span_id}/{name}".encode()).hexdigest()[:16]
