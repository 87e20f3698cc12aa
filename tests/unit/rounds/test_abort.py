"""A run that its operator ends: what the planner does about it, and what reports say."""

from __future__ import annotations

import pytest
from fedbus.rounds.fold import Round
from fedbus.rounds.planning import Announce, Append, Done, Following, Step, next_step
from fedbus.rounds.report import run_report
from fedbus.rounds.roster import Roster
from fedbus.selection.uniform import Uniform
from fedbus_schemas.log import Aborted, Entry, Finished
from fedbus_schemas.messages import Waiting
from support.rounds import (
    NOW,
    accepted,
    aggregated,
    beat,
    closing,
    finished,
    fold,
    opened,
    plan,
    record,
)

WISH = "wrong data"


def _step(rounds: dict[int, Round], following: Following | None = None, **changes: object) -> Step:
    known = record(plan(), abort=WISH).model_copy(update=changes)
    roster = Roster()
    roster.hear(beat("w1"), NOW)
    return next_step(known, rounds, following or Following(NOW), roster, Uniform().choose, NOW)


@pytest.mark.parametrize(
    "entries", [(opened("w1"),), (opened("w1"), accepted("w1")), (opened("w1"), accepted("w1"), closing())]
)
def test_the_open_round_is_aborted_and_then_everyone_is_told(entries: tuple[Entry, ...]) -> None:
    step = _step({1: fold(*entries)})
    assert isinstance(step, Append)
    assert isinstance(step.entry, Aborted)
    assert (step.number, step.entry.code, step.entry.reason) == (1, "operator", WISH)
    ended = {1: fold(*entries, step.entry)}
    assert _step(ended) == Announce(1, "closed")
    assert _step(ended, Following(NOW, announced=(1, "closed"))) == Done()


def test_a_model_that_was_made_is_kept() -> None:
    made = fold(opened("w1"), accepted("w1"), closing(), aggregated())
    step = _step({1: made})
    assert isinstance(step, Append)
    assert isinstance(step.entry, Finished)


def test_between_two_rounds_and_before_the_first_nothing_is_opened() -> None:
    over = fold(opened("w1"), accepted("w1"), closing(), aggregated(), finished())
    assert _step({1: over}, Following(NOW, announced=(1, "closed"))) == Done()
    assert _step({}) == Done()


def test_a_round_that_another_planner_opened_meanwhile_is_aborted_too() -> None:
    step = _step({1: fold(opened("w1"))}, done=True)
    assert isinstance(step, Append)
    assert isinstance(step.entry, Aborted)


def test_reports_say_so() -> None:
    wish = record(plan(rounds=2), abort=WISH)
    over = fold(opened("w1"), accepted("w1"), closing(), aggregated(), finished())
    waits = Waiting(code="workers", reason="waits")
    said = [run_report(wish, rounds, waits) for rounds in ({}, {1: over}, {1: over, 2: over})]
    assert [(r.state, r.code, r.reason) for r in said[:2]] == [("aborted", "operator", WISH)] * 2
    assert said[2].state == "finished", "it had reached its end before"
    still = run_report(wish, {1: fold(opened("w1"))})
    assert still.state == "running", "until the log says otherwise"
