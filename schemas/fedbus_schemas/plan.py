"""The plan: what a person writes to start a run. Every key but `task` has a default; others are refused."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from fedbus_schemas.base import RunName, Token, Wire
from fedbus_schemas.update import MOST_DELTAS

# `digits` (an installed entry point) or `package.module:Class` (given to `join --task`).
TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.-]*(:[A-Za-z_]\w*)?$", max_length=200)]
# A float up to 1.0 is a share of the cohort, an int a count. Strict, or 1 and 1.0 would mean the same.
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
ShareOrCount = Count | Share


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse what JSON cannot carry: it would reach the workers as something else."""
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"only finite numbers, text, true, false, null, lists and mappings: {error}"
        ) from None
    return values


Params = Annotated[dict[str, Any], AfterValidator(_plain)]


def _quoted(labels: Any) -> Any:
    """Refuse what YAML made of a word without quotes, and say how to write it."""
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if isinstance(value, bool | int | float):
            raise ValueError(
                f'put the value of {name} in quotes, as in {name}: "yes"; without them YAML reads '
                "yes, no, on and off as true or false, and digits as a number"
            )
    return labels


Labels = Annotated[dict[str, str], BeforeValidator(_quoted)]

# A cohort is announced in one message of at most 2 MiB, about 60 bytes for each member.
MOST_MEMBERS = 20_000


class Named(Wire):
    """A plug-in by name, with its parameters: `fedavg`, or `{name: fedavg, ...}`."""

    name: Token
    params: Params = {}

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "params" not in value:
            return {"name": value.get("name"), "params": {k: v for k, v in value.items() if k != "name"}}
        return value


class InitialModel(Wire):
    """Where round 1 starts: the task's own initial weights, or the last model of an earlier run."""

    init: Literal["task"] | None = None
    from_run: RunName | None = Field(
        None, alias="from", description="a run, or an imported model, to start from"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> InitialModel:
        if self.init and self.from_run:
            raise ValueError("give either 'init' or 'from', not both")
        return self


class Data(Wire):
    """How shipped data is dealt out. Without it each worker trains on its own --data."""

    partition: Token = Field("iid", description="iid, dirichlet, shards or by-label")
    alpha: float = Field(1.0, gt=0, le=1e6, description="concentration of dirichlet; small is skewed")
    shards: int = Field(2, ge=1, le=1000, description="shards per part, for shards")
    parts: int = Field(1, ge=1, le=MOST_MEMBERS, description="how many parts the data is cut into")


class Cohort(Wire):
    """Who takes part in a round."""

    select: Token = "uniform"
    fraction: float = Field(1.0, gt=0, le=1, description="share of eligible workers wanted in a round")
    min: int = Field(1, ge=1, le=MOST_MEMBERS, description="a round waits until so many workers are eligible")
    over_select: float = Field(1.0, ge=1, le=10, description="invite so many times more than wanted")
    require: Labels = Field({}, description="labels that a worker must carry")


class Close(Wire):
    """When a round closes."""

    target: ShareOrCount = Field(1.0, description="close at once with so many accepted updates")
    quorum: ShareOrCount = Field(0.5, description="fewest accepted updates that make a model")
    deadline_s: float = Field(
        600.0, gt=0, le=30 * 86400, description="seconds after opening, then close or abort"
    )
    adaptive: float = Field(
        0.0, ge=0, le=1000, description="by earlier rounds: median time plus so many deviations; 0: not"
    )
    late: Literal["discard"] = "discard"


class Codecs(Wire):
    """How updates and models are encoded on the wire."""

    up: Named = Named(name="int8")
    down: Named = Named(name="dense")
    full_every: int = Field(
        20, ge=2, le=MOST_DELTAS, description="where down sends differences, so often a whole model"
    )


class Privacy(Wire):
    """No option of this section is built yet; any key in it is refused."""


class Evaluate(Wire):
    """When models are scored, and on whose data."""

    every: int = Field(1, ge=1, description="score every so many rounds, and the last")
    central: bool = Field(True, description="on the evaluator's held-out data")
    federated: bool = Field(
        False, description="by the cohort, on its own data: each member reads it once more in every round"
    )


class Limits(Wire):
    """What one worker may cost."""

    mb_per_worker: float = Field(
        1000.0, gt=0, le=1e6, description="most an update may weigh on the wire, in MB (1e6 bytes)"
    )


class Retain(Wire):
    """How many closed rounds keep their updates for replay."""

    rounds: int = Field(2, ge=0)


class Plan(Wire):
    """A run's contract."""

    task: TaskName
    rounds: int = Field(10, ge=1, le=1_000_000)
    seed: int = Field(0, ge=0, lt=2**63)
    model: InitialModel = InitialModel(init="task")
    data: Data | None = None
    cohort: Cohort = Cohort()
    close: Close = Close()
    train: Params = Field({}, description="the task's own Params")
    strategy: Named = Named(name="fedavg")
    codec: Codecs = Codecs()
    privacy: Privacy = Privacy()
    evaluate: Evaluate = Evaluate()
    limits: Limits = Limits()
    retain: Retain | Literal["all"] = Retain()

    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, in hex."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()

    @property
    def max_update_bytes(self) -> int:
        """Most bytes one worker's update may weigh."""
        return int(self.limits.mb_per_worker * 1e6)
