"""The close policy: when a round closes, aborts or waits, and why.

Everything about closing is decided here. The cut-off rule: a round is never closed
while a manifest that was stored before the cut-off and can count lacks a verdict, so a
slow or dead aggregator cannot make an update that came in time not count. That wait is
bounded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from statistics import median

from fedbus_schemas.plan import MOST_MEMBERS, Plan

from fedbus.rounds.fold import Round, Seat
from fedbus.rounds.reasons import AbortCode, CloseCode, WaitCode

# An aggregator that gives no verdict for so long after the deadline is not waited for.
VERDICT_GRACE_S = 60.0
# An adaptive deadline leaves this much at the least: of the median, and in seconds.
ENOUGH, LEAST_DEADLINE_S = 2.0, 2.0


@dataclass(frozen=True, slots=True)
class Close:
    """Append `closing`."""

    code: CloseCode
    reason: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Append `aborted`."""

    code: AbortCode
    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait, until something happens or the clock reaches `until` (seconds since 1970)."""

    code: WaitCode
    reason: str
    until: float


@dataclass(frozen=True, slots=True)
class ListManifests:
    """List the manifests that are stored now: the cut-off."""


Ruling = Close | Abort | Hold | ListManifests
Attempt = tuple[str, str, str]  # worker, node, attempt


def resolve(share_or_count: int | float, cohort: int) -> int:
    """An int is a count, a float a share of the cohort (rounded up); both within 1 and the cohort."""
    wanted = share_or_count if isinstance(share_or_count, int) else _times(share_or_count, cohort)
    return max(1, min(wanted, cohort))


def seats(plan: Plan, eligible: int) -> tuple[int, int]:
    """How many updates a round wants and how many workers it invites."""
    wanted = max(plan.cohort.min, _times(plan.cohort.fraction, eligible))
    wanted = min(wanted, eligible, MOST_MEMBERS)
    return wanted, min(eligible, MOST_MEMBERS, _times(plan.cohort.over_select, wanted))


def _times(share: float, count: int) -> int:
    """Round up a share as it was written: 0.07 of 100 is 7, though 0.07 * 100 is a little more."""
    return ceil(Fraction(repr(share)) * count)


def deadline_of_next(plan: Plan, before: Iterable[Round]) -> float:
    """Seconds that the next round has.

    Where the plan says `adaptive: k`, that is the median of its members' times in earlier rounds, plus k
    median absolute deviations; at least ENOUGH medians and LEAST_DEADLINE_S, at most `deadline_s`.
    A member that a deadline cut off would have taken longer: it counts with all the time that it had.

    Args:
        plan: of the run.
        before: earlier rounds of it.
    """
    most = plan.close.deadline_s
    times = [time for round_ in before for time in _times_of(round_)]
    if not plan.close.adaptive or not times:
        return most
    middle = median(times)
    spread = median(abs(time - middle) for time in times)
    return min(most, max(middle + plan.close.adaptive * spread, ENOUGH * middle, LEAST_DEADLINE_S))


def _times_of(round_: Round) -> list[float]:
    opened, cut_off = round_.opened, round_.closing or round_.aborted
    if opened is None or opened.base is None or cut_off is None:
        return []  # the first model is made by whoever is the first
    missed = len(round_.awaited) if cut_off.code == "deadline" else 0
    return [at - opened.at for at in round_.accepted_at.values()] + [cut_off.at - opened.at] * missed


def rule(
    round_: Round,
    now: float,
    manifests: Collection[Attempt] | None,
    *,
    since: float = 0.0,
    most_s: float = 0.0,
) -> Ruling:
    """Decide about an open round.

    Args:
        round_: the fold of its log; it must be open.
        now: seconds since 1970.
        manifests: attempts whose manifest was stored at the cut-off; None: not listed yet.
        since: when its run was restored from a backup, where it was: nobody could send before.
        most_s: how long a round without a quorum is waited for, where its own deadline is shorter.
    """
    opened = round_.opened
    assert opened is not None
    assert round_.state == "open", "only an open round can be ruled on"
    began, have = max(opened.at, since), len(round_.accepted)
    deadline = began + opened.deadline_s
    awaited = round_.awaited
    if have >= opened.target:
        ending: Close | Abort = Close("target", f"have {have} updates, wanted {opened.target}")
    elif deadline <= now < began + most_s and have < opened.quorum and awaited:
        said = f"its deadline of {opened.deadline_s:g} s passed without a quorum of {opened.quorum}"
        return Hold("updates", f"waiting for {_names(awaited)}: have {have}; {said}", began + most_s)
    elif now >= deadline:
        ending = _with_quorum(round_, "deadline", f"deadline of {opened.deadline_s:g} s passed")
    elif not awaited:
        ending = _with_quorum(round_, "nobody-left", "nobody is left to wait for")
    else:
        return Hold(
            "updates", f"waiting for {_names(awaited)}: have {have} of {opened.target} updates", deadline
        )
    if round_.full:
        return ending
    if manifests is None:
        return ListManifests()
    unjudged = [(w, n) for w, n, attempt in manifests if round_.can_count(w, n, attempt)]
    grace_ends = deadline + VERDICT_GRACE_S
    if unjudged and now < grace_ends:
        return Hold(
            "aggregator-behind", f"updates of {_names(unjudged)} are stored and not judged yet", grace_ends
        )
    if unjudged:
        told = f"{ending.reason}; updates of {_names(unjudged)} are stored, and no aggregator judged them"
        return replace(ending, reason=told)
    return ending


def _with_quorum(round_: Round, code: CloseCode, why: str) -> Close | Abort:
    opened = round_.opened
    assert opened is not None
    have = len(round_.accepted)
    said = f"{why}: have {have} updates, quorum {opened.quorum}"
    return Close(code, said) if have >= opened.quorum else Abort("quorum", said)


def _names(seats_: Collection[Seat]) -> str:
    names = sorted({worker for worker, _ in seats_})
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
