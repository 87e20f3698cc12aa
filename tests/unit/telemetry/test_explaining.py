"""Where the time of a round went: the log decides, spans divide, and no clock of a worker upsets it."""

from __future__ import annotations

import pytest
from fedbus.rounds.fold import Round
from fedbus.telemetry.explaining import Explanation, explain
from fedbus.telemetry.model import Span
from fedbus_schemas.log import Accepted, AcceptedUpdate, Closing, Entry
from support.rounds import (
    NOW,
    aborted,
    accepted,
    aggregated,
    closing,
    finished,
    fold,
    lost,
    opened,
    plan,
    update,
)

TRACE = "a" * 32


def did(worker: str, *steps: tuple[str, float, float]) -> list[Span]:
    """A worker's spans: names, and from when to when, in seconds after the opening."""
    return [
        Span(name, "worker", worker, 7, TRACE, f"{worker}/{name}", "task", NOW + start, NOW + end)
        for name, start, end in steps
    ]


def at(seconds: float, *updates: AcceptedUpdate | str) -> Accepted:
    return accepted(*updates).model_copy(update={"at": NOW + seconds})


def closed(seconds: float, code: str = "target") -> Closing:
    return closing().model_copy(update={"at": NOW + seconds, "code": code})


def ended(*entries: Entry, close: Closing, target: int = 3, quorum: int = 1) -> Round:
    end = close.at - NOW
    made = aggregated().model_copy(update={"at": NOW + end + 0.5})
    over = finished().model_copy(update={"at": NOW + end + 0.75})
    begin = opened("w1", "w2", "w3", target=target, quorum=quorum)
    return fold(begin, *entries, close, made, over)


FAST = (*did("w1", ("train", 0.1, 1.0), ("upload", 1.0, 1.2)), *did("w2", ("train", 0.1, 1.1)))
SLOW = did("w3", ("download", 0.2, 0.5), ("train", 0.5, 7.0), ("encode", 7.0, 7.1), ("upload", 7.2, 7.8))


def told(found: Explanation) -> dict[str, float]:
    return {f"{step.name} {step.party}": round(step.seconds, 3) for step in found.path}


def codes(found: Explanation) -> list[str]:
    return [hint.code for hint in found.hints]


def test_the_path_goes_through_the_slowest_and_is_the_whole_round() -> None:
    round_ = ended(at(1.3, "w1", "w2"), at(8.0, "w3"), close=closed(8.25), quorum=2)
    publish = Span("publish-model", "aggregator", None, 7, TRACE, "p", "r", NOW + 8.5, NOW + 8.7)
    found = explain(round_, [*FAST, *SLOW, publish], plan(), NOW + 99)
    assert told(found) == {
        "announce w3": 0.2,
        "download w3": 0.3,
        "train w3": 6.5,
        "encode w3": 0.1,
        "between w3": 0.1,
        "upload w3": 0.6,
        "verify aggregator": 0.2,
        "close planner": 0.25,
        "fold aggregator": 0.25,
        "publish-model aggregator": 0.25,
        "finish planner": 0.25,
    }
    assert sum(step.seconds for step in found.path) == pytest.approx(found.seconds) == pytest.approx(9.0)
    assert found.last is not None
    assert (found.last.worker, found.last.longest) == ("w3", "train")
    # What saves most comes first.
    assert codes(found) == ["straggler", "slow-train"]
    assert "6.95 s earlier, with 2 updates: close.target: 2" in found.hints[0].reason
    assert "w3 spent 6.50 s in train, the median of the others is 0.95 s" in found.hints[1].reason


def test_a_slow_member_with_more_data_is_told_by_it() -> None:
    round_ = ended(at(1.3, "w1", "w2"), at(8.0, update("w3", weight=600.0)), close=closed(8.25), quorum=3)
    found = explain(round_, [*FAST, *SLOW], plan(), NOW + 99)
    assert codes(found) == ["slow-train"]  # without it there would be no quorum
    assert found.hints[0].reason.endswith("on 600 examples, where their median is 1")


def test_a_slow_link_is_told_with_its_rate() -> None:
    slow = did("w3", ("train", 0.1, 1.0), ("upload", 1.0, 7.8))
    round_ = ended(at(1.3, "w1", "w2"), at(8.0, "w3"), close=closed(8.0), quorum=3)
    found = explain(round_, [*FAST, *slow], plan(), NOW + 99)
    assert codes(found) == ["upload"]
    assert "6.80 s in upload: 0.0 MB at 0.0 MB/s, as int8; codec.up: ecq sends less" in found.hints[0].reason


def test_without_spans_the_log_still_says_who_was_last() -> None:
    found = explain(ended(at(1.3, "w1", "w2"), at(8.0, "w3"), close=closed(8.25)), [], plan(), NOW + 99)
    assert told(found) == {
        "work w3": 8.0,
        "close planner": 0.25,
        "aggregate aggregator": 0.5,
        "finish planner": 0.25,
    }
    assert found.last is not None
    assert found.last.longest is None
    assert codes(found) == ["straggler"]


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_a_clock_that_is_off_moves_nothing_outside_the_round(off: float) -> None:
    moved = did("w3", *[(s.name, s.start - NOW + off, s.end - NOW + off) for s in SLOW])
    round_ = ended(at(1.3, "w1", "w2"), at(8.0, "w3"), close=closed(8.25))
    found = explain(round_, [*FAST, *moved], plan(), NOW + 99)
    steps = told(found)
    assert steps["train w3"] == pytest.approx(6.5)
    assert sum(steps.values()) == pytest.approx(found.seconds)
    assert found.last is not None
    assert found.last.clock_s == pytest.approx(off, abs=1.0)


def test_spans_that_claim_more_than_the_time_there_was_are_cut() -> None:
    lies = did("w3", ("train", -50.0, 50.0), ("upload", 50.0, 90.0))
    found = explain(ended(at(8.0, "w1", "w2", "w3"), close=closed(8.25)), lies, plan(), NOW + 99)
    assert sum(step.seconds for step in found.path) == pytest.approx(found.seconds)
    assert all(step.seconds > 0 for step in found.path)


def test_a_deadline_names_whom_it_waited_for() -> None:
    awaited = did("w3", ("train", 0.5, 4.0))
    found = explain(ended(at(1.0, "w1", "w2"), close=closed(9.0, "deadline")), awaited, plan(), NOW + 99)
    assert told(found)["wait w3"] == pytest.approx(5.0)
    assert codes(found) == ["deadline"]
    assert "they were there after 1.00 s" in found.hints[0].reason


def test_a_loss_that_was_noticed_late_is_told() -> None:
    gone = lost("w3").model_copy(update={"at": NOW + 6})
    found = explain(ended(at(1.0, "w1", "w2"), gone, close=closed(6.0, "nobody-left")), [], plan(), NOW + 99)
    assert found.last is not None
    assert (found.last.worker, found.last.outcome) == ("w3", "lost")
    assert codes(found) == ["lost"]
    assert found.hints[0].reason.endswith("it was given up: not heard")


def test_an_open_round_says_whom_it_waits_for() -> None:
    round_ = fold(opened("w1", "w2"), at(1.0, "w1"))
    found = explain(round_, did("w2", ("download", 0.1, 0.2)), plan(), NOW + 3)
    assert not found.ended
    assert found.last is not None
    assert found.last.worker == "w2"
    assert told(found) == {"announce w2": 0.1, "download w2": 0.1, "wait w2": 2.8}


def test_an_aborted_round_and_one_where_nothing_came_are_whole_too() -> None:
    for round_ in (fold(opened("w1"), aborted()), fold(opened("w1"), accepted("w1"), aborted())):
        found = explain(round_, [], plan(), NOW + 99)
        assert sum(step.seconds for step in found.path) == pytest.approx(6.0)


def test_an_aggregator_that_took_long_is_told() -> None:
    round_ = fold(
        opened("w1"), at(1.0, "w1"), closed(1.0),
        aggregated().model_copy(update={"at": NOW + 9}), finished().model_copy(update={"at": NOW + 9}),
    )  # fmt: skip
    assert codes(explain(round_, [], plan(), NOW + 99)) == ["aggregator"]
