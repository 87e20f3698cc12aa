"""Who hangs: whoever gave signs of life and gives none, while somebody listened."""

from __future__ import annotations

from fedbus.runtime.silence import GAP_S, Silence


def listen(silence: Silence, start: float, end: float) -> list[str]:
    """Ask four times a second; what hangs at the end."""
    found: list[str] = []
    for quarter in range(int(4 * start), int(4 * end) + 1):
        found = silence.hanging(quarter / 4)
    return found


def test_a_process_that_falls_silent_hangs_and_one_that_speaks_does_not() -> None:
    silence = Silence(15.0)
    silence.hear("planner", 0.0)
    silence.hear("broker", 0.0)
    assert listen(silence, 0.0, 10.0) == []
    silence.hear("broker", 10.0)
    assert listen(silence, 10.0, 15.0) == []
    assert listen(silence, 15.0, 15.5) == ["planner"]
    silence.forget("planner")
    assert listen(silence, 15.5, 20.0) == []


def test_who_was_never_heard_is_believed_to_start() -> None:
    assert listen(Silence(15.0), 0.0, 100.0) == []


def test_what_was_not_heard_while_nobody_listened_says_nothing() -> None:
    silence = Silence(15.0)
    silence.hear("planner", 0.0)
    assert silence.hanging(0.0) == []
    woke = 3600.0  # the machine slept
    assert woke > GAP_S
    assert listen(silence, woke, woke + 15.0) == []
    assert listen(silence, woke + 15.0, woke + 15.5) == ["planner"]
