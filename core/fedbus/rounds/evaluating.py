"""Which models are scored, on held-out data and by their cohort, and what the cohort's scores add up to.

A federated score comes from the members of the round that starts from the model: they score it before
they train. The model of a run's last round is scored by the members of that round, once it is finished.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import fsum

from fedbus_schemas.log import Evaluated, FederatedScore, Unscored
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import EvaluationReport

from fedbus.rounds.fold import Round, Seat
from fedbus.rounds.reasons import UnscoredCode
from fedbus.rounds.roster import Roster

# How long the members of the last round have for its model, if the plan's deadline is not shorter.
LAST_SCORE_S = 300.0
# An entry is one message: so many members are named, and so much is said of each.
MOST_NAMED = 1000
MOST_SAID = 300


def due(plan: Plan, number: int) -> bool:
    """Whether the plan wants the model of this round scored: every so many rounds, and the last."""
    if number == 0 or not (plan.evaluate.central or plan.evaluate.federated):
        return False
    return number % plan.evaluate.every == 0 or number == plan.rounds


def wanting(plan: Plan, number: int, round_: Round) -> bool:
    """Whether the round has a model with a score that is due and missing."""
    return wants_central(plan, number, round_) or wants_federated(plan, number, round_)


def wants_central(plan: Plan, number: int, round_: Round) -> bool:
    """Whether its score on held-out data is due and missing."""
    missing = round_.aggregated is not None and round_.evaluated is None
    return plan.evaluate.central and due(plan, number) and missing


def wants_federated(plan: Plan, number: int, round_: Round) -> bool:
    """Whether its score by the cohort is due and missing."""
    missing = round_.aggregated is not None and round_.federated is None
    return plan.evaluate.federated and due(plan, number) and missing


def to_score(plan: Plan, number: int, round_: Round) -> str | None:
    """The model that a round's members are asked to score on their own data, if any.

    That is the base while the round is open, and the last model of a run once it is finished.
    """
    if not plan.evaluate.federated:
        return None
    if round_.finished and round_.aggregated:
        return round_.aggregated.model if number >= plan.rounds else None
    if round_.state == "open" and round_.opened and due(plan, number - 1):
        return round_.opened.base
    return None


def last_score_s(plan: Plan) -> float:
    """Seconds that a member has to score the last model."""
    return min(plan.close.deadline_s, LAST_SCORE_S)


def scoring_round(plan: Plan, number: int) -> int:
    """The round whose members score the model of round `number`: the one after it, or the last itself."""
    return number + 1 if number < plan.rounds else number


def awaited(
    plan: Plan, number: int, round_: Round, reported: Collection[Seat], roster: Roster, now: float
) -> list[Seat]:
    """Seats whose score of a model is still waited for; the wait is bounded.

    Args:
        plan: the run's.
        number: of the round that made the model.
        round_: the fold of the round whose members score it.
        reported: seats that have reported.
        roster: who is here.
        now: seconds since 1970.
    """
    missing = [(m.worker, m.node) for m in round_.members if (m.worker, m.node) not in reported]
    if number < plan.rounds:
        # Members score before they train: who has not when the round closes was not waited for either.
        return [] if round_.closing or round_.ended else missing
    if round_.finished is None:
        return missing  # they are asked once it is
    ended = round_.finished.at
    if now > ended + last_score_s(plan):
        return []
    lost = {(w.worker, w.node) for w in round_.lost}
    return [seat for seat in missing if seat not in lost and not _gone(roster, seat[0], ended, now)]


def _gone(roster: Roster, worker: str, since: float, now: float) -> bool:
    presence = roster.workers.get(worker)
    leaving = presence is not None and presence.beat.leaving
    return leaving or roster.silent(worker, since, now)


def federated_score(round_: Round, reports: Mapping[Seat, EvaluationReport]) -> FederatedScore:
    """The cohort's scores as one: each metric that all of them have, weighted by examples.

    Args:
        round_: the round whose members were asked.
        reports: what they answered; in any order, the score is the same.
    """
    obstacles = [(m, _obstacle(reports.get((m.worker, m.node)))) for m in round_.members]
    failed = [Unscored(worker=m.worker, node=m.node, code=o[0], reason=o[1]) for m, o in obstacles if o]
    scored = [r for _, r in sorted(reports.items()) if _obstacle(r) is None]
    total = sum(r.num_examples for r in scored)
    names = sorted(set.intersection(*(set(r.metrics) for r in scored))) if scored else []
    return FederatedScore(
        metrics={name: _mean([(r.metrics[name], r.num_examples / total) for r in scored]) for name in names},
        num_examples=total,
        workers=[r.worker for r in scored],
        failed=failed[:MOST_NAMED],
    )


def _mean(weighed: list[tuple[float, float]]) -> float:
    """The mean of values with their shares; finite, however large the values are."""
    values = [value for value, _ in weighed]
    scale = max(map(abs, values)) or 1.0
    mean = fsum(value / scale * share for value, share in weighed) * scale
    return min(max(mean, min(values)), max(values))


def _obstacle(report: EvaluationReport | None) -> tuple[UnscoredCode, str] | None:
    """Code and reason why a member's report is not part of the score; None: it is."""
    if report is None:
        return "no-score", "sent no score in time"
    if report.failed is not None:
        return "failed", report.failed[:MOST_SAID]
    if not report.num_examples:
        return "no-examples", "has no example to score it on"
    # It would leave no metric that all of them have.
    return None if report.metrics else ("no-metrics", "its task reports no metric")


def never_asked(round_: Round) -> FederatedScore:
    """The score of a model whose run ended before the next round asked anybody: none, and why.

    Args:
        round_: the one that made the model.
    """
    said = "the run ended before the next round, which would have asked for it"
    nobody = [Unscored(worker=m.worker, node=m.node, code="run-ended", reason=said) for m in round_.members]
    return FederatedScore(metrics={}, num_examples=0, workers=[], failed=nobody[:MOST_NAMED])


def federated_entry(at: float, model: str, score: FederatedScore) -> Evaluated:
    """The entry that says so."""
    return Evaluated(at=at, model=model, num_examples=0, metrics={}, federated=score)
