"""What a round's report says: explanations only where something needs one, and nothing left out."""

from __future__ import annotations

import pytest
from fedbus.rounds.report import iso, round_report, run_report, run_state
from fedbus_schemas.log import Excluded
from fedbus_schemas.messages import Waiting
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
    plan,
    record,
    rejected,
    update,
    voided,
)


def test_a_round_that_got_all_it_wanted_needs_no_reason() -> None:
    done = closing().model_copy(update={"code": "target"})
    report = round_report(2, fold(opened("w1"), accepted("w1"), done, aggregated(), finished()))
    assert (report.round, report.state, report.reason, report.waiting) == (2, "finished", None, [])
    assert report.accepted == 1
    assert report.kpis["participation"] == 1.0


def test_a_round_closed_early_says_why() -> None:
    done = closing().model_copy(update={"code": "deadline", "reason": "deadline of 5 s passed"})
    report = round_report(1, fold(opened("w1", "w2"), accepted("w1"), lost("w2"), done))
    assert report.reason == "deadline of 5 s passed"
    assert [item.worker for item in report.lost] == ["w2"]
    assert report.kpis["participation"] == 0.5


def test_a_model_that_could_not_be_scored_says_so() -> None:
    done = closing().model_copy(update={"code": "target"})
    failed = evaluated().model_copy(update={"metrics": {}, "failed": "task iris is not installed"})
    report = round_report(1, fold(opened("w1"), accepted("w1"), done, aggregated(), finished(), failed))
    assert report.reason == "not scored on the evaluator's host: task iris is not installed"
    assert report.metrics == {}


def test_workers_metrics_are_weighted_by_examples_and_kept_apart_from_held_out_ones() -> None:
    one = update("w1").model_copy(update={"weight": 1.0, "metrics": {"loss": 1.0}})
    two = update("w2").model_copy(update={"weight": 3.0, "metrics": {"loss": 2.0, "extra": 9.0}})
    report = round_report(
        1, fold(opened("w1", "w2"), accepted(one, two), closing(), aggregated(), evaluated())
    )
    assert report.metrics["train_loss"] == pytest.approx(1.75)
    assert "train_extra" not in report.metrics  # not everyone reported it
    assert report.metrics["accuracy"] == 0.5


def test_a_rejection_is_listed_and_a_rejected_worker_not_waited_for() -> None:
    report = round_report(1, fold(opened("w1", "w2"), rejected("w1")))
    assert [(item.worker, item.code) for item in report.rejected] == [("w1", "bad-manifest")]
    assert report.waiting == ["w2"]


def test_a_run_is_in_the_state_of_its_last_round() -> None:
    two = record(plan(rounds=2))
    ended = fold(opened("w1"), accepted("w1"), closing(), aggregated(), finished())
    assert run_state(two, {}) == "waiting"
    assert run_state(two, {1: ended}) == "running"
    assert run_state(two, {1: ended, 2: ended}) == "finished"
    stopped = fold(opened("w1"), aborted())
    report = run_report(two, {1: ended, 2: stopped})
    assert (report.state, report.reason) == ("aborted", aborted().reason)
    assert report.model == aggregated().model


def test_an_aborted_run_says_what_became_of_the_members() -> None:
    gone = lost("w1").model_copy(update={"reason": "lrr: unknown key", "code": "failed"})
    refused = rejected("w2").model_copy(update={"reason": "holds NaN"})
    # Also where it is the first model that could not be made: its round is not listed.
    report = run_report(record(plan()), {0: fold(opened("w1", "w2", base=None), gone, refused, aborted())})
    assert report.code == "quorum"
    assert report.reason == (
        "too few; w1 lost: lrr: unknown key [failed]; w2 rejected: holds NaN [bad-manifest]"
    )


def test_an_update_that_changed_in_storage_is_a_rejection() -> None:
    report = round_report(1, fold(opened("w1", "w2"), accepted("w1", "w2"), closing(), voided("w1")))
    assert (report.accepted, [u.worker for u in report.accepted_updates]) == (1, ["w2"])
    assert [(r.worker, r.code, r.reason) for r in report.rejected] == [("w1", "voided", "changed in storage")]


def test_what_a_round_and_a_run_wait_for_or_ended_of_has_a_code() -> None:
    early = closing().model_copy(update={"code": "deadline", "reason": "deadline of 5 s passed"})
    failed = evaluated().model_copy(update={"metrics": {}, "failed": "no such task"})
    report = round_report(1, fold(opened("w1"), accepted("w1"), early, aggregated(), finished(), failed))
    assert (report.code, report.reason) == (
        "deadline",
        "deadline of 5 s passed; not scored on the evaluator's host: no such task",
    )
    waits = run_report(record(plan()), {}, Waiting(code="workers", reason="have 0 of 1 eligible workers"))
    assert (waits.state, waits.code) == ("waiting", "workers")


def test_who_could_not_be_a_member_is_reported() -> None:
    out = Excluded(worker="w3", code="labels", reason="labels do not match")
    report = round_report(1, fold(opened("w1", excluded=[out])))
    assert [(e.worker, e.code) for e in report.excluded] == [("w3", "labels")]


def test_round_zero_is_not_listed() -> None:
    first = fold(opened("w1", base=None), accepted("w1"), closing(), aggregated(), finished())
    assert run_report(record(plan(rounds=1)), {0: first}).rounds == []


def test_times_are_iso_in_utc() -> None:
    assert iso(0.0) == "1970-01-01T00:00:00.000Z"
    assert iso(NOW).endswith("Z")


def test_metrics_too_large_for_a_float_are_left_out() -> None:
    huge = update("w1").model_copy(update={"weight": 1e12, "metrics": {"loss": 1e308, "fine": 1.0}})
    worse = update("w2").model_copy(update={"weight": 1e12, "metrics": {"loss": 1.7e308, "fine": 1.0}})
    done = fold(opened("w1", "w2"), accepted(huge, worse), closing(), aggregated())
    report = round_report(1, done)
    assert report.metrics["train_fine"] == 1.0
    assert type(report).model_validate_json(report.model_dump_json()) == report
