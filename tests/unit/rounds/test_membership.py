"""What the roster says: joined, back, changed, lost, left; and that it says nothing without a reason."""

from __future__ import annotations

import pytest
from fedbus.rounds.membership import CALM_S, DOING_S, MOST_CHANGES, Membership
from fedbus.rounds.roster import BEAT_S, LOST_AFTER_S, Roster
from fedbus_schemas.messages import Beat
from fedbus_schemas.roster import Admission, RosterEntry
from hypothesis import given
from hypothesis import strategies as st
from support.rounds import NOW, beat, progress

TERMS = {"w1": Admission(worker="w1", invite="0123456789ab", site="north", labels={"gpu": "yes"}, at=NOW)}


class Listener:
    """A roster and what it became, step by step."""

    def __init__(self, *entries: RosterEntry, since: float = NOW) -> None:
        self.roster = Roster()
        self.membership = Membership(entries, since)

    def hear(self, said: Beat, at: float) -> list[str]:
        self.roster.hear(said, at)
        return self.look(at)

    def look(self, at: float, admissions: dict[str, Admission] | None = None) -> list[str]:
        changes = self.membership.changes(self.roster, admissions or {}, at)
        for change in changes:
            assert change.reason
            self.membership.note(change.entry)
            self.membership.told(change.entry.worker, at)
        return [change.kind for change in changes]

    @property
    def w1(self) -> RosterEntry:
        return self.membership.entries["w1"]


def test_a_life() -> None:
    told = Listener()
    assert told.hear(beat("w1"), NOW) == ["joined"]
    assert told.hear(beat("w1"), NOW + 2) == []
    assert told.w1.since == NOW
    assert told.look(NOW + 2 + LOST_AFTER_S) == []
    assert told.look(NOW + 2.1 + LOST_AFTER_S) == ["lost"]
    assert told.look(NOW + 60) == []
    assert (told.w1.state, told.w1.since) == ("lost", NOW + 2.1 + LOST_AFTER_S)
    assert told.hear(beat("w1"), NOW + 61) == ["back"]
    assert (told.w1.state, told.w1.since) == ("here", NOW + 61)
    assert told.hear(beat("w1", labels={"a": "1"}), NOW + 62) == ["changed"]
    assert told.w1.since == NOW + 61
    assert told.hear(beat("w1", labels={"a": "1"}).model_copy(update={"incarnation": "j"}), NOW + 63) == [
        "restarted"
    ]
    assert told.hear(beat("w1", leaving=True), NOW + 64) == ["left"]
    assert told.look(NOW + 99) == []
    assert told.hear(beat("w1"), NOW + 100) == ["back"]


def test_progress_proves_life() -> None:
    told = Listener()
    told.hear(beat("w1"), NOW)
    told.roster.hear_progress(progress("w1", 1), NOW + 9)
    assert told.look(NOW + 18) == []
    assert told.look(NOW + 9.1 + LOST_AFTER_S) == ["lost"]


def test_the_invitation_goes_before_the_workers_word() -> None:
    told = Listener()
    told.roster.hear(beat("w1", labels={"gpu": "no", "site": "south", "own": "1"}), NOW)
    assert told.look(NOW, TERMS) == ["joined"]
    assert (told.w1.site, told.w1.labels) == ("north", {"gpu": "yes", "own": "1"})


@pytest.mark.parametrize("heard", [False, True])
def test_after_a_restart_nobody_is_lost_for_two_beats_and_more(heard: bool) -> None:
    before = Listener()
    before.hear(beat("w1"), NOW)
    started = NOW + 1000
    again = Listener(before.w1, since=started)
    if heard:
        assert again.hear(beat("w1"), started + 1) == []
        assert again.w1.since == NOW, "nothing has changed"
    for seconds in (0.0, 2 * BEAT_S, LOST_AFTER_S):
        assert again.look(started + seconds) == []
    assert again.look(started + LOST_AFTER_S + 1.1) == ["lost"]


def test_a_pause_of_the_listener_is_nobodys_fault() -> None:
    told = Listener()
    told.hear(beat("w1"), NOW)
    told.hear(beat("w2"), NOW)
    told.look(NOW + 11)
    assert told.hear(beat("w1"), NOW + 12) == ["back"]
    told.membership.hear_afresh(NOW + 100)
    # w2, which was lost before, is not back because of it.
    assert told.look(NOW + 100) == []
    assert told.membership.entries["w2"].state == "lost"
    assert told.look(NOW + 110.1) == ["lost"]


def test_a_worker_that_left_unheard_of_is_no_event() -> None:
    assert Listener().hear(beat("w1", leaving=True), NOW) == []


def test_what_workers_do_is_what_they_said_lately() -> None:
    told = Listener()
    told.membership.hear_progress(progress("w1", 3), NOW)
    assert told.membership.doing(NOW) == {}, "nobody knows it"
    told.hear(beat("w1"), NOW)
    told.membership.hear_progress(progress("w1", 3), NOW)
    assert told.membership.doing(NOW + DOING_S)["w1"].round == 3
    assert told.membership.doing(NOW + DOING_S + 0.1) == {}
    told.membership.hear_progress(progress("w1", 3), NOW + 5)
    told.hear(beat("w1", leaving=True), NOW + 5)
    assert told.membership.doing(NOW + 5) == {}


def test_a_worker_that_comes_and_goes_all_the_time_is_told_of_seldom() -> None:
    told = Listener()
    at, kinds = NOW, []
    while at < NOW + 10 * CALM_S:
        kinds += told.hear(beat("w1", leaving=bool(len(kinds) % 2)), at)
        told.hear(beat("w2"), at)
        at += 0.1
    assert len(kinds) <= 10 * MOST_CHANGES
    assert told.membership.entries["w2"].state == "here", "others are told of as ever"
    for leaving, state in ((True, "left"), (False, "here")):
        told.hear(beat("w1", leaving=leaving), at := at + CALM_S)
        assert told.w1.state == state, "in the end the roster says what is so"


def test_only_what_changes_the_roster_wakes_its_writer() -> None:
    told = Listener()
    news = [(beat("w1", leaving=leaving), told.membership) for leaving in (False, True)]
    assert [membership.is_news(said, NOW) for said, membership in news] == [True, False]
    told.hear(beat("w1"), NOW)
    assert [membership.is_news(said, NOW) for said, membership in news] == [False, True]
    for _ in range(MOST_CHANGES):
        told.membership.told("w1", NOW)
    assert not told.membership.is_news(beat("w1", leaving=True), NOW + CALM_S - 0.1)
    assert told.membership.is_news(beat("w1", leaving=True), NOW + CALM_S)


@given(st.lists(st.tuples(st.sampled_from(["beat", "leave", "look"]), st.floats(0.0, 15.0)), max_size=25))
def test_events_alternate(steps: list[tuple[str, float]]) -> None:
    """A worker goes only where it was here, and comes only where it was not."""
    told, at, here = Listener(), NOW, False
    for step, pause in steps:
        at += pause
        kinds = told.look(at) if step == "look" else told.hear(beat("w1", leaving=step == "leave"), at)
        for kind in kinds:
            assert here == (kind in ("lost", "left"))
            here = not here
    entry = told.membership.entries.get("w1")
    assert here == (entry is not None and entry.state == "here")
