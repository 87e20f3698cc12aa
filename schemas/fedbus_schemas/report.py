"""The JSON that scripts may rely on (golden-tested): rounds, runs, errors."""

from __future__ import annotations

from typing import Literal

from fedbus_schemas.base import Wire

RoundState = Literal["open", "closing", "aggregated", "finished", "aborted"]
RunState = Literal["waiting", "running", "finished", "aborted"]


class UpdateReport(Wire):
    """An update that counted."""

    worker: str
    node: str
    weight: float
    bytes: int
    digest: str


class RefusalReport(Wire):
    """A rejected update or a lost worker, and why."""

    worker: str
    code: str
    reason: str


class RoundReport(Wire):
    """One round. Times are ISO 8601 in UTC; bytes are what crossed the wire."""

    round: int
    state: RoundState
    reason: str | None
    cohort: list[str]
    accepted: int
    accepted_updates: list[UpdateReport]
    rejected: list[RefusalReport]
    waiting: list[str]
    lost: list[RefusalReport]
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


class ErrorBody(Wire):
    """An error as a program reads it."""

    code: str
    message: str
    hint: str | None = None


class ErrorReport(Wire):
    """What `--json` prints on failure, and what a service command answers."""

    error: ErrorBody
