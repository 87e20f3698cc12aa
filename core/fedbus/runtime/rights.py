"""Who may publish and subscribe to what: the whole of it, as data. The broker enforces these tables.

A federation is two accounts. Services and the operator live in FED, which has JetStream. Workers live in
WRK, which has none and imports exactly the worker-facing subjects: the broker does not check reply
subjects, so a worker beside the streams could have acknowledgements stored as log entries.

Every party subscribes under its own inbox prefix only, and services answer commands only under the
operator's, so no request can name a stream's subject as the place for its answer. Enroll also answers
holders of invitations, across the accounts: the broker makes those reply subjects, under `_R_`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from fedbus_schemas.subjects import (
    ALL_ANNOUNCEMENTS,
    ALL_BEATS,
    ALL_PROGRESS,
    ALL_TELEMETRY,
    ANNOUNCE,
    EVENTS,
    INBOX,
    LEASES,
    MANIFEST_COPIES,
    MODELS,
    REGISTRY_BUCKET,
    ROSTER_BUCKET,
    ROUNDS,
    RUNS_BUCKET,
    TELEMETRY,
    UPDATES,
    Service,
    alive,
    api,
    beat,
    inbox,
    lease,
    log_of,
    otel,
    progress,
    update,
)

from fedbus.bus.credentials import inbox_prefix

SERVICES: tuple[Service, ...] = get_args(Service)
OPERATOR = "operator"
IDENTITIES = (*SERVICES, OPERATOR)

BUCKETS = (RUNS_BUCKET, ROSTER_BUCKET, REGISTRY_BUCKET)
STREAMS = (
    *(ROUNDS, ANNOUNCE, INBOX, UPDATES, MODELS, EVENTS, TELEMETRY, LEASES),
    *(f"KV_{name}" for name in BUCKETS),
)

# The one thing that the holder of an invitation may do.
JOIN = api("enroll", "join")
_GET_MODEL = f"$JS.API.DIRECT.GET.{MODELS}.fb.model.>"
# One request, many answers (a batch): its export needs a streamed response.
_GET_ANNOUNCEMENTS = f"$JS.API.DIRECT.GET.{ANNOUNCE}"
_GET_INBOX = f"$JS.API.DIRECT.GET.{INBOX}."

# What crosses from WRK to FED, and back.
SERVICE_EXPORTS = (
    "fb.update.>",
    ALL_BEATS,
    ALL_PROGRESS,
    ALL_TELEMETRY,
    _GET_MODEL,
    _GET_INBOX + inbox("*"),
    JOIN,
)
STREAMED_EXPORTS = (_GET_ANNOUNCEMENTS,)
STREAM_EXPORTS = (ALL_ANNOUNCEMENTS, inbox("*"))


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects that a party may publish on and subscribe to; all others are refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


# A message is read from the stream's leader where staleness matters, by direct get where bytes matter.
_READS = ("$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.MSG.GET.*", "$JS.API.DIRECT.GET.>")
_FOLLOWS = ("fb.log.>", MANIFEST_COPIES, ALL_BEATS, ALL_PROGRESS)
_PROVISIONS = tuple(f"$JS.API.STREAM.{verb}.{name}" for verb in ("CREATE", "UPDATE") for name in STREAMS)

_PUBLISHES: dict[str, tuple[str, ...]] = {
    "planner": (
        log_of("*", "*", "planner"),
        ALL_ANNOUNCEMENTS,
        inbox("*"),
        f"$KV.{RUNS_BUCKET}.>",
        f"$JS.API.STREAM.PURGE.{UPDATES}",
        *_PROVISIONS,
        *_READS,
    ),
    "aggregator": (
        log_of("*", "*", "aggregator"),
        "fb.model.>",
        lease("aggregator"),
        alive("aggregator", "*"),
        *_READS,
    ),
    "evaluator": (log_of("*", "*", "evaluator"), f"$KV.{REGISTRY_BUCKET}.>", *_READS),
    "enroll": (f"$KV.{ROSTER_BUCKET}.>", "fb.event.>", "_R_.>", *_READS),
    # Models are named by their digest and write-once, so who imports one can change none.
    OPERATOR: (*_READS, "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "fb.api.>", "$SRV.>", "fb.model.>"),
}
_SUBSCRIBES: dict[str, tuple[str, ...]] = {
    "planner": _FOLLOWS,
    "aggregator": (*_FOLLOWS, alive("aggregator", "*")),
    "evaluator": _FOLLOWS,
    "enroll": (*_FOLLOWS, ALL_TELEMETRY),
    OPERATOR: ("fb.log.>", ALL_ANNOUNCEMENTS, ALL_PROGRESS),
}


def rights_of(identity: str) -> Rights:
    """Rights of a service or the operator.

    Raises:
        KeyError: the name is neither.
    """
    publish, subscribe = _PUBLISHES[identity], _SUBSCRIBES[identity]
    if identity in SERVICES:
        # Each has commands (NATS micro endpoints).
        publish = (*publish, otel(identity), inbox_prefix(OPERATOR) + ".>")
        subscribe = (*subscribe, "$SRV.>", f"fb.api.{identity}.>")
    return Rights(publish, (*subscribe, inbox_prefix(identity) + ".>"))


def rights_of_worker(name: str) -> Rights:
    """Rights of one worker: its own subjects, the models, and what is announced to all."""
    return Rights(
        publish=(
            update("*", "*", name, "*", "*", "*"),
            beat(name),
            progress(name),
            otel(name),
            _GET_MODEL,
            _GET_ANNOUNCEMENTS,
            _GET_INBOX + inbox(name),
        ),
        subscribe=(ALL_ANNOUNCEMENTS, inbox(name), inbox_prefix(name) + ".>"),
    )


def rights_of_invite(user: str) -> Rights:
    """Rights of whoever holds an invitation: to ask to be let in, and to hear the answer."""
    return Rights(publish=(JOIN,), subscribe=(inbox_prefix(user) + ".>",))
