"""The terms on which invited workers came: read from FB_ROSTER before any decision about a worker."""

from __future__ import annotations

import logging

from fedbus.bus import Bus
from fedbus.bus.kv import Bucket
from fedbus.rounds.roster import Roster
from fedbus_schemas import subjects
from fedbus_schemas.messages import Beat
from fedbus_schemas.roster import ADMITTED_KEY, SITE_LABEL, Admission
from pydantic import ValidationError

log = logging.getLogger(__name__)


class Terms:
    """Reads each worker's admission at each start of its process. It is written before the first beat."""

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, subjects.ROSTER_BUCKET)
        self._read: dict[str, str] = {}
        self._strangers: dict[str, str] = {}

    def meet(self, beat: Beat) -> None:
        """A worker was heard."""
        if self._read.get(beat.worker) != beat.incarnation:
            self._strangers[beat.worker] = beat.incarnation

    async def learn(self, roster: Roster) -> None:
        """Let the roster know the terms of all who were heard; when it returns, nobody here is unread.

        A worker that starts again and again is read once each time this is called, not for ever.
        """
        done: set[str] = set()
        while pending := [worker for worker in self._strangers if worker not in done]:
            for worker in pending:
                incarnation = self._strangers.pop(worker)
                try:
                    entry = await self._bucket.get(ADMITTED_KEY + worker)
                except BaseException:
                    self._strangers.setdefault(worker, incarnation)
                    raise
                if entry is not None and entry.value:  # an empty one was taken back
                    roster.admit(worker, _labels(worker, entry.value))
                self._read[worker] = incarnation
                done.add(worker)


def _labels(worker: str, value: bytes) -> dict[str, str]:
    try:
        admission = Admission.model_validate_json(value)
    except ValidationError:
        log.error("unreadable admission of %s: it has no site", worker, extra={"action": "terms"})
        return {SITE_LABEL: ""}
    return {**admission.labels, SITE_LABEL: admission.site}
