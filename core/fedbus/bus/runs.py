"""The records of runs in FB_RUNS, typed."""

from __future__ import annotations

from fedbus_schemas import subjects
from fedbus_schemas.messages import RunRecord
from pydantic import ValidationError

from fedbus.base.errors import RemoteContractError, UnknownRun, describe, nearest
from fedbus.bus.connection import Bus
from fedbus.bus.kv import Bucket


class Runs:
    """Reads and writes run records; the planner is the only writer."""

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, subjects.RUNS_BUCKET)

    async def names(self) -> list[str]:
        """All runs, sorted."""
        return await self._bucket.keys()

    async def get(self, run: str) -> tuple[RunRecord, int]:
        """A run's record and its revision.

        Raises:
            UnknownRun: there is no such run; the message names the nearest.
        """
        entry = await self._bucket.get(run)
        if entry is None:
            close = nearest(run, await self.names())
            raise UnknownRun(f"no run is called {run!r}" + (f"; did you mean {close!r}?" if close else ""))
        try:
            return RunRecord.model_validate_json(entry.value), entry.revision
        except ValidationError as error:
            raise RemoteContractError(f"record of {run} is unreadable: {describe(error)}") from error

    async def set(self, record: RunRecord, revision: int) -> int | None:
        """Write a record at a revision (0: new); None: someone was faster."""
        return await self._bucket.set(record.name, record.model_dump_json(by_alias=True).encode(), revision)
