"""Invitations in FB_ROSTER, changed by compare-and-set, and their users at the broker."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from fedbus.base.clock import Clock, random_token
from fedbus.base.errors import UnknownInvite
from fedbus.bus import Bus
from fedbus.bus.joinstring import invite_user
from fedbus.bus.kv import Bucket
from fedbus.bus.store import persist
from fedbus.rounds.invitations import check, given_back, issued, over, paid, report, spent
from fedbus.runtime.accounts import Accounts
from fedbus.runtime.broker import add_invite, remove_invites
from fedbus_schemas import subjects
from fedbus_schemas.roster import INVITE_KEY, INVITE_USER, CreateInvite, Invite, InviteReport, Join
from pydantic import ValidationError

log = logging.getLogger(__name__)

# A broker that reads its accounts anew answers nobody for a moment.
PATIENCE_S = 5.0


class Invites:
    """All invitations of a federation.

    Args:
        bus: the connection.
        folder: the stack's, where the broker's accounts are.
        clock: for their expiry.
    """

    def __init__(self, bus: Bus, folder: Path, clock: Clock) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, subjects.ROSTER_BUCKET)
        self._folder = folder
        self._clock = clock
        # Those whose holders the broker lets in.
        self._open: dict[str, Invite | None] = {}

    async def load(self) -> None:
        """Look which holders the broker lets in."""
        users = await asyncio.to_thread(lambda: Accounts.load_or_create(self._folder).invites())
        ids = [user.removeprefix(INVITE_USER) for user in users]
        self._open = {id_: (await self._read(id_))[0] for id_ in ids}

    async def create(self, command: CreateInvite) -> tuple[Invite, str]:
        """Make an invitation; its secret is known to the caller only."""
        secret = random_token(24)
        invite = issued(command, random_token(6), secret, self._clock.now())
        # Stored first: the broker lets in nobody whose invitation is not known.
        await self._put(invite, 0)
        self._open[invite.id] = invite
        await asyncio.to_thread(add_invite, self._folder, invite_user(invite.id), secret)
        return invite, secret

    async def reports(self) -> list[InviteReport]:
        """All invitations, oldest first."""
        # A broker that reads its accounts anew, as after each join, serves nobody for a moment.
        stored = await persist(self._bus, lambda: self._bucket.all(INVITE_KEY), until_s=PATIENCE_S)
        found = [_parsed(entry.value) for entry in stored]
        known = sorted((invite for invite in found if invite), key=lambda invite: invite.created_at)
        return [report(invite, self._clock.now()) for invite in known]

    async def verify(self, join: Join) -> None:
        """Check an invitation without using it.

        Raises:
            InviteRefused: it does not let this worker in.
        """
        check((await self._read(join.invite))[0], join, self._clock.now())

    async def spend(self, join: Join) -> Invite:
        """Use an invitation for a worker; one that this worker has used already is not used again.

        Raises:
            InviteRefused: it does not let this worker in.
        """
        while True:
            found, revision = await self._read(join.invite)
            invite = check(found, join, self._clock.now())
            if paid(invite, join) or await self._write(spent(invite, join), revision):
                return invite

    async def give_back(self, id_: str, worker: str) -> None:
        """Undo a use: the worker could not be let in."""
        while True:
            invite, revision = await self._read(id_)
            if invite is None or await self._write(given_back(invite, worker), revision):
                return

    async def revoke(self, id_: str) -> tuple[Invite, bool]:
        """Let nobody else in by an invitation; also tells whether it was revoked by this call.

        Raises:
            UnknownInvite: there is none of that id.
        """
        while True:
            invite, revision = await self._read(id_)
            if invite is None:
                raise UnknownInvite(f"no invitation is called {id_!r}", hint="see: fedbus invite list")
            revoked = invite.model_copy(update={"revoked": True})
            if invite.revoked or await self._write(revoked, revision):
                await self._shut({id_})
                return revoked, not invite.revoked

    async def sweep(self) -> list[Invite]:
        """Shut out holders of invitations that are over; returns those that expired unused or half used."""
        now = self._clock.now()
        ended = {id_: invite for id_, invite in self._open.items() if invite is None or over(invite, now)}
        if ended:
            await self._shut(set(ended))
        expired = [invite for invite in ended.values() if invite]
        return [invite for invite in expired if (why := over(invite, now)) and why[0] == "expired"]

    async def _shut(self, ids: set[str]) -> None:
        await asyncio.to_thread(remove_invites, self._folder, {invite_user(id_) for id_ in ids})
        for id_ in ids:
            self._open.pop(id_, None)

    async def _read(self, id_: str) -> tuple[Invite | None, int]:
        entry = await persist(self._bus, lambda: self._bucket.get(INVITE_KEY + id_), until_s=PATIENCE_S)
        return (None, 0) if entry is None else (_parsed(entry.value), entry.revision)

    async def _put(self, invite: Invite, revision: int) -> int | None:
        # A repeat whose first try was stored is refused, and the caller then reads what it wrote itself.
        key, value = INVITE_KEY + invite.id, invite.model_dump_json().encode()
        return await persist(self._bus, lambda: self._bucket.set(key, value, revision), until_s=PATIENCE_S)

    async def _write(self, invite: Invite, revision: int) -> bool:
        stored = await self._put(invite, revision)
        if stored is not None and invite.id in self._open:
            self._open[invite.id] = invite
        return stored is not None


def _parsed(value: bytes) -> Invite | None:
    try:
        return Invite.model_validate_json(value)
    except ValidationError:
        log.error("an invitation is unreadable, and lets nobody in", extra={"action": "invite"})
        return None
