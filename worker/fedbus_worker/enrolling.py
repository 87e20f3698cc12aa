"""A worker's own credential: made here, accepted by enroll for an invitation, kept for ever after.

The worker makes its secret and saves it before it asks. If the answer is lost, the credential works all the
same; so whether it works is what counts, and it is tried before anything is given up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path
from typing import Self

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
from fedbus.bus.tls import trust
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

    def trusting(self, ca: str | None, *, tls: bool) -> Self:
        """The same with what is demanded of TLS now, as `Credentials.trusting`."""
        return self.model_copy(update={"credentials": self.credentials.trusting(ca, tls=tls)})

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


def recall(folder: Path, ca: str | None, *, tls: bool) -> Credentials:
    """The saved credential, with what is demanded of TLS now, which is saved before anyone is dialled.

    Otherwise the next start would demand less, and tell its password to whoever takes TLS away.

    Args:
        folder: of a worker that was let in, and locked.
        ca: as that of `Credentials`; None: the one that was saved.
        tls: whether TLS is demanded even without a CA.

    Raises:
        ConfigError: the credential or the CA cannot be read; what was saved stays.
    """
    saved = _read(folder / CREDENTIAL_FILE)
    if saved is None:
        raise ConfigError(f"the credential {folder / CREDENTIAL_FILE} is gone")
    return _keep(saved, folder / CREDENTIAL_FILE, ca, tls=tls).credentials


async def enrol(folder: Path, string: JoinString) -> Credentials:
    """The credential of the worker whose state folder this is: the saved one, or a new one.

    What an earlier join demanded of TLS is demanded still: the folder is of the same broker.

    Args:
        folder: locked, and called as the worker.
        string: what it was invited with.

    Raises:
        InviteRefused: the invitation is wrong, expired, used up or revoked.
        NameTaken: another worker is called so.
        BusUnavailable, NotAcked: nobody answers.
        TlsRefused: the broker is not one to trust.
        ConfigError: a saved credential, or the CA, cannot be read; what was saved stays.
    """
    saved, wish = _read(folder / CREDENTIAL_FILE), _read(folder / PENDING_FILE)
    earlier = [each.credentials for each in (saved, wish) if each]
    tls = any(url.startswith("tls://") for url in (string.url, *(each.url for each in earlier)))
    string = string.trusting(string.ca or next((each.ca for each in earlier if each.ca), None), tls=tls)
    if saved is not None:
        saved = _keep(saved, folder / CREDENTIAL_FILE, string.ca, tls=tls)
        if await _probe(saved.credentials) is not Answer.REFUSED:
            return saved.credentials
    if wish is None or wish.invite != string.invite:
        own = string.credentials.model_copy(
            update={"user": folder.name, "password": secrets.token_urlsafe(32)}
        )
        wish = Enrolment(credentials=own, invite=string.invite)
    else:
        wish = _keep(wish, folder / PENDING_FILE, string.ca, tls=tls)
    trust(string.ca)  # not while enroll is asked: an error of ours is no refusal
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
    wish.save(folder / PENDING_FILE)  # it may be that of another invitation, where nobody could be asked
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


def _keep(enrolment: Enrolment, path: Path, ca: str | None, *, tls: bool) -> Enrolment:
    changed = enrolment.trusting(ca, tls=tls)
    if changed != enrolment:
        trust(changed.credentials.ca)  # one that cannot be read takes the place of none
        changed.save(path)
    return changed


def _read(path: Path) -> Enrolment | None:
    try:
        return Enrolment.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the credential {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"{path} is not a credential: {describe(error, Enrolment.model_fields)}") from None
