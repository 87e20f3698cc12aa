"""What enroll says on `fb.event.<kind>`: for people and for tools. Nothing is decided by it."""

from __future__ import annotations

import logging

from fedbus.base.clock import Clock
from fedbus.base.errors import BusError
from fedbus.bus import Bus
from fedbus.bus.store import put
from fedbus_schemas import subjects
from fedbus_schemas.roster import EventKind, RosterEvent

log = logging.getLogger(__name__)

MOST_REASON = 2000


class Events:
    """Publishes events. One that the broker does not take is only logged: the roster says what is so."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    async def tell(
        self, kind: EventKind, code: str, reason: str, *, worker: str | None = None, invite: str | None = None
    ) -> None:
        """Log an event and publish it."""
        reason = reason[:MOST_REASON]
        about = {"action": kind, "worker": worker, "invite": invite}
        log.info("%s", reason, extra={key: value for key, value in about.items() if value})
        event = RosterEvent(
            kind=kind, at=self._clock.now(), worker=worker, invite=invite, code=code, reason=reason
        )
        try:
            await put(self._bus, subjects.event(kind), event.model_dump_json().encode())
        except BusError as error:
            log.warning("event %s was not stored: %s", kind, error, extra={"action": "event"})
