"""The JSON that scripts may rely on (golden-tested): rounds, runs, errors."""

from __future__ import annotations

from typing import Literal

from fedbus_schemas.base import Wire
from fedbus_schemas.update import TensorSpec

RoundState = Literal["open", "closing", "aggregated", "finished", "aborted"]
RunState = Literal["waiting", "running", "finished", "aborted"]


class UpdateReport(Wire):
    """An update that counted."""

    worker: str
    node: str
    weight: float
    bytes: int
    digest: str
    codec: str | None


class RefusalReport(Wire):
    """A rejected update, a lost or an excluded worker, and why."""

    worker: str
    code: str
    reason: str


class RoundReport(Wire):
    """One round. Times are ISO 8601 in UTC; bytes are what crossed the wire."""

    round: int
    state: RoundState
    code: str | None = None
    reason: str | None
    cohort: list[str]
    accepted: int
    accepted_updates: list[UpdateReport]
    rejected: list[RefusalReport]
    waiting: list[str]
    lost: list[RefusalReport]
    excluded: list[RefusalReport] = []
    opened_at: str
    closed_at: str | None
    seconds: float | None
    bytes_up: int
    bytes_down: int
    model: str | None
    trace_id: str
    metrics: dict[str, float]
    kpis: dict[str, float]


class RunReport(Wire):
    """One run and its rounds. Round 0, in which the first model is made, is not listed."""

    run: str
    state: RunState
    code: str | None = None
    reason: str | None = None
    rounds: list[RoundReport]
    model: str | None


class RunSummary(Wire):
    """One line of `round list`."""

    run: str
    state: RunState
    task: str
    rounds_done: int
    rounds: int
    model: str | None
    metrics: dict[str, float]


class ModelReport(Wire):
    """One model of the registry; `name` is what other commands and plans take."""

    name: str
    run: str
    round: int
    digest: str
    parent: str | None
    task: str | None
    size_bytes: int
    elements: int
    metrics: dict[str, float]
    created_at: str
    source: Literal["train", "import"]


class ModelDetails(ModelReport):
    """A model and its tensors, in the order in which they travel; `delta`: as a difference to its parent."""

    codec: str
    delta: bool = False
    tensors: list[TensorSpec]


class SpanEventReport(Wire):
    """Something that happened within a span, such as a stored chunk."""

    name: str
    at: str
    attributes: dict[str, str | int | float]


class SpanReport(Wire):
    """One part of a round: who did what, when, and why it failed if it did. Times are ISO 8601 in UTC."""

    name: str
    service: str
    worker: str | None
    span_id: str
    parent_id: str | None
    start: str
    end: str
    attributes: dict[str, str | int | float]
    events: list[SpanEventReport]
    error: str | None = None


class TraceReport(Wire):
    """The trace of one round, from its root down."""

    trace_id: str
    spans: list[SpanReport]


class PathStepReport(Wire):
    """A part of a round's critical path. `share` is of the round."""

    name: str
    party: str
    seconds: float
    share: float


class PaceReport(Wire):
    """How one member came along in a round.

    `settled_s` is how long after the opening the log said so, `phases` the seconds that it spent in each.
    `clock_s` is how far its clock is ahead of the log's at the least; 0 where nothing says that it is off.
    """

    worker: str
    node: str
    outcome: str
    settled_s: float | None
    phases: dict[str, float]
    clock_s: float


class HintReport(Wire):
    """What would have made a round faster."""

    code: str
    reason: str
    saves_s: float


class ExplainReport(Wire):
    """Where the time of a round went; `last` is the worker that it waited for at the end, or waits for."""

    run: str
    round: int
    state: RoundState
    code: str | None
    reason: str | None
    seconds: float
    path: list[PathStepReport]
    last: str | None
    last_did: str | None
    workers: list[PaceReport]
    hints: list[HintReport]


class BackupReport(Wire):
    """A backup that was made; `stopped_s` is how long the broker stood still for it."""

    backup: str
    files: int
    bytes: int
    seconds: float
    stopped_s: float


class RestoreReport(Wire):
    """A stack that was made from a backup, and which of its runs go on. `made_at`: seconds since 1970."""

    folder: str
    bytes: int
    made_at: float
    open_runs: list[str]


class ErrorBody(Wire):
    """An error as a program reads it."""

    code: str
    message: str
    hint: str | None = None


class ErrorReport(Wire):
    """What `--json` prints on failure, and what a service command answers."""

    error: ErrorBody
