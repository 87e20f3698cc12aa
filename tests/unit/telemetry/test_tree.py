"""A round's spans as a tree: whole, ordered, and not to be upset by what a worker says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fedbus.telemetry.model import Span, SpanRef
from fedbus.telemetry.tree import MOST_OF_A_PARTY, build, coverage, rows

TRACE = "a" * 32


def span(
    name: str, own: str, parent: str | None, start: float, end: float, worker: str | None = None
) -> Span:
    service = "worker" if worker else "planner"
    return Span(name, service, worker, 7, TRACE, own, parent, start, end)


ROOT = span("round", "root", None, 100.0, 110.0)
COLLECT = span("collect", "collect", "root", 100.0, 108.0)
TASK = span("task", "task", "root", 101.0, 107.0, "w1")
TRAIN = span("train", "train", "task", 102.0, 106.0, "w1")
FINISH = span("finish", "finish", "root", 108.5, 110.0)


def test_children_follow_their_parent_by_time() -> None:
    tree = build([FINISH, TRAIN, COLLECT, TASK, ROOT])
    assert [s.name for s in tree.spans] == ["round", "collect", "task", "train", "finish"]
    assert tree.depths == (0, 1, 1, 2, 1)
    assert tree.root == ROOT


def test_a_span_that_came_twice_is_there_once() -> None:
    assert len(build([ROOT, COLLECT, ROOT, COLLECT]).spans) == 2


def test_a_worker_cannot_replace_a_span_of_a_service() -> None:
    forged = replace(span("task", "root", "other", 0.0, 1.0, "w1"))
    assert build([forged, ROOT]).root == ROOT


def test_without_a_root_the_rest_is_shown_all_the_same() -> None:
    tree = build([TASK, TRAIN])
    assert tree.root is None
    assert tree.depths == (0, 1)
    assert coverage(tree) == 0.0


def test_spans_that_are_one_anothers_parents_are_left_out() -> None:
    loop = [span("task", "x", "y", 101.0, 102.0, "w1"), span("train", "y", "x", 101.0, 102.0, "w1")]
    assert [s.name for s in build([ROOT, *loop]).spans] == ["round"]


def test_one_party_cannot_fill_the_tree() -> None:
    noise = [span("task", f"{i:016x}", "root", 101.0, 102.0, "w1") for i in range(3 * MOST_OF_A_PARTY)]
    assert len(build([ROOT, COLLECT, *noise]).spans) == 2 + MOST_OF_A_PARTY


@pytest.mark.parametrize(
    ("children", "share"),
    [
        ([COLLECT, FINISH], 0.95),
        ([COLLECT, TASK, TRAIN, FINISH], 0.95),  # overlaps count once
        ([TASK], 0.6),
        ([replace(FINISH, end=200.0)], 0.15),  # what goes on after the round is no part of it
        ([replace(COLLECT, start=0.0, end=1.0)], 0.0),
        ([], 0.0),
    ],
)
def test_coverage_is_the_union_of_the_roots_children(children: list[Span], share: float) -> None:
    assert coverage(build([ROOT, *children])) == pytest.approx(share)


def test_a_round_that_took_no_time_is_covered() -> None:
    assert coverage(build([replace(ROOT, end=ROOT.start)])) == 1.0


def test_rows_are_shares_of_the_time_that_services_measured() -> None:
    late = replace(TASK, start=1e9, end=2e9)  # a worker whose clock is off
    found = {row.span.name: row for row in rows(build([ROOT, COLLECT, late, TRAIN]))}
    assert (found["collect"].left, found["collect"].width) == (0.0, pytest.approx(0.8))
    assert (found["train"].left, found["train"].width) == (pytest.approx(0.2), pytest.approx(0.4))
    assert (found["task"].left, found["task"].width) == (1.0, 0.0)
    assert found["train"].duration_s == 4.0
    assert rows(build([])) == []


@pytest.mark.parametrize(
    "text",
    ["", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
     "00-" + "x" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 31 + "-" + "1" * 16 + "-01",
     "01-" + "1" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 32 + "-" + "1" * 16 + "-01-x"],
)  # fmt: skip
def test_what_is_no_traceparent_names_nothing(text: str) -> None:
    assert SpanRef.parse(text) is None


def test_a_traceparent_comes_back() -> None:
    ref = SpanRef("1" * 32, "2" * 16)
    assert SpanRef.parse(ref.traceparent) == ref
