"""Invitations: who may still come in by one, and what is left of it. The caller stores them."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

from fedbus_schemas.roster import Admission, CreateInvite, Invite, InviteReport, Join

from fedbus.base.errors import InviteRefused
from fedbus.rounds.report import iso

ASK_FOR_ANOTHER = "ask whoever runs the federation for another: fedbus invite create"


def digest(secret: str) -> str:
    """The only form in which a secret is stored. It is random and long, so that a plain hash hides it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def issued(command: CreateInvite, id_: str, secret: str, now: float) -> Invite:
    """A new invitation."""
    return Invite(
        id=id_,
        secret_sha256=digest(secret),
        site=command.site,
        labels=command.labels,
        created_at=now,
        expires_at=now + command.expires_s,
        uses=command.uses,
        left=command.uses,
    )


Closed = Literal["revoked", "expired", "used-up"]


def over(invite: Invite, now: float) -> tuple[Closed, str] | None:
    """Why nobody new may come in by an invitation, in a code and a sentence; None: somebody may."""
    if invite.revoked:
        return "revoked", "the invitation was revoked"
    if now >= invite.expires_at:
        return "expired", "the invitation has expired"
    if invite.left < 1:
        times = "once" if invite.uses == 1 else f"{invite.uses} times"
        return "used-up", f"the invitation was for use {times}, and is used up"
    return None


def paid(invite: Invite, join: Join) -> bool:
    """Whether this very worker has used the invitation already: its answer may have been lost."""
    known = invite.used_by.get(join.worker)
    return known is not None and hmac.compare_digest(known, digest(join.own_secret))


def check(invite: Invite | None, join: Join, now: float) -> Invite:
    """The invitation by which a worker may come in.

    Raises:
        InviteRefused: there is no such invitation, or nobody new may come in by it.
    """
    if invite is None or not hmac.compare_digest(invite.secret_sha256, digest(join.secret)):
        raise InviteRefused("no such invitation", hint=ASK_FOR_ANOTHER)
    # Revoking and expiring end repeats too: a worker that was let in has no need of them.
    closed = over(invite, now)
    if closed is not None and not (closed[0] == "used-up" and paid(invite, join)):
        raise InviteRefused(closed[1], hint=ASK_FOR_ANOTHER)
    return invite


def spent(invite: Invite, join: Join) -> Invite:
    """The invitation after a worker used it."""
    used_by = {**invite.used_by, join.worker: digest(join.own_secret)}
    return invite.model_copy(update={"left": invite.left - 1, "used_by": used_by})


def given_back(invite: Invite, worker: str) -> Invite:
    """The invitation after a worker that had used it could not be let in."""
    used_by = {name: key for name, key in invite.used_by.items() if name != worker}
    return invite.model_copy(
        update={"left": invite.left + len(invite.used_by) - len(used_by), "used_by": used_by}
    )


def admission(invite: Invite, worker: str, now: float) -> Admission:
    """The terms on which a worker comes in."""
    return Admission(worker=worker, invite=invite.id, site=invite.site, labels=invite.labels, at=now)


def report(invite: Invite, now: float) -> InviteReport:
    """An invitation as the operator sees it."""
    found = over(invite, now)
    return InviteReport(
        id=invite.id,
        state="open" if found is None else found[0],
        site=invite.site,
        labels=invite.labels,
        uses=invite.uses,
        left=invite.left,
        created_at=iso(invite.created_at),
        expires_at=iso(invite.expires_at),
        workers=sorted(invite.used_by),
    )
