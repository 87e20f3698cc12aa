"""A whole run in memory: planners, an aggregator and workers around one log with compare-and-set.

The planners are the shell of `fedbus_planner` without I/O: they see the log late, perform the steps that
the pure core decides, lose races, and forget everything when they are killed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedbus.rounds.close import Attempt
from fedbus.rounds.collecting import judge_attempt
from fedbus.rounds.fold import Round
from fedbus.rounds.planning import (
    Announce,
    Append,
    Done,
    Following,
    List,
    Notify,
    Open,
    Step,
    Wait,
    announcement,
    next_step,
)
from fedbus.rounds.roster import Roster
from fedbus.selection import selections
from fedbus_schemas.log import AUTHORS, Accepted, Aggregated, Entry, Opened, Rejected, encode_entry
from fedbus_schemas.messages import Announcement, RunRecord
from support.rounds import NOW, beat, digest, progress, update

MOST_STEPS = 200  # of one planner in a row; more is an endless loop


@dataclass
class Planner:
    """One planner process: all that a kill destroys."""

    following: Following
    roster: Roster = field(default_factory=Roster)
    rounds: dict[int, Round] = field(default_factory=dict)
    seen: int = 0
    done: bool = False
    wait: Wait | None = None


class Simulation:
    """One run. Time moves only by `tick`."""

    def __init__(self, record: RunRecord, planners: int = 1) -> None:
        self.now = NOW
        self.record = record
        self.revision = 0
        self.log: list[tuple[int, Entry]] = []  # round and entry; the sequence is the place
        self.truth: dict[int, Round] = {}
        self.manifests: dict[int, list[Attempt]] = {}
        self.announced: list[Announcement] = []
        self.notified: list[tuple[str, str]] = []
        self.planners = [Planner(Following(self.now)) for _ in range(planners)]
        self.over = False

    # The broker

    def append(self, number: int, entry: Entry, last_known: int) -> bool:
        """Store an entry if the round's log still ends where its writer believes."""
        known = self.truth.setdefault(number, Round())
        if known.last_seq != last_known:
            return False
        self.log.append((number, entry))
        known.read(len(self.log), AUTHORS[entry.kind], encode_entry(entry))
        return True

    # What happens

    def tick(self, seconds: float) -> None:
        self.now += seconds

    def beat(self, worker: str, *, leaving: bool = False) -> None:
        for planner in self.planners:
            planner.roster.hear(beat(worker, leaving=leaving), self.now)

    def fail(self, worker: str) -> None:
        for planner in self.planners:
            planner.roster.hear_progress(progress(worker, self.number, failed="out of memory"), self.now)

    def send(self, worker: str, attempt: str = "a") -> None:
        """Store a manifest in the open round, whoever sends it."""
        if self.number in self.truth and (worker, "0", attempt) not in self.manifests.get(self.number, []):
            self.manifests.setdefault(self.number, []).append((worker, "0", attempt))

    def restart(self, which: int) -> None:
        self.planners[which] = Planner(Following(self.now))

    def aggregate(self, bad: frozenset[str] = frozenset()) -> None:
        """Judge what is stored, and make a model if the round is closing."""
        round_ = self.truth.get(self.number, Round())
        for attempt in self.manifests.get(self.number, []):
            if not round_.wants_verdict(*attempt):
                continue
            refusal = judge_attempt(attempt, round_)
            if refusal or attempt[0] in bad:
                code = refusal.code if refusal else "non-finite"
                verdict: Entry = Rejected(
                    at=self.now, worker=attempt[0], attempt=attempt[2], code=code, reason="refused"
                )
            else:
                verdict = Accepted(at=self.now, updates=[update(attempt[0], attempt[2])])
            assert self.append(self.number, verdict, round_.last_seq)
            assert round_.has_verdict(*attempt), "the verdict changed nothing: an aggregator would loop"
        if round_.state == "closing" and round_.counted:
            made = Aggregated(at=self.now, model=digest(f"model {self.number}"), bytes=100, weight=1.0)
            assert self.append(self.number, made, round_.last_seq)

    @property
    def number(self) -> int:
        return max(self.truth, default=0)

    # A planner's shell

    def plan(self, which: int = 0, most: int = MOST_STEPS) -> Wait | None:
        """Let a planner act until it waits, is done, or has taken so many steps; return its wait."""
        planner = self.planners[which]
        for taken in range(MOST_STEPS + 1):
            if planner.done or taken >= most:
                return None
            step = self._next(planner)
            planner.wait = step if isinstance(step, Wait) else None
            if planner.wait:
                return planner.wait
            self._perform(planner, step)
        raise AssertionError(f"a planner that never waits: {step}")

    def _next(self, planner: Planner) -> Step:
        select = selections.build(self.record.plan.cohort.select, {}).choose
        return next_step(self.record, planner.rounds, planner.following, planner.roster, select, self.now)

    def _perform(self, planner: Planner, step: Step) -> None:
        match step:
            case Done():
                planner.done = self.over = True
            case Open():
                if step.partitions:
                    held = {**self.record.partitions, **step.partitions}
                    self.record = self.record.model_copy(update={"partitions": held})
                self._append(planner, step.number, self._opened(step))
            case Append(number, entry):
                self._append(planner, number, entry)
            case Announce(number, state):
                news = announcement(self.record, number, planner.rounds[number], planner.rounds)
                assert news.state == state
                self.announced.append(news)
                planner.following.announced = (number, state)
            case List(number):
                planner.following.manifests[number] = list(self.manifests.get(number, []))
            case Notify(worker, notice):
                self.notified.append((worker, notice.code))
                planner.following.notified.add((notice.round, step.key))
            case Wait():
                raise AssertionError("a wait is not performed")

    def _append(self, planner: Planner, number: int, entry: Entry) -> None:
        last = planner.rounds[number].last_seq if number in planner.rounds else 0
        stored = self.append(number, entry, last)
        self.catch_up(planner)
        if stored:
            assert planner.rounds[number].knows(entry)
            assert planner.rounds[number].ignored == [], "the planner wrote what the fold passes over"

    def catch_up(self, planner: Planner) -> None:
        """Read the log to its end."""
        for seq, (number, entry) in enumerate(self.log[planner.seen :], planner.seen + 1):
            planner.rounds.setdefault(number, Round()).read(seq, AUTHORS[entry.kind], encode_entry(entry))
        planner.seen = len(self.log)

    def _opened(self, step: Open) -> Opened:
        return Opened(
            at=self.now,
            plan=self.record.plan_digest,
            base=step.base,
            base_bytes=step.base_bytes,
            members=step.members,
            target=step.target,
            quorum=step.quorum,
            deadline_s=self.record.plan.close.deadline_s,
            trace_id="0" * 32,
            span_id="0" * 16,
        )
