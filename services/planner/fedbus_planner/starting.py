"""The model that a run starts from: the last one of an earlier run, or one that the operator imported."""

from __future__ import annotations

from fedbus.base.errors import PlanRefused, UnknownRun
from fedbus.bus import Bus
from fedbus.bus.log import read_round
from fedbus.bus.models import download_bytes, read_manifest
from fedbus.bus.registry import Registry
from fedbus.bus.runs import Runs
from fedbus.rounds.versions import misfit
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.plan import Plan
from fedbus_schemas.registry import ModelVersion


async def model_to_start_from(bus: Bus, name: str) -> tuple[str, int]:
    """Digest and size of the model that `model: {from: NAME}` means.

    Raises:
        UnknownRun: neither a run nor an imported model is called so.
        PlanRefused: the run has made no model.
    """
    try:
        record, _ = await Runs(bus).get(name)
    except UnknownRun:
        imported = await _imported(bus, name)
        if imported is None:
            raise
        return imported.digest, imported.size_bytes
    last = record.open_round
    while (await read_round(bus, RoundRef(name, last + 1))).opened:
        last += 1  # an open run's record is a little behind
    for number in range(last, -1, -1):
        made = (await read_round(bus, RoundRef(name, number))).aggregated
        if made:
            # Nobody needs to have any model of that run.
            return made.model, await download_bytes(bus, made.model)
    raise PlanRefused(f"model.from: run {name} has made no model")


async def admit_start(bus: Bus, plan: Plan, digest: str) -> None:
    """Check the tensors of a model to start from, where it is known which ones the task has.

    They are where a run had the same task with the same parameters. Else the workers find out.

    Raises:
        PlanRefused: they differ; names the first tensor that does.
    """
    runs, registry = Runs(bus), Registry(bus)
    made = await registry.rounds()
    records = [(await runs.get(name))[0] for name in await runs.names() if name in made]
    alike = [r for r in records if (r.plan.task, r.plan.train) == (plan.task, plan.train)]
    if not alike:
        return
    known = await registry.find(max(alike, key=lambda record: record.created_at).name, None)
    wrong = misfit(*[(await read_manifest(bus, each)).table for each in (digest, known.digest)])
    if wrong:
        said = f"{plan.model.from_run} does not fit task {plan.task}, as in {known.name}"
        raise PlanRefused(f"model.from: {said}: {wrong}")


async def refuse_imported(bus: Bus, name: str) -> None:
    """Refuse a run's name that an imported model has.

    Raises:
        PlanRefused: it has.
    """
    if await _imported(bus, name) is not None:
        raise PlanRefused(f"an imported model is called {name!r}", hint="choose another --name")


async def _imported(bus: Bus, name: str) -> ModelVersion | None:
    version, _ = await Registry(bus).get(name, 0)
    return version if version is not None and version.source == "import" else None
