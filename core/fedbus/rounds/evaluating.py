"""Which models the evaluator scores."""

from __future__ import annotations

from fedbus_schemas.plan import Plan

from fedbus.rounds.fold import Round


def due(plan: Plan, number: int) -> bool:
    """Whether the plan wants the model of this round scored: every so many rounds, and the last."""
    if not plan.evaluate.central or number == 0:
        return False
    return number % plan.evaluate.every == 0 or number == plan.rounds


def wanting(plan: Plan, number: int, round_: Round) -> bool:
    """Whether the round has a model whose score is due and missing."""
    return due(plan, number) and round_.aggregated is not None and round_.evaluated is None
