"""Letting a worker in: the invitation is used, the terms are stored, the broker learns the credential."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from fedbus.base.clock import Clock
from fedbus.base.errors import ConfigError, NameTaken
from fedbus.bus import Bus
from fedbus.bus.kv import Bucket, Entry
from fedbus.bus.store import persist
from fedbus.rounds.invitations import admission, paid
from fedbus.runtime.accounts import Accounts
from fedbus.runtime.broker import add_worker
from fedbus_schemas import subjects
from fedbus_schemas.roster import ADMITTED_KEY, Admission, Join
from pydantic import ValidationError

from fedbus_enroll.invites import PATIENCE_S, Invites

log = logging.getLogger(__name__)


class Admitting:
    """Each step can be repeated: a worker whose answer got lost, or an enroll that was killed, begins again.

    Args:
        bus: the connection.
        invites: what workers come by.
        folder: the stack's, where the broker's accounts are.
        clock: for the record.
    """

    def __init__(self, bus: Bus, invites: Invites, folder: Path, clock: Clock) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, subjects.ROSTER_BUCKET)
        self._invites = invites
        self._folder = folder
        self._clock = clock
        self._one = asyncio.Lock()
        self.terms: dict[str, Admission] = {}

    async def load(self) -> None:
        """Read the terms of all workers that were let in."""
        for entry in await self._bucket.all(ADMITTED_KEY):
            if (found := _parsed(entry)) is not None:
                self.terms[found.worker] = found

    async def let_in(self, join: Join) -> tuple[Admission, bool]:
        """Let a worker in; also tells whether that used the invitation.

        Raises:
            InviteRefused: the invitation is wrong, expired, used up or revoked.
            NameTaken: another worker is called so.
            ConfigError: the name is not a worker's.
        """
        async with self._one:
            # Only who holds a good invitation learns which names are taken; that does not use it up.
            await self._invites.verify(join)
            accounts = await asyncio.to_thread(Accounts.load_or_create, self._folder)
            await asyncio.to_thread(accounts.has_worker, join.worker, join.own_secret)
            invite = await self._invites.spend(join)
            terms = admission(invite, join.worker, self._clock.now())
            before, revision = await self._store_terms(terms)
            try:
                await asyncio.to_thread(add_worker, self._folder, join.worker, join.own_secret)
            except (NameTaken, ConfigError):
                # Somebody else was faster between the look and here.
                await self._bucket.set(ADMITTED_KEY + join.worker, before, revision)
                await self._invites.give_back(invite.id, join.worker)
                raise
            self.terms[join.worker] = terms
            return terms, not paid(invite, join)

    async def _store_terms(self, terms: Admission) -> tuple[bytes, int]:
        """Make these the worker's terms, before anybody can connect as it; returns what they replace."""
        key = ADMITTED_KEY + terms.worker
        while True:
            entry = await persist(self._bus, lambda: self._bucket.get(key), until_s=PATIENCE_S)
            revision = entry.revision if entry else 0
            new = await self._bucket.set(key, terms.model_dump_json().encode(), revision)
            if new is not None:
                return (entry.value if entry else b""), new


def _parsed(entry: Entry) -> Admission | None:
    if not entry.value:
        return None  # taken back
    try:
        return Admission.model_validate_json(entry.value)
    except ValidationError:
        log.error("%s is unreadable: the worker has no site", entry.key, extra={"action": "terms"})
        return None
