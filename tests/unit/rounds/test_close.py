"""When a round closes, aborts or waits: every case of the policy, and how shares are rounded."""

from __future__ import annotations

from decimal import Decimal

import pytest
from fedbus.rounds.close import (
    LEAST_DEADLINE_S,
    VERDICT_GRACE_S,
    Abort,
    Close,
    Hold,
    ListManifests,
    deadline_of_next,
    resolve,
    rule,
    seats,
)
from fedbus.rounds.fold import MOST_REJECTIONS, Round
from fedbus_schemas.log import Closing, Entry
from hypothesis import given
from hypothesis import strategies as st
from support.rounds import NOW, accepted, fold, lost, opened, plan, rejected

TIME = NOW + 10
LATE = NOW + 601
FOUR = ("w1", "w2", "w3", "w4")


@pytest.mark.parametrize(
    ("asked", "cohort", "count"),
    [
        (1, 4, 1),
        (1.0, 4, 4),
        (3, 4, 3),
        (9, 4, 4),
        (0.5, 4, 2),
        (0.5, 5, 3),
        (0.01, 4, 1),
        (0.07, 100, 7),
        (0.14, 50, 7),
        (0.28, 25, 7),
        (0.55, 100, 55),
        (1 / 3, 3, 1),
        (1e-9, 1_000_000, 1),
        (1.0, 1_000_000, 1_000_000),
    ],
)
def test_an_int_is_a_count_and_a_float_a_share_rounded_up(
    asked: int | float, cohort: int, count: int
) -> None:
    assert resolve(asked, cohort) == count


@given(st.decimals("0.0001", "1", places=4), st.integers(1, 100_000))
def test_a_share_is_what_its_digits_say(share: Decimal, cohort: int) -> None:
    exact = -((-int(share * 10_000) * cohort) // 10_000)
    assert resolve(float(share), cohort) == max(1, exact)


@pytest.mark.parametrize(
    ("cohort", "eligible", "wanted", "invited"),
    [
        ({}, 4, 4, 4),
        ({"fraction": 0.5}, 4, 2, 2),
        ({"fraction": 0.1, "min": 3}, 10, 3, 3),
        ({"fraction": 0.07}, 100, 7, 7),
        ({"fraction": 0.5, "over_select": 1.3}, 10, 5, 7),
        ({"fraction": 0.5, "over_select": 1.1}, 100, 50, 55),
        ({"fraction": 0.5, "over_select": 10}, 10, 5, 10),
        ({"over_select": 1.5}, 10, 10, 10),
        ({"fraction": 0.001}, 10, 1, 1),
    ],
)
def test_seats(cohort: dict[str, float], eligible: int, wanted: int, invited: int) -> None:
    assert seats(plan(cohort=cohort), eligible) == (wanted, invited)


@given(st.floats(1e-6, 1), st.floats(1, 10), st.integers(1, 50), st.integers(1, 10_000))
def test_no_more_seats_than_workers_and_never_fewer_than_wanted(
    fraction: float, over: float, least: int, eligible: int
) -> None:
    wanted, invited = seats(plan(cohort={"fraction": fraction, "over_select": over, "min": least}), eligible)
    assert 1 <= wanted <= invited <= eligible
    assert wanted >= min(least, eligible)


CASES: dict[str, tuple[list[Entry], float, type, str, str]] = {
    "nothing yet": ([], TIME, Hold, "updates", "waiting for w1, w2, w3, w4: have 0 of 4 updates"),
    "some": ([accepted("w2")], TIME, Hold, "updates", "waiting for w1, w3, w4: have 1 of 4"),
    "all": ([accepted(*FOUR)], TIME, Close, "target", "have 4 updates, wanted 4"),
    "all, late": ([accepted(*FOUR)], LATE, Close, "target", "have 4 updates, wanted 4"),
    "deadline, quorum": (
        [accepted("w1", "w2")],
        LATE,
        Close,
        "deadline",
        "600 s passed: have 2 updates, quorum 2",
    ),
    "deadline, no quorum": ([accepted("w1")], LATE, Abort, "quorum", "deadline of 600 s passed: have 1"),
    "lost and rejected, quorum": (
        [accepted("w1", "w2"), lost("w3"), rejected("w4")],
        TIME,
        Close,
        "nobody-left",
        "nobody is left to wait for: have 2 updates, quorum 2",
    ),
    "lost and rejected, no quorum": (
        [accepted("w1"), lost("w2"), lost("w3"), rejected("w4")],
        TIME,
        Abort,
        "quorum",
        "nobody is left to wait for: have 1 updates, quorum 2",
    ),
    "everyone lost": ([lost(w) for w in FOUR], TIME, Abort, "quorum", "have 0 updates, quorum 2"),
    "lost and back": ([lost("w1"), accepted("w1")], TIME, Hold, "updates", "waiting for w2, w3, w4: have 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_rulings(case: str) -> None:
    entries, now, kind, code, reason = CASES[case]
    round_ = fold(opened(*FOUR, quorum=2), *entries)
    ruling = rule(round_, now, [])
    assert type(ruling) is kind
    assert not isinstance(ruling, ListManifests)
    assert ruling.code == code
    assert reason in ruling.reason
    # Whatever ends a round is decided only with the list of what is stored, unless nothing more can count.
    unlisted = rule(round_, now, None)
    if isinstance(ruling, Hold) or round_.full:
        assert unlisted == ruling
    else:
        assert isinstance(unlisted, ListManifests)


def test_it_waits_for_the_deadline_at_the_latest() -> None:
    ruling = rule(fold(opened(*FOUR)), TIME, None)
    assert isinstance(ruling, Hold)
    assert ruling.until == NOW + 600


@pytest.mark.parametrize(("now", "ends"), [(NOW + 599.999, False), (NOW + 600, True)])
def test_the_deadline_is_sharp(now: float, ends: bool) -> None:
    assert isinstance(rule(fold(opened(*FOUR), accepted("w1")), now, []), Close) == ends


def test_over_selection_closes_at_its_target() -> None:
    round_ = fold(opened(*FOUR, target=3), accepted("w1", "w2", "w4"))
    assert isinstance(rule(round_, TIME, None), ListManifests)
    ruling = rule(round_, TIME, [(w, "0", "a") for w in ("w1", "w2", "w4")])
    assert ruling == Close("target", "have 3 updates, wanted 3")


@pytest.mark.parametrize(
    "entries", [[accepted("w1", "w2", "w3")], [accepted("w1"), lost("w2"), lost("w3"), lost("w4")]]
)
def test_an_update_stored_before_the_cut_off_is_judged_first(entries: list[Entry]) -> None:
    """A slow or dead aggregator cannot make an update that came in time not count."""
    round_ = fold(opened(*FOUR, target=3, quorum=1), *entries)
    ruling = rule(round_, TIME, [("w1", "0", "a"), ("w4", "0", "a")])
    assert isinstance(ruling, Hold)
    assert ruling.code == "aggregator-behind"
    assert "w4" in ruling.reason
    assert ruling.until == NOW + 600 + VERDICT_GRACE_S
    judged = fold(opened(*FOUR, target=3, quorum=1), *entries, rejected("w4"))
    assert isinstance(rule(judged, TIME, [("w1", "0", "a"), ("w4", "0", "a")]), Close)


@pytest.mark.parametrize(("have", "ending"), [(["w1", "w2"], Close), (["w1"], Abort)])
def test_the_wait_for_a_verdict_is_bounded(have: list[str], ending: type) -> None:
    round_ = fold(opened(*FOUR, quorum=2), accepted(*have))
    stored = [("w4", "0", "a")]
    end = NOW + 600 + VERDICT_GRACE_S
    assert isinstance(rule(round_, end - 0.001, stored), Hold)
    assert isinstance(rule(round_, end, stored), ending)


@pytest.mark.parametrize(
    "manifest",
    [
        ("stranger", "0", "a"),
        ("w1", "0", "b"),
        ("w1", "1", "a"),
        ("w4", "0", "é"),
        ("w4", "a b", "a"),
    ],
    ids=["no member", "seat is taken", "no such node", "no name", "no node name"],
)
def test_it_does_not_wait_for_what_cannot_count(manifest: tuple[str, str, str]) -> None:
    round_ = fold(opened(*FOUR), accepted("w1"), lost("w2"), lost("w3"), lost("w4"))
    assert isinstance(rule(round_, TIME, [manifest]), Close)


def test_it_does_not_wait_for_a_worker_that_was_refused_too_often() -> None:
    refusals = [rejected("w2", f"a{i}") for i in range(MOST_REJECTIONS)]
    round_ = fold(opened("w1", "w2"), accepted("w1"), *refusals)
    assert isinstance(rule(round_, TIME, [("w2", "0", "next")]), Close)


def test_the_first_model_needs_one_update_and_no_list() -> None:
    round_ = fold(opened("w1", "w2", base=None, target=1), accepted("w2"))
    assert rule(round_, TIME, None) == Close("target", "have 1 updates, wanted 1")


def test_long_lists_of_names_are_cut() -> None:
    names = [f"w{i:03}" for i in range(50)]
    ruling = rule(fold(opened(*names)), TIME, None)
    assert isinstance(ruling, Hold)
    assert "w004 and 45 more" in ruling.reason


def test_updates_that_nobody_judged_are_named() -> None:
    """An absent aggregator must not look like absent workers."""
    round_ = fold(opened("w1", "w2", quorum=1))
    ruling = rule(round_, LATE + VERDICT_GRACE_S, [("w1", "0", "a"), ("w2", "0", "b")])
    assert isinstance(ruling, Abort)
    assert "updates of w1, w2 are stored, and no aggregator judged them" in ruling.reason


def test_an_adaptive_deadline_ends_no_round_that_could_still_have_a_quorum() -> None:
    round_ = fold(opened(*FOUR, quorum=2, deadline_s=3.0), accepted("w1"))
    held = rule(round_, NOW + 4, None, most_s=600.0)
    assert isinstance(held, Hold)
    assert (held.code, held.until) == ("updates", NOW + 600)
    assert "its deadline of 3 s passed without a quorum of 2" in held.reason
    assert isinstance(rule(round_, NOW + 601, [], most_s=600.0), Abort)
    enough = fold(opened(*FOUR, quorum=2, deadline_s=3.0), accepted("w1", "w2"))
    assert isinstance(rule(enough, NOW + 4, [], most_s=600.0), Close)


def test_a_deadline_counts_from_when_its_run_was_restored() -> None:
    day = 86_400.0
    round_ = fold(opened(*FOUR, quorum=2), accepted("w1"))
    assert isinstance(rule(round_, NOW + day + 1, [], most_s=600.0), Abort)
    assert isinstance(rule(round_, NOW + day + 1, [], since=NOW + day, most_s=600.0), Hold)
    assert isinstance(rule(round_, NOW + day + 601, [], since=NOW + day, most_s=600.0), Abort)


def timed(times: list[float], members: int = 4, code: str = "target") -> Round:
    """A round of so many members; those that count took so long, the last one ended it."""
    taken = [
        accepted(f"w{i}").model_copy(update={"at": NOW + time}) for i, time in enumerate(sorted(times), 1)
    ]
    end = 40.0 if code == "deadline" else max(times, default=1.0)
    over = Closing(at=NOW + end, code=code, reason="over")
    return fold(opened(*[f"w{i}" for i in range(1, members + 1)], target=len(times) or 1), *taken, over)


@pytest.mark.parametrize(
    ("before", "seconds"),
    [
        ([], 600.0),  # nothing is known yet
        ([timed([10, 11, 12, 13])], 23.0),  # 11.5 + 5 * 1 is less than two medians
        ([timed([10, 20, 30, 40])], 75.0),  # 25 + 5 * 10
        ([timed([10, 10, 10, 10]), timed([10, 10, 10, 100])], 20.0),  # one that was slow once changes little
        ([timed([100, 200, 300, 400])], 600.0),  # no more than the plan allows
        ([timed([0.1, 0.1, 0.1])], LEAST_DEADLINE_S),
        ([timed([10, 12, 14], code="deadline")], 26.0),  # two medians of 10 12 14 40: the fourth had 40 s
    ],
)
def test_an_adaptive_deadline_follows_the_times_of_earlier_rounds(
    before: list[Round], seconds: float
) -> None:
    assert deadline_of_next(plan(close={"adaptive": 5}), before) == pytest.approx(seconds)
    assert deadline_of_next(plan(), before) == 600.0


def test_a_round_that_made_the_first_model_says_nothing_of_times() -> None:
    first = fold(
        opened("w1", "w2", base=None), accepted("w1"), Closing(at=NOW + 1, code="target", reason="x")
    )
    assert deadline_of_next(plan(close={"adaptive": 5}), [first]) == 600.0
