"""What went wrong lately with several things, and when to try each again: one failure stops no other."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

PAUSE_S = (0.2, 10.0)  # first and longest pause between tries


class Setbacks(Generic[K]):
    """Keeps a reason and a pause for each thing that failed."""

    def __init__(self) -> None:
        self._failed: dict[K, tuple[str, float, float]] = {}  # reason, pause, when to try again

    def ready(self, key: K, now: float) -> bool:
        """Whether it may be tried."""
        return key not in self._failed or now >= self._failed[key][2]

    def note(self, key: K, reason: str, now: float) -> bool:
        """Note a failure; True when its reason is news, and worth a line in the log."""
        before, pause, _ = self._failed.get(key, ("", PAUSE_S[0] / 2, 0.0))
        pause = min(2 * pause, PAUSE_S[1])
        self._failed[key] = (reason, pause, now + pause)
        return reason != before

    def clear(self, key: K) -> None:
        """It worked."""
        self._failed.pop(key, None)

    def reason(self, key: K) -> str | None:
        """Why it failed last; None when it did not."""
        return self._failed[key][0] if key in self._failed else None

    def next_try(self, otherwise: float) -> float:
        """When the next one may be tried, `otherwise` at the latest. Seconds, as given to `note`."""
        return min([otherwise, *(again for _, _, again in self._failed.values())])
