"""A round and a run as the JSON that scripts may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite

from fedbus_schemas.log import AcceptedUpdate
from fedbus_schemas.messages import RunRecord, Waiting
from fedbus_schemas.report import RefusalReport, RoundReport, RunReport, RunState, RunSummary, UpdateReport

from fedbus.rounds.fold import Round
from fedbus.rounds.reasons import RefusalCode, UnscoredCode

NOT_SCORED = "not scored"  # begins what is said of a score that failed
MOST_NAMED = 5  # members in a reason
MOST_SAID = 300  # of each


def round_report(number: int, round_: Round) -> RoundReport:
    """Report one round that was opened."""
    opened, state = round_.opened, round_.state
    assert opened is not None
    assert state is not None
    end = round_.aborted or round_.aggregated
    seconds = round(end.at - opened.at, 6) if end else None
    bytes_up = sum(update.bytes for update in round_.accepted)
    code, reason = _why(round_)
    return RoundReport(
        round=number,
        state=state,
        code=code,
        reason=reason,
        cohort=[member.worker for member in round_.members],
        accepted=len(round_.counted),
        accepted_updates=[
            UpdateReport(
                worker=u.worker, node=u.node, weight=u.weight, bytes=u.bytes, digest=u.digest, codec=u.codec
            )
            for u in round_.counted
        ],
        rejected=_refusals(round_),
        waiting=[] if round_.ended or round_.closing else [worker for worker, _ in round_.awaited],
        lost=[RefusalReport(worker=w.worker, code=w.code, reason=w.reason) for w in round_.lost],
        excluded=[RefusalReport(worker=e.worker, code=e.code, reason=e.reason) for e in opened.excluded],
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


def run_report(record: RunRecord, rounds: Mapping[int, Round], waiting: Waiting | None = None) -> RunReport:
    """Report a run.

    Args:
        record: its record.
        rounds: its rounds' folds, by number.
        waiting: what it waits for, as the planner says.
    """
    opened = {n: r for n, r in sorted(rounds.items()) if r.opened is not None}
    made = [r.aggregated.model for r in opened.values() if r.aggregated]
    last = opened[max(opened)] if opened else None
    state = run_state(record, opened)
    code, reason = (waiting.code, waiting.reason) if waiting else (None, None)
    if state == "aborted" and last and last.aborted:
        code, reason = last.aborted.code, last.aborted.reason + _mishaps(last)
    elif state == "aborted":
        code, reason = "operator", record.abort
    return RunReport(
        run=record.name,
        state=state,
        code=code,
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


def _why(round_: Round) -> tuple[str | None, str | None]:
    """Code and sentence of what needs an explanation: not a round that got all it wanted and has its score.

    Where there are several, the code is that of the first.
    """
    found: list[tuple[str, str]] = []
    if round_.aborted:
        found.append((round_.aborted.code, round_.aborted.reason))
    elif round_.closing and round_.closing.code != "target":
        found.append((round_.closing.code, round_.closing.reason))
    unscored: UnscoredCode = "not-scored"
    if round_.evaluated and round_.evaluated.failed:
        found.append((unscored, f"{NOT_SCORED} on the evaluator's host: {round_.evaluated.failed}"))
    score = round_.federated.federated if round_.federated else None
    if score and score.failed:
        said = [f"{each.worker}: {each.reason} [{each.code}]" for each in score.failed[:MOST_NAMED]]
        more = [f"and {len(score.failed) - len(said)} more"] if len(score.failed) > len(said) else []
        found.append((unscored, f"{NOT_SCORED} by " + "; ".join([*said, *more])))
    return (found[0][0], "; ".join(reason for _, reason in found)) if found else (None, None)


def _refusals(round_: Round) -> list[RefusalReport]:
    """Updates that do not count; one that was accepted may have changed in storage."""
    voided: RefusalCode = "voided"
    return [
        *[RefusalReport(worker=r.worker, code=r.code, reason=r.reason) for r in round_.rejected],
        *[RefusalReport(worker=v.worker, code=voided, reason=v.reason) for v in round_.voided],
    ]


def _mishaps(round_: Round) -> str:
    """What became of the members of a round that ended its run: who reads it looks no further."""
    said = [f"{w.worker} lost: {w.reason} [{w.code}]" for w in round_.lost]
    said += [f"{r.worker} rejected: {r.reason} [{r.code}]" for r in _refusals(round_)]
    return "".join(f"; {mishap[:MOST_SAID]}" for mishap in said[:MOST_NAMED])


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
