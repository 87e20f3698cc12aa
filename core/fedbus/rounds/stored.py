"""The manifests of one round that are known to be stored, and which of them are still to be judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from fedbus.rounds.close import Attempt
from fedbus.rounds.fold import MOST_REJECTIONS, Round


class StoredManifests:
    """Attempts in the order in which they were heard of. What is settled once is not looked at again."""

    def __init__(self) -> None:
        self._known: set[Attempt] = set()
        self._of_worker: Counter[str] = Counter()
        self._open: dict[Attempt, None] = {}

    def note(self, attempt: Attempt) -> bool:
        """Remember a stored manifest; False when it is known, or its worker has stored too many."""
        if attempt in self._known or self._of_worker[attempt[0]] > MOST_REJECTIONS:
            return False
        self._known.add(attempt)
        self._of_worker[attempt[0]] += 1
        self._open[attempt] = None
        return True

    def next(self, round_: Round, verified: Container[Attempt]) -> Attempt | None:
        """The first one that is to be judged; None when there is none now.

        Args:
            round_: the fold of its log, which has the verdicts.
            verified: those that are judged, though the log does not say so yet.
        """
        for attempt in list(self._open):
            if attempt in verified:
                continue
            if round_.wants_verdict(*attempt):
                return attempt
            del self._open[attempt]  # a verdict stays
        return None
