"""What is shown of a run while it goes on."""

from __future__ import annotations

from fedbus.cli.display import BAR, RunView
from fedbus.rounds.report import run_report
from support.rounds import accepted, fold, lost, opened, plan, progress, record, rejected


def _far(worker: str, number: int, fraction: float, run: str = "run-1"):  # type: ignore[no-untyped-def]
    return progress(worker, number, run=run).model_copy(update={"fraction": fraction})


def test_each_member_of_the_open_round_has_a_line() -> None:
    view = RunView("run-1")
    round_ = fold(opened("a", "b", "c", "d", "e"), accepted("a"), lost("b"), rejected("c"))
    view.report = run_report(record(plan()), {1: round_})
    view.hear(_far("d", 1, 0.5))
    view.hear(_far("e", 1, 0.9, run="other"))
    a, b, c, d, e = view.lines()
    assert a.endswith("counted")
    assert b.endswith("lost: not heard")
    assert c.endswith("rejected: no good")
    assert d.endswith("train 50%")
    assert d.count("━") == BAR // 2
    assert e.endswith("waiting")


def test_progress_of_an_earlier_round_is_forgotten() -> None:
    view = RunView("run-1")
    view.hear(_far("a", 1, 1.0))
    view.report = run_report(record(plan()), {2: fold(opened("a"))})
    assert view.lines()[0].endswith("waiting")


def test_the_first_model_is_made_before_the_first_round() -> None:
    view = RunView("run-1")
    assert view.lines() == []
    view.report = run_report(record(plan()), {0: fold(opened("a", base=None))})
    view.hear(_far("a", 0, 0.25))
    assert view.lines()[0].endswith("train 25%")


def test_a_large_cohort_is_cut_short() -> None:
    view = RunView("run-1")
    view.report = run_report(record(plan()), {1: fold(opened(*[f"w{i}" for i in range(100)]))})
    assert len(view.lines()) == 17
    assert view.lines()[-1] == "  and 84 more"
