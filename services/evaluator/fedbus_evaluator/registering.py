"""Writing the registry: the models that runs make, and those that the operator imports."""

from __future__ import annotations

import asyncio
import logging
import re

from fedbus.base.clock import Clock
from fedbus.base.errors import CodecError, ModelRefused, RemoteContractError, StreamMissing
from fedbus.bus import Bus
from fedbus.bus.models import check_values, read_manifest
from fedbus.bus.registry import Registry
from fedbus.bus.runs import Runs
from fedbus.codec.grid import Grid
from fedbus.rounds.fold import Round
from fedbus.rounds.report import round_metrics
from fedbus.rounds.versions import version_of
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.plan import Plan
from fedbus_schemas.registry import ImportModel, ModelVersion
from fedbus_schemas.update import ModelManifest

log = logging.getLogger(__name__)


class Registering:
    """The one writer of FB_REGISTRY. Everything that it remembers can be lost."""

    def __init__(self, bus: Bus, runs: Runs, clock: Clock) -> None:
        self._bus = bus
        self._runs = runs
        self._clock = clock
        self._registry = Registry(bus)
        self._scores: dict[RoundRef, tuple[bool, bool]] = {}  # which of the two kinds a record has
        self._elements: dict[str, int] = {}
        self._importing = asyncio.Lock()

    async def missing(self, run: str, numbers: range) -> list[int]:
        """Rounds of a run without a record."""
        have = set((await self._registry.rounds()).get(run, ()))
        return [number for number in numbers if number not in have]

    def is_registered(self, ref: RoundRef, round_: Round) -> bool:
        """Whether the record of the round's model says all that its log says."""
        return round_.aggregated is None or self._scores.get(ref) == _scores(round_)

    async def register(self, ref: RoundRef, round_: Round, plan: Plan) -> None:
        """Write the record of a round's model, where it is missing or lacks a score; once.

        Raises:
            BusError: the broker did not do it.
        """
        made = round_.aggregated
        assert made is not None
        about = {"action": "register", "run": ref.run, "round": ref.number}
        stored: ModelVersion | None = None
        revision = 0  # most likely there is none
        while not self.is_registered(ref, round_):
            scores, metrics = _scores(round_), round_metrics(round_)
            try:
                if stored is not None and stored.digest != made.model:
                    raise ModelRefused(f"an imported model is called {ref.run!r}")
                if stored is None or stored.metrics != metrics:
                    version = version_of(ref, round_, plan, await self._size_of(ref.run, made.model))
                    if await self._registry.set(version, revision) is None:
                        stored, revision = await self._registry.get(ref.run, ref.number)
                        continue
                    log.info("registered", extra=about)
            except (ModelRefused, StreamMissing, CodecError, RemoteContractError) as error:
                log.error("model not registered: %s", error, extra=about)
            self._scores[ref] = scores

    async def _size_of(self, run: str, model: str) -> int:
        """Elements of a run's models: all have the same tensors."""
        if run not in self._elements:
            self._elements[run] = Grid.of((await read_manifest(self._bus, model)).table).size
        return self._elements[run]

    def forget(self, run: str, before: int) -> None:
        """Free what is remembered of a run's rounds below a number."""
        for ref in [r for r in self._scores if r.run == run and r.number < before]:
            del self._scores[ref]

    async def import_model(self, data: bytes) -> ModelVersion:
        """Answer the command: check a stored model, every chunk of it, and register it under a new name.

        Raises:
            ModelRefused: the name is taken, or the model is not whole.
        """
        command = ImportModel.model_validate_json(data)
        async with self._importing:
            known = await self._check_name(command)
            if known is not None:
                return known
            manifest = await self._check_model(command)
            version = ModelVersion(
                run=command.name,
                round=0,
                digest=command.digest,
                parent=None,
                task=command.task,
                size_bytes=len(manifest.pack()) + (manifest.size_bytes if manifest.body is None else 0),
                elements=Grid.of(manifest.table).size,
                created_at=self._clock.now(),
                source="import",
            )
            if await self._registry.set(version, 0) is None:
                raise ModelRefused(f"a model called {command.name!r} was registered meanwhile")
        log.info("imported %s", command.name, extra={"action": "import"})
        return version

    async def _check_name(self, command: ImportModel) -> ModelVersion | None:
        """The model if it was imported before."""
        name = command.name
        if re.fullmatch(r"run-[0-9]+", name):
            raise ModelRefused(f"{name!r} is a name that a run may get", hint="choose another --name")
        if name in await self._runs.names():
            raise ModelRefused(f"a run called {name!r} exists", hint="choose another --name")
        stored, _ = await self._registry.get(name, 0)
        if stored is not None and stored.digest != command.digest:
            raise ModelRefused(f"another model is called {name!r}", hint="choose another --name")
        return stored

    async def _check_model(self, command: ImportModel) -> ModelManifest:
        try:
            manifest = await read_manifest(self._bus, command.digest)
            if (manifest.run, manifest.round, manifest.parent) != (command.name, 0, None):
                raise ModelRefused("the manifest is that of another model")
            await check_values(self._bus, manifest)
        except (StreamMissing, CodecError, RemoteContractError) as error:
            raise ModelRefused(f"the model is not whole: {error.message}") from error
        return manifest


def _scores(round_: Round) -> tuple[bool, bool]:
    # All else that a record says is settled when the model is made.
    return round_.evaluated is not None, round_.federated is not None
