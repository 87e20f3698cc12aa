"""Room for a round in the broker's storage: asked for before it is opened, made from what is missed least."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from fedbus.bus import Bus
from fedbus.bus.models import read_manifest
from fedbus.bus.store import AnswerTooLarge, free_bytes, list_subjects, purge
from fedbus.codec.grid import Grid
from fedbus.rounds.storage import Free, expendable, shortage
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import RunRecord

log = logging.getLogger(__name__)

# How long the broker's answer holds; meanwhile what each round may take is subtracted from it.
HOLDS_S = 2.0


class Room:
    """What is known of the broker's storage. All of it can be lost."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._model_bytes: dict[str, int] = {}  # a run's model keeps its shape
        self._free = Free(0, 0)
        self._asked_at = float("-inf")

    async def lacking(self, record: RunRecord, members: int, base: str | None, now: float) -> str | None:
        """Why a round cannot be opened yet for want of storage; None when it fits.

        Args:
            record: of its run.
            members: how many updates may come.
            base: digest of its base model; None: nobody knows yet how large the model is.
            now: seconds since 1970.
        """
        if base is None:
            return None
        if record.name not in self._model_bytes:
            manifest = await read_manifest(self._bus, base)
            self._model_bytes[record.name] = Grid.of(manifest.table).bytes
        size = self._model_bytes[record.name]
        held = 0 <= now - self._asked_at <= HOLDS_S  # a clock may be set back
        if not held or shortage(record.plan, members, size, self._free):
            asked = (free_bytes(self._bus, stream) for stream in (subjects.UPDATES, subjects.MODELS))
            self._free, self._asked_at = Free(*await asyncio.gather(*asked)), now
        lacks = shortage(record.plan, members, size, self._free)
        if lacks is None:
            self._free = self._free.after(record.plan, members, size)
        return lacks

    async def make(self, records: Mapping[str, RunRecord]) -> bool:
        """Remove the updates that are missed least, of one round; False when all that is left is needed."""
        stored: set[RoundRef] = set()
        try:
            listed = await list_subjects(self._bus, subjects.UPDATES, "fb.update.>")
        except AnswerTooLarge as error:
            log.error("cannot make room: %s", error.message, extra={"action": "room"})
            return False
        for subject in listed:
            _, _, run, number, *_ = subject.split(".")
            if number.isascii() and number.isdigit():
                stored.add(RoundRef(run, int(number)))
        for ref in expendable(stored, records):
            await purge(self._bus, subjects.UPDATES, f"fb.update.{ref.run}.{ref.number}.>")
            return True
        return False

    def forget(self, run: str) -> None:
        """A run is over."""
        self._model_bytes.pop(run, None)
