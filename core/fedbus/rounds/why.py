"""Why a worker is, or is not, part of a run: in a code and a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from fedbus_schemas.messages import RunRecord
from fedbus_schemas.roster import Standing

from fedbus.rounds.fold import Round
from fedbus.rounds.reasons import ExclusionCode, StandingCode
from fedbus.rounds.roster import Roster

MOST_REASON = 2000
_Said = tuple[StandingCode | ExclusionCode, str]


def standing(
    worker: str,
    record: RunRecord,
    rounds: Mapping[int, Round],
    roster: Roster,
    now: float,
    waiting: str | None = None,
) -> Standing:
    """How a worker stands with one open run.

    Args:
        worker: its name.
        record: the run's.
        rounds: folds of its rounds, by number.
        roster: who was heard.
        now: seconds since 1970.
        waiting: what the run waits for, where it does.
    """
    number = max((n for n, r in rounds.items() if r.opened is not None), default=None)
    round_ = None if number is None else rounds[number]
    seated = _seated(worker, round_) if round_ is not None else None
    # A round that has ended says nothing of the next one, unless there is none.
    if seated and round_ is not None and round_.state in ("open", "closing"):
        code, reason = seated
    else:
        code, reason = _outside(worker, record, number, round_, roster, now, waiting)
    return Standing(run=record.name, round=number, code=code, reason=reason[:MOST_REASON])


def _seated(worker: str, round_: Round) -> _Said | None:
    """What became of the worker's seats in a round that it was chosen for."""
    if worker not in [member.worker for member in round_.members]:
        return None
    if any(update.worker == worker for update in round_.counted):
        return "accepted", "it is in the cohort, and its update was accepted"
    for voided in round_.voided:
        if voided.worker == worker:
            return "voided", f"its update was accepted, and changed in storage afterwards: {voided.reason}"
    for refused in reversed(round_.rejected):
        if refused.worker == worker:
            return (
                "rejected",
                f"it is in the cohort; its update was rejected: {refused.reason} [{refused.code}]",
            )
    for lost in round_.lost:
        if lost.worker == worker:
            return "lost", f"it was in the cohort, and was given up: {lost.reason} [{lost.code}]"
    if round_.closing is not None:
        return "missed", "it is in the cohort, and the round closed without an update of it"
    return "cohort", "it is in the cohort, and its update is awaited"


def _outside(
    worker: str,
    record: RunRecord,
    number: int | None,
    round_: Round | None,
    roster: Roster,
    now: float,
    waiting: str | None,
) -> _Said:
    if worker not in roster.workers:
        return "unknown", "the planner has not heard it since it started"
    obstacle = roster.obstacle(worker, record.plan, now)
    if obstacle is not None:
        return obstacle.code, obstacle.reason
    if _lacks_part(worker, record, roster, now):
        parts = record.plan.data.parts if record.plan.data else 0
        return "parts", f"all {parts} parts of the data are dealt out"
    if round_ is not None and round_.state in ("open", "closing"):
        if round_.opened and roster.workers[worker].first > round_.opened.at:
            return "late", f"it is eligible, and came after round {number} was opened: it can be in the next"
        return "not-chosen", f"it is eligible; {record.plan.cohort.select} chose others for round {number}"
    if waiting:
        return "waiting", f"it is eligible, and the run waits: {waiting}"
    return "eligible", "it is eligible for the next round"


def _lacks_part(worker: str, record: RunRecord, roster: Roster, now: float) -> bool:
    """Whether the parts of shipped data go to others; they are dealt in join order, and kept."""
    if record.plan.data is None:
        return False
    able, _ = roster.eligible(record.plan, now)
    without = [name for name in able if name not in record.partitions]
    free = record.plan.data.parts - len(set(record.partitions.values()))
    return worker in without[max(0, free) :]
