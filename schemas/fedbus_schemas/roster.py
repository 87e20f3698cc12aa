"""Who belongs to a federation: invitations, admissions, the roster, and the commands about them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from fedbus_schemas.base import Digest, Reason, RoundNumber, RunName, Seconds, Token, Wire, WorkerName
from fedbus_schemas.messages import Capabilities, Phase

MOST_USES = 1000
LONGEST_S = 366 * 86400.0

# The user name with which the holder of an invitation connects begins so; no worker's may.
INVITE_USER = "invite-"
# Keys of FB_ROSTER, before the worker's name or the invitation's id.
WORKER_KEY = "worker."
ADMITTED_KEY = "admitted."
INVITE_KEY = "invite."
# The label that holds the site of an invited worker; such a worker cannot claim another.
SITE_LABEL = "site"

# Random and long; nothing in it means anything to a URL or to the broker's configuration.
SECRET_PATTERN = r"^[A-Za-z0-9_-]{32,64}$"
ID_PATTERN = r"^[0-9a-f]{12}$"
Secret = Annotated[str, StringConstraints(pattern=SECRET_PATTERN)]
InviteId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Labels = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=256)]],
    Field(max_length=64),
]
# An invitation's own labels leave room for what its workers add.
InviteLabels = Annotated[Labels, Field(max_length=32)]
WorkerState = Literal["here", "lost", "left"]
EventKind = Literal[
    "joined", "back", "restarted", "changed", "lost", "left",
    "invite-created", "invite-used", "invite-refused", "invite-revoked", "invite-expired",
]  # fmt: skip


def is_secret(text: str) -> bool:
    """Whether a text has the form of an invitation's secret."""
    return re.fullmatch(SECRET_PATTERN, text) is not None


def is_invite_id(text: str) -> bool:
    """Whether a text has the form of an invitation's id."""
    return re.fullmatch(ID_PATTERN, text) is not None


class RosterEntry(Wire):
    """What FB_ROSTER says of one worker, under `worker.<name>`; written when it changes, never at a beat.

    `site` and `labels` are the invitation's where there was one; the worker's own labels only add.
    """

    worker: WorkerName
    state: WorkerState
    since: Seconds = Field(description="of the state; begins anew when the worker's process was restarted")
    site: Token | None = None
    labels: Annotated[Labels, Field(max_length=96)] = {}
    capabilities: Capabilities
    incarnation: Token


class Admission(Wire):
    """The terms on which a worker was let in, under `admitted.<name>`, until others replace them."""

    worker: WorkerName
    invite: InviteId
    site: Token
    labels: InviteLabels = {}
    at: Seconds


class Invite(Wire):
    """An invitation, under `invite.<id>`. Its secret is not here, only the SHA-256 of it."""

    id: InviteId
    secret_sha256: Digest
    site: Token
    labels: InviteLabels = {}
    created_at: Seconds
    expires_at: Seconds
    uses: int = Field(ge=1, le=MOST_USES)
    left: int = Field(ge=0, le=MOST_USES)
    revoked: bool = False
    used_by: dict[WorkerName, Digest] = Field(
        {}, max_length=MOST_USES, description="workers, and the SHA-256 of the secret that each chose"
    )


class CreateInvite(Wire):
    """Command to enroll: make an invitation."""

    site: Token
    expires_s: float = Field(86400.0, gt=0, le=LONGEST_S, allow_inf_nan=False)
    uses: int = Field(1, ge=1, le=MOST_USES)
    labels: InviteLabels = {}


class InviteCreated(Wire):
    """Enroll's answer, and the only place where the secret is ever told."""

    id: InviteId
    secret: Secret
    expires_at: Seconds


class InviteReport(Wire):
    """One line of `invite list`. Times are ISO 8601 in UTC."""

    id: InviteId
    state: Literal["open", "used-up", "expired", "revoked"]
    site: str
    labels: dict[str, str]
    uses: int
    left: int
    created_at: str
    expires_at: str
    workers: list[str]


class InviteList(Wire):
    """Enroll's answer to `invites`."""

    items: list[InviteReport]


class RevokeInvite(Wire):
    """Command to enroll: let nobody else in by this invitation."""

    id: InviteId


class Join(Wire):
    """What the holder of an invitation asks: let me in under this name, with this secret of my own.

    The worker makes its secret and keeps it before it asks, so an answer that is lost costs nothing, and
    others who hold the same invitation never see it.
    """

    invite: InviteId
    secret: Secret
    worker: WorkerName
    own_secret: Secret


class Joined(Wire):
    """Enroll's answer: the credential works from now on."""

    worker: WorkerName
    site: Token
    labels: InviteLabels = {}


class Nothing(Wire):
    """A command without arguments."""


class Doing(Wire):
    """What a worker is at, as it last said."""

    run: RunName
    round: RoundNumber
    phase: Phase
    fraction: float = Field(ge=0, le=1)
    failed: Reason | None = None


class Activity(Wire):
    """Enroll's answer to `activity`: what each worker that is at work does."""

    workers: dict[WorkerName, Doing]


class WorkerReport(Wire):
    """One worker as `worker list` and `worker show` print it. `since` is ISO 8601 in UTC."""

    worker: str
    state: WorkerState
    since: str
    site: str | None
    labels: dict[str, str]
    capabilities: Capabilities
    doing: Doing | None = None


class RosterEvent(Wire):
    """Something happened to a worker or an invitation; on `fb.event.<kind>`."""

    kind: EventKind
    at: Seconds
    worker: WorkerName | None = None
    invite: InviteId | None = None
    code: Token
    reason: Reason


class AskWhy(Wire):
    """Command to the planner: why is this worker in, or not in, the open runs, or one of them?"""

    worker: WorkerName
    run: RunName | None = None


class Standing(Wire):
    """How one worker stands with one open run, in a code and a sentence."""

    run: RunName
    round: RoundNumber | None = None
    code: Token
    reason: Reason


class Standings(Wire):
    """The planner's answer: one for each open run that was asked about."""

    worker: WorkerName
    items: list[Standing]
