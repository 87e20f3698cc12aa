"""Time, chance and ids, as values that are handed in: pure code never asks for them."""

from __future__ import annotations

import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """What a shell needs of time: wall time for the wire, monotonic time for waits. Both in seconds."""

    def now(self) -> float:
        """Seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()


def random_token(size_bytes: int = 8) -> str:
    """A random lower-case hex token, safe in a subject."""
    return secrets.token_hex(size_bytes)
