"""Refused joins, counted by invitation: who guesses or floods is answered from memory, and told of once."""

from __future__ import annotations

from dataclasses import dataclass

from fedbus.base.errors import EnrolmentError

WINDOW_S = 60.0
MOST_IN_A_WINDOW = 5
MOST_REMEMBERED = 10_000


@dataclass(slots=True)
class _Count:
    since: float
    refused: int
    last: EnrolmentError


class Refusals:
    """At most so many tries of one invitation are looked at in a minute. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def check(self, invite: str, now: float) -> None:
        """Let a try pass.

        Raises:
            EnrolmentError: the last refusal again; this invitation was refused too often lately.
        """
        count = self._counts.get(invite)
        if count is not None and now - count.since < WINDOW_S and count.refused >= MOST_IN_A_WINDOW:
            raise type(count.last)(count.last.message, hint=count.last.hint)

    def note(self, invite: str, error: EnrolmentError, now: float) -> bool:
        """Note a refusal; True when it is the first of its minute, and worth an event."""
        count = self._counts.get(invite)
        if count is None or now - count.since >= WINDOW_S:
            if len(self._counts) >= MOST_REMEMBERED:
                self._counts = {}
            self._counts[invite] = _Count(now, 1, error)
            return True
        count.refused += 1
        count.last = error
        return False
