"""Entries, plans and workers by name, and a log in memory: what tests of the pure core share."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any, Literal

from fedbus.rounds.fold import Round
from fedbus_schemas.log import (
    AUTHORS,
    Aborted,
    Accepted,
    AcceptedUpdate,
    Aggregated,
    Closing,
    Entry,
    Evaluated,
    FederatedScore,
    Finished,
    Member,
    Opened,
    Rejected,
    Unscored,
    Voided,
    WorkerLost,
    encode_entry,
)
from fedbus_schemas.messages import Beat, Capabilities, Progress, RunRecord
from fedbus_schemas.plan import Plan

NOW = 1_000_000.0


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


BASE = digest("base")


def opened(*workers: str, base: str | None = BASE, **changes: Any) -> Opened:
    """A round of these workers that wants all of them and has a quorum of one."""
    members = [Member(worker=name) for name in workers]
    values: dict[str, Any] = {"target": len(workers), "quorum": 1, "deadline_s": 600.0, "at": NOW}
    values |= {"plan": digest("plan"), "trace_id": "0" * 32, "span_id": "0" * 16}
    return Opened(base=base, members=members, **(values | changes))


def update(
    worker: str, attempt: str = "a", *, node: str = "0", weight: float = 1.0, **more: Any
) -> AcceptedUpdate:
    name = digest(f"{worker}/{node}/{attempt}")
    return AcceptedUpdate(
        worker=worker, node=node, attempt=attempt, digest=name, seq=1, weight=weight, bytes=10, **more
    )


def accepted(*updates: AcceptedUpdate | str) -> Accepted:
    return Accepted(at=NOW + 1, updates=[update(u) if isinstance(u, str) else u for u in updates])


def rejected(worker: str, attempt: str = "a", code: str = "bad-manifest") -> Rejected:
    return Rejected(at=NOW + 1, worker=worker, attempt=attempt, code=code, reason="no good")


def lost(worker: str, code: str = "silent") -> WorkerLost:
    return WorkerLost(at=NOW + 1, worker=worker, code=code, reason="not heard")


def closing() -> Closing:
    return Closing(at=NOW + 2, code="target", reason="have all")


def voided(worker: str) -> Voided:
    return Voided(at=NOW + 3, worker=worker, chunk=0, reason="changed in storage")


def aggregated(model: str = "model") -> Aggregated:
    return Aggregated(at=NOW + 4, model=digest(model), bytes=100, weight=1.0)


def evaluated(model: str = "model") -> Evaluated:
    return Evaluated(at=NOW + 5, model=digest(model), num_examples=10, metrics={"accuracy": 0.5})


def scored(*workers: str, failed: list[str] | None = None, model: str = "model") -> Evaluated:
    """The cohort's score of a model."""
    unscored = [Unscored(worker=name, code="failed", reason="no data") for name in failed or ()]
    score = FederatedScore(metrics={"loss": 0.5}, num_examples=10, workers=list(workers), failed=unscored)
    return Evaluated(at=NOW + 7, model=digest(model), num_examples=0, metrics={}, federated=score)


def finished() -> Finished:
    return Finished(at=NOW + 6)


def aborted() -> Aborted:
    return Aborted(at=NOW + 6, code="quorum", reason="too few")


def fold(*entries: Entry) -> Round:
    """Entries by their own authors, with sequences from 1."""
    round_ = Round()
    for seq, entry in enumerate(entries, 1):
        round_.read(seq, AUTHORS[entry.kind], encode_entry(entry))
    return round_


def said(round_: Round) -> dict[str, Any]:
    """What a round is, without where it was read and what was passed over."""
    passed_over = ("first_seq", "last_seq", "ignored")
    told = {f.name: getattr(round_, f.name) for f in fields(round_) if f.name not in passed_over}
    return {"state": round_.state, **told}


def plan(**sections: Any) -> Plan:
    return Plan.model_validate({"task": "noop"} | sections)


def record(plan_: Plan, **changes: Any) -> RunRecord:
    return RunRecord(
        name="run-1", plan=plan_, plan_digest=plan_.digest(), created_at=NOW, token="t0", **changes
    )


def beat(worker: str, *, leaving: bool = False, labels: dict[str, str] | None = None) -> Beat:
    able = Capabilities(tasks=["noop"], codecs=["int8", "dense"])
    return Beat(
        worker=worker, at=0.0, incarnation="i", capabilities=able, labels=labels or {}, leaving=leaving
    )


Phase = Literal["idle", "download", "train", "encode", "upload"]


def progress(
    worker: str, number: int, *, run: str = "run-1", node: str = "0", failed: str | None = None
) -> Progress:
    return Progress(worker=worker, node=node, run=run, round=number, phase="train", at=0.0, failed=failed)
