"""The registry of models: one record for each model that a run made or an operator imported.

FB_REGISTRY keeps them under `<run>.<round>`; an imported model is round 0 of its name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from fedbus_schemas.base import Digest, Finite, RoundNumber, RunName, Seconds, Wire
from fedbus_schemas.plan import TaskName

# Those of a round's report: held-out, `federated_` and `train_` metrics together.
AllMetrics = Annotated[dict[Annotated[str, StringConstraints(max_length=128)], Finite], Field(max_length=256)]


class ModelVersion(Wire):
    """A model, where it comes from, and how good it is."""

    run: RunName
    round: RoundNumber
    digest: Digest
    parent: Digest | None
    task: TaskName | None = Field(description="task that it was trained for, where that is known")
    size_bytes: int = Field(ge=1, description="what the model weighs on the wire, manifest included")
    elements: int = Field(ge=1)
    metrics: AllMetrics = {}
    created_at: Seconds
    source: Literal["train", "import"]

    @property
    def key(self) -> str:
        """Where the registry keeps it."""
        return f"{self.run}.{self.round}"

    @property
    def name(self) -> str:
        """As people write it: `run-0007/3`, or the name alone of an imported model."""
        return self.run if self.source == "import" else f"{self.run}/{self.round}"


class ImportModel(Wire):
    """Command to the evaluator: register a model that is stored under its digest, under a new name."""

    name: RunName
    digest: Digest
    task: TaskName | None = None
