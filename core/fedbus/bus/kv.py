"""A key-value bucket over its stream: read from the leader, written by compare-and-set.

The layout is that of NATS key-value (`KV_<bucket>`, `$KV.<bucket>.<key>`), so that the
ordinary tools show it. Deletions are not used.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fedbus.bus.connection import Bus
from fedbus.bus.store import READS_IN_FLIGHT, WRONG_LAST, JetStreamError, leader_get, list_subjects, put


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and the revision it was read at."""

    key: str
    value: bytes
    revision: int


class Bucket:
    """One bucket. Each has one writer, but two instances of it may run."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name

    async def get(self, key: str) -> Entry | None:
        """The value of a key, or None."""
        found = await leader_get(self._bus, f"KV_{self._name}", {"last_by_subj": self._subject(key)})
        return None if found is None else Entry(key, found[2], found[0])

    async def set(self, key: str, value: bytes, revision: int) -> int | None:
        """Write where the key still has this revision (0: does not exist); None: someone was faster."""
        try:
            return await put(self._bus, self._subject(key), value, expected=revision)
        except JetStreamError as error:
            if error.err_code == WRONG_LAST:
                return None
            raise

    async def keys(self) -> list[str]:
        """All keys, sorted."""
        prefix = self._subject("")
        subjects = await list_subjects(self._bus, f"KV_{self._name}", self._subject(">"))
        return sorted(subject.removeprefix(prefix) for subject in subjects)

    async def all(self, prefix: str = "") -> list[Entry]:
        """Every key that begins so, with its value; sorted."""
        chosen = [key for key in await self.keys() if key.startswith(prefix)]
        found: list[Entry] = []
        for i in range(0, len(chosen), READS_IN_FLIGHT):
            some = await asyncio.gather(*(self.get(key) for key in chosen[i : i + READS_IN_FLIGHT]))
            found += [entry for entry in some if entry is not None]
        return found

    def _subject(self, key: str) -> str:
        return f"$KV.{self._name}.{key}"
