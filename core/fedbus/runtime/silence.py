"""Which processes hang: they gave signs of life, and give none any more. Pure: times come in.

A process is believed to be starting until its first sign.
"""

from __future__ import annotations

# Whoever watches may be kept from it too, as when the machine sleeps: what it did not hear then says nothing.
GAP_S = 2.0


class Silence:
    """How long each process has said nothing.

    Args:
        most_s: more than this, and it hangs.
    """

    def __init__(self, most_s: float) -> None:
        self._most = most_s
        self._heard: dict[str, float] = {}
        self._looked: float | None = None

    def hear(self, name: str, now: float) -> None:
        """A process gave a sign."""
        self._heard[name] = now

    def forget(self, name: str) -> None:
        """A process ended."""
        self._heard.pop(name, None)

    def hanging(self, now: float) -> list[str]:
        """Processes that hang. To be asked all the time, behind what was heard until now."""
        if self._looked is not None and now - self._looked > GAP_S:
            self._heard = dict.fromkeys(self._heard, now)
        self._looked = now
        return [name for name, heard in self._heard.items() if now - heard > self._most]
