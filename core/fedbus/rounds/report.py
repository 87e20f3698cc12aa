"""A round and a run as the JSON that scripts may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite

from fedbus_schemas.log import AcceptedUpdate
from fedbus_schemas.messages import RunRecord
from fedbus_schemas.report import RefusalReport, RoundReport, RunReport, RunState, RunSummary, UpdateReport

from fedbus.rounds.fold import Round

MOST_UNSCORED = 5  # members named in a round's reason


def round_report(number: int, round_: Round) -> RoundReport:
    """Report one round that was opened."""
    opened, state = round_.opened, round_.state
    assert opened is not None
    assert state is not None
    end = round_.aborted or round_.aggregated
    seconds = round(end.at - opened.at, 6) if end else None
    bytes_up = sum(update.bytes for update in round_.accepted)
    return RoundReport(
        round=number,
        state=state,
        reason=_reason(round_),
        cohort=[member.worker for member in round_.members],
        accepted=len(round_.counted),
        accepted_updates=[
            UpdateReport(
                worker=u.worker, node=u.node, weight=u.weight, bytes=u.bytes, digest=u.digest, codec=u.codec
            )
            for u in round_.counted
        ],
        rejected=[RefusalReport(worker=r.worker, code=r.code, reason=r.reason) for r in round_.rejected],
        waiting=[] if round_.ended or round_.closing else [worker for worker, _ in round_.awaited],
        lost=[RefusalReport(worker=w.worker, code=w.code, reason=w.reason) for w in round_.lost],
        opened_at=iso(opened.at),
        closed_at=iso(end.at) if end else None,
        seconds=seconds,
        bytes_up=bytes_up,
        bytes_down=opened.base_bytes * len(round_.members),
        model=round_.aggregated.model if round_.aggregated else None,
        trace_id=opened.trace_id,
        metrics=round_metrics(round_),
        kpis={
            "participation": len(round_.counted) / len(round_.members),
            "mb_per_client": (bytes_up / len(round_.accepted) / 1e6 if round_.accepted else 0.0)
            + opened.base_bytes / 1e6,
        },
    )


def run_report(record: RunRecord, rounds: Mapping[int, Round], waiting: str | None = None) -> RunReport:
    """Report a run.

    Args:
        record: its record.
        rounds: its rounds' folds, by number.
        waiting: what it waits for, as the planner says.
    """
    opened = {n: r for n, r in sorted(rounds.items()) if r.opened is not None}
    made = [r.aggregated.model for r in opened.values() if r.aggregated]
    last = opened[max(opened)] if opened else None
    ended = last.aborted.reason if last and last.aborted else record.abort
    reason = ended if run_state(record, opened) == "aborted" else waiting
    return RunReport(
        run=record.name,
        state=run_state(record, opened),
        reason=reason,
        rounds=[round_report(n, r) for n, r in opened.items() if n > 0],
        model=made[-1] if made else None,
    )


def run_state(record: RunRecord, rounds: Mapping[int, Round]) -> RunState:
    """What state a run is in: that of its last round, since rounds follow one another.

    A run that the operator ended between two rounds, or before the first, has no round that says so.
    """
    if not rounds:
        return "waiting" if record.abort is None else "aborted"
    number = max(rounds)
    last = rounds[number]
    if last.aborted:
        return "aborted"
    if last.finished and number >= record.plan.rounds:
        return "finished"
    return "aborted" if last.finished and record.abort is not None else "running"


def run_summary(record: RunRecord, rounds: Mapping[int, Round]) -> RunSummary:
    """One line of a list of runs.

    Args:
        record: the run's record.
        rounds: its last rounds.
    """
    number = max(rounds, default=0)
    made = [(n, r.aggregated.model) for n, r in sorted(rounds.items()) if r.aggregated]
    scored = [r for _, r in sorted(rounds.items()) if r.evaluated or r.federated]
    return RunSummary(
        run=record.name,
        state=run_state(record, rounds),
        task=record.plan.task,
        rounds_done=number if number in rounds and rounds[number].ended else max(0, number - 1),
        rounds=record.plan.rounds,
        model=made[-1][1] if made else None,
        metrics=round_metrics(scored[-1]) if scored else {},
    )


def iso(at: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _reason(round_: Round) -> str | None:
    """What needs an explanation; a round that got all it wanted and has its score needs none."""
    if round_.aborted:
        return round_.aborted.reason
    if round_.closing and round_.closing.code != "target":
        return round_.closing.reason
    if round_.evaluated and round_.evaluated.failed:
        return f"not scored: {round_.evaluated.failed}"
    score = round_.federated.federated if round_.federated else None
    if score and score.failed:
        said = [f"{each.worker}: {each.reason}" for each in score.failed[:MOST_UNSCORED]]
        more = [f"and {len(score.failed) - len(said)} more"] if len(score.failed) > len(said) else []
        return "not scored by " + "; ".join([*said, *more])
    return None


def round_metrics(round_: Round) -> dict[str, float]:
    """Held-out metrics as they are; the workers' own, weighted by examples.

    `train_<name>` are those of their training, `federated_<name>` those of the new model on their data.
    """
    metrics = {f"train_{name}": value for name, value in _weighted(round_.counted).items()}
    if round_.federated and round_.federated.federated:
        found = round_.federated.federated.metrics
        metrics.update({f"federated_{name}": value for name, value in found.items()})
    if round_.evaluated:
        metrics.update(round_.evaluated.metrics)
    return metrics


def _weighted(updates: list[AcceptedUpdate]) -> dict[str, float]:
    names = set.intersection(*(set(u.metrics) for u in updates)) if updates else set()
    total = sum(u.weight for u in updates)
    # Weights first: peers choose both factors, and their product may be too large for a float.
    means = {name: sum(u.weight / total * u.metrics[name] for u in updates) for name in sorted(names)}
    return {name: mean for name, mean in means.items() if isfinite(mean)}
