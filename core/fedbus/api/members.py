"""Who belongs to a federation, as its operator sees it: workers, invitations, and why one is not in a run."""

from __future__ import annotations

from fedbus_schemas import subjects
from fedbus_schemas.roster import (
    WORKER_KEY,
    Activity,
    AskWhy,
    CreateInvite,
    Doing,
    InviteCreated,
    InviteList,
    InviteReport,
    Nothing,
    RevokeInvite,
    RosterEntry,
    Standing,
    Standings,
    WorkerReport,
)
from pydantic import ValidationError

from fedbus.base.errors import BusError, RemoteContractError, UnknownWorker, describe, nearest
from fedbus.bus import Bus
from fedbus.bus.joinstring import JoinString
from fedbus.bus.kv import Bucket
from fedbus.bus.micro import ask
from fedbus.bus.store import persist
from fedbus.rounds.report import iso

ENROLL = "enroll"


class Members:
    """Workers and invitations. Reading workers needs no service; the rest asks enroll or the planner."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._roster = Bucket(bus, subjects.ROSTER_BUCKET)

    @property
    def url(self) -> str:
        """Where the broker listens, as we reach it."""
        return self._bus.credentials.url

    async def workers(self) -> list[WorkerReport]:
        """All workers that ever came, by name."""
        stored = await persist(self._bus, lambda: self._roster.all(WORKER_KEY), until_s=10.0)
        doing = await self._doing()
        return [_report(_parsed(entry.value), doing) for entry in stored]

    async def worker(self, name: str) -> WorkerReport:
        """One worker.

        Raises:
            UnknownWorker: nobody of this name ever came; the message names the nearest.
        """
        found = await persist(self._bus, lambda: self._roster.get(WORKER_KEY + name), until_s=10.0)
        if found is None:
            keys = await self._roster.keys()
            names = [key.removeprefix(WORKER_KEY) for key in keys if key.startswith(WORKER_KEY)]
            close = nearest(name, names)
            raise UnknownWorker(
                f"no worker is called {name!r}" + (f"; did you mean {close!r}?" if close else ""),
                hint="see: fedbus worker list",
            )
        return _report(_parsed(found.value), await self._doing())

    async def why(self, name: str, run: str | None = None) -> list[Standing]:
        """How a worker stands with each open run, or with one.

        Raises:
            UnknownWorker: nobody of this name ever came.
            UnknownRun, RunEnded: there is no such open run.
        """
        said = await ask(self._bus, "planner", "why", AskWhy(worker=name, run=run), Standings)
        if not said.items or any(item.code == "unknown" for item in said.items):
            await self.worker(name)  # a name that nobody has is a mistake, not an absent worker
        return said.items

    async def invite(
        self,
        site: str,
        *,
        expires_s: float = 86400.0,
        uses: int = 1,
        labels: dict[str, str] | None = None,
        address: str | None = None,
    ) -> tuple[InviteCreated, JoinString]:
        """Make an invitation and the string that a worker joins with.

        Args:
            site: whose workers come by it.
            expires_s: seconds until nobody new comes in by it.
            uses: how many workers may.
            labels: what the roster says of them, whatever they say themselves.
            address: `nats://host:port` as the worker reaches the broker; ours by default.

        Raises:
            BusUnavailable: enroll does not answer.
        """
        command = CreateInvite(site=site, expires_s=expires_s, uses=uses, labels=labels or {})
        made = await ask(self._bus, ENROLL, "invite", command, InviteCreated, 30.0, patience_s=10.0)
        return made, JoinString(address or self._bus.credentials.url, made.id, made.secret)

    async def invites(self) -> list[InviteReport]:
        """All invitations, oldest first."""
        return (await ask(self._bus, ENROLL, "invites", Nothing(), InviteList)).items

    async def revoke_invite(self, id_: str) -> None:
        """Let nobody else in by an invitation; workers that came by it stay.

        Raises:
            UnknownInvite: there is none of that id.
        """
        await ask(self._bus, ENROLL, "revoke", RevokeInvite(id=id_), Nothing)

    async def _doing(self) -> dict[str, Doing]:
        try:
            return (await ask(self._bus, ENROLL, "activity", Nothing(), Activity, timeout_s=2.0)).workers
        except BusError:
            return {}  # the roster is worth showing without it


def _parsed(value: bytes) -> RosterEntry:
    try:
        return RosterEntry.model_validate_json(value)
    except ValidationError as error:
        raise RemoteContractError(f"an entry of the roster is unreadable: {describe(error)}") from error


def _report(entry: RosterEntry, doing: dict[str, Doing]) -> WorkerReport:
    return WorkerReport(
        worker=entry.worker,
        state=entry.state,
        since=iso(entry.since),
        site=entry.site,
        labels=entry.labels,
        capabilities=entry.capabilities,
        doing=doing.get(entry.worker),
    )
