"""Refused joins: told of once a minute, and answered from memory when there are too many."""

from __future__ import annotations

import pytest
from fedbus.base.errors import InviteRefused
from fedbus_enroll.refusals import MOST_IN_A_WINDOW, WINDOW_S, Refusals


def test_the_first_of_a_minute_is_worth_an_event() -> None:
    refusals, error = Refusals(), InviteRefused("wrong")
    assert refusals.note("a", error, 0.0)
    assert not refusals.note("a", error, 1.0)
    assert refusals.note("b", error, 1.0)
    assert refusals.note("a", error, WINDOW_S)


def test_a_flood_is_answered_from_memory_and_no_other_invitation_suffers() -> None:
    refusals, error = Refusals(), InviteRefused("wrong", hint="ask for another")
    for i in range(MOST_IN_A_WINDOW):
        refusals.check("a", float(i))
        refusals.note("a", error, float(i))
    with pytest.raises(InviteRefused, match="wrong") as again:
        refusals.check("a", 10.0)
    assert again.value.hint == "ask for another"
    refusals.check("b", 10.0)
    refusals.check("a", WINDOW_S)
