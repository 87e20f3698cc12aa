"""Whole runs to their end, through `next_step`, under kills, races, losses and hostile workers."""

from __future__ import annotations

from collections import Counter
from functools import cache

from fedbus.rounds.roster import BEAT_S, LOST_AFTER_S
from fedbus_schemas.log import AcceptedUpdate, Closing, Opened, WorkerLost
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rounds import (
    NOW,
    plan,
    record,
)
from support.simulation import Simulation

WORKERS = ["w1", "w2", "w3", "w4"]
PLAN = plan(
    rounds=3,
    cohort={"min": 2, "fraction": 0.75, "over_select": 1.4},
    close={"target": 2, "quorum": 1, "deadline_s": 40.0},
    data={"parts": 3},
)


def _check(run: Simulation) -> None:
    """What holds in every state of every run."""
    kinds = Counter((number, entry.kind) for number, entry in run.log)
    for (_, kind), times in kinds.items():
        if kind in ("opened", "closing", "aggregated", "finished", "aborted"):
            assert times == 1
    holders: dict[int, str] = {}
    for number, entry in run.log:
        if isinstance(entry, Opened):
            assert number <= run.record.plan.rounds
            for member in entry.members:
                if member.partition is not None:
                    assert holders.setdefault(member.partition, member.worker) == member.worker
                    assert run.record.partitions[member.worker] == member.partition
    assert len(set(run.record.partitions.values())) == len(run.record.partitions)
    for number, round_ in run.truth.items():
        assert round_.ignored == []
        if number < run.number:
            assert round_.finished is not None


def _drain(run: Simulation, bad: frozenset[str] = frozenset()) -> None:
    """From here on all are well: the run must end, soon."""
    for _ in range(200):
        for worker in WORKERS:
            run.beat(worker)
        for which in range(len(run.planners)):
            run.catch_up(run.planners[which])
            run.plan(which)
        if run.over:
            break
        for member in run.truth[run.number].members if run.truth else []:
            run.send(member.worker)
        run.aggregate(bad)
        run.tick(BEAT_S)
        _check(run)
    assert run.over, f"the run does not end: {run.planners[0].wait}"
    last = run.truth[run.number]
    assert last.aborted or (last.finished and run.number == run.record.plan.rounds)


events = st.one_of(
    st.tuples(st.just("beat"), st.sampled_from(WORKERS)),
    st.tuples(st.just("leave"), st.sampled_from(WORKERS)),
    st.tuples(st.just("fail"), st.sampled_from(WORKERS)),
    st.tuples(st.just("send"), st.sampled_from([*WORKERS, "stranger"]), st.sampled_from(["a", "b", "é"])),
    st.tuples(st.just("aggregate"), st.frozensets(st.sampled_from(WORKERS), max_size=2)),
    st.tuples(st.just("tick"), st.sampled_from([0.0, 0.1, 2.0, 9.0, 11.0, 45.0, 120.0])),
    st.tuples(st.just("restart"), st.integers(0, 1)),
    st.tuples(st.just("catch up"), st.integers(0, 1)),
    st.tuples(st.just("plan"), st.integers(0, 1), st.integers(1, 6)),
    st.just(("everyone",)),
)


def _happen(run: Simulation, event: tuple) -> None:  # type: ignore[type-arg]  # hypothesis drew it
    match event:
        case ("beat", worker):
            run.beat(worker)
        case ("leave", worker):
            run.beat(worker, leaving=True)
        case ("fail", worker):
            run.fail(worker)
        case ("send", worker, attempt):
            run.send(worker, attempt)
        case ("aggregate", bad):
            run.aggregate(bad)
        case ("tick", seconds):
            run.tick(seconds)
        case ("restart", which):
            run.restart(which)
        case ("catch up", which):
            run.catch_up(run.planners[which])
        case ("plan", which, most):
            run.plan(which, most)
        case ("everyone",):
            for worker in WORKERS:
                run.beat(worker)
            run.plan(0)
            for member in run.truth[run.number].members if run.truth else []:
                run.send(member.worker)
            run.aggregate()
        case _:
            raise AssertionError(event)


@settings(max_examples=200)
@given(st.lists(events, max_size=40))
def test_every_run_ends_whatever_happens_under_two_planners(drawn: list[tuple]) -> None:  # type: ignore[type-arg]
    run = Simulation(record(PLAN), planners=2)
    for event in drawn:
        _happen(run, event)
        _check(run)
    _drain(run)


def _quiet_run(restarts: set[int], lags: int) -> Simulation:
    """A run in which everybody beats and works; the planner is killed after the steps named."""
    run = Simulation(record(PLAN))
    steps = 0
    for moment in range(400):
        for worker in WORKERS:
            run.beat(worker)
        if moment % lags == 0:
            run.catch_up(run.planners[0])
        while not run.over:
            waited = run.plan(0, most=1)
            steps += 1
            _check(run)
            if steps in restarts:
                run.restart(0)
                run.catch_up(run.planners[0])
                break
            if waited:
                break
        if run.over:
            return run
        for member in run.truth[run.number].members if run.truth else []:
            run.send(member.worker)
        run.aggregate()
        run.tick(0.5)
    raise AssertionError("the run does not end")


def test_each_round_is_announced_when_it_opens_and_ended_by_the_next_announcement() -> None:
    news = [(a.round, a.state) for a in _quiet_run(set(), 1).announced]
    assert news == [(0, "open"), (1, "open"), (2, "open"), (3, "open"), (3, "closed")]


@cache
def _undisturbed() -> dict[int, list[AcceptedUpdate]]:
    return {n: r.accepted for n, r in _quiet_run(set(), 1).truth.items()}


@settings(max_examples=60)
@given(st.sets(st.integers(1, 60), max_size=12), st.integers(1, 3))
def test_a_planner_may_be_killed_after_any_step_and_nothing_is_decided_otherwise(
    restarts: set[int], lags: int
) -> None:
    run = _quiet_run(restarts, lags)
    assert {n: r.accepted for n, r in run.truth.items()} == _undisturbed()
    assert not any(isinstance(entry, WorkerLost) for _, entry in run.log)
    assert {a.round for a in run.announced} == set(_undisturbed())
    assert run.announced[-1].state == "closed"


@settings(max_examples=60)
@given(st.lists(st.floats(0.0, LOST_AFTER_S), min_size=1, max_size=10))
def test_a_planner_that_restarts_in_time_declares_nobody_lost(gaps: list[float]) -> None:
    run = Simulation(record(PLAN))
    for worker in WORKERS:
        run.beat(worker)
    run.plan(0)
    for gap in gaps:
        run.restart(0)
        run.catch_up(run.planners[0])
        run.plan(0)
        run.tick(gap)
        run.plan(0)
    late = run.now - NOW >= PLAN.close.deadline_s
    assert {entry.kind for _, entry in run.log} <= ({"opened", "aborted"} if late else {"opened"})


def test_a_lost_race_is_decided_again() -> None:
    """Both planners want to close; the broker takes one, and the other finds its own key in the log."""
    run = Simulation(record(PLAN), planners=2)
    for worker in WORKERS:
        run.beat(worker)
    run.plan(0)
    run.catch_up(run.planners[1])
    run.plan(1)
    for worker in WORKERS:
        run.send(worker)
    run.aggregate()
    for planner in run.planners:
        run.catch_up(planner)
    run.plan(0)
    run.plan(1)
    assert [entry.kind for _, entry in run.log].count("closing") == 1
    assert any(isinstance(entry, Closing) for _, entry in run.log)
    _drain(run)


def test_rejections_are_told_to_their_worker_once() -> None:
    run = Simulation(record(PLAN))
    for worker in WORKERS:
        run.beat(worker)
    run.plan(0)
    run.send("stranger")
    run.aggregate()
    run.catch_up(run.planners[0])
    run.plan(0)
    run.plan(0)
    assert run.notified == [("stranger", "not-in-cohort")]


def test_a_round_in_which_everybody_fails_aborts_the_run() -> None:
    run = Simulation(record(PLAN))
    for worker in WORKERS:
        run.beat(worker)
    run.plan(0)
    for member in run.truth[0].members:
        run.fail(member.worker)
    run.plan(0)
    assert run.over
    assert run.truth[0].aborted is not None
    assert [w.code for w in run.truth[0].lost] == ["failed", "failed"]
