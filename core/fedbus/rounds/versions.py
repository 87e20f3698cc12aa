"""What the registry says of a model, from the log of the round that made it."""

from __future__ import annotations

from fedbus_schemas.ids import RoundRef
from fedbus_schemas.plan import Plan
from fedbus_schemas.registry import ModelVersion
from fedbus_schemas.report import ModelDetails, ModelReport
from fedbus_schemas.update import ModelManifest, TensorSpec

from fedbus.rounds.evaluating import wants_central
from fedbus.rounds.fold import Round
from fedbus.rounds.report import iso, round_metrics


def registrable(plan: Plan, number: int, round_: Round) -> bool:
    """Whether the round's model can be registered: it exists, and is scored where that is due.

    The cohort's score comes a round later, and is added then.
    """
    return round_.aggregated is not None and not wants_central(plan, number, round_)


def version_of(ref: RoundRef, round_: Round, plan: Plan, elements: int) -> ModelVersion:
    """The record of a round's model: the same from the same log, whoever writes it, and when."""
    opened, made = round_.opened, round_.aggregated
    assert opened is not None
    assert made is not None
    return ModelVersion(
        run=ref.run,
        round=ref.number,
        digest=made.model,
        parent=opened.base,
        task=plan.task,
        size_bytes=made.bytes,
        elements=elements,
        metrics=round_metrics(round_),
        created_at=made.at,
        source="train",
    )


def model_report(version: ModelVersion) -> ModelReport:
    """A version as scripts read it."""
    values = version.model_dump() | {"name": version.name, "created_at": iso(version.created_at)}
    return ModelReport.model_validate(values)


def model_details(version: ModelVersion, manifest: ModelManifest) -> ModelDetails:
    """A version and its tensors."""
    told = {"codec": manifest.codec, "delta": manifest.is_delta, "tensors": manifest.table}
    return ModelDetails.model_validate(model_report(version).model_dump() | told)


def misfit(table: list[TensorSpec], known: list[TensorSpec]) -> str | None:
    """The first difference between a model's tensors and those that a task is known to have, in words."""
    theirs, ours = ({tensor.name: tensor for tensor in each} for each in (table, known))
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            return f"tensor {name!r} is {_said(theirs.get(name))}, the task has {_said(ours.get(name))}"
    return None


def _said(tensor: TensorSpec | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}, {tensor.group}"
