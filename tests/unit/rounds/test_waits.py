"""What is told of a run that waits to someone who only follows its rounds."""

from __future__ import annotations

from fedbus.rounds.report import run_report
from fedbus.rounds.waits import TELL_AFTER_S, Waits
from fedbus_schemas.messages import Waiting
from support.rounds import fold, opened, plan, record


def test_a_wait_that_lasts_is_told_once_and_another_again() -> None:
    waits = Waits()
    first = run_report(record(plan()), {}, Waiting(code="workers", reason="have 0 of 1"))
    other = run_report(record(plan()), {}, Waiting(code="workers", reason="have 1 of 2"))
    assert waits.news(first, 0.0) is None
    assert waits.news(first, TELL_AFTER_S) == "have 0 of 1 [workers]"
    assert waits.news(first, TELL_AFTER_S + 1) is None
    assert waits.news(other, TELL_AFTER_S + 2) == "have 1 of 2 [workers]"


def test_what_every_round_waits_for_is_no_news() -> None:
    waits = Waits()
    usual = run_report(
        record(plan()), {1: fold(opened("a"))}, Waiting(code="updates", reason="waiting for a")
    )
    assert waits.news(usual, 0.0) is None
    assert waits.news(usual, 100.0) is None
