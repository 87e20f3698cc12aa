"""What to start again, and when. Pure: times come in, times go out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 10.0
# A process that stayed up for so long is well again: its next end is a first one.
WELL_AFTER_S = 30.0


@dataclass(slots=True)
class _Life:
    started_at: float
    failures: int = 0  # in a row
    due_at: float | None = None  # None while it runs


class Restarts:
    """When each process that ended is due again: soon at first, later and later if it keeps ending.

    Waits double from 0.1 s to 10 s. A random share of up to half is taken off each, so that what died
    together does not start together.

    Args:
        chance: draws from 0 to below 1.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._lives: dict[str, _Life] = {}

    def started(self, name: str, now: float) -> None:
        """Note that a process was started, for the first time or again."""
        life = self._lives.setdefault(name, _Life(now))
        life.started_at, life.due_at = now, None

    def ended(self, name: str, now: float) -> float:
        """Note that a process ended, or could not be started; returns the seconds until it is due.

        Said again while it is not due yet, this changes nothing.
        """
        life = self._lives.setdefault(name, _Life(now))
        if life.due_at is None:
            life.failures = 1 if now - life.started_at >= WELL_AFTER_S else life.failures + 1
            longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(life.failures - 1, 20))
            life.due_at = now + longest * (1 - self._chance() / 2)
        return max(0.0, life.due_at - now)

    def failures(self, name: str) -> int:
        """How often in a row a process ended without having stayed up for a while."""
        return self._lives[name].failures if name in self._lives else 0

    def down(self, name: str) -> bool:
        """Whether a process ended and was not started again yet."""
        return name in self._lives and self._lives[name].due_at is not None

    def due(self, now: float) -> list[str]:
        """Processes to start now, in the order in which they were first started."""
        return [n for n, life in self._lives.items() if life.due_at is not None and life.due_at <= now]
