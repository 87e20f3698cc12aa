"""The planner's shell: hears, asks the pure core for the next step of each run, performs it.

Everything that is decided about rounds is decided in `fedbus.rounds.planning`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from fedbus.base.clock import Clock, SystemClock, random_token
from fedbus.base.errors import BusError, PlanRefused
from fedbus.bus import Bus, Message
from fedbus.bus.log import RoundLog, read_round
from fedbus.bus.micro import serve
from fedbus.bus.models import read_manifest
from fedbus.bus.runs import Runs
from fedbus.bus.store import free_bytes, last_seq, list_subjects, persist, purge
from fedbus.codec.grid import Grid
from fedbus.rounds.admission import admit, read_plan
from fedbus.rounds.planning import (
    Announce,
    Append,
    Done,
    Following,
    List,
    Notify,
    Open,
    Wait,
    announcement,
    lacks_room,
    next_step,
    obsolete_round,
)
from fedbus.rounds.roster import BEAT_S, Roster
from fedbus.selection import selections
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef, next_run_name
from fedbus_schemas.log import Opened
from fedbus_schemas.messages import AskWaiting, Beat, Progress, RunRecord, Started, StartRun, Waiting
from pydantic import ValidationError

from fedbus_planner.post import post_announcement, post_notice

log = logging.getLogger(__name__)


class Planner:
    """Follows every open run to its end."""

    def __init__(self, bus: Bus, clock: Clock | None = None) -> None:
        self._bus = bus
        self._clock = clock or SystemClock()
        self._runs = Runs(bus)
        self._roster = Roster()
        self._log = RoundLog(bus, self._changed)
        self._records: dict[str, tuple[RunRecord, int]] = {}
        self._following: dict[str, Following] = {}
        self._starts: dict[str, tuple[str, int]] = {}
        self._waiting: dict[str, Wait] = {}
        self._unknown: set[str] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Adopt what is open, then hear and act until cancelled."""
        try:
            await self._log.start(await persist(self._bus, self._adopt_all))
            await self._bus.on_up(self._listen_afresh)
            await self._bus.subscribe(subjects.ALL_BEATS, self._beat)
            await self._bus.subscribe(subjects.ALL_PROGRESS, self._progress)
            await serve(self._bus, "planner", {"start": self._start, "waiting": self._tell_waiting})
            while True:
                try:
                    until = await self._advance_all()
                except BusError as error:
                    log.warning(
                        "the broker did not do it, trying again: %s", error, extra={"action": "retry"}
                    )
                    await self._bus.wait_up()
                    until = self._clock.now() + 0.2
                slept_at = self._clock.now()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, until - slept_at)):
                        await self._wake.wait()
                self._wake.clear()
                if self._clock.now() - max(slept_at, until) > BEAT_S:
                    await self._listen_afresh()  # this process was paused, or the clock was set
        finally:
            await self._log.close()

    async def _listen_afresh(self) -> None:
        """Nobody was heard for a while because we could not hear: that is no worker's fault."""
        for following in self._following.values():
            following.adopted_at = self._clock.now()

    # What is heard

    def _changed(self, ref: RoundRef) -> None:
        if ref.run not in self._records:
            self._unknown.add(ref.run)
        self._wake.set()

    def _beat(self, message: Message) -> None:
        with suppress(ValidationError):
            beat = Beat.model_validate_json(message.data)
            # The broker lets a worker beat under its own name only; the payload must agree.
            if message.subject == subjects.beat(beat.worker):
                self._roster.hear(beat, self._clock.now())
                self._wake.set()

    def _progress(self, message: Message) -> None:
        with suppress(ValidationError):
            progress = Progress.model_validate_json(message.data)
            if message.subject == subjects.progress(progress.worker):
                self._roster.hear_progress(progress, self._clock.now())
                if progress.failed:
                    self._wake.set()

    # Commands

    async def _start(self, data: bytes) -> Started:
        command = StartRun.model_validate_json(data)
        plan = read_plan(command.plan)
        admit(plan)
        start = await self._model_to_start_from(plan.model.from_run) if plan.model.from_run else None
        while True:
            name = command.name or next_run_name(set(await self._runs.names()))
            record = RunRecord(
                name=name,
                plan=plan,
                plan_digest=plan.digest(),
                created_at=self._clock.now(),
                open_seq=await last_seq(self._bus, subjects.ROUNDS) + 1,
            )
            revision = await self._runs.set(record, 0)
            if revision is not None:
                break
            if command.name:
                raise PlanRefused(f"a run called {name!r} exists already")
        self._adopt(record, revision, start)
        self._wake.set()
        log.info("run started", extra={"action": "start", "run": name})
        return Started(run=name, plan_digest=record.plan_digest)

    async def _tell_waiting(self, data: bytes) -> Waiting:
        wait = self._waiting.get(AskWaiting.model_validate_json(data).run)
        return Waiting(code=wait.code, reason=wait.reason) if wait else Waiting()

    # Runs

    async def _adopt_all(self) -> int:
        """Take up what is open; returns where the oldest open round begins in FB_ROUNDS."""
        first = await last_seq(self._bus, subjects.ROUNDS) + 1
        for name in await self._runs.names():
            record, revision = await self._runs.get(name)
            if not record.done:
                await self._adopt_record(record, revision)
                first = min(first, record.open_seq)
        return first

    async def _adopt_record(self, record: RunRecord, revision: int) -> None:
        source = record.plan.model.from_run
        self._adopt(record, revision, await self._model_to_start_from(source) if source else None)
        log.info("run adopted", extra={"action": "adopt", "run": record.name, "round": record.open_round})

    def _adopt(self, record: RunRecord, revision: int, start: tuple[str, int] | None) -> None:
        self._records[record.name] = (record, revision)
        self._following[record.name] = Following(adopted_at=self._clock.now())
        if start:
            self._starts[record.name] = start

    async def _model_to_start_from(self, run: str) -> tuple[str, int]:
        record, _ = await self._runs.get(run)
        for number in range(record.open_round, -1, -1):
            made = (await read_round(self._bus, RoundRef(run, number))).aggregated
            if made:
                return made.model, made.bytes
        raise PlanRefused(f"model.from: run {run} has made no model")

    async def _advance_all(self) -> float:
        while self._unknown:
            record, revision = await self._runs.get(self._unknown.pop())
            if not record.done and record.name not in self._records:
                await self._adopt_record(record, revision)
        until = self._clock.now() + BEAT_S
        for name in list(self._records):
            until = min(until, await self._advance(name))
        return until

    async def _advance(self, name: str) -> float:
        """Perform a run's steps until it must wait; return the time to look again."""
        while True:
            record, _ = self._records[name]
            rounds, following = self._log.of(name), self._following[name]
            select = selections.build(record.plan.cohort.select, {}).choose
            now, start = self._clock.now(), self._starts.get(name)
            step = next_step(record, rounds, following, self._roster, select, now, start)
            match step:
                case Wait():
                    return self._wait(name, step)
                case Done():
                    while not record.done and not await self._save(name, done=True):
                        record, _ = self._records[name]
                    self._drop(name)
                    return self._clock.now() + BEAT_S
                case Open():
                    no_room = await self._no_room(record, step)
                    if no_room:
                        return self._wait(name, no_room)
                    await self._open(record, step)
                case Append(number, entry):
                    ref = RoundRef(name, number)
                    if await self._log.append(ref, "planner", entry):
                        about = {"action": entry.kind, "run": name, "round": number}
                        log.info("%s %s", entry.kind, getattr(entry, "reason", ""), extra=about)
                case Announce(number, state):
                    news = announcement(record, number, rounds[number], rounds)
                    await post_announcement(self._bus, news)
                    following.announced = (number, state)
                case List(number):
                    pattern = subjects.update(name, number, "*", "*", "*", "manifest")
                    stored = await list_subjects(self._bus, subjects.UPDATES, pattern)
                    following.manifests[number] = [subjects.parse_update(s)[2:5] for s in stored]
                case Notify(worker, notice):
                    await post_notice(self._bus, worker, notice)
                    following.notified.add((notice.round, step.key))

    def _wait(self, name: str, wait: Wait) -> float:
        before = self._waiting.get(name)
        if before is None or before.code != wait.code:
            log.info("waiting: %s", wait.reason, extra={"action": "wait", "run": name, "code": wait.code})
        self._waiting[name] = wait
        return wait.until

    async def _no_room(self, record: RunRecord, step: Open) -> Wait | None:
        """Whether the round must wait for storage; the run's older updates make room for it."""
        if step.base is None:
            return None
        model = Grid.of((await read_manifest(self._bus, step.base)).table).bytes
        for room_made in (False, True):
            free = await free_bytes(self._bus, subjects.UPDATES)
            wait = lacks_room(record.plan, len(step.members), model, free, self._clock.now())
            if wait is None or room_made:
                return wait
            await purge(self._bus, subjects.UPDATES, f"fb.update.{record.name}.>")
        return None

    async def _open(self, record: RunRecord, step: Open) -> None:
        dealt = {**record.partitions, **step.partitions}
        if step.partitions and not await self._save(record.name, partitions=dealt):
            return  # another planner dealt: decide again on what it wrote
        ref = RoundRef(record.name, step.number)
        entry = Opened(
            at=self._clock.now(),
            plan=record.plan_digest,
            base=step.base,
            base_bytes=step.base_bytes,
            members=step.members,
            target=step.target,
            quorum=step.quorum,
            deadline_s=record.plan.close.deadline_s,
            trace_id=random_token(16),
            span_id=random_token(8),
        )
        if not await self._log.append(ref, "planner", entry):
            return
        log.info("opened", extra={"action": "opened", "run": ref.run, "round": ref.number})
        self._waiting.pop(ref.run, None)
        opened = {"open_round": ref.number, "open_seq": self._log.rounds[ref].first_seq}
        while self._records[ref.run][0].open_round < ref.number or ref.number == 0:
            if await self._save(ref.run, **opened):
                break
        self._log.forget(ref.run, ref.number - 1)
        old = obsolete_round(record.plan, ref.number)
        if old is not None:
            await purge(self._bus, subjects.UPDATES, f"fb.update.{ref.run}.{old}.>")

    async def _save(self, name: str, **changes: object) -> bool:
        """Write the run's record; False where another planner was faster: its record is taken instead."""
        record, revision = self._records[name]
        changed = record.model_copy(update=changes)
        new = await self._runs.set(changed, revision)
        self._records[name] = (changed, new) if new is not None else await self._runs.get(name)
        return new is not None

    def _drop(self, name: str) -> None:
        log.info("run is over", extra={"action": "done", "run": name})
        for memory in (self._records, self._following, self._starts, self._waiting):
            memory.pop(name, None)
        self._log.forget(name, 1 << 62)
