"""What a planner writes and removes beside the log: seldom, so that rounds of some milliseconds share it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fedbus.base.clock import Clock
from fedbus.base.errors import BusError
from fedbus.base.setbacks import Setbacks
from fedbus.bus import Bus
from fedbus.bus.log import read_round
from fedbus.bus.store import purge
from fedbus.rounds.fold import Round
from fedbus.rounds.storage import obsolete
from fedbus.telemetry.tracer import Tracer
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.plan import Plan

from fedbus_planner.books import Books

log = logging.getLogger(__name__)

# Of one run, at most so often. What a planner that dies did not do, the next one does.
EVERY_S = 1.0


class Upkeep:
    """Writes where a run's open round begins, and purges updates that its plan does not retain."""

    def __init__(self, bus: Bus, clock: Clock, books: Books, tracer: Tracer) -> None:
        self._bus = bus
        self._clock = clock
        self._books = books
        self._tracer = tracer
        self._due: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._purged: dict[str, int] = {}
        self._setbacks: Setbacks[str] = Setbacks("upkeep", log)

    def want(self, run: str) -> None:
        """A round was opened."""
        self._due.setdefault(run, self._done.get(run, float("-inf")) + EVERY_S)

    def wait_s(self, run: str) -> float:
        """Seconds until something is to be done about a run; infinite when nothing is."""
        return self._due.get(run, float("inf")) - self._clock.monotonic()

    async def attempt(self, run: str, rounds: Mapping[int, Round]) -> None:
        """As `perform`; where that cannot be done now, the run goes on, and it is tried again later."""
        try:
            await self.perform(run, rounds)
            self._setbacks.clear(run)
        except BusError as error:
            now = self._clock.monotonic()
            self._setbacks.put_off(run, error, now, run=run)
            self._due[run] = now + EVERY_S

    async def perform(self, run: str, rounds: Mapping[int, Round]) -> None:
        """Do what is to be done about a run.

        Args:
            run: its name.
            rounds: folds of its last rounds, by number.

        Raises:
            BusError: the broker did not do it.
        """
        number = max((n for n, r in rounds.items() if r.opened is not None), default=None)
        if number is not None:
            # Roots first: who adopts the run looks for those that are missing from there on.
            await self._tracer.send()
            begins = (number, rounds[number].first_seq)
            while (self._books.records[run].open_round, self._books.records[run].open_seq) < begins:
                await self._books.save(run, open_round=begins[0], open_seq=begins[1])
            await self._purge(run, self._books.records[run].plan, number)
        self._done[run] = self._clock.monotonic()
        self._due.pop(run, None)

    async def _purge(self, run: str, plan: Plan, number: int) -> None:
        """Remove all that was stored up to the last update that counted in the last obsolete round.

        What later rounds' members store comes after that: a round is opened when the one before it is over.
        """
        last = obsolete(plan, number)
        if last <= self._purged.get(run, -1):
            return
        for number in range(last, self._purged.get(run, last - 1), -1):
            # One that was aborted may have accepted nothing, which says nothing of those before it.
            counted = (await read_round(self._bus, RoundRef(run, number))).accepted
            if counted:
                end = max(update.seq for update in counted)
                await purge(self._bus, subjects.UPDATES, f"fb.update.{run}.>", before=end + 1)
                break
        self._purged[run] = last

    def forget(self, run: str) -> None:
        """A run is over."""
        for memory in (self._due, self._done, self._purged):
            memory.pop(run, None)
        self._setbacks.clear(run)
