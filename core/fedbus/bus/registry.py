"""The registry of models in FB_REGISTRY, typed."""

from __future__ import annotations

from fedbus_schemas import subjects
from fedbus_schemas.registry import ModelVersion
from pydantic import ValidationError

from fedbus.base.errors import RemoteContractError, UnknownModel, describe, nearest
from fedbus.bus.connection import Bus
from fedbus.bus.kv import Bucket


class Registry:
    """Reads and writes model versions; the evaluator is the only writer."""

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, subjects.REGISTRY_BUCKET)

    async def rounds(self) -> dict[str, list[int]]:
        """Rounds that made a model, by run; an imported model is round 0 of its name."""
        found: dict[str, list[int]] = {}
        for key in await self._bucket.keys():
            run, _, number = key.partition(".")
            if number.isdigit():
                found.setdefault(run, []).append(int(number))
        return {run: sorted(numbers) for run, numbers in found.items()}

    async def get(self, run: str, number: int) -> tuple[ModelVersion | None, int]:
        """The model of a round and its revision; None and 0 where there is none.

        Raises:
            RemoteContractError: the record is unreadable.
        """
        entry = await self._bucket.get(f"{run}.{number}")
        if entry is None:
            return None, 0
        try:
            return ModelVersion.model_validate_json(entry.value), entry.revision
        except ValidationError as error:
            raise RemoteContractError(f"model {run}/{number} is unreadable: {describe(error)}") from error

    async def find(self, run: str, number: int | None) -> ModelVersion:
        """The model of a round, or the last one of a run.

        Raises:
            UnknownModel: there is none; names the nearest.
        """
        rounds = await self.rounds()
        if run not in rounds:
            close = nearest(run, rounds)
            said = f"; did you mean {close!r}?" if close else ""
            raise UnknownModel(f"no run or imported model called {run!r} has a model{said}")
        wanted = rounds[run][-1] if number is None else number
        version, _ = await self.get(run, wanted)
        if version is None:
            raise UnknownModel(
                f"round {wanted} of {run} has no model",
                hint=f"there are those of rounds {', '.join(map(str, rounds[run][-10:]))}",
            )
        return version

    async def set(self, version: ModelVersion, revision: int) -> int | None:
        """Write a record at a revision (0: new); None: someone was faster."""
        return await self._bucket.set(version.key, version.model_dump_json().encode(), revision)
