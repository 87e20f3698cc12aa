"""What parties tell one another besides the log: announcements, notices, beats, progress, commands."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from fedbus_schemas.base import (
    Digest,
    NodeName,
    Reason,
    RoundNumber,
    RunName,
    Seconds,
    Token,
    Wire,
    WorkerName,
    one_line,
)
from fedbus_schemas.log import Member
from fedbus_schemas.plan import Plan


class EndedRound(Wire):
    """The last round that ended: whose update counted, so that each worker knows without reading the log."""

    round: RoundNumber
    accepted: list[WorkerName]


class Announcement(Wire):
    """A round's contract, the same for all. FB_ANNOUNCE keeps the last one per run."""

    run: RunName
    run_at: Seconds = Field(
        description="when the run was started, or restored: two hubs may give runs one name"
    )
    round: RoundNumber
    state: Literal["open", "closed"]
    over: bool = Field(False, description="no other round follows")
    plan: Plan
    plan_digest: Digest
    base: Digest | None
    members: list[Member]
    opened_at: Seconds
    deadline_s: Seconds
    traceparent: Annotated[str, StringConstraints(max_length=64)]
    ended: EndedRound | None = None
    score: Digest | None = Field(
        None, description="model that members score on their own data; all that a closed round asks for"
    )
    score_until: Seconds | None = Field(None, description="a closed round's: nobody reads later scores")


class Notice(Wire):
    """One line for one worker: a rejection and its reason, or a release."""

    run: RunName
    round: RoundNumber
    attempt: Token | None = None
    code: Token
    reason: Reason


class InboxNotices(Wire):
    """All that is open for one worker. FB_INBOX keeps the last one."""

    notices: list[Notice]


Phase = Literal["idle", "download", "evaluate", "train", "encode", "upload"]


class Capabilities(Wire):
    """What a worker's host can do."""

    tasks: list[Annotated[str, StringConstraints(max_length=200), AfterValidator(one_line)]] = Field(
        max_length=100
    )
    codecs: list[Annotated[str, StringConstraints(max_length=64)]] = Field(max_length=100)
    cpus: int = 1
    memory_mb: int = 0
    python: Annotated[str, StringConstraints(max_length=64)] = ""
    version: Annotated[str, StringConstraints(max_length=64)] = ""


class Beat(Wire):
    """A worker is there. A core message, never stored."""

    worker: WorkerName
    at: Seconds
    incarnation: Token = Field(description="random per process start: tells a restart from a pause")
    capabilities: Capabilities
    labels: dict[
        Annotated[str, StringConstraints(max_length=64), AfterValidator(one_line)],
        Annotated[str, StringConstraints(max_length=256), AfterValidator(one_line)],
    ] = Field({}, max_length=64)
    leaving: bool = False


class Progress(Wire):
    """How far a worker is with its part of a round. The first one means: taken."""

    worker: WorkerName
    node: NodeName = "0"
    run: RunName
    round: RoundNumber
    phase: Phase
    fraction: float = Field(0.0, ge=0, le=1)
    at: Seconds
    failed: Reason | None = Field(None, description="the worker gives up on this round, and why")


class LeaseHolder(Wire):
    """Which instance of a service works just now. FB_LEASES forgets it after 2 s without renewal."""

    token: Token = Field(description="random per instance")
    place: Reason = Field(description="process and host, for people")


class StartRun(Wire):
    """Command to the planner: follow this plan."""

    plan: dict[str, Any]
    name: RunName | None = None
    token: Token = Field(description="random: a repeated command starts no second run")


class Started(Wire):
    """The planner's answer."""

    run: RunName
    plan_digest: Digest


class AskReplay(Wire):
    """`fb.api.aggregator.replay`: make the model of a round again from what is stored, and compare."""

    run: RunName
    round: RoundNumber


class Replayed(Wire):
    """What came of it, with a code and a sentence; `again` is the model that comes out now, if one does."""

    run: RunName
    round: RoundNumber
    code: Token
    reason: Reason
    updates: int
    model: Digest | None
    again: Digest | None


class AskWaiting(Wire):
    """Command to the planner: what is this run waiting for?"""

    run: RunName


class Waiting(Wire):
    """What a run waits for, in a code and a sentence; nothing when it does not wait."""

    code: Token | None = None
    reason: Reason | None = None


class AbortRun(Wire):
    """Command to the planner: end this run."""

    run: RunName
    reason: Reason = "aborted by the operator"


class Aborting(Wire):
    """The planner's answer: the wish is stored, and the run ends with this reason."""

    run: RunName
    reason: Reason


class RunRecord(Wire):
    """What FB_RUNS keeps of a run: its plan, who holds which part of the data, where its open round begins.

    The run's state is not here: it is the fold of its rounds' logs.
    """

    name: RunName
    plan: Plan
    plan_digest: Digest
    created_at: Seconds
    restored_at: Seconds | None = Field(None, description="when a backup of it was restored, at the last")
    token: Token = Field(description="of the command that started it")
    open_round: RoundNumber = 0
    open_seq: int = Field(1, ge=1, description="a restarted reader of FB_ROUNDS begins here")
    partitions: dict[WorkerName, int] = Field({}, description="part of the shipped data, in join order")
    abort: Reason | None = Field(None, description="the operator's wish that the run ends, and why")
    done: bool = Field(False, description="nothing is open any more; readers need not look here")
