"""What the planner does next about a run. Pure: state in, one step out.

The planner's shell performs the step and asks again, until it is told to wait. Every
step follows from the log, the run's record and the roster, so a planner that was killed
anywhere takes the same step again, and doing it twice does no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from fedbus_schemas.log import Aborted, Closing, Entry, Excluded, Finished, Member, WorkerLost
from fedbus_schemas.messages import Announcement, EndedRound, Notice, RunRecord
from fedbus_schemas.plan import Plan

from fedbus.rounds.close import (
    Abort,
    Attempt,
    Close,
    Hold,
    ListManifests,
    deadline_of_next,
    resolve,
    rule,
    seats,
)
from fedbus.rounds.evaluating import last_score_s, to_score
from fedbus.rounds.fold import Round
from fedbus.rounds.reasons import AbortCode, LossCode, WaitCode
from fedbus.rounds.roster import BEAT_S, LOST_AFTER_S, Exclusion, Roster

# Round 0 makes the first model. Two members, the first to finish counts: one may die.
FIRST_MODEL_MEMBERS = 2
# A reason is read by people, and is a `Reason` on the wire.
MOST_EXCLUSIONS = 20
MOST_REASON = 2000
MOST_OF_EACH = 300
MOST_DOING = 5


@dataclass(frozen=True, slots=True)
class Open:
    """Append `opened` for the next round, if its updates fit into the broker's storage.

    `partitions` are new holders of parts of shipped data, `excluded` those that cannot take part.
    """

    number: int
    base: str | None
    base_bytes: int
    members: list[Member]
    target: int
    quorum: int
    deadline_s: float
    partitions: dict[str, int]
    excluded: list[Excluded]


@dataclass(frozen=True, slots=True)
class Append:
    """Append an entry to the round's log."""

    number: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish the round's announcement, in the state that the log gives it."""

    number: int
    state: str


@dataclass(frozen=True, slots=True)
class List:
    """List the stored manifests of the round."""

    number: int


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell one worker about its rejected update."""

    worker: str
    notice: Notice
    key: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something is heard, or the clock reaches `until`."""

    code: WaitCode
    reason: str
    until: float


@dataclass(frozen=True, slots=True)
class Done:
    """The run is over."""


Step = Open | Append | Announce | List | Notify | Wait | Done
Select = Callable[[list[str], int, np.random.Generator], list[str]]


@dataclass(slots=True)
class Following:
    """What a planner remembers of a run beside the log: all of it can be lost.

    Attributes:
        adopted_at: when this planner took the run up; liveness clocks start here.
        announced: the last announcement that this planner published.
        manifests: the listing at the cut-off, by round.
        notified: rejections that this planner told the worker about.
    """

    adopted_at: float
    announced: tuple[int, str] | None = None
    manifests: dict[int, Collection[Attempt]] = field(default_factory=dict)
    notified: set[tuple[int, str]] = field(default_factory=set)


def next_step(
    record: RunRecord,
    rounds: Mapping[int, Round],
    following: Following,
    roster: Roster,
    select: Select,
    now: float,
    start: tuple[str, int] | None = None,
) -> Step:
    """The next thing to do about a run.

    Args:
        record: the run's plan and partitions.
        rounds: its rounds' folds, by number; those still needed.
        following: this planner's memory of the run.
        roster: who is here.
        select: the plan's selection policy.
        now: seconds since 1970.
        start: digest and size of the model to start from, where the plan names a run.
    """
    if record.abort is not None:
        return _abort(record.abort, rounds, following, now)
    if record.done:
        return Done()
    opened = [n for n, r in rounds.items() if r.opened is not None]
    if not opened:
        return _open(record, 1 if start else 0, start, rounds, roster, select, now)
    number = max(opened)
    round_ = rounds[number]
    step: Step
    for rejected in round_.rejected:
        if (number, rejected.keys[0]) not in following.notified:
            told = {"run": record.name, "round": number, "attempt": rejected.attempt}
            notice = Notice(**told, code=rejected.code, reason=rejected.reason)
            return Notify(rejected.worker, notice, rejected.keys[0])
    match round_.state:
        case "aborted":
            return _announced(following, number, "closed") or Done()
        case "aggregated":
            return Append(number, Finished(at=now))
        case "finished":
            if number >= record.plan.rounds:
                # Once more where the members shall score the last model: that is said when it is made.
                state = "scoring" if to_score(record.plan, number, round_) else "closed"
                return _announced(following, number, state) or Done()
            made = round_.aggregated
            assert made is not None
            if _adopted(round_, following) and not roster.settled(now):
                # A planner that was restarted would open the round with the first few that it hears.
                step = Wait("roster", "the planner has just started, and hears who is here", now + BEAT_S / 4)
            else:
                step = _open(record, number + 1, (made.model, made.bytes), rounds, roster, select, now)
            # The next round's announcement ends this one too; where it must wait, nobody may work on in vain.
            return (_announced(following, number, "closed") or step) if isinstance(step, Wait) else step
        case "closing" if len(round_.counted) < round_.quorum:
            left = f"{len(round_.counted)} accepted updates are left to fold, quorum {round_.quorum}"
            return Append(number, _aborted(now, "voided", left))
        case "closing":
            # Who is still at work shall stop; others hear of it with the next round.
            step = Wait("aggregating", "the aggregator folds the round", now + 5.0)
            return (_announced(following, number, "closed") or step) if _is_at_work(round_) else step
    return _announced(following, number, "open") or _open_round(
        record, number, round_, following, roster, now
    )


def _abort(reason: str, rounds: Mapping[int, Round], following: Following, now: float) -> Step:
    """End a run as the operator wants, even where another planner opened one more round meanwhile.

    A round that has made its model keeps it: there is nothing left to stop.
    """
    opened = [n for n, r in rounds.items() if r.opened is not None]
    if not opened:
        return Done()
    number = max(opened)
    match rounds[number].state:
        case "open" | "closing":
            return Append(number, _aborted(now, "operator", reason))
        case "aggregated":
            return Append(number, Finished(at=now))
    return _announced(following, number, "closed") or Done()


def _aborted(now: float, code: AbortCode, reason: str) -> Aborted:
    return Aborted(at=now, code=code, reason=reason)


def _is_at_work(round_: Round) -> bool:
    # A member that was not heard may train on, cut off or slow, and hear again of a round.
    return bool(round_.awaited) or any(lost.code == "silent" for lost in round_.lost)


def _adopted(round_: Round, following: Following) -> bool:
    return round_.opened is not None and round_.opened.at < following.adopted_at


def _announced(following: Following, number: int, state: str) -> Announce | None:
    return None if following.announced == (number, state) else Announce(number, state)


def _open_round(
    record: RunRecord, number: int, round_: Round, following: Following, roster: Roster, now: float
) -> Step:
    lost = _lost_member(record.name, number, round_, following, roster, now)
    if lost is not None:
        return Append(number, lost)
    listed, most_s = following.manifests.get(number), record.plan.close.deadline_s
    match rule(round_, now, listed, since=record.restored_at or 0.0, most_s=most_s):
        case Close(code, reason):
            return Append(number, Closing(at=now, code=code, reason=reason))
        case Abort(code, reason):
            return Append(number, _aborted(now, code, reason))
        case ListManifests():
            return List(number)
        case Hold(code, reason, until):
            # Wake at each beat at the latest: silence is noticed by the clock alone.
            if code == "updates":
                reason += _doing(record.name, number, round_, roster)
            return Wait(code, reason, min(until, now + BEAT_S))


def _doing(run: str, number: int, round_: Round, roster: Roster) -> str:
    """What those that are waited for do, as far as they say so."""
    said = []
    for worker, node in round_.awaited[:MOST_DOING]:
        pace = roster.pace_of(worker, run, number, node)
        if pace is not None:
            said.append(f"{worker} is at {pace.progress.phase} {pace.progress.fraction:.0%}")
    return f"; {', '.join(said)}" if said else ""


def _lost_member(
    run: str, number: int, round_: Round, following: Following, roster: Roster, now: float
) -> WorkerLost | None:
    assert round_.opened is not None
    since = max(following.adopted_at, round_.opened.at)
    for worker, node in round_.awaited:
        code: LossCode | None = None
        reason = ""
        presence = roster.workers.get(worker)
        pace = roster.pace_of(worker, run, number, node)
        if pace is not None and pace.progress.failed:
            code, reason = "failed", pace.progress.failed
        elif presence is not None and presence.beat.leaving:
            code, reason = "left", f"{worker} left"
        elif roster.silent(worker, since, now):
            code, reason = "silent", f"{worker} was not heard for over {LOST_AFTER_S:g} s"
        elif pace is not None and min(pace.stalled_s(now), now - since) > pace.patience_s:
            got = f"it is at {pace.progress.phase} {pace.progress.fraction:.0%}"
            code = "stalled"
            reason = f"{worker} beats, and has got no further for over {pace.patience_s:g} s: {got}"
        if code is not None:
            return WorkerLost(at=now, worker=worker, node=node, code=code, reason=reason)
    return None


def _open(
    record: RunRecord,
    number: int,
    base: tuple[str, int] | None,
    rounds: Mapping[int, Round],
    roster: Roster,
    select: Select,
    now: float,
) -> Step:
    plan = record.plan
    able, excluded = roster.eligible(plan, now)
    partitions: dict[str, int] = {}
    if plan.data is not None:
        partitions = _deal(able, record.partitions, plan.data.parts)
        for worker in [w for w in able if w not in partitions and w not in record.partitions]:
            able.remove(worker)
            excluded.append(
                Exclusion(worker, "parts", f"all {plan.data.parts} parts of the data are dealt out")
            )
    if len(able) < plan.cohort.min:
        have = f"have {len(able)} of {plan.cohort.min} eligible workers"
        return Wait("workers", "; ".join([have, *_said(excluded)])[:MOST_REASON], now + BEAT_S)
    if number == 0:
        wanted, invited = 1, min(FIRST_MODEL_MEMBERS, len(able))
        target = quorum = 1
    else:
        wanted, invited = seats(plan, len(able))
        target, quorum = resolve(plan.close.target, wanted), resolve(plan.close.quorum, wanted)
    chosen = select(able, invited, seeded(plan, record.name, number, "select"))
    held = {**record.partitions, **partitions}
    members = [Member(worker=w, partition=held.get(w) if plan.data else None) for w in chosen]
    digest, size = base or (None, 0)
    told = [Excluded(worker=e.worker, code=e.code, reason=e.reason[:MOST_OF_EACH]) for e in excluded]
    return Open(
        number=number,
        base=digest,
        base_bytes=size,
        members=members,
        target=target,
        quorum=min(quorum, target),
        deadline_s=deadline_of_next(plan, rounds.values()),
        partitions=partitions,
        excluded=told[:MOST_EXCLUSIONS],
    )


def _said(excluded: list[Exclusion]) -> list[str]:
    said = [f"{e.worker} excluded: {e.reason}" for e in excluded[:MOST_EXCLUSIONS]]
    return said + ([f"and {len(excluded) - len(said)} more"] if len(said) < len(excluded) else [])


def _deal(able: list[str], held: Mapping[str, int], parts: int) -> dict[str, int]:
    """Parts for workers that have none yet, in join order; a part once dealt stays with its worker."""
    free = [part for part in range(parts) if part not in set(held.values())]
    return dict(zip([w for w in able if w not in held], free, strict=False))


def announcement(record: RunRecord, number: int, round_: Round, ended: Mapping[int, Round]) -> Announcement:
    """What all workers are told about a round.

    Args:
        record: of the run.
        number: of the round.
        round_: its fold.
        ended: earlier rounds of the run, for whose update counted.
    """
    opened = round_.opened
    assert opened is not None
    closed = {n: r for n, r in ended.items() if n <= number and (r.closing or r.aborted)}
    last = max(closed, default=None)
    return Announcement(
        run=record.name,
        run_at=record.restored_at or record.created_at,
        round=number,
        state="open" if round_.state == "open" else "closed",
        over=round_.aborted is not None or (round_.state != "open" and number >= record.plan.rounds),
        plan=record.plan,
        plan_digest=record.plan_digest,
        base=opened.base,
        members=opened.members,
        opened_at=opened.at,
        deadline_s=opened.deadline_s,
        traceparent=f"00-{opened.trace_id}-{opened.span_id}-01",
        ended=None if last is None else EndedRound(round=last, accepted=_in_the_model(closed[last])),
        score=to_score(record.plan, number, round_),
        score_until=round_.finished.at + last_score_s(record.plan) if round_.finished else None,
    )


def _in_the_model(round_: Round) -> list[str]:
    return [] if round_.aborted else [update.worker for update in round_.counted]


def derive_seed(plan: Plan, *parts: object) -> int:
    """A 63-bit seed from the plan's seed and a path, the same for everyone who computes it."""
    text = "/".join(str(part) for part in (plan.seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded(plan: Plan, *parts: object) -> np.random.Generator:
    """A generator on a derived seed."""
    return np.random.default_rng(derive_seed(plan, *parts))
