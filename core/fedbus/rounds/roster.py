"""Who is here: the fold of beats and progress, in the order in which workers first came.

Beats are never stored, so a planner that starts knows nobody: it hears everyone within
one beat, and starts the liveness clocks afresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedbus_schemas.messages import Beat, Progress
from fedbus_schemas.plan import Plan

from fedbus.base.errors import nearest
from fedbus.codec.auto import AUTO
from fedbus.rounds.reasons import ExclusionCode

BEAT_S = 2.0
# Five missed beats: a paused or briefly cut-off worker comes back unnoticed.
LOST_AFTER_S = 10.0
# Who left or fell silent so long ago is no news: nobody needs to be told that it is excluded.
NEWS_S = 600.0
# From the first beat that is heard: by then everyone who is here has beaten.
SETTLED_AFTER_S = 1.25 * BEAT_S
# Without any progress, who has made some: a trainer that hangs under an agent that beats. Some tasks say
# seldom how far they are: so many of their own longest steps are waited for, too.
STALLED_AFTER_S = 120.0
LONGEST_STEPS = 5
# What depends on the broker, which may be full or away, is not the worker's fault.
_OWN_WORK = ("train", "evaluate", "encode")
# Seats of one worker whose progress is remembered.
MOST_PROGRESS = 256


@dataclass(frozen=True, slots=True)
class Pace:
    """How far a worker is in one seat, since when it is that far, and the longest that a step of it took."""

    progress: Progress
    since: float
    longest: float = 0.0

    @property
    def patience_s(self) -> float:
        """How long it may take to get further."""
        return max(STALLED_AFTER_S, round(LONGEST_STEPS * self.longest))

    def stalled_s(self, now: float) -> float:
        """How long it has got no further by its own work; 0 for who says nothing of how far it is."""
        own = self.progress.phase in _OWN_WORK and 0 < self.progress.fraction < 1
        return now - self.since if own else 0.0

    def then(self, progress: Progress, at: float) -> Pace:
        """What it is when more is heard."""
        if (self.progress.phase, self.progress.fraction) == (progress.phase, progress.fraction):
            return Pace(progress, self.since, self.longest)
        step = at - self.since if self.progress.phase == progress.phase and self.progress.fraction else 0.0
        return Pace(progress, at, max(self.longest, step))


@dataclass(slots=True)
class Presence:
    """One worker as last heard. `at` and `first` are by the listener's own clock, in seconds since 1970.

    `first` is when this process of the worker was first heard.
    """

    beat: Beat
    at: float
    paces: dict[tuple[str, int, str], Pace] = field(default_factory=dict)
    first: float = 0.0


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why a worker cannot take part."""

    worker: str
    code: ExclusionCode
    reason: str


class Roster:
    """All workers heard so far."""

    def __init__(self) -> None:
        self.workers: dict[str, Presence] = {}
        self._first_heard: float | None = None
        self._terms: dict[str, dict[str, str]] = {}

    def settled(self, now: float) -> bool:
        """Whether everyone who is here has been heard."""
        return self._first_heard is not None and now - self._first_heard >= SETTLED_AFTER_S

    def hear(self, beat: Beat, at: float) -> bool:
        """Note a beat; True when it says something new, or comes after a silence."""
        if self._first_heard is None:
            self._first_heard = at
        known = self.workers.get(beat.worker)
        if known is None:
            self.workers[beat.worker] = Presence(beat, at, first=at)
            return True
        news = at - known.at > LOST_AFTER_S or _says(beat) != _says(known.beat)
        if beat.incarnation != known.beat.incarnation:
            known.first = at
        known.beat, known.at = beat, at
        return news

    def admit(self, worker: str, terms: Mapping[str, str]) -> None:
        """Note the labels that an invitation gave a worker; its own word cannot change them."""
        self._terms[worker] = dict(terms)

    def labels(self, worker: str) -> dict[str, str]:
        """What a worker that was heard is labelled with: its own labels under those of its invitation."""
        return {**self.workers[worker].beat.labels, **self._terms.get(worker, {})}

    def obstacle(self, worker: str, plan: Plan, now: float) -> Exclusion | None:
        """Why one worker that was heard cannot take part under a plan; None: it can."""
        found = self._obstacle(worker, plan, now)
        return None if found is None else Exclusion(worker, *found)

    def hear_progress(self, progress: Progress, at: float) -> None:
        """Note progress; it proves life as a beat does."""
        known = self.workers.get(progress.worker)
        if known is not None:
            known.at = at
            key = (progress.run, progress.round, progress.node)
            # Only the run's present round matters, and a worker cannot make us remember without end.
            kept = [k for k in known.paces if k != key and (k[0] != progress.run or k[1] == progress.round)]
            before = known.paces.get(key)
            known.paces = {k: known.paces[k] for k in kept[1 - MOST_PROGRESS :]}
            known.paces[key] = before.then(progress, at) if before is not None else Pace(progress, at)

    def pace_of(self, worker: str, run: str, number: int, node: str) -> Pace | None:
        """How far one seat of one round is, as last heard."""
        known = self.workers.get(worker)
        return known.paces.get((run, number, node)) if known else None

    def silent(self, worker: str, since: float, now: float) -> bool:
        """Whether nothing was heard for longer than allowed, counted from `since` at the earliest."""
        known = self.workers.get(worker)
        heard = max(since, known.at) if known else since
        return now - heard > LOST_AFTER_S

    def here(self, worker: str, now: float) -> bool:
        """Whether a worker was heard lately and is not leaving."""
        known = self.workers.get(worker)
        return known is not None and not known.beat.leaving and now - known.at <= LOST_AFTER_S

    def eligible(self, plan: Plan, now: float) -> tuple[list[str], list[Exclusion]]:
        """Workers that can take part under a plan, in join order, and why others that were here cannot."""
        able: list[str] = []
        excluded: list[Exclusion] = []
        for name in self.workers:
            obstacle = self._obstacle(name, plan, now)
            if obstacle is None:
                able.append(name)
            elif now - self.workers[name].at <= NEWS_S:
                excluded.append(Exclusion(name, *obstacle))
        return able, excluded

    def _obstacle(self, name: str, plan: Plan, now: float) -> tuple[ExclusionCode, str] | None:
        presence = self.workers[name]
        beat = presence.beat
        if beat.leaving:
            return "leaving", "has left the federation"
        if not self.here(name, now):
            return "silent", f"was not heard for over {LOST_AFTER_S:g} s"
        if plan.task not in beat.capabilities.tasks:
            return "task", _lacks_task(plan.task, beat.capabilities.tasks)
        for codec in (plan.codec.up.name, plan.codec.down.name):
            if codec not in (AUTO, *beat.capabilities.codecs):
                return "codec", f"codec {codec} is not installed there"
        for label, wanted in plan.cohort.require.items():
            have = self.labels(name).get(label)
            if have != wanted:
                return "labels", f"labels do not match: {label} is {have or 'not set'}, wanted {wanted}"
        return None


def _lacks_task(task: str, offered: Sequence[str]) -> str:
    said = f"task {task} is not installed there"
    if close := nearest(task, offered):
        return f"{said}; did you mean {close}?"
    return f"{said}; it is offered by: fedbus-worker join --task {task}" if ":" in task else said


def _says(beat: Beat) -> dict[str, object]:
    return beat.model_dump(exclude={"at"})
