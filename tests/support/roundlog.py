"""The log of a round as the stream has it, read by the client's plainest means."""

from __future__ import annotations

from fedbus.bus import Bus
from fedbus.bus.log import Stored
from fedbus.bus.store import leader_get
from fedbus_schemas import subjects


async def entries(bus: Bus, run: str, number: int) -> list[Stored]:
    """All entries of a round, in order."""
    found: list[Stored] = []
    pattern, seq = subjects.log_of(run, number), 1
    while last := await leader_get(bus, subjects.ROUNDS, {"seq": seq, "next_by_subj": pattern}):
        found.append(Stored(*last))
        seq = last[0] + 1
    return found
