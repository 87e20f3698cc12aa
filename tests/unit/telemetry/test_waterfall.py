"""The waterfall in a terminal: bars where the time went, failures in the open, and nobody's markup."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from fedbus.api.traces import Trace
from fedbus.cli.waterfall import duration, waterfall
from fedbus.telemetry.model import Span
from fedbus.telemetry.tree import build, rows
from fedbus_schemas.ids import RoundRef
from rich.console import Console

ROOT = Span(
    "round", "planner", None, 1, "a" * 32, "root", None, 100.0, 110.0, {"accepted": 1, "cohort": 2, "lost": 1}
)
COLLECT = replace(ROOT, name="collect", span_id="c", parent_id="root", end=105.0, attributes={})
TASK = replace(COLLECT, name="task", service="worker", worker="w1", span_id="t")
VERIFY = replace(COLLECT, name="verify", service="aggregator", span_id="v", attributes={"worker": "w1"})


def lines(*spans: Span, columns: int = 100) -> list[str]:
    out = Console(width=columns, record=True, file=StringIO())
    out.print(waterfall(Trace(RoundRef("run-1", 2), "a" * 32, build(spans)), columns))
    return [line.rstrip() for line in out.export_text().splitlines()]


def test_bars_stand_where_the_time_went() -> None:
    drawn = lines(ROOT, COLLECT, TASK, VERIFY)
    assert drawn[0].startswith("run-1/2: 10.00 s, 1 of 2 updates count, 1 lost; trace aaaa")
    assert " ".join(drawn[:2]).endswith("; 50% of its time is explained")
    bars = {line.split("  planner")[0].strip(): line.count("█") for line in drawn if "planner" in line}
    assert bars["round"] == 48
    assert bars["collect"] == 24
    assert any("verify w1" in line and "aggregator" in line for line in drawn)
    assert any(line.startswith("  task") and " w1 " in line for line in drawn)


def test_a_score_that_comes_late_leaves_room_for_the_round() -> None:
    late = replace(
        ROOT, name="evaluate", service="evaluator", span_id="e", parent_id="root", start=500.0, end=900.0
    )
    found = {row.span.name: row for row in rows(build([ROOT, late]))}
    assert found["round"].width == pytest.approx(2 / 3)
    assert (found["evaluate"].left, found["evaluate"].width) == (1.0, 0.0)


def test_failures_stand_below_in_full_and_as_they_are() -> None:
    error = "[red]not markup[/red] " + "x" * 150
    drawn = " ".join(lines(ROOT, replace(TASK, error=error)))
    assert "task of w1: [red]not markup[/red]" in drawn
    assert drawn.count("x") >= 150


def test_what_was_broken_off_says_so_and_is_no_failure() -> None:
    drawn = lines(ROOT, replace(TASK, attributes={"code": "stopped"}))
    assert [line.split("  w1")[0].strip() for line in drawn if "task" in line] == ["task (stopped)"]


def test_a_round_that_goes_on_and_one_without_spans() -> None:
    assert lines(TASK)[0] == "run-1/2 is under way; trace " + "a" * 32
    assert lines() == ["run-1/2: no span has arrived yet"]


@pytest.mark.parametrize(("seconds", "said"), [(12.345, "12.35 s"), (0.0123, "12.3 ms"), (0.00045, "450 µs")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
