"""The planner's shell: hears, asks the pure core for the next step of each run, performs it.

Everything that is decided about rounds is decided in `fedbus.rounds.planning`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from fedbus.base.clock import Clock, SystemClock, random_token
from fedbus.base.errors import BusError, RunEnded
from fedbus.base.setbacks import Setbacks
from fedbus.bus import Bus
from fedbus.bus.hearing import hear_beats, hear_progress
from fedbus.bus.log import RESYNC_S, RoundLog
from fedbus.bus.micro import serve
from fedbus.bus.runs import Runs
from fedbus.bus.store import last_seq, persist
from fedbus.bus.updates import list_updates
from fedbus.rounds.admission import admit, read_plan
from fedbus.rounds.planning import (
    Announce,
    Append,
    Done,
    List,
    Notify,
    Open,
    Wait,
    announcement,
    next_step,
)
from fedbus.rounds.roster import BEAT_S, Roster
from fedbus.rounds.why import standing
from fedbus.selection import selections
from fedbus.telemetry.ofround import root_of
from fedbus.telemetry.tracer import Tracer
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Opened
from fedbus_schemas.messages import (
    Aborting,
    AbortRun,
    AskWaiting,
    Beat,
    Progress,
    RunRecord,
    Started,
    StartRun,
    Waiting,
)
from fedbus_schemas.roster import AskWhy, Standings

from fedbus_planner.books import Books
from fedbus_planner.post import post_announcement, post_notice
from fedbus_planner.room import Room
from fedbus_planner.starting import admit_start, model_to_start_from, refuse_imported
from fedbus_planner.terms import Terms
from fedbus_planner.tracing import emit, emit_missing
from fedbus_planner.upkeep import Upkeep

log = logging.getLogger(__name__)


class Planner:
    """Follows every open run to its end."""

    def __init__(self, bus: Bus, clock: Clock | None = None) -> None:
        self._bus = bus
        self._clock = clock or SystemClock()
        self._runs = Runs(bus)
        self._books = Books(bus, self._clock)
        self._roster = Roster()
        self._terms = Terms(bus)
        self._room = Room(bus)
        self._log = RoundLog(bus, self._changed)
        self._starts: dict[str, tuple[str, int]] = {}
        self._waiting: dict[str, Wait] = {}
        self._setbacks: Setbacks[str] = Setbacks("run", log)
        self._look_at = 0.0  # when to look for runs that another planner started
        self._wake = asyncio.Event()
        self._tracer = Tracer(bus, "planner", self._clock)
        self._upkeep = Upkeep(bus, self._clock, self._books, self._tracer)

    async def run(self) -> None:
        """Adopt what is open, then hear and act until cancelled."""
        try:
            self._tracer.start()
            await self._log.start(await persist(self._bus, self._first_open))
            await emit_missing(self._tracer, self._bus, self._log, list(self._books.records))
            await self._bus.on_up(self._listen_afresh)
            await hear_beats(self._bus, self._beat)
            await hear_progress(self._bus, self._progress)
            verbs = {"start": self._start, "waiting": self._tell_waiting, "abort": self._abort}
            await serve(self._bus, "planner", {**verbs, "why": self._why})
            while True:
                until = await self._advance_all()
                slept_at = self._clock.now()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, until - slept_at)):
                        await self._wake.wait()
                self._wake.clear()
                if self._clock.now() - max(slept_at, until) > BEAT_S:
                    await self._listen_afresh()  # this process was paused, or the clock was set
        finally:
            await self._log.close()
            await self._tracer.close()

    async def _first_open(self) -> int:
        """Take up what is open; returns where the oldest open round begins in FB_ROUNDS."""
        after = await last_seq(self._bus, subjects.ROUNDS) + 1
        await self._books.adopt_new()
        return min([after, *(record.open_seq for record in self._books.records.values())])

    async def _listen_afresh(self) -> None:
        self._books.listen_afresh()
        self._look_at = 0.0
        self._wake.set()

    # What is heard

    def _changed(self, ref: RoundRef) -> None:
        if ref.run not in self._books.records:
            self._look_at = 0.0
        self._wake.set()

    def _beat(self, beat: Beat) -> None:
        self._terms.meet(beat)
        if self._roster.hear(beat, self._clock.now()):
            self._wake.set()

    def _progress(self, progress: Progress) -> None:
        self._roster.hear_progress(progress, self._clock.now())
        if progress.failed:
            self._wake.set()

    # Commands

    async def _start(self, data: bytes) -> Started:
        command = StartRun.model_validate_json(data)
        plan = read_plan(command.plan)
        admit(plan)
        if command.name:
            await refuse_imported(self._bus, command.name)
        if plan.model.from_run:
            digest, _ = await model_to_start_from(self._bus, plan.model.from_run)
            await admit_start(self._bus, plan, digest)
        record = await self._books.start(command, plan)
        self._wake.set()
        log.info("run started", extra={"action": "start", "run": record.name})
        return Started(run=record.name, plan_digest=record.plan_digest)

    async def _tell_waiting(self, data: bytes) -> Waiting:
        wait = self._waiting.get(AskWaiting.model_validate_json(data).run)
        return Waiting(code=wait.code, reason=wait.reason) if wait else Waiting()

    async def _why(self, data: bytes) -> Standings:
        ask = AskWhy.model_validate_json(data)
        if ask.run is not None and ask.run not in self._books.records:
            await self._runs.get(ask.run)  # raises where there is none of that name
            raise RunEnded(f"{ask.run} is over: nobody can join it any more")
        await self._terms.learn(self._roster)
        names = sorted(self._books.records) if ask.run is None else [ask.run]
        items = []
        for name in names:
            wait = self._waiting.get(name)
            record, now = self._books.records[name], self._clock.now()
            said = wait.reason if wait else None
            items.append(standing(ask.worker, record, self._log.of(name), self._roster, now, said))
        return Standings(worker=ask.worker, items=items)

    async def _abort(self, data: bytes) -> Aborting:
        command = AbortRun.model_validate_json(data)
        record = await self._books.want_abort(command.run, command.reason)
        self._wake.set()
        log.info("run is to end: %s", record.abort, extra={"action": "abort", "run": record.name})
        return Aborting(run=record.name, reason=record.abort or command.reason)

    # Runs

    async def _advance_all(self) -> float:
        """Take every run as far as it can go; returns when to look again. One that fails stops no other."""
        now = self._clock.now()
        if now >= self._look_at:
            with suppress(BusError):
                await self._books.adopt_new()
                self._look_at = now + RESYNC_S
        until = now + BEAT_S
        for name in list(self._books.records):
            if not self._setbacks.ready(name, self._clock.now()):
                continue
            try:
                until = min(until, await self._advance(name))
                self._setbacks.clear(name)
            except Exception as error:
                self._put_off(name, error)
        return self._setbacks.next_try(until)

    def _put_off(self, name: str, error: Exception) -> None:
        now = self._clock.now()
        reason = self._setbacks.put_off(name, error, now, run=name)
        self._waiting[name] = Wait(
            "setback", f"the planner could not go on, and tries again: {reason}"[:2000], now
        )

    async def _advance(self, name: str) -> float:
        """Perform a run's steps until it must wait; return the time to look again."""
        while True:
            await self._terms.learn(self._roster)
            record, following = self._books.records[name], self._books.following[name]
            rounds = self._log.of(name)
            if record.plan.model.from_run and name not in self._starts:
                self._starts[name] = await model_to_start_from(self._bus, record.plan.model.from_run)
            select = selections.build(record.plan.cohort.select, {}).choose
            now, start = self._clock.now(), self._starts.get(name)
            step = next_step(record, rounds, following, self._roster, select, now, start)
            match step:
                case Wait():
                    if self._upkeep.wait_s(name) <= 0:
                        await self._upkeep.attempt(name, rounds)
                        continue  # it may have taken a while
                    return min(self._wait(name, step), now + self._upkeep.wait_s(name))
                case Done():
                    await self._upkeep.perform(name, rounds)
                    while not self._books.records[name].done and not await self._books.save(name, done=True):
                        pass  # another planner wrote: say it on its record
                    self._drop(name)
                    return now + BEAT_S
                case Open():
                    lacks = await self._room.lacking(record, len(step.members), step.base, now)
                    if lacks is None:
                        await self._open(record, step, now)
                    elif self._upkeep.wait_s(name) < float("inf"):
                        await self._upkeep.perform(name, rounds)  # it may make room
                    elif not await self._room.make(await self._books.all_records()):
                        return self._wait(name, Wait("storage", lacks, now + BEAT_S))
                case Append(number, entry):
                    ref = RoundRef(name, number)
                    if await self._log.append(ref, "planner", entry):
                        about = {"action": entry.kind, "run": name, "round": number}
                        log.info("%s %s", entry.kind, getattr(entry, "reason", ""), extra=about)
                        emit(self._tracer, ref, self._log.rounds[ref])
                case Announce(number, state):
                    news = announcement(record, number, rounds[number], rounds)
                    root = root_of(rounds[number]) if state == "open" else None
                    with self._tracer.span("announce", root):
                        await post_announcement(self._bus, news)
                    following.announced = (number, state)
                    if state == "open":
                        self._log.forget(name, number - 1)
                        self._upkeep.want(name)
                case List(number):
                    members = [member.worker for member in rounds[number].members]
                    stored = await list_updates(self._bus, RoundRef(name, number), members, "manifest")
                    following.manifests[number] = [subjects.parse_update(s)[2:5] for s in stored]
                case Notify(worker, notice):
                    await post_notice(self._bus, worker, notice)
                    following.notified.add((notice.round, step.key))

    def _wait(self, name: str, wait: Wait) -> float:
        before = self._waiting.get(name)
        if before is None or before.code != wait.code:
            # For updates and the model each round waits.
            level = logging.DEBUG if wait.code in ("updates", "aggregating") else logging.INFO
            about = {"action": "wait", "run": name, "code": wait.code}
            log.log(level, "waiting: %s", wait.reason, extra=about)
        self._waiting[name] = wait
        return wait.until

    async def _open(self, record: RunRecord, step: Open, selected_at: float) -> None:
        dealt = {**record.partitions, **step.partitions}
        if step.partitions and not await self._books.save(record.name, partitions=dealt):
            return  # another planner dealt: decide again on what it wrote
        ref = RoundRef(record.name, step.number)
        entry = Opened(
            at=selected_at,
            plan=record.plan_digest,
            base=step.base,
            base_bytes=step.base_bytes,
            members=step.members,
            target=step.target,
            quorum=step.quorum,
            deadline_s=step.deadline_s,
            trace_id=random_token(16),
            span_id=random_token(8),
            excluded=step.excluded,
        )
        if not await self._log.append(ref, "planner", entry):
            return
        log.info("opened", extra={"action": "opened", "run": ref.run, "round": ref.number})
        root = root_of(self._log.rounds[ref])
        if root is not None:
            told: dict[str, str | int | float] = {"cohort": len(step.members)}
            self._tracer.add(self._tracer.make("select", root, selected_at, self._clock.now(), told))
        self._waiting.pop(ref.run, None)

    def _drop(self, name: str) -> None:
        log.info("run is over", extra={"action": "done", "run": name})
        self._books.drop(name)
        self._room.forget(name)
        self._upkeep.forget(name)
        for memory in (self._starts, self._waiting):
            memory.pop(name, None)
        self._log.forget(name, 1 << 62)
