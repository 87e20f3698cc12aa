"""A worker's own credential: made here, accepted by enroll for an invitation, kept for ever after.

The worker makes its secret and saves it before it asks. If the answer is lost, the credential works all the
same; so whether it works is what counts, and it is tried before anything is given up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path

from fedbus.base.errors import (
    AuthRefused,
    BusError,
    BusUnavailable,
    ConfigError,
    EnrolmentError,
    InviteRefused,
    NotAcked,
    describe,
)
from fedbus.bus import Bus, Credentials
from fedbus.bus.credentials import write_private
from fedbus.bus.joinstring import JoinString
from fedbus.bus.micro import ask
from fedbus.rounds.invitations import ASK_FOR_ANOTHER
from fedbus.runtime.probe import Answer, probe
from fedbus_schemas.roster import InviteId, Join, Joined
from pydantic import BaseModel, ConfigDict, ValidationError

log = logging.getLogger(__name__)

CREDENTIAL_FILE = "credential.json"
PENDING_FILE = "credential.pending.json"
# Enroll may be starting, or starting again.
PATIENCE_S, PAUSE_S = 20.0, 0.2


class Enrolment(BaseModel):
    """A credential, and the invitation that it was let in by."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    credentials: Credentials
    invite: InviteId

    def save(self, path: Path) -> None:
        """Write a file that only its owner can read."""
        write_private(path, self.model_dump_json(indent=2) + "\n")


def saved_by(folder: Path) -> str | None:
    """The invitation by which the worker of a state folder came, or tried to come; None: by none."""
    for name in (CREDENTIAL_FILE, PENDING_FILE):
        found = _read(folder / name)
        if found is not None:
            return found.invite
    return None


def is_enrolled(folder: Path) -> bool:
    """Whether the worker of a state folder was let in by an invitation."""
    return (folder / CREDENTIAL_FILE).exists()


def enrolled(root: Path) -> dict[Path, Credentials]:
    """State folders of all workers of this host that were let in by an invitation, with their credentials."""
    found = {path.parent: _read(path) for path in sorted(root.glob(f"*/*/{CREDENTIAL_FILE}"))}
    return {folder: enrolment.credentials for folder, enrolment in found.items() if enrolment}


async def enrol(folder: Path, string: JoinString) -> Credentials:
    """The credential of the worker whose state folder this is: the saved one, or a new one.

    Args:
        folder: locked, and called as the worker.
        string: what it was invited with.

    Raises:
        InviteRefused: the invitation is wrong, expired, used up or revoked.
        NameTaken: another worker is called so.
        BusUnavailable, NotAcked: nobody answers.
    """
    saved = _read(folder / CREDENTIAL_FILE)
    if saved is not None:
        known = saved.credentials.trusting(string.ca)
        if await _probe(known) is not Answer.REFUSED:
            return known
    wish = _read(folder / PENDING_FILE)
    if wish is None or wish.invite != string.invite:
        own = Credentials(url=string.url, user=folder.name, password=secrets.token_urlsafe(32))
        wish = Enrolment(credentials=own, invite=string.invite)
    wish = wish.model_copy(update={"credentials": wish.credentials.trusting(string.ca)})
    try:
        joined = await _ask(string, wish, folder / PENDING_FILE)
        log.info("let in from %s as %s", joined.site, joined.worker)
    except BusError as error:
        if await _probe(wish.credentials) is not Answer.ACCEPTED:
            if isinstance(error, AuthRefused):
                raise InviteRefused(
                    "the broker refuses the invitation: it is wrong, expired, used up or revoked",
                    hint=ASK_FOR_ANOTHER,
                ) from error
            raise
    except (EnrolmentError, ConfigError):
        (folder / PENDING_FILE).unlink(missing_ok=True)  # enroll said no: there is nothing to go on with
        raise
    (folder / PENDING_FILE).replace(folder / CREDENTIAL_FILE)
    return wish.credentials


async def _ask(string: JoinString, wish: Enrolment, pending: Path) -> Joined:
    own = wish.credentials
    request = Join(invite=string.invite, secret=string.secret, worker=own.user, own_secret=own.password)
    loop = asyncio.get_running_loop()
    ends = loop.time() + PATIENCE_S
    while True:
        # A connection for each try: the broker cuts holders of an invitation that is over, and says so to
        # those who come again.
        bus = await Bus.connect(string.credentials)
        try:
            wish.save(pending)  # not before: a broker that lets nobody in leaves nothing behind
            return await ask(bus, "enroll", "join", request, Joined)
        except (BusUnavailable, NotAcked):
            if loop.time() > ends:
                raise
        finally:
            await bus.close()
        await asyncio.sleep(PAUSE_S)


async def _probe(credentials: Credentials) -> Answer:
    return await asyncio.to_thread(probe, credentials)


def _read(path: Path) -> Enrolment | None:
    try:
        return Enrolment.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the credential {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"{path} is not a credential: {describe(error, Enrolment.model_fields)}") from None
