"""One thing that fails is put off, ever longer, told once, and stops no other."""

from __future__ import annotations

import logging

import pytest
from fedbus.base.errors import StreamFull
from fedbus.base.setbacks import PAUSE_S, Setbacks

NO_ROOM = StreamFull("no room")


@pytest.fixture
def setbacks() -> Setbacks[str]:
    return Setbacks("run", logging.getLogger("fedbus.test"))


def test_what_never_failed_is_ready(setbacks: Setbacks[str]) -> None:
    assert setbacks.ready("a", 0.0)
    assert setbacks.next_try(5.0) == 5.0


def test_a_failure_puts_off_that_thing_alone(setbacks: Setbacks[str]) -> None:
    assert setbacks.put_off("a", NO_ROOM, 10.0) == "no room"
    assert not setbacks.ready("a", 10.0)
    assert setbacks.ready("b", 10.0)
    assert setbacks.ready("a", 10.0 + PAUSE_S[0])
    assert setbacks.next_try(99.0) == 10.0 + PAUSE_S[0]


def test_pauses_grow_to_a_limit_and_end_with_success(setbacks: Setbacks[str]) -> None:
    now, pauses = 0.0, []
    for _ in range(9):
        setbacks.put_off("a", NO_ROOM, now)
        pauses.append(setbacks.next_try(1e9) - now)
        now += 100.0
    assert pauses[0] < pauses[1] < pauses[2]
    assert pauses[-1] == PAUSE_S[1]
    setbacks.clear("a")
    assert setbacks.ready("a", now)
    setbacks.put_off("a", NO_ROOM, now)
    assert setbacks.next_try(1e9) == now + PAUSE_S[0]


def test_only_a_new_reason_is_told_and_a_bug_with_its_traceback(
    setbacks: Setbacks[str], caplog: pytest.LogCaptureFixture
) -> None:
    for error in (NO_ROOM, NO_ROOM, ValueError("odd"), ValueError("odd")):
        reason = setbacks.put_off("a", error, 0.0, run="run-1")
    assert reason == "ValueError: odd"
    told = [(record.message, bool(record.exc_info), record.__dict__["run"]) for record in caplog.records]
    assert told == [("run put off: no room", False, "run-1"), ("run put off: ValueError: odd", True, "run-1")]


def test_what_is_not_tried_any_more_wakes_nobody(setbacks: Setbacks[str]) -> None:
    setbacks.put_off("a", NO_ROOM, 0.0)
    setbacks.put_off("b", NO_ROOM, 50.0)
    setbacks.keep(["b"])
    assert setbacks.next_try(99.0) == 50.0 + PAUSE_S[0]
