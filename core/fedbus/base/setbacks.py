"""What went wrong lately with several things, and when to try each again: one failure stops no other."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

from fedbus.base.errors import FedbusError

K = TypeVar("K", bound=Hashable)

PAUSE_S = (0.2, 10.0)  # first and longest pause between tries


class Setbacks(Generic[K]):
    """Keeps a reason and a pause for each thing that failed.

    Args:
        what: these things are, for the log: `run`, `score`.
        log: told of each new reason.
    """

    def __init__(self, what: str, log: logging.Logger) -> None:
        self._what = what
        self._log = log
        self._failed: dict[K, tuple[str, float, float]] = {}  # reason, pause, when to try again

    def ready(self, key: K, now: float) -> bool:
        """Whether it may be tried."""
        return key not in self._failed or now >= self._failed[key][2]

    def put_off(self, key: K, error: Exception, now: float, **about: object) -> str:
        """Note a failure; it is logged where its reason is news, with a traceback where it is a bug of ours.

        Args:
            key: what failed.
            error: why.
            now: seconds, of the clock that `ready` is asked with.
            **about: what the log line is about.

        Returns:
            The reason.
        """
        if isinstance(error, FedbusError):
            reason, bug = error.message, None
        else:
            reason, bug = f"{type(error).__name__}: {error}", error
        before, pause, _ = self._failed.get(key, (None, PAUSE_S[0] / 2, 0.0))
        pause = min(2 * pause, PAUSE_S[1])
        self._failed[key] = (reason, pause, now + pause)
        if reason != before:
            extra = {"action": "retry", **about}
            self._log.warning("%s put off: %s", self._what, reason, extra=extra, exc_info=bug)
        return reason

    def clear(self, key: K) -> None:
        """It worked."""
        self._failed.pop(key, None)

    def keep(self, keys: Collection[K]) -> None:
        """Forget all but these: the others are not tried any more."""
        self._failed = {key: failure for key, failure in self._failed.items() if key in keys}

    def next_try(self, otherwise: float) -> float:
        """When the next one may be tried, `otherwise` at the latest. Seconds, as given to `put_off`."""
        return min([otherwise, *(again for _, _, again in self._failed.values())])
