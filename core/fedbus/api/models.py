"""The models of a federation as its operator sees them: list, look at, take out, bring in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

from fedbus_schemas import subjects
from fedbus_schemas.base import is_token
from fedbus_schemas.plan import TaskName
from fedbus_schemas.registry import ImportModel, ModelVersion
from fedbus_schemas.report import ModelDetails, ModelReport
from fedbus_schemas.update import ModelManifest
from pydantic import TypeAdapter, ValidationError

from fedbus.api.refs import read_ref
from fedbus.api.tensorfile import TensorFile, open_tensors, write_tensors
from fedbus.base.errors import ConfigError, ModelRefused
from fedbus.bus import Bus
from fedbus.bus.micro import ask
from fedbus.bus.models import PublishedModel, load_values, publish_model, read_manifest
from fedbus.bus.registry import Registry
from fedbus.bus.store import free_bytes, persist
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid
from fedbus.rounds.versions import model_details, model_report

CODEC = "dense"  # an imported model travels exactly as it is
REGISTER_S = 300.0  # the evaluator reads the whole model before it registers it
EVALUATOR_WAIT_S = 10.0
BROKER_WAIT_S = 10.0  # one that reads its accounts again, as it does at each join, serves nobody for a moment
_TASK: TypeAdapter[str] = TypeAdapter(TaskName)


class Models:
    """The registry and the models that it names."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._registry = Registry(bus)

    async def versions(self, run: str | None = None) -> list[ModelReport]:
        """All models, or those of one run, oldest first.

        Raises:
            UnknownModel: the run has none.
        """
        if run is not None:
            await self._registry.find(run, None)
        rounds = await self._registry.rounds()
        found: list[ModelVersion] = []
        for name in [run] if run is not None else rounds:
            versions = [await self._registry.get(name, number) for number in rounds[name]]
            found += [version for version, _ in versions if version is not None]
        return [model_report(v) for v in sorted(found, key=lambda v: (v.created_at, v.run, v.round))]

    async def show(self, ref: str) -> ModelDetails:
        """One model and its tensors.

        Args:
            ref: `RUN` for its last model, `RUN/N`, or the name of an imported one.

        Raises:
            UnknownModel: there is none.
            ConfigError: `ref` is no such name.
        """
        version, manifest = await self._find(ref)
        return model_details(version, manifest)

    async def export(self, ref: str, path: Path) -> ModelDetails:
        """Write a model to a safetensors file.

        Raises:
            UnknownModel, ConfigError: as `show`, or the file cannot be written.
        """
        version, manifest = await self._find(ref)
        values = await load_values(self._bus, manifest)
        metadata = {
            "run": version.run,
            "round": str(version.round),
            "digest": version.digest,
            "task": version.task or "",
            "metrics": json.dumps(version.metrics),
        }
        await asyncio.to_thread(write_tensors, path, manifest.table, values, metadata)
        return model_details(version, manifest)

    async def import_file(self, path: Path, name: str | None = None) -> ModelDetails:
        """Bring a safetensors file in; a plan starts from it with `model: {from: NAME}`.

        Args:
            path: the file.
            name: of the model; the file's own by default.

        Raises:
            ConfigError: there is no such file, or the name is not one.
            ModelRefused: the file or the name cannot be taken; says why.
        """
        name = path.stem if name is None else name
        if not is_token(name):
            raise ConfigError(
                f"{name!r} cannot name a model: use letters, digits, '-' and '_', at most 64",
                hint="give --name",
            )
        with open_tensors(path) as file:
            grid = Grid.of(file.table)
            free = await persist(
                self._bus, lambda: free_bytes(self._bus, subjects.MODELS), until_s=BROKER_WAIT_S
            )
            if grid.bytes * 1.01 > free:
                said = f"{grid.bytes / 1e6:.0f} MB, the broker has {free / 1e6:.0f} MB free for models"
                raise ModelRefused(f"the model has {said}")
            # Twice: nothing is stored of a file with a value that cannot be taken at its end.
            await asyncio.to_thread(_read_through, file)
            made = await self._publish(name, file)
            command = ImportModel(name=name, digest=made.digest, task=_task_of(file))
        # The evaluator may be starting, or starting again. To register a model twice is to register it.
        version = await persist(
            self._bus,
            lambda: ask(self._bus, "evaluator", "import", command, ModelVersion, timeout_s=REGISTER_S),
            until_s=EVALUATOR_WAIT_S,
        )
        return model_details(version, made.manifest)

    async def _find(self, ref: str) -> tuple[ModelVersion, ModelManifest]:
        run, number = read_ref(ref)
        version = await self._registry.find(run, number)
        return version, await read_manifest(self._bus, version.digest)

    async def _publish(self, name: str, file: TensorFile) -> PublishedModel:
        framing = Framing(CODEC)

        async def chunks() -> AsyncGenerator[bytes]:
            spans = file.spans()
            while (found := await asyncio.to_thread(next, spans, None)) is not None:
                yield framing.encode(*found)

        return await publish_model(
            self._bus, chunks(), run=name, round=0, parent=None, codec=CODEC, table=file.table
        )


def _read_through(file: TensorFile) -> None:
    for _ in file.spans():
        pass


def _task_of(file: TensorFile) -> str | None:
    try:
        return _TASK.validate_python(file.metadata.get("task"))
    except ValidationError:
        return None  # nothing depends on it
