"""One thing that fails is put off, ever longer, told once, and stops no other."""

from __future__ import annotations

from fedbus.base.setbacks import PAUSE_S, Setbacks


def test_what_never_failed_is_ready() -> None:
    setbacks: Setbacks[str] = Setbacks()
    assert setbacks.ready("a", 0.0)
    assert setbacks.reason("a") is None
    assert setbacks.next_try(5.0) == 5.0


def test_a_failure_puts_off_that_thing_alone() -> None:
    setbacks: Setbacks[str] = Setbacks()
    setbacks.note("a", "no room", 10.0)
    assert not setbacks.ready("a", 10.0)
    assert setbacks.ready("b", 10.0)
    assert setbacks.ready("a", 10.0 + PAUSE_S[0])
    assert setbacks.next_try(99.0) == 10.0 + PAUSE_S[0]


def test_pauses_grow_to_a_limit_and_end_with_success() -> None:
    setbacks: Setbacks[str] = Setbacks()
    now, pauses = 0.0, []
    for _ in range(9):
        setbacks.note("a", "no room", now)
        pauses.append(setbacks.next_try(1e9) - now)
        now += 100.0
    assert pauses[0] < pauses[1] < pauses[2]
    assert pauses[-1] == PAUSE_S[1]
    setbacks.clear("a")
    assert setbacks.ready("a", now)
    setbacks.note("a", "no room", now)
    assert setbacks.next_try(1e9) == now + PAUSE_S[0]


def test_only_a_new_reason_is_news() -> None:
    setbacks: Setbacks[str] = Setbacks()
    assert setbacks.note("a", "no room", 0.0)
    assert not setbacks.note("a", "no room", 1.0)
    assert setbacks.note("a", "no broker", 2.0)
    assert setbacks.reason("a") == "no broker"
