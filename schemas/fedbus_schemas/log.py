"""The round log: what may be appended, by whom, and the key that makes an append recognisable.

A round is the fold of these entries. Each is published on `fb.round.<run>.<n>.log.<author>`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from fedbus_schemas.base import Digest, Finite, Metrics, NodeName, Reason, Seconds, Token, Wire, WorkerName
from fedbus_schemas.subjects import Service


class Member(Wire):
    """One seat in a cohort: a node on a worker, with the part of shipped data it trains on."""

    worker: WorkerName
    node: NodeName = "0"
    partition: int | None = None


class AcceptedUpdate(Wire):
    """An update that counts: every chunk was read, hashed, decoded and found finite."""

    worker: WorkerName
    node: NodeName = "0"
    attempt: Token
    digest: Digest = Field(description="SHA-256 of the manifest's bytes")
    seq: int = Field(description="the manifest's sequence in FB_UPDATES")
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    bytes: int = Field(ge=0, description="what the update weighed on the wire, manifest included")
    metrics: Metrics = {}
    codec: Token | None = Field(None, description="the plan's, or the worker's choice where it says auto")

    @property
    def key(self) -> str:
        """What makes this acceptance the same acceptance."""
        return f"accepted:{self.worker}:{self.node}:{self.attempt}:{self.digest}"


class _Entry(Wire):
    at: Seconds = Field(description="the author's wall clock, seconds since 1970")


class Excluded(Wire):
    """A worker that could not be in a cohort, and why."""

    worker: WorkerName
    code: Token
    reason: Reason


class Opened(_Entry):
    """The round's contract. Appended once, first."""

    kind: Literal["opened"] = "opened"
    plan: Digest
    base: Digest | None = Field(
        description="model the round starts from; none means the cohort makes the first"
    )
    base_bytes: int = 0
    members: list[Member] = Field(min_length=1)
    target: int = Field(ge=1)
    quorum: int = Field(ge=1)
    deadline_s: Seconds
    trace_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    span_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    excluded: list[Excluded] = Field([], max_length=100, description="who could not be a member")

    @property
    def keys(self) -> list[str]:
        """An entry's deterministic keys; one for all kinds but `accepted`."""
        return ["opened"]


class Accepted(_Entry):
    """Updates that count, in the order in which they are folded."""

    kind: Literal["accepted"] = "accepted"
    updates: list[AcceptedUpdate] = Field(min_length=1)

    @property
    def keys(self) -> list[str]:
        """One key for each update."""
        return [update.key for update in self.updates]


class Rejected(_Entry):
    """An update that does not count, and why."""

    kind: Literal["rejected"] = "rejected"
    worker: WorkerName
    node: NodeName = "0"
    attempt: Token
    code: Token
    reason: Reason

    @property
    def keys(self) -> list[str]:
        """One verdict for each attempt."""
        return [f"rejected:{self.worker}:{self.node}:{self.attempt}"]


class WorkerLost(_Entry):
    """A member that is no longer waited for. If its update still arrives in time, it counts."""

    kind: Literal["worker-lost"] = "worker-lost"
    worker: WorkerName
    node: NodeName = "0"
    code: Token
    reason: Reason

    @property
    def keys(self) -> list[str]:
        """A member is lost once."""
        return [f"worker-lost:{self.worker}:{self.node}"]


class Closing(_Entry):
    """The cut-off: the accepted set is what stands before this entry."""

    kind: Literal["closing"] = "closing"
    code: Token
    reason: Reason

    @property
    def keys(self) -> list[str]:
        """A round closes once."""
        return ["closing"]


class Voided(_Entry):
    """An accepted update whose stored bytes changed afterwards; it is left out of the fold."""

    kind: Literal["voided"] = "voided"
    worker: WorkerName
    node: NodeName = "0"
    chunk: int | None = Field(None, description="which one reads differently; none: the manifest")
    reason: Reason

    @property
    def keys(self) -> list[str]:
        """An update is voided once."""
        return [f"voided:{self.worker}:{self.node}"]


class Aggregated(_Entry):
    """The round made a model."""

    kind: Literal["aggregated"] = "aggregated"
    model: Digest
    bytes: int = Field(ge=0, description="what the model weighs on the wire")
    weight: Finite = Field(description="sum of the folded weights")

    @property
    def keys(self) -> list[str]:
        """A round makes one model."""
        return ["aggregated"]


class Unscored(Wire):
    """A member that has no score of a model, and why."""

    worker: WorkerName
    node: NodeName = "0"
    code: Token
    reason: Reason


class FederatedScore(Wire):
    """How good a model is on its cohort's own data, weighted by examples."""

    metrics: Metrics
    num_examples: int = Field(ge=0)
    workers: list[WorkerName] = Field(description="whose scores are in it")
    failed: list[Unscored] = []


class Evaluated(_Entry):
    """The model was scored, or could not be, and why: on held-out data, or by its cohort (`federated`).

    The two are entries of their own, since each comes when it is ready, or not at all.
    """

    kind: Literal["evaluated"] = "evaluated"
    model: Digest
    num_examples: int = Field(ge=0)
    metrics: Metrics
    failed: Reason | None = None
    federated: FederatedScore | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Evaluated:
        if self.federated and (self.num_examples or self.metrics or self.failed):
            raise ValueError("an entry has a held-out score or a federated one, not both")
        return self

    @property
    def keys(self) -> list[str]:
        """A model is scored once per round, in each of the two ways."""
        return [f"{'evaluated-federated' if self.federated else 'evaluated'}:{self.model}"]


class Finished(_Entry):
    """The round is over and has a model."""

    kind: Literal["finished"] = "finished"

    @property
    def keys(self) -> list[str]:
        """A round ends once."""
        return ["finished"]


class Aborted(_Entry):
    """The round is over and has no model."""

    kind: Literal["aborted"] = "aborted"
    code: Token
    reason: Reason

    @property
    def keys(self) -> list[str]:
        """A round ends once."""
        return ["aborted"]


Entry = (
    Opened | Accepted | Rejected | WorkerLost | Closing | Voided | Aggregated | Evaluated | Finished | Aborted
)
_ADAPTER: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])

# Who may append what. The broker lets a service publish on its own leaf only; the fold skips anything else.
AUTHORS: dict[str, Service] = {
    "opened": "planner",
    "worker-lost": "planner",
    "closing": "planner",
    "finished": "planner",
    "aborted": "planner",
    "accepted": "aggregator",
    "rejected": "aggregator",
    "voided": "aggregator",
    "aggregated": "aggregator",
    "evaluated": "evaluator",
}


def encode_entry(entry: Entry) -> bytes:
    """Write an entry as the UTF-8 JSON that the log keeps."""
    return entry.model_dump_json().encode()


def decode_entry(data: bytes) -> Entry:
    """Read an entry.

    Raises:
        pydantic.ValidationError: the bytes are not an entry.
    """
    return _ADAPTER.validate_json(data)
