"""What is shown of a run while it goes on."""

from __future__ import annotations

from io import StringIO

from fedbus.cli.display import BAR, RunView, log_lines
from fedbus.cli.output import MOST_LINES, run_details
from fedbus.rounds.report import run_report
from fedbus_schemas.log import Excluded
from fedbus_schemas.messages import Waiting
from fedbus_schemas.report import RunReport
from rich.console import Console
from support.rounds import (
    aborted,
    accepted,
    aggregated,
    closing,
    evaluated,
    finished,
    fold,
    lost,
    opened,
    plan,
    progress,
    record,
    rejected,
)


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
    assert b.endswith("lost: not heard [silent]")
    assert c.endswith("rejected: no good [bad-manifest]")
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


def _wait(code: str, reason: str) -> Waiting:
    return Waiting(code=code, reason=reason)


def test_a_log_has_a_line_for_each_wait_exclusion_loss_and_rejection_once() -> None:
    out = Excluded(worker="z", code="task", reason="task noop is not installed there")
    first = fold(opened("a", "b", "c", excluded=[out]), lost("b"), rejected("c"))
    second = fold(opened("a", excluded=[out]), accepted("a"), closing(), aggregated(), finished())
    run = record(plan())
    shown = [
        run_report(run, {}, _wait("workers", "have 0 of 1 eligible workers")),
        run_report(run, {1: first}, _wait("updates", "waiting for a: have 0 of 3 updates")),
        run_report(run, {1: first, 2: second}, _wait("aggregator-behind", "updates of a are stored")),
    ]
    told = list(dict.fromkeys(line for report in shown for line in log_lines(report)))
    assert told == [
        "run-1 waits: have 0 of 1 eligible workers [workers]",
        "run-1/1: z excluded: task noop is not installed there [task]",
        "run-1/1: b lost: not heard [silent]",
        "run-1/1: c rejected: no good [bad-manifest]",
        "run-1 waits: updates of a are stored [aggregator-behind]",
        "run-1/2 finished: 1/1 updates, 4.00 s",
    ]


def test_a_run_without_a_round_has_no_table_and_a_long_list_of_mishaps_is_cut() -> None:
    waits = run_report(record(plan()), {}, _wait("workers", "have 0 of 1 eligible workers"))
    assert _printed(waits) == ["run-1: waiting: have 0 of 1 eligible workers [workers]"]
    many = [f"w{i}" for i in range(MOST_LINES + 2)]
    lines = _printed(run_report(record(plan()), {1: fold(opened("a", *many), *map(lost, many))}))
    assert lines[-MOST_LINES - 1 :: MOST_LINES] == [
        "2 more before these: fedbus round show run-1/N",
        f"run-1/1: {many[-1]} lost: not heard [silent]",
    ]


def _printed(report: RunReport) -> list[str]:
    out = Console(width=200, record=True, file=StringIO())
    out.print(run_details(report))
    return out.export_text().splitlines()


def test_a_round_whose_score_fails_later_has_ended_once() -> None:
    run = record(plan())
    ended = fold(opened("a"), accepted("a"), closing(), aggregated(), finished())
    failed = evaluated().model_copy(update={"metrics": {}, "failed": "no such task"})
    scored = fold(opened("a"), accepted("a"), closing(), aggregated(), finished(), failed)
    told = list(dict.fromkeys(line for r in (ended, scored) for line in log_lines(run_report(run, {1: r}))))
    assert [line for line in told if "finished" in line] == [told[0]]
    assert told[1] == "run-1/1 not scored on the evaluator's host: no such task [not-scored]"


def test_the_reason_of_an_abort_is_left_to_the_error() -> None:
    report = run_report(record(plan()), {1: fold(opened("a"), aborted())})
    assert report.reason
    assert not [line for line in log_lines(report) if report.reason in line]
    console = Console(file=StringIO(), width=200)
    console.print(run_details(report), run_details(report, why=False))
    assert console.file.getvalue().count(report.reason) == 1  # type: ignore[attr-defined]
