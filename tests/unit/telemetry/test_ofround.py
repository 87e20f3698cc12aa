"""What a round's log alone says about its trace."""

from __future__ import annotations

from fedbus.telemetry.ofround import root_of, round_spans
from fedbus.telemetry.tree import build, coverage
from fedbus_schemas.ids import RoundRef
from support.rounds import (
    NOW,
    aborted,
    accepted,
    aggregated,
    closing,
    evaluated,
    finished,
    fold,
    lost,
    opened,
    rejected,
)

REF = RoundRef("run-1", 2)
IDS = {"trace_id": "a" * 32, "span_id": "b" * 16}


def test_a_finished_round_is_covered_from_end_to_end() -> None:
    round_ = fold(
        opened("w1", "w2", "w3", **IDS), accepted("w1"), rejected("w2"), lost("w3"), closing(), aggregated(),
        finished(), evaluated(),
    )  # fmt: skip
    tree = build(round_spans(REF, round_, 7))
    root = tree.root
    assert root is not None
    assert (root.trace_id, root.span_id, root.start, root.end) == ("a" * 32, "b" * 16, NOW, NOW + 6)
    assert root.error is None
    assert root.attributes == {
        "run": "run-1", "round": 2, "cohort": 3, "accepted": 1, "lost": 1, "rejected": 1,
        "code": "target", "reason": "have all",
    }  # fmt: skip
    spans = {s.name: (s.start - NOW, s.end - NOW) for s in tree.spans[1:]}
    assert spans == {"collect": (0, 2), "aggregate": (2, 4), "finish": (4, 6)}
    assert coverage(tree) == 1.0
    assert {s.parent_id for s in tree.spans[1:]} == {root.span_id}


def test_an_aborted_round_says_why() -> None:
    tree = build(round_spans(REF, fold(opened("w1", **IDS), aborted()), 7))
    assert tree.root is not None
    assert tree.root.error == "too few"
    assert tree.root.attributes["code"] == "quorum"
    assert [s.name for s in tree.spans] == ["round", "collect"]
    assert coverage(tree) == 1.0


def test_another_planner_makes_the_same_spans() -> None:
    round_ = fold(opened("w1", **IDS), accepted("w1"), closing(), aggregated(), finished())
    assert round_spans(REF, round_, 7) == round_spans(REF, round_, 7)
    assert len({s.span_id for s in round_spans(REF, round_, 7)}) == 4


def test_a_round_that_goes_on_has_no_root_yet() -> None:
    log = (opened("w1"), accepted("w1"), closing(), aggregated())
    for length in range(len(log) + 1):
        assert round_spans(REF, fold(*log[:length]), 7) == []


def test_where_to_hang_a_span() -> None:
    assert root_of(fold()) is None
    root = root_of(fold(opened("w1", **IDS)))
    assert root is not None
    assert root.traceparent == "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def test_clocks_that_differ_make_no_negative_time() -> None:
    early = closing().model_copy(update={"at": NOW - 5})
    spans = round_spans(REF, fold(opened("w1", **IDS), accepted("w1"), early, aggregated(), finished()), 7)
    assert all(s.start <= s.end for s in spans)
    assert coverage(build(spans)) == 1.0
