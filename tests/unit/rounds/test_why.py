"""Why a worker is, or is not, in a run: each case has a code and a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from fedbus.rounds.fold import Round
from fedbus.rounds.roster import Roster
from fedbus.rounds.why import standing
from support.rounds import (
    NOW,
    aborted,
    accepted,
    beat,
    closing,
    fold,
    lost,
    opened,
    plan,
    record,
    rejected,
    voided,
)

OPEN = opened("w1", "w2")


def roster(*workers: str, at: float = NOW) -> Roster:
    heard = Roster()
    for worker in workers:
        heard.hear(beat(worker), at)
    return heard


def why(worker: str, rounds: dict[int, Round], heard: Roster, waiting: str | None = None, **more: Any) -> str:
    run = record(plan(**more.pop("plan", {})), **more)
    said = standing(worker, run, rounds, heard, NOW + 1, waiting)
    assert said.run == run.name
    assert len(said.reason) >= 10
    return said.code


@pytest.mark.parametrize(
    ("round_", "code"),
    [
        (fold(OPEN), "cohort"),
        (fold(OPEN, accepted("w1")), "accepted"),
        (fold(OPEN, accepted("w1"), closing()), "accepted"),
        (fold(OPEN, rejected("w1")), "rejected"),
        (fold(OPEN, rejected("w1", "z"), accepted("w1")), "accepted"),
        (fold(OPEN, lost("w1")), "lost"),
        (fold(OPEN, accepted("w2"), closing()), "missed"),
        (fold(OPEN, accepted("w1", "w2"), closing(), voided("w1")), "voided"),
        (fold(OPEN, lost("w1"), aborted()), "eligible"),
    ],
)
def test_a_member(round_: Round, code: str) -> None:
    assert why("w1", {1: round_}, roster("w1", "w2")) == code


def test_who_is_outside() -> None:
    heard = roster("w1", "w3", at=NOW - 1)
    assert why("w9", {}, heard) == "unknown"
    assert why("w3", {}, heard) == "eligible"
    assert why("w3", {}, heard, "have 1 of 2") == "waiting"
    assert why("w3", {1: fold(OPEN)}, heard) == "not-chosen"
    heard.hear(beat("w4"), NOW + 0.5)
    assert why("w4", {1: fold(OPEN)}, heard) == "late"
    for changes, code in (
        ({"task": "digits"}, "task"),
        ({"cohort": {"require": {"gpu": "yes"}}}, "labels"),
    ):
        assert why("w3", {1: fold(OPEN)}, heard, plan=changes) == code
    heard.hear(beat("w3", leaving=True), NOW)
    assert why("w3", {}, heard) == "leaving"
    assert why("w1", {}, roster("w1", at=NOW - 60)) == "silent"


def test_terms_of_an_invitation_decide() -> None:
    heard = Roster()
    heard.hear(beat("w3", labels={"site": "north"}), NOW)
    required = {"cohort": {"require": {"site": "north"}}}
    assert why("w3", {}, heard, plan=required) == "eligible"
    heard.admit("w3", {"site": "south"})
    assert why("w3", {}, heard, plan=required) == "labels"
    assert heard.labels("w3") == {"site": "south"}


def test_parts_of_shipped_data() -> None:
    heard = roster("w1", "w2", "w3")
    dealt = {"data": {"parts": 2}}
    assert why("w3", {}, heard, plan=dealt) == "parts"
    assert why("w2", {}, heard, plan=dealt) == "eligible"
    assert why("w3", {}, heard, plan=dealt, partitions={"w3": 0}) == "eligible"
    assert why("w2", {}, heard, plan=dealt, partitions={"w3": 0}) == "parts"
