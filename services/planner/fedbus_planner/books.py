"""The planner's books: which runs are open, and their records in FB_RUNS."""

from __future__ import annotations

import logging
from contextlib import suppress

from fedbus.base.clock import Clock
from fedbus.base.errors import BusUnavailable, NotAcked, PlanRefused, RemoteContractError, RunEnded
from fedbus.bus import Bus
from fedbus.bus.runs import Runs
from fedbus.bus.store import last_seq
from fedbus.rounds.planning import Following
from fedbus_schemas import subjects
from fedbus_schemas.ids import next_run_name
from fedbus_schemas.messages import RunRecord, StartRun
from fedbus_schemas.plan import Plan

log = logging.getLogger(__name__)

RECENT = 20  # runs among which a repeated command is looked for


class Books:
    """Open runs: their records with revisions, and what this planner remembers of each."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._runs = Runs(bus)
        self._revisions: dict[str, int] = {}
        self._over: set[str] = set()
        self.records: dict[str, RunRecord] = {}
        self.following: dict[str, Following] = {}

    async def adopt_new(self) -> None:
        """Take up every open run that is not followed yet: of an earlier planner, or of another one."""
        for name in await self._runs.names():
            if name in self.records or name in self._over:
                continue
            try:
                record, revision = await self._runs.get(name)
            except RemoteContractError as error:
                # One record that cannot be read stops no other run.
                self._over.add(name)
                log.error("run left alone: %s", error.message, extra={"action": "adopt", "run": name})
                continue
            if record.done:
                self._over.add(name)
            else:
                self._adopt(record, revision)
                about = {"action": "adopt", "run": name, "round": record.open_round}
                log.info("run adopted", extra=about)

    async def start(self, command: StartRun, plan: Plan) -> RunRecord:
        """Open a run, or find the one that this command opened before.

        Raises:
            PlanRefused: another run has the name.
        """
        while True:
            names = await self._runs.names()
            for known in [command.name] if command.name in names else names[-RECENT:]:
                try:
                    record, revision = await self._runs.get(known or "")
                except RemoteContractError:
                    continue
                if record.token == command.token:
                    if record.name not in self.records and not record.done:
                        self._adopt(record, revision)
                    return record
            if command.name in names:
                raise PlanRefused(f"a run called {command.name!r} exists already")
            record = RunRecord(
                name=command.name or next_run_name(set(names)),
                plan=plan,
                plan_digest=plan.digest(),
                created_at=self._clock.now(),
                token=command.token,
                open_seq=await last_seq(self._bus, subjects.ROUNDS) + 1,
            )
            try:
                written = await self._runs.set(record, 0)
            except (BusUnavailable, NotAcked):
                await self._bus.wait_up()  # it may be written: the next turn finds it by its token
                continue
            if written is not None:
                self._adopt(record, written)
                return record

    async def save(self, name: str, **changes: object) -> bool:
        """Write a run's record; False where another planner was faster: its record is taken instead."""
        changed = self.records[name].model_copy(update=changes)
        written = await self._runs.set(changed, self._revisions[name])
        if written is None:
            self.records[name], self._revisions[name] = await self._runs.get(name)
        else:
            self.records[name], self._revisions[name] = changed, written
        return written is not None

    async def want_abort(self, run: str, reason: str) -> RunRecord:
        """Store the wish in the run's record, where it outlives this planner; the next step acts on it.

        Raises:
            UnknownRun: there is none of that name.
            RunEnded: it is over already.
        """
        while True:
            record, revision = await self._runs.get(run)
            if record.abort is not None:
                return record
            if record.done:
                raise RunEnded(f"{run} is over already")
            wanted = record.model_copy(update={"abort": reason})
            written = await self._runs.set(wanted, revision)
            if written is not None:
                if run in self.records:
                    self.records[run], self._revisions[run] = wanted, written
                else:
                    self._adopt(wanted, written)
                return wanted

    async def all_records(self) -> dict[str, RunRecord]:
        """Records of all runs, those that are over included."""
        found: dict[str, RunRecord] = {}
        for name in await self._runs.names():
            with suppress(RemoteContractError):
                found[name] = (await self._runs.get(name))[0]
        return found

    def drop(self, name: str) -> None:
        """A run is over."""
        self._over.add(name)
        for memory in (self.records, self.following, self._revisions):
            memory.pop(name, None)

    def listen_afresh(self) -> None:
        """Start every liveness clock again: nobody was heard because we could not hear."""
        for following in self.following.values():
            following.adopted_at = self._clock.now()

    def _adopt(self, record: RunRecord, revision: int) -> None:
        self.records[record.name] = record
        self._revisions[record.name] = revision
        self.following[record.name] = Following(adopted_at=self._clock.now())
