"""Enroll's shell: hears beats, keeps the roster, lets workers in.

What the roster says is decided in `fedbus.rounds.membership`, who may come in by which
invitation in `fedbus.rounds.invitations`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from fedbus.base.clock import Clock, SystemClock
from fedbus.base.errors import BusError, BusUnavailable, EnrolmentError, NotAcked
from fedbus.bus import Bus
from fedbus.bus.hearing import hear_beats, hear_progress
from fedbus.bus.kv import Bucket
from fedbus.bus.micro import serve
from fedbus.bus.store import persist
from fedbus.rounds.membership import Change, Membership
from fedbus.rounds.roster import BEAT_S, Roster
from fedbus_schemas import subjects
from fedbus_schemas.messages import Beat, Progress
from fedbus_schemas.roster import (
    WORKER_KEY,
    Activity,
    CreateInvite,
    InviteCreated,
    InviteList,
    Join,
    Joined,
    Nothing,
    RevokeInvite,
    RosterEntry,
)
from pydantic import ValidationError

from fedbus_enroll.admitting import Admitting
from fedbus_enroll.bridge import Bridge
from fedbus_enroll.events import Events
from fedbus_enroll.invites import Invites
from fedbus_enroll.refusals import Refusals

log = logging.getLogger(__name__)

TICK_S = BEAT_S / 4


class Enroll:
    """Keeps the roster. It runs beside the broker, whose accounts it changes.

    Args:
        bus: the connection.
        folder: the stack's.
        clock: the machine's by default.
    """

    def __init__(self, bus: Bus, folder: Path, clock: Clock | None = None) -> None:
        self._bus = bus
        self._clock = clock or SystemClock()
        self._bucket = Bucket(bus, subjects.ROSTER_BUCKET)
        self._roster = Roster()
        self._membership = Membership([], self._clock.now())
        self._revisions: dict[str, int] = {}
        self._invites = Invites(bus, folder, self._clock)
        self._admitting = Admitting(bus, self._invites, folder, self._clock)
        self._events = Events(bus, self._clock)
        self._refusals = Refusals()
        self._wake = asyncio.Event()
        self._bridge = Bridge(bus)

    async def run(self) -> None:
        """Keep the roster and forward spans until cancelled."""
        forwarding = asyncio.create_task(self._bridge.run(), name="bridge")
        try:
            await self._keep_roster()
        finally:
            forwarding.cancel()
            await asyncio.gather(forwarding, return_exceptions=True)

    async def _keep_roster(self) -> None:
        """Read what is known, then hear, answer and write until cancelled."""
        await persist(self._bus, self._load)
        await self._bus.on_up(self._listen_afresh)
        await hear_beats(self._bus, self._beat)
        await hear_progress(self._bus, self._progress)
        verbs = {"join": self._join, "invite": self._invite, "invites": self._list_invites}
        await serve(self._bus, "enroll", {**verbs, "revoke": self._revoke, "activity": self._activity})
        looked_at = self._clock.now()
        while True:
            if self._clock.now() - looked_at > TICK_S + BEAT_S:
                await self._listen_afresh()  # this process was held up or paused, or the clock was set
            looked_at = self._clock.now()
            try:
                await self._keep(looked_at)
            except BusError as error:
                log.warning("the broker did not do it, trying again: %s", error, extra={"action": "retry"})
                await self._bus.wait_up()
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _load(self) -> None:
        entries = []
        for stored in await self._bucket.all(WORKER_KEY):
            try:
                entry = RosterEntry.model_validate_json(stored.value)
            except ValidationError:
                log.error("%s is unreadable, and is written anew", stored.key, extra={"action": "load"})
            else:
                entries.append(entry)
            self._revisions[stored.key.removeprefix(WORKER_KEY)] = stored.revision
        self._membership = Membership(entries, self._clock.now())
        await self._admitting.load()
        await self._invites.load()

    async def _listen_afresh(self) -> None:
        """Nobody was heard for a while because we could not hear: that is no worker's fault."""
        self._membership.hear_afresh(self._clock.now())

    # What is heard

    def _beat(self, beat: Beat) -> None:
        now = self._clock.now()
        self._roster.hear(beat, now)
        if self._membership.is_news(beat, now):
            self._wake.set()

    def _progress(self, progress: Progress) -> None:
        now = self._clock.now()
        self._roster.hear_progress(progress, now)
        self._membership.hear_progress(progress, now)

    # What is kept

    async def _keep(self, now: float) -> None:
        for change in self._membership.changes(self._roster, self._admitting.terms, now):
            try:
                await self._write(change)
            except (BusUnavailable, NotAcked):
                raise
            except BusError as error:
                # What one worker says of itself cannot keep the others out of the roster.
                about = {"action": "roster", "worker": change.entry.worker}
                log.warning("not written: %s", error, extra=about)
            self._membership.told(change.entry.worker, now)
        for invite in await self._invites.sweep():
            reason = f"invitation {invite.id} for {invite.site} has expired with {invite.left} uses left"
            await self._events.tell("invite-expired", "expired", reason, invite=invite.id)

    async def _write(self, change: Change) -> None:
        worker = change.entry.worker
        revision = self._revisions.get(worker, 0)
        new = await self._bucket.set(WORKER_KEY + worker, change.entry.model_dump_json().encode(), revision)
        if new is not None:
            self._revisions[worker] = new
            self._membership.note(change.entry)
            await self._events.tell(change.kind, change.kind, change.reason, worker=worker)
            return
        # Another instance of enroll wrote, or we did and did not hear of it: go on from what is stored.
        stored = await self._bucket.get(WORKER_KEY + worker)
        if stored is not None:
            self._revisions[worker] = stored.revision
            with suppress(ValidationError):
                self._membership.note(RosterEntry.model_validate_json(stored.value))

    # Commands

    async def _join(self, data: bytes) -> Joined:
        join = Join.model_validate_json(data)
        self._refusals.check(join.invite, self._clock.monotonic())
        try:
            terms, new = await self._admitting.let_in(join)
        except EnrolmentError as error:
            if self._refusals.note(join.invite, error, self._clock.monotonic()):
                said = f"{join.worker} was not let in: {error.message}"
                about = {"worker": join.worker, "invite": join.invite}
                await self._events.tell("invite-refused", error.code, said, **about)
            raise
        if new:
            said = f"{join.worker} was let in from {terms.site} by invitation {terms.invite}"
            await self._events.tell("invite-used", "joined", said, worker=join.worker, invite=terms.invite)
        self._wake.set()
        return Joined(worker=terms.worker, site=terms.site, labels=terms.labels)

    async def _invite(self, data: bytes) -> InviteCreated:
        invite, secret = await self._invites.create(CreateInvite.model_validate_json(data))
        said = f"invitation {invite.id} for {invite.site}: {invite.uses} uses"
        await self._events.tell("invite-created", "created", said, invite=invite.id)
        return InviteCreated(id=invite.id, secret=secret, expires_at=invite.expires_at)

    async def _list_invites(self, data: bytes) -> InviteList:
        Nothing.model_validate_json(data)
        return InviteList(items=await self._invites.reports())

    async def _revoke(self, data: bytes) -> Nothing:
        invite, by_us = await self._invites.revoke(RevokeInvite.model_validate_json(data).id)
        if by_us:
            said = f"invitation {invite.id} for {invite.site} was revoked"
            await self._events.tell("invite-revoked", "revoked", said, invite=invite.id)
        return Nothing()

    async def _activity(self, data: bytes) -> Activity:
        Nothing.model_validate_json(data)
        return Activity(workers=self._membership.doing(self._clock.now()))
