"""Stored messages in the order of their stream, whatever way they arrive.

Copies come at core speed from the stream's republish: in order, but a drop or a broken
connection can lose some and a re-read repeats some. Our own appends are known at the
ack, before their copy arrives. `Arrivals` says what may be delivered now and which
sequences must be read from the stream.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Arrivals(Generic[T]):
    """Delivers each sequence at most once; a copy is held back while an earlier sequence is unknown."""

    def __init__(self, after: int) -> None:
        self._complete = after  # everything up to here was delivered or is known not to exist
        self._early: set[int] = set()  # delivered ahead of order: our own appends
        self._held: dict[int, T] = {}

    @property
    def complete(self) -> int:
        """Every sequence up to this one was delivered."""
        return self._complete

    @property
    def missing(self) -> range:
        """Sequences to read from the stream; empty when nothing is held back."""
        return range(self._complete + 1, min(self._held)) if self._held else range(0)

    def copy(self, seq: int, item: T) -> list[T]:
        """Take a copy; return what is now in order."""
        if seq > self._complete and seq not in self._early:
            self._held[seq] = item
        return self._release()

    def ahead(self, seq: int, item: T) -> list[T]:
        """Take a message that may be delivered at once: its writer proved that it is next in its round."""
        self._held.pop(seq, None)
        if seq <= self._complete or seq in self._early:
            return []
        self._early.add(seq)
        return [item, *self._release()]

    def read_up_to(self, last: int) -> list[T]:
        """Note that all messages up to `last` were read: what is still unknown there was deleted."""
        released = [self._held.pop(seq) for seq in sorted(s for s in self._held if s <= last)]
        self._early = {s for s in self._early if s > last}
        self._complete = max(self._complete, last)
        return released + self._release()

    def _release(self) -> list[T]:
        released: list[T] = []
        while True:
            following = self._complete + 1
            if following in self._early:
                self._early.discard(following)
            elif following in self._held:
                released.append(self._held.pop(following))
            else:
                return released
            self._complete = following
