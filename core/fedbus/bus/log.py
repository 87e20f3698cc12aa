"""The round log: followed without gaps, appended to by compare-and-set.

The follower keeps the fold of every round that it hears of. Copies of stored entries
come by the stream's republish; a gap, a reconnect and a slow tick each lead to a read of
the stream, so a lost copy costs time, never an entry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Entry, encode_entry
from fedbus_schemas.subjects import Service

from fedbus.base.errors import BusError, BusUnavailable, NotAcked
from fedbus.bus.connection import Bus, Message, Subscription
from fedbus.bus.store import WRONG_LAST, JetStreamError, last_seq, leader_get, persist, put
from fedbus.rounds.arrivals import Arrivals
from fedbus.rounds.fold import Round

log = logging.getLogger(__name__)

RESYNC_S = 5.0


class Stored(NamedTuple):
    """One entry as the stream keeps it."""

    seq: int
    subject: str
    data: bytes


class RoundLog:
    """Follows FB_ROUNDS from a sequence on; `rounds` holds the folds."""

    def __init__(self, bus: Bus, on_change: Callable[[RoundRef], None]) -> None:
        self._bus = bus
        self._on_change = on_change
        self._arrivals: Arrivals[Stored] = Arrivals(0)
        self._stale = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._hearing: Subscription | None = None
        self._forgotten: dict[str, int] = {}
        self.rounds: dict[RoundRef, Round] = {}

    async def start(self, from_seq: int) -> None:
        """Begin at a sequence: everything stored from there on has been folded when this returns."""
        self._arrivals = Arrivals(from_seq - 1)
        self._hearing = await self._bus.subscribe(subjects.LOG_COPIES, self._copy)
        try:
            await self._catch_up()
            await self._bus.on_up(self._reconnected)
        except BaseException:
            await self.close()
            raise
        self._task = asyncio.create_task(self._resync())

    async def close(self) -> None:
        """Stop following."""
        if self._hearing:
            await self._bus.unsubscribe(self._hearing)
        if self._task:
            self._bus.off_up(self._reconnected)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def of(self, run: str) -> dict[int, Round]:
        """A run's rounds, by number."""
        return {ref.number: round_ for ref, round_ in self.rounds.items() if ref.run == run}

    def forget(self, run: str, before: int) -> None:
        """Drop the folds of a run's rounds below a number, and pass over what is still written about them."""
        self._forgotten[run] = max(before, self._forgotten.get(run, 0))
        for ref in [r for r in self.rounds if r.run == run and r.number < before]:
            del self.rounds[ref]

    async def append(self, ref: RoundRef, author: Service, entry: Entry) -> bool:
        """Append an entry where the log still is as we know it.

        Returns:
            True when all that the entry says stands in the log now, whether by this call, an
            earlier one whose acknowledgement was lost, or another instance. False when
            other entries came first: they are folded now; decide again.
        """
        known = self.rounds.get(ref)
        if known is not None and known.knows(entry):
            return True
        expected = known.last_seq if known is not None else 0
        subject, data = subjects.log_of(ref.run, ref.number, author), encode_entry(entry)
        try:
            seq = await put(
                self._bus, subject, data, expected=expected, over=subjects.log_of(ref.run, ref.number)
            )
        except JetStreamError as error:
            if error.err_code != WRONG_LAST:
                raise
            return await self._overtaken(ref, entry)
        except (BusUnavailable, NotAcked):
            await self._bus.wait_up()
            return await self._overtaken(ref, entry)
        self._fold(self._arrivals.ahead(seq, Stored(seq, subject, data)))
        return True

    async def _overtaken(self, ref: RoundRef, entry: Entry) -> bool:
        await persist(self._bus, lambda: self._read_round(ref))
        return ref in self.rounds and self.rounds[ref].knows(entry)

    async def _read_round(self, ref: RoundRef) -> None:
        """Fold what the leader has of one round beyond what we know."""
        pattern = subjects.log_of(ref.run, ref.number)
        after = self.rounds[ref].last_seq if ref in self.rounds else 0
        while True:
            found = await leader_get(self._bus, subjects.ROUNDS, {"seq": after + 1, "next_by_subj": pattern})
            if found is None:
                return
            stored = Stored(*found)
            after = stored.seq
            self._fold(self._arrivals.ahead(stored.seq, stored) or [stored])

    def _copy(self, message: Message) -> None:
        told = message.headers
        stored = Stored(int(told["Nats-Sequence"]), told["Nats-Subject"], bytes(message.data))
        self._fold(self._arrivals.copy(stored.seq, stored))
        if self._arrivals.missing:
            self._stale.set()

    async def _reconnected(self) -> None:
        self._stale.set()

    async def _resync(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RESYNC_S):
                    await self._stale.wait()
            self._stale.clear()
            try:
                await self._catch_up()
            except BusError as error:
                log.debug("resync put off: %s", error, extra={"action": "resync"})
                await self._bus.wait_up()
            except Exception:
                # Whatever it is, a service that stops following without a word would be worse.
                log.exception("resync failed", extra={"action": "resync"})

    async def _catch_up(self) -> None:
        last = await persist(self._bus, lambda: last_seq(self._bus, subjects.ROUNDS))
        while self._arrivals.complete < last:
            following = self._arrivals.complete + 1
            found = await persist(
                self._bus,
                lambda seq=following: leader_get(  # type: ignore[misc]  # bound at once
                    self._bus, subjects.ROUNDS, {"seq": seq, "next_by_subj": subjects.ALL_LOGS}
                ),
            )
            if found is None:
                self._fold(self._arrivals.read_up_to(last))
                return
            stored = Stored(*found)
            before = self._arrivals.read_up_to(stored.seq - 1)
            self._fold([*before, *self._arrivals.copy(stored.seq, stored)])

    def _fold(self, entries: list[Stored]) -> None:
        for seq, subject, data in entries:
            run, number, author = subjects.parse_log(subject)
            ref = RoundRef(run, number)
            if number < self._forgotten.get(run, 0):
                continue
            round_ = self.rounds.setdefault(ref, Round())
            ignored = len(round_.ignored)
            round_.read(seq, author, data)
            for reason in round_.ignored[ignored:]:
                # Repeats and leftovers are the normal life of a log with several writers.
                level = logging.WARNING if round_.is_breach(reason) else logging.DEBUG
                log.log(level, "%s: log entry ignored: %s", ref, reason, extra={"action": "ignore"})
            self._on_change(ref)


async def read_round(bus: Bus, ref: RoundRef) -> Round:
    """Fold one round from the stream; an empty fold if it has no entry."""
    round_, seq = Round(), 0
    pattern = subjects.log_of(ref.run, ref.number)
    while found := await leader_get(bus, subjects.ROUNDS, {"seq": seq + 1, "next_by_subj": pattern}):
        seq = found[0]
        round_.read(seq, subjects.parse_log(found[1])[2], found[2])
    return round_
