"""When a process that ended is started again."""

from __future__ import annotations

import pytest
from fedbus.runtime.restarts import FIRST_WAIT_S, LONGEST_WAIT_S, WELL_AFTER_S, Restarts


def test_the_first_end_is_mended_at_once_and_the_waits_double_up_to_ten_seconds() -> None:
    restarts, now, waits = Restarts(lambda: 0.0), 100.0, []
    restarts.started("planner", now)
    for _ in range(12):
        waits.append(restarts.ended("planner", now))
        now += waits[-1]
        assert restarts.due(now) == ["planner"]
        restarts.started("planner", now)
    assert waits[:4] == pytest.approx([FIRST_WAIT_S, 0.2, 0.4, 0.8])
    assert waits[-1] == pytest.approx(LONGEST_WAIT_S)
    assert max(waits) <= LONGEST_WAIT_S + 1e-6
    assert restarts.failures("planner") == 12


def test_chance_takes_off_up_to_a_half() -> None:
    for chance, wait in ((0.0, 0.1), (0.5, 0.075), (0.999999, 0.05)):
        restarts = Restarts(lambda chance=chance: chance)  # type: ignore[misc]
        restarts.started("planner", 0.0)
        assert restarts.ended("planner", 1.0) == pytest.approx(wait, abs=1e-5)


def test_a_process_that_stayed_up_is_well_again() -> None:
    restarts = Restarts(lambda: 0.0)
    for _ in range(5):
        restarts.started("planner", 0.0)
        restarts.ended("planner", 1.0)
    assert restarts.failures("planner") == 5
    restarts.started("planner", 10.0)
    assert restarts.ended("planner", 10.0 + WELL_AFTER_S) == pytest.approx(FIRST_WAIT_S)
    assert restarts.failures("planner") == 1


def test_one_end_counts_once_and_nothing_is_due_before_its_time() -> None:
    restarts = Restarts(lambda: 0.0)
    restarts.started("a", 0.0)
    restarts.started("b", 0.0)
    assert (restarts.due(99.0), restarts.down("a")) == ([], False)
    restarts.ended("b", 1.0)
    restarts.ended("b", 1.05)
    restarts.ended("a", 1.05)
    assert (restarts.failures("b"), restarts.down("b")) == (1, True)
    assert restarts.due(1.09) == []
    assert restarts.due(1.11) == ["b"]
    assert restarts.due(2.0) == ["a", "b"], "in the order of their first start"
    restarts.started("b", 2.0)
    assert restarts.due(2.0) == ["a"]
    assert restarts.failures("unknown") == 0
