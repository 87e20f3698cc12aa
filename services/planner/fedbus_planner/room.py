"""Room for a round in the broker's storage: asked for before it is opened, made from what is missed least."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fedbus.bus import Bus
from fedbus.bus.models import read_manifest
from fedbus.bus.store import free_bytes, list_subjects, purge
from fedbus.codec.grid import Grid
from fedbus.rounds.storage import expendable, shortage
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import RunRecord


async def lacking(bus: Bus, record: RunRecord, members: int, base: str | None) -> str | None:
    """Why a round cannot be opened yet for want of storage; None when it fits."""
    if base is None:
        return None  # nobody knows yet how large the model is
    manifest, updates, models = await asyncio.gather(
        read_manifest(bus, base), free_bytes(bus, subjects.UPDATES), free_bytes(bus, subjects.MODELS)
    )
    return shortage(record.plan, members, Grid.of(manifest.table).bytes, updates, models)


async def make_room(bus: Bus, records: Mapping[str, RunRecord]) -> bool:
    """Remove the updates that are missed least, of one round; False when all that is left is needed."""
    stored: set[RoundRef] = set()
    for subject in await list_subjects(bus, subjects.UPDATES, "fb.update.>"):
        _, _, run, number, *_ = subject.split(".")
        if number.isascii() and number.isdigit():
            stored.add(RoundRef(run, int(number)))
    for ref in expendable(stored, records):
        await purge(bus, subjects.UPDATES, f"fb.update.{ref.run}.{ref.number}.>")
        return True
    return False
