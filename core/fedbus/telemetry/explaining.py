"""Where the time of a round went: its critical path, who was last, and what would have made it faster. Pure.

The log says when what was waited for came. The spans say what was done meanwhile; they are the parties' own
words, so they only divide the time that the log gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from fedbus_schemas.plan import Plan

from fedbus.rounds.fold import Round, Seat
from fedbus.rounds.reasons import HintCode
from fedbus.telemetry.allowed import WORKER
from fedbus.telemetry.model import Span

PHASES = ("evaluate", "download", "train", "encode", "upload")
# Those that a host's speed decides, and what is said of one that took long.
_OWN: dict[str, HintCode] = {"evaluate": "slow-evaluate", "train": "slow-train", "encode": "slow-encode"}
# Clocks of hosts differ. A worker's spans that lie further outside the time it had are moved into it.
CLOCK_S = 0.05
# What is told: a saving of at least this share of the round, and this long.
WORTH, WORTH_S = 0.1, 0.05
SLOWER = 1.5  # than the median of the others


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the critical path: one after another they are the whole round. Times on the log's clock."""

    name: str
    party: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Pace:
    """How one member came along.

    Attributes:
        seat: worker and node.
        outcome: accepted, rejected, lost or awaited.
        settled_at: when the log said so; None: it never did.
        phases: what it did, in the order of time, moved onto the log's clock.
        clock_s: how far its clock is off at the least; 0: nothing says that it is.
        examples: that it trained on, where its update counts.
        bytes: that it sent.
    """

    seat: Seat
    outcome: str
    settled_at: float | None
    phases: tuple[Step, ...]
    clock_s: float = 0.0
    examples: float = 0.0
    bytes: int = 0

    @property
    def worker(self) -> str:
        """Its name."""
        return self.seat[0]

    def seconds(self, phase: str) -> float:
        """How long it spent in one phase."""
        return sum(step.seconds for step in self.phases if step.name == phase)

    @property
    def longest(self) -> str | None:
        """The phase that took most of its time."""
        return max({step.name for step in self.phases}, key=self.seconds, default=None)


@dataclass(frozen=True, slots=True)
class Hint:
    """What would have made the round faster, and how much."""

    code: HintCode
    reason: str
    saves_s: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """A round's time. `last` is whom it waited for at the end; None: for nobody in particular."""

    seconds: float
    ended: bool
    path: tuple[Step, ...]
    last: Pace | None
    paces: tuple[Pace, ...]
    hints: tuple[Hint, ...]


def explain(round_: Round, spans: Iterable[Span], plan: Plan, now: float) -> Explanation:
    """Explain a round, which may be under way.

    Args:
        round_: the fold of its log; it was opened.
        spans: of its trace, as far as there are any.
        plan: of its run.
        now: seconds since 1970; where the round ends that has not ended.
    """
    opened = round_.opened
    assert opened is not None
    over = round_.finished or round_.aborted
    end = max(over.at if over else now, opened.at)
    known = list(spans)
    cut_off = min(_collected(round_) or end, end)
    paces = tuple(_pace(round_, (m.worker, m.node), known, cut_off) for m in round_.members)
    last = _last(round_, paces, cut_off)
    path = _Path(opened.at, end)
    if last is not None:
        _follow(path, last, cut_off)
    _conclude(path, round_, known, cut_off, last)
    total = end - opened.at
    hints = tuple(sorted(_hints(round_, plan, paces, last, total), key=lambda hint: -hint.saves_s))
    return Explanation(total, over is not None, tuple(path.steps), last, paces, hints)


class _Path:
    """Steps that follow one another without a gap, from the beginning to the end."""

    def __init__(self, start: float, end: float) -> None:
        self.steps: list[Step] = []
        self._at, self._end = start, end

    def to(self, at: float, name: str, party: str) -> None:
        """The next step, up to a time; none where that is over already: clocks of hosts differ."""
        at = min(at, self._end)
        if at > self._at:
            self.steps.append(Step(name, party, self._at, at))
            self._at = at


def _collected(round_: Round) -> float | None:
    cut_off = round_.closing or round_.aborted
    return cut_off.at if cut_off else None


def _pace(round_: Round, seat: Seat, spans: Sequence[Span], cut_off: float) -> Pace:
    assert round_.opened is not None
    update = round_.accepted_from(*seat)
    outcome, settled = "awaited", None
    for lost in round_.lost:
        if (lost.worker, lost.node) == seat:
            outcome, settled = "lost", lost.at
    for rejected in round_.rejected:
        if (rejected.worker, rejected.node) == seat:
            outcome, settled = "rejected", rejected.at
    if update is not None:
        outcome, settled = "accepted", round_.accepted_at[seat]
    mine = [s for s in spans if s.service == WORKER and s.worker == seat[0] and s.name in PHASES]
    mine = sorted((s for s in mine if s.attributes.get("node", seat[1]) == seat[1]), key=lambda s: s.start)
    latest = cut_off if settled is None else min(settled, cut_off)
    shift = _shift(mine, round_.opened.at, latest)
    phases = tuple(Step(s.name, seat[0], s.start + shift, s.end + shift) for s in mine)
    return Pace(
        seat,
        outcome,
        settled,
        phases,
        -shift,
        update.weight if update else 0.0,
        update.bytes if update else 0,
    )


def _shift(spans: Sequence[Span], earliest: float, latest: float) -> float:
    """What to add to a host's times, so that they lie where the log says that they were."""
    if not spans:
        return 0.0
    first, last = spans[0].start, max(span.end for span in spans)
    if first >= earliest - CLOCK_S and last <= latest + CLOCK_S:
        return 0.0
    return earliest - first if first < earliest else min(0.0, max(latest - last, earliest - first))


def _last(round_: Round, paces: Sequence[Pace], cut_off: float) -> Pace | None:
    """Whom the round waited for until it closed, or waits for now."""
    awaited = [pace for pace in paces if pace.settled_at is None or pace.settled_at > cut_off]
    if awaited and (round_.closing is None or round_.closing.code == "deadline"):
        # Several: whoever was heard of last is the nearest to what happened.
        return max(awaited, key=lambda pace: max((step.end for step in pace.phases), default=0.0))
    settled = [pace for pace in paces if pace.settled_at is not None and pace.settled_at <= cut_off]
    return max(settled, key=lambda pace: pace.settled_at or 0.0, default=None)


def _follow(path: _Path, last: Pace, cut_off: float) -> None:
    """What the last one did, until the log took note of it."""
    for number, step in enumerate(last.phases):
        path.to(min(step.start, cut_off), "announce" if number == 0 else "between", last.worker)
        path.to(min(step.end, cut_off), step.name, last.worker)
    settled = cut_off if last.settled_at is None else min(last.settled_at, cut_off)
    if last.outcome in ("accepted", "rejected"):
        path.to(settled, "verify" if last.phases else "work", "aggregator" if last.phases else last.worker)
    else:
        path.to(settled, "wait", last.worker)


def _conclude(path: _Path, round_: Round, spans: Sequence[Span], cut_off: float, last: Pace | None) -> None:
    """From the last update to the end."""
    path.to(cut_off, "close" if round_.closing or last is None else "wait", "planner")
    if round_.closing is None:
        return
    publishing = [s.start for s in spans if s.name == "publish-model" and s.service == "aggregator"]
    if publishing:
        path.to(max(min(publishing), cut_off), "fold", "aggregator")
    if round_.aggregated is not None:
        path.to(round_.aggregated.at, "publish-model" if publishing else "aggregate", "aggregator")
    path.to(float("inf"), "finish" if round_.aggregated else "aggregate", "planner")


def _hints(
    round_: Round, plan: Plan, paces: Sequence[Pace], last: Pace | None, total: float
) -> Iterable[Hint]:
    least = max(WORTH_S, WORTH * total)
    if last is not None:
        yield from (hint for hint in _of_waiting(round_, paces, last) if hint.saves_s >= least)
        if last.outcome == "accepted":
            yield from (hint for hint in _of_phases(plan, paces, last) if hint.saves_s >= least)
    if round_.closing and round_.aggregated:
        took = round_.aggregated.at - round_.closing.at
        if took >= max(least, 0.3 * total):
            said = f"the aggregator took {took:.2f} s after the round was closed"
            yield Hint("aggregator", f"{said}, to fold the last update and publish the model", took)


def _of_waiting(round_: Round, paces: Sequence[Pace], last: Pace) -> Iterable[Hint]:
    assert round_.opened is not None
    until = _collected(round_) or last.settled_at
    others = [p for p in paces if p is not last and p.outcome == "accepted" and p.settled_at is not None]
    if until is None or not others:
        return
    before = max(pace.settled_at or 0.0 for pace in others)
    gain, have = until - before, len(others)
    said = f"without {last.worker} the round would have closed {gain:.2f} s earlier, with {have} updates"
    if last.outcome == "accepted":
        if have >= round_.quorum:
            yield Hint("straggler", f"{said}: close.target: {have}", gain)
    elif last.outcome == "lost":
        why = next(lost.reason for lost in round_.lost if (lost.worker, lost.node) == last.seat)
        yield Hint("lost", f"{said}; it was given up: {why}", gain)
    elif round_.closing and round_.closing.code == "deadline":
        took = before - round_.opened.at
        yield Hint("deadline", f"{said}: they were there after {took:.2f} s (close.deadline_s)", gain)


def _of_phases(plan: Plan, paces: Sequence[Pace], last: Pace) -> Iterable[Hint]:
    others = [pace for pace in paces if pace is not last and pace.outcome == "accepted" and pace.phases]
    yield Hint("upload", _of_bytes(plan, "upload", last), last.seconds("upload"))
    yield Hint("download", _of_bytes(plan, "download", last), last.seconds("download"))
    for phase, code in _OWN.items():
        took = last.seconds(phase)
        usual = median([pace.seconds(phase) for pace in others]) if others else 0.0
        if others and took >= SLOWER * usual:
            data = ""
            if phase == "train" and last.examples >= SLOWER * median([pace.examples for pace in others]):
                count = median([pace.examples for pace in others])
                data = f": on {last.examples:g} examples, where their median is {count:g}"
            said = f"{last.worker} spent {took:.2f} s in {phase}, the median of the others is {usual:.2f} s"
            yield Hint(code, said + data, took - usual)


def _of_bytes(plan: Plan, phase: str, last: Pace) -> str:
    codec = plan.codec.up.name if phase == "upload" else plan.codec.down.name
    took = last.seconds(phase)
    said = f"{last.worker} spent {took:.2f} s in {phase}"
    if phase == "upload" and took > 0:
        said += f": {last.bytes / 1e6:.1f} MB at {last.bytes / 1e6 / took:.1f} MB/s"
    fewer = "" if codec == "ecq" else f"; codec.{'up' if phase == 'upload' else 'down'}: ecq sends less"
    return f"{said}, as {codec}{fewer}"
