"""What the planner does next, decision by decision."""

from __future__ import annotations

import pytest
from fedbus.rounds.fold import Round
from fedbus.rounds.planning import (
    MOST_REASON,
    Announce,
    Append,
    Done,
    Following,
    Open,
    Step,
    Wait,
    announcement,
    derive_seed,
    next_step,
)
from fedbus.rounds.roster import BEAT_S, MOST_PROGRESS, SETTLED_AFTER_S, STALLED_AFTER_S, Roster
from fedbus.selection.uniform import Uniform
from fedbus_schemas.log import Entry, Finished, WorkerLost
from fedbus_schemas.messages import Waiting
from fedbus_schemas.plan import Plan
from support.rounds import (
    NOW,
    aborted,
    accepted,
    aggregated,
    beat,
    closing,
    digest,
    finished,
    fold,
    lost,
    opened,
    plan,
    progress,
    record,
    voided,
)

SELECT = Uniform().choose


def _roster(*workers: str, at: float = NOW) -> Roster:
    roster = Roster()
    for name in workers:
        roster.hear(beat(name), at)
    return roster


def _step(
    plan_: Plan, roster: Roster, rounds: dict[int, Round] | None = None, following: Following | None = None,
    now: float = NOW, **changes: object,
) -> Step:  # fmt: skip
    known = record(plan_).model_copy(update=changes)
    return next_step(known, rounds or {}, following or Following(NOW), roster, SELECT, now)


# Opening


def test_the_first_round_makes_the_model_with_two_members_of_which_one_may_die() -> None:
    step = _step(plan(), _roster("w1", "w2", "w3"))
    assert isinstance(step, Open)
    assert (step.number, step.base, step.target, step.quorum, len(step.members)) == (0, None, 1, 1, 2)


def test_a_run_that_starts_from_a_model_has_no_round_zero() -> None:
    step = next_step(record(plan()), {}, Following(NOW), _roster("w1"), SELECT, NOW, (digest("m"), 7))
    assert isinstance(step, Open)
    assert (step.number, step.base, step.base_bytes) == (1, digest("m"), 7)


@pytest.mark.parametrize(
    ("close", "target", "quorum"),
    [
        ({}, 4, 2),
        ({"target": 0.5}, 2, 2),
        ({"target": 3, "quorum": 2}, 3, 2),
        ({"target": 1, "quorum": 1.0}, 1, 1),
        ({"target": 9, "quorum": 0.75}, 4, 3),
    ],
)
def test_target_and_quorum_are_of_those_wanted_not_of_those_invited(
    close: dict[str, float], target: int, quorum: int
) -> None:
    chosen = plan(cohort={"fraction": 0.5, "over_select": 1.5}, close=close)
    rounds = {0: fold(opened("w1", base=None), accepted("w1"), closing(), aggregated(), finished())}
    step = _step(chosen, _roster(*[f"w{i}" for i in range(8)]), rounds)
    assert isinstance(step, Open)
    assert (step.number, len(step.members), step.target, step.quorum) == (1, 6, target, quorum)
    assert (step.base, step.base_bytes) == (digest("model"), 100)


def test_it_says_who_is_excluded_and_why() -> None:
    roster = _roster("w1")
    roster.hear(beat("w2", labels={"gpu": "no"}), NOW)
    roster.hear(beat("w3"), NOW)
    roster.hear(beat("w4", leaving=True), NOW)
    roster.hear(beat("w5"), NOW - 11)
    roster.hear(beat("old"), NOW - 3600)
    roster.hear(beat("w6").model_copy(update={"labels": {"gpu": "yes"}}), NOW)
    roster.hear(beat("w7", labels={"gpu": "yes"}).model_copy(update={"capabilities": _able("other")}), NOW)
    roster.hear(beat("w8", labels={"gpu": "yes"}).model_copy(update={"capabilities": _able("noop")}), NOW)
    step = _step(plan(cohort={"min": 2, "require": {"gpu": "yes"}}), roster)
    assert isinstance(step, Wait)
    assert step.code == "workers"
    assert step.reason.split("; ") == [
        "have 1 of 2 eligible workers",
        "w1 excluded: labels do not match: gpu is not set, wanted yes",
        "w2 excluded: labels do not match: gpu is no, wanted yes",
        "w3 excluded: labels do not match: gpu is not set, wanted yes",
        "w4 excluded: has left the federation",
        "w5 excluded: was not heard for over 10 s",
        "w7 excluded: task noop is not installed there",
        "w8 excluded: codec int8 is not installed there",
    ]


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        ("flowers:Flowers", "task flowers:Flower is not installed there; did you mean flowers:Flowers?"),
        ("noop", "task flowers:Flower is not installed there; it is offered by: "
                 "fedbus-worker join --task flowers:Flower"),
    ],
)  # fmt: skip
def test_a_task_that_no_worker_has_is_told_with_what_comes_near(offered: str, said: str) -> None:
    roster = _roster()
    roster.hear(beat("w1").model_copy(update={"capabilities": _able(offered)}), NOW)
    obstacle = roster.obstacle("w1", plan(task="flowers:Flower"), NOW)
    assert obstacle is not None
    assert (obstacle.code, obstacle.reason) == ("task", said)


@pytest.mark.parametrize(("up", "down"), [("int8", "dense"), ("dense", "int8"), ("auto", "int8")])
def test_a_worker_needs_the_codecs_of_both_ways(up: str, down: str) -> None:
    roster = _roster()
    roster.hear(beat("w1").model_copy(update={"capabilities": _able("noop")}), NOW)
    obstacle = roster.obstacle("w1", plan(codec={"up": up, "down": down}), NOW)
    assert obstacle is not None
    assert (obstacle.code, obstacle.reason) == ("codec", "codec int8 is not installed there")
    assert roster.obstacle("w1", plan(codec={"up": "dense", "down": "dense"}), NOW) is None


def test_a_round_keeps_who_could_not_be_a_member() -> None:
    roster = _roster("w1")
    roster.hear(beat("w2").model_copy(update={"capabilities": _able("other")}), NOW)
    step = _step(plan(cohort={"min": 1}), roster)
    assert isinstance(step, Open)
    assert [m.worker for m in step.members] == ["w1"]
    assert [(e.worker, e.code, e.reason) for e in step.excluded] == [
        ("w2", "task", "task noop is not installed there")
    ]


def _able(task: str) -> object:
    return beat("any").capabilities.model_copy(update={"tasks": [task], "codecs": ["dense"]})


def test_the_reason_of_a_wait_fits_on_the_wire_however_many_are_excluded() -> None:
    roster = _roster(*[f"w{i}" for i in range(500)])
    step = _step(plan(cohort={"min": 2, "require": {"k": "v" * 200}}), roster)
    assert isinstance(step, Wait)
    assert Waiting(code=step.code, reason=step.reason).reason == step.reason
    assert len(step.reason) <= MOST_REASON
    short = _step(plan(cohort={"min": 2, "require": {"k": "v"}}), roster)
    assert isinstance(short, Wait)
    assert short.reason.endswith("and 480 more")


def test_parts_are_dealt_in_join_order_and_never_taken_back() -> None:
    dealt = plan(data={"parts": 2}, cohort={"min": 1})
    step = _step(dealt, _roster("w3", "w1"))
    assert isinstance(step, Open)
    assert step.partitions == {"w3": 0, "w1": 1}
    assert {m.worker: m.partition for m in step.members} == {"w3": 0, "w1": 1}
    late = _step(dealt, _roster("w9", "w1"), partitions={"w3": 0, "w1": 1})
    assert isinstance(late, Open)
    assert late.partitions == {}
    assert [(m.worker, m.partition) for m in late.members] == [("w1", 1)]


def test_a_worker_without_a_part_left_is_excluded() -> None:
    step = _step(
        plan(data={"parts": 2}, cohort={"min": 2}), _roster("w9", "w1"), partitions={"w3": 0, "w1": 1}
    )
    assert isinstance(step, Wait)
    assert "w9 excluded: all 2 parts of the data are dealt out" in step.reason


# A round's end


def test_a_cut_off_is_announced_where_somebody_is_still_at_work() -> None:
    """One stored message and a wake-up of every worker: the next round's announcement says it as well."""

    def step(*entries: Entry) -> Step:
        round_ = fold(opened("w1", "w2", "w3"), accepted("w1"), *entries, closing())
        return _step(plan(), _roster("w1"), {1: round_}, Following(NOW), NOW + 1)

    assert step(accepted("w2")) == Announce(1, "closed")
    assert step(accepted("w2"), lost("w3", "silent")) == Announce(1, "closed"), "it may train all the same"
    assert isinstance(step(accepted("w2"), lost("w3", "failed")), Wait)
    assert isinstance(step(accepted("w2"), lost("w3", "left")), Wait)
    assert isinstance(step(accepted("w2"), lost("w3"), accepted("w3")), Wait), "it was heard again"
    assert isinstance(step(accepted("w2", "w3")), Wait)


@pytest.mark.parametrize("state", ["closing", "aggregated", "finished", "aborted"])
def test_a_planner_that_adopts_ends_what_workers_may_still_work_on(state: str) -> None:
    entries = {"closing": [closing()], "aborted": [aborted()]}.get(state, [closing(), aggregated()])
    round_ = fold(
        opened("w1", "w2"), accepted("w1"), *entries, *([finished()] if state == "finished" else [])
    )
    following = Following(NOW + 100)
    step = _step(plan(cohort={"min": 9}), _roster("w1"), {1: round_}, following, NOW + 101)
    if state == "aggregated":
        assert step == Append(1, Finished(at=NOW + 101))
    else:
        assert step == Announce(1, "closed")
        following.announced = (1, "closed")
        after = _step(plan(cohort={"min": 9}), _roster("w1"), {1: round_}, following, NOW + 101)
        assert isinstance(after, Done if state == "aborted" else Wait)


def test_a_run_is_over_after_its_last_round() -> None:
    round_ = fold(opened("w1"), accepted("w1"), closing(), aggregated(), finished())
    assert _step(plan(rounds=1), Roster(), {1: round_}) == Announce(1, "closed")
    assert _step(plan(rounds=1), Roster(), {1: round_}, Following(NOW, (1, "closed"))) == Done()
    assert _step(plan(), Roster(), done=True) == Done()


def test_a_round_whose_every_update_was_voided_is_aborted() -> None:
    round_ = fold(opened("w1"), accepted("w1"), closing(), voided("w1"))
    step = _step(plan(), Roster(), {1: round_})
    assert isinstance(step, Append)
    assert (step.entry.kind, getattr(step.entry, "code", None)) == ("aborted", "voided")


def test_a_restarted_planner_hears_everyone_before_it_opens_the_next_round() -> None:
    """Else the first worker that beats would be the whole cohort."""
    rounds = {1: fold(opened("w1", "w2"), accepted("w1"), closing(), aggregated(), finished())}
    adopted = Following(NOW + 100, (1, "closed"))
    roster = _roster("w1", at=NOW + 100)
    step = _step(plan(), roster, rounds, adopted, NOW + 100.1)
    assert isinstance(step, Wait)
    assert step.code == "roster"
    roster.hear(beat("w2"), NOW + 101.9)
    step = _step(plan(), roster, rounds, adopted, NOW + 100 + SETTLED_AFTER_S)
    assert isinstance(step, Open)
    assert [m.worker for m in step.members] == ["w1", "w2"]
    # A planner that opened the round itself goes on at once.
    assert isinstance(_step(plan(), _roster("w1", at=NOW + 100), rounds, Following(NOW), NOW + 100.1), Open)


# Losing workers


@pytest.mark.parametrize(
    ("heard", "adopted", "now", "is_lost"),
    [
        (NOW, NOW, NOW + 10, False),
        (NOW, NOW, NOW + 10.1, True),
        (None, NOW, NOW + 10.1, True),
        (NOW, NOW + 100, NOW + 110, False),
        (None, NOW + 100, NOW + 110, False),
        (None, NOW + 100, NOW + 110.1, True),
        (NOW + 105, NOW + 100, NOW + 115, False),
    ],
)
def test_silence_counts_from_when_this_planner_began_to_listen(
    heard: float | None, adopted: float, now: float, is_lost: bool
) -> None:
    roster = _roster(*([] if heard is None else ["w1"]), at=heard or 0.0)
    roster.hear(beat("w2"), now)
    step = _step(plan(), roster, {1: fold(opened("w1", "w2"))}, Following(adopted, (1, "open")), now)
    if is_lost:
        assert isinstance(step, Append)
        assert isinstance(step.entry, WorkerLost)
        assert (step.entry.worker, step.entry.code) == ("w1", "silent")
    else:
        assert isinstance(step, Wait)
        assert step.until <= now + BEAT_S


def test_progress_keeps_a_worker_alive_and_a_failure_loses_it() -> None:
    roster, following = _roster("w1"), Following(NOW, (1, "open"))
    rounds = {1: fold(opened("w1"))}
    roster.hear_progress(progress("w1", 1), NOW + 20)
    assert isinstance(_step(plan(), roster, rounds, following, NOW + 25), Wait)
    roster.hear_progress(progress("w1", 1, failed="CUDA out of memory"), NOW + 26)
    step = _step(plan(), roster, rounds, following, NOW + 26)
    assert isinstance(step, Append)
    assert step.entry == WorkerLost(at=NOW + 26, worker="w1", code="failed", reason="CUDA out of memory")


def test_a_worker_that_gets_no_further_is_lost_though_it_beats() -> None:
    roster, following = _roster("w1"), Following(NOW, (1, "open"))
    rounds = {1: fold(opened("w1", deadline_s=5000.0))}

    def step(share: float, at: float) -> Step:
        roster.hear(beat("w1"), NOW + at)
        roster.hear_progress(progress("w1", 1).model_copy(update={"fraction": share}), NOW + at)
        return _step(plan(), roster, rounds, following, NOW + at)

    for at in range(0, 500, 5):
        assert isinstance(step(0.0, at), Wait), "it never says how far it is"
    for at in range(500, 900, 5):
        assert isinstance(step(at / 1000, at), Wait), "it gets on"
    for at in range(900, 900 + int(STALLED_AFTER_S), 5):
        found = step(0.9, at)
        assert isinstance(found, Wait)
        assert found.reason.endswith("; w1 is at train 90%")
    found = step(0.9, 900 + STALLED_AFTER_S + 1)
    assert isinstance(found, Append)
    assert isinstance(found.entry, WorkerLost)
    assert (found.entry.code, found.entry.worker) == ("stalled", "w1")
    assert found.entry.reason == "w1 beats, and has got no further for over 120 s: it is at train 90%"


def test_who_says_seldom_how_far_it_is_is_waited_for_longer() -> None:
    roster = _roster("w1")
    for at, share in ((0, 0.1), (100, 0.2), (200, 0.3)):
        roster.hear_progress(progress("w1", 1).model_copy(update={"fraction": share}), NOW + at)
    pace = roster.pace_of("w1", "run-1", 1, "0")
    assert pace is not None
    assert (pace.patience_s, pace.stalled_s(NOW + 500)) == (500, 300)
    upload = progress("w1", 1).model_copy(update={"fraction": 0.5, "phase": "upload"})
    roster.hear_progress(upload, NOW + 500)
    pace = roster.pace_of("w1", "run-1", 1, "0")
    assert pace is not None
    assert pace.stalled_s(NOW + 5000) == 0, "the broker may be full"


def test_who_stalls_while_no_planner_listened_is_not_lost_at_once() -> None:
    roster = _roster("w1", at=NOW + 1000)
    roster.hear_progress(progress("w1", 1).model_copy(update={"fraction": 0.5}), NOW)
    step = _step(
        plan(),
        roster,
        {1: fold(opened("w1", deadline_s=5000.0))},
        Following(NOW + 999, (1, "open")),
        NOW + 1000,
    )
    assert isinstance(step, Wait)


def test_a_worker_that_leaves_is_not_waited_for() -> None:
    roster = _roster("w1")
    roster.hear(beat("w1", leaving=True), NOW)
    step = _step(plan(), roster, {1: fold(opened("w1"))}, Following(NOW, (1, "open")))
    assert isinstance(step, Append)
    assert isinstance(step.entry, WorkerLost)
    assert step.entry.code == "left"


def test_a_failure_of_another_round_run_or_node_loses_nobody() -> None:
    roster = _roster("w1")
    roster.hear_progress(progress("w1", 0, failed="x"), NOW)
    roster.hear_progress(progress("w1", 1, run="run-2", failed="x"), NOW)
    roster.hear_progress(progress("w1", 1, node="7", failed="x"), NOW)
    assert isinstance(_step(plan(), roster, {1: fold(opened("w1"))}, Following(NOW, (1, "open"))), Wait)


def test_each_node_of_a_worker_has_its_own_progress() -> None:
    roster = _roster("w1")
    roster.hear_progress(progress("w1", 1, node="a", failed="x"), NOW)
    roster.hear_progress(progress("w1", 1, node="b"), NOW)
    first = roster.pace_of("w1", "run-1", 1, "a")
    assert first is not None
    assert first.progress.failed == "x"
    roster.hear_progress(progress("w1", 2, node="b"), NOW)
    assert roster.pace_of("w1", "run-1", 1, "a") is None


def test_a_worker_cannot_make_the_planner_remember_without_end() -> None:
    roster = _roster("w1")
    for i in range(2 * MOST_PROGRESS):
        roster.hear_progress(progress("w1", 1, run=f"run-{i}"), NOW)
    assert len(roster.workers["w1"].paces) == MOST_PROGRESS
    assert roster.pace_of("w1", f"run-{2 * MOST_PROGRESS - 1}", 1, "0") is not None
    roster.hear_progress(progress("stranger", 1), NOW)
    assert list(roster.workers) == ["w1"]


# What is told


def test_an_announcement_names_those_whose_update_is_in_the_model() -> None:
    done = fold(opened("w1", "w2"), accepted("w1", "w2"), closing(), voided("w2"), aggregated(), finished())
    now_open = fold(opened("w1", "w2", base=digest("model")))
    news = announcement(record(plan()), 2, now_open, {1: done, 2: now_open})
    assert news.ended is not None
    assert (news.state, news.ended.round, news.ended.accepted) == ("open", 1, ["w1"])
    gone = fold(opened("w1", "w2"), accepted("w1"), aborted())
    closed = announcement(record(plan()), 2, gone, {1: done, 2: gone})
    assert closed.ended is not None
    assert (closed.state, closed.ended.round, closed.ended.accepted) == ("closed", 2, [])
    assert announcement(record(plan()), 1, now_open, {1: now_open}).ended is None


def test_an_announcement_says_when_no_other_round_follows() -> None:
    """Whoever took part deletes what is kept of the run then."""
    done = fold(opened("w1"), accepted("w1"), closing(), aggregated(), finished())
    said = {
        (rounds, state): announcement(record(plan(rounds=rounds)), 1, round_, {1: round_}).over
        for rounds in (1, 2)
        for state, round_ in (
            ("open", fold(opened("w1"))),
            ("closed", done),
            ("aborted", fold(opened("w1"), aborted())),
        )
    }
    assert {each for each, over in said.items() if over} == {(1, "closed"), (1, "aborted"), (2, "aborted")}


def test_seeds_follow_from_the_plan_and_the_path() -> None:
    assert derive_seed(plan(seed=7), "run-1/2", "w1", "0") == 4197257829122211759
    seeds = {derive_seed(plan(seed=s), "r", w) for s in range(20) for w in ("w1", "w2")}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**63 for seed in seeds)
