"""What a worker has to do, from what was announced: late, twice, forged or out of order."""

from __future__ import annotations

from typing import Any

import pytest
from fedbus.rounds.planning import derive_seed
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Member
from fedbus_schemas.messages import Announcement, EndedRound
from fedbus_worker.assignments import Announced
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.rounds import NOW, digest, plan

SEATS = [Member(worker="w1", partition=2), Member(worker="w2", partition=0)]
PLAN = plan(seed=7, data={"partition": "dirichlet", "alpha": 0.3, "parts": 4})


def _news(number: int, state: str = "open", *, run: str = "run-1", **changes: Any) -> Announcement:
    values: dict[str, Any] = {
        "run": run, "run_at": NOW, "round": number, "state": state, "plan": PLAN,
        "plan_digest": PLAN.digest(), "base": digest("base"), "members": SEATS,
        "over": state == "closed" and number >= PLAN.rounds,
        "opened_at": NOW + number, "deadline_s": 60.0, "traceparent": "",
    }  # fmt: skip
    return Announcement(**(values | changes))


def _heard(*news: Announcement, worker: str = "w1") -> Announced:
    announced = Announced(worker)
    for each in news:
        announced.hear(each)
    return announced


def test_a_seat_in_an_open_round_is_an_assignment() -> None:
    (assignment,) = _heard(_news(3)).open()
    assert assignment.ref == RoundRef("run-1", 3)
    assert assignment.member.partition == 2
    assert assignment.seed == derive_seed(PLAN, 3, "part-2")


def test_each_member_and_round_has_its_own_seed_and_another_run_repeats_it() -> None:
    """The same plan trains the same way again; what differs must differ in the plan."""
    seeds = {
        run: {
            a.seed
            for worker in ("w1", "w2")
            for number in (1, 2)
            for a in _heard(_news(number, run=run), worker=worker).open()
        }
        for run in ("run-1", "run-2")
    }
    assert len(seeds["run-1"]) == 4
    assert seeds["run-1"] == seeds["run-2"]


def test_what_is_read_has_ones_own_seats_and_the_plan_that_its_digest_names() -> None:
    announced = _heard(_news(3))
    news = announced.read(_news(4).model_dump_json(by_alias=True).encode())
    assert news == _news(4, members=SEATS[:1])
    forged = _news(4, plan=plan(task="my.evil:Task")).model_dump_json(by_alias=True).encode()
    assert announced.read(forged).plan == PLAN
    assert not Announced("w1").hear(Announced("w1").read(forged)), "where the plan is not known yet"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"{}", b'{"run": ["x"], "members": [3]}'])
def test_what_is_no_announcement_is_refused(data: bytes) -> None:
    with pytest.raises(ValidationError):
        _heard(_news(3)).read(data)


def test_a_last_model_is_scored_while_somebody_reads_the_score() -> None:
    asked = _news(3, "closed", score=digest("last"), score_until=NOW + 60)
    announced = _heard(_news(3), _news(3, "closed"))
    assert announced.to_score(NOW) == []
    assert announced.hear(asked), "it is news after the round was closed"
    assert not announced.hear(_news(3, "closed")), "which is older"
    (assignment,) = announced.to_score(NOW + 60)
    assert (assignment.only_scores, assignment.ref) == (True, RoundRef("run-1", 3))
    assert announced.to_score(NOW + 61) == []
    assert announced.open() == []
    assert _heard(asked, worker="stranger").to_score(NOW) == []
    assert _heard(_news(3, score=digest("base"))).to_score(NOW) == [], "an open round asks for more"


def test_what_was_given_up_is_not_offered_again_and_forgotten_once_the_run_went_on() -> None:
    announced = _heard(_news(0))
    for number in range(1, 6):
        announced.hear(_news(number))
        announced.give_up(RoundRef("run-1", number))
        assert announced.open() == []
    assert [n for n in range(6) if announced.has_given_up(RoundRef("run-1", n))] == [4, 5]
    announced.hear(_news(1, run="run-2"))
    assert announced.has_given_up(RoundRef("run-1", 5)), "another run says nothing of it"
    asked = _news(5, "closed", score=digest("last"), score_until=NOW + 60)
    announced.hear(asked)
    assert len(announced.to_score(NOW)) == 1, "its training was given up, not its score"
    announced.give_up(RoundRef("run-1", 5), scoring=True)
    assert announced.to_score(NOW) == []
    announced.forget(["run-2"])
    announced.hear(asked)
    assert len(announced.to_score(NOW)) == 1, "nothing is left of it"


def test_a_run_that_was_restored_begins_again_at_an_earlier_round() -> None:
    announced = _heard(_news(9))
    announced.give_up(RoundRef("run-1", 9))
    restored = NOW + 100
    assert announced.hear(_news(9, run_at=restored))
    assert [each.ref.number for each in announced.open()] == [9]
    assert announced.hear(_news(6, run_at=restored + 1))
    assert [each.ref.number for each in announced.open()] == [6]
    assert not announced.hear(_news(10)), "what was said before the backup was restored is over"
    assert announced.is_replaced(_news(9))
    assert not announced.is_replaced(_news(6, run_at=restored + 1))
    assert announced.hear(_news(7, run_at=restored + 1))


def test_runs_that_are_over_are_forgotten_once_nobody_announces_them() -> None:
    announced = _heard(_news(3, "closed"), _news(3, "closed", run="run-2"), _news(3, run="run-3"))
    announced.forget(["run-2"])
    assert [announced.knows(run) for run in ("run-1", "run-2", "run-3")] == [False, True, True]
    assert announced.hear(_news(0)), "the name may come again"


def test_others_rounds_are_not_ours() -> None:
    assert _heard(_news(3), worker="stranger").open() == []
    assert _heard(_news(3, "closed")).open() == []


def test_a_worker_may_have_several_seats_and_runs_longest_open_first() -> None:
    seats = [Member(worker="w1", node="b"), Member(worker="w2"), Member(worker="w1", node="a")]
    announced = _heard(
        _news(1, opened_at=NOW + 9),
        _news(1, run="run-2", opened_at=NOW + 1, members=seats),
        _news(1, run="run-3", members=seats[1:2]),
    )
    assert [(a.ref.run, a.member.node) for a in announced.open()] == [
        ("run-2", "b"),
        ("run-2", "a"),
        ("run-1", "0"),
    ]


def test_where_the_data_is() -> None:
    (assignment,) = _heard(_news(3)).open()
    site = assignment.site("/data", {"gpu": "yes"})
    assert (site.data, site.labels) == ("/data", {"gpu": "yes"})
    part = site.partition
    assert part is not None
    assert (part.kind, part.parts, part.id, part.seed, part.alpha) == ("dirichlet", 4, 2, 7, 0.3)
    own = plan()
    (without,) = _heard(_news(3, plan=own, plan_digest=own.digest())).open()
    assert without.site("/data", {}).partition is None


def test_another_plan_than_the_digest_says_is_not_heard() -> None:
    announced = Announced("w1")
    assert not announced.hear(_news(3, plan=plan(task="my.evil:Task")))
    assert announced.open() == []
    assert announced.hear(_news(3))


@pytest.mark.parametrize(
    ("known", "new", "heard"),
    [
        ((3, "open"), (3, "open"), False),
        ((3, "open"), (3, "closed"), True),
        ((3, "closed"), (3, "open"), False),
        ((3, "closed"), (3, "closed"), False),
        ((3, "open"), (4, "open"), True),
        ((3, "closed"), (4, "open"), True),
        ((3, "open"), (2, "closed"), False),
        ((3, "open"), (5, "closed"), True),
    ],
)
def test_only_what_is_newer_is_heard(known: tuple[int, str], new: tuple[int, str], heard: bool) -> None:
    assert _heard(_news(*known)).hear(_news(*new)) == heard


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["open", "closed"])), min_size=1, max_size=12))
def test_any_order_and_repetition_ends_in_the_newest(drawn: list[tuple[int, str]]) -> None:
    announced = _heard(*[_news(*each) for each in drawn])
    newest = max(drawn, key=lambda each: (each[0], each[1] == "closed"))
    assert [a.ref.number for a in announced.open()] == ([newest[0]] if newest[1] == "open" else [])
    for number in range(6):
        over = number < newest[0] or (number == newest[0] and newest[1] == "closed")
        assert announced.is_over(RoundRef("run-1", number)) == over


def test_a_run_that_was_never_heard_of_is_not_over() -> None:
    assert not _heard(_news(3)).is_over(RoundRef("run-2", 1))


@pytest.mark.parametrize(
    ("ended", "counted"),
    [
        (EndedRound(round=3, accepted=["w2", "w1"]), True),
        (EndedRound(round=3, accepted=["w2"]), False),
        (EndedRound(round=2, accepted=["w1"]), None),
        (None, None),
    ],
)
def test_whether_our_update_counted(ended: EndedRound | None, counted: bool | None) -> None:
    assert _heard(_news(4, ended=ended)).counted(RoundRef("run-1", 3)) is counted
    assert _heard().counted(RoundRef("run-1", 3)) is None


@pytest.mark.parametrize(
    ("number", "state", "over"),
    [(3, "open", False), (3, "closed", False), (PLAN.rounds, "open", False), (PLAN.rounds, "closed", True)],
)
def test_a_run_is_over_when_its_last_round_is(number: int, state: str, over: bool) -> None:
    assert _heard(_news(number, state)).is_run_over("run-1") == over
    assert not _heard().is_run_over("run-1")


@pytest.mark.parametrize(
    ("news", "made"),
    [
        (_news(0, "closed", ended=EndedRound(round=0, accepted=["w2"])), True),
        (_news(0, "closed", ended=EndedRound(round=0, accepted=[])), False),
        (_news(0, "closed"), False),
        (_news(1), True),
    ],
)
def test_a_round_that_was_aborted_has_made_no_model(news: Announcement, made: bool) -> None:
    assert _heard(news).has_model(RoundRef("run-1", 0)) is made
