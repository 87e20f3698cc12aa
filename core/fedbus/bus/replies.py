"""Messages, and the replies that are waited for: each wait ends by an answer, a refusal or a broken link."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from fedbus_schemas.base import Payload

from fedbus.base.errors import AuthRefused, BusUnavailable, FedbusError


@dataclass(frozen=True, slots=True)
class Message:
    """A received message."""

    subject: str
    data: Payload
    headers: Mapping[str, str]
    reply: str = ""

    @property
    def status(self) -> str | None:
        """Status of a server's reply without payload, such as 404.

        A stored message never has one, though its author may have given it a header of that name.
        """
        return None if "Nats-Stream" in self.headers else self.headers.get("Status")


Wait = asyncio.Future[Message]


class Replies:
    """What is waited for now, by the number that ends the reply's subject."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._waits: dict[str, tuple[str, Wait, list[Message] | None]] = {}

    @contextmanager
    def expect(self, subject: str, parts: list[Message] | None = None) -> Iterator[tuple[str, Wait]]:
        """A number and a future, known over the block.

        Args:
            subject: what is asked; a refusal of it ends the wait.
            parts: takes the replies before the one with a status, which ends the wait.
        """
        number, future = str(next(self._numbers)), asyncio.get_running_loop().create_future()
        self._waits[number] = (subject, future, parts)
        try:
            yield number, future
        finally:
            del self._waits[number]
            if future.done() and not future.cancelled():
                future.exception()  # seen, even where nobody waited for it any more

    def take(self, message: Message) -> None:
        """A reply came."""
        wait = self._waits.get(message.subject.rsplit(".", 1)[1])
        if wait is None:
            return  # too late
        _, future, parts = wait
        if parts is not None and message.status is None:
            parts.append(message)
        elif not future.done():
            future.set_result(message)

    def refuse(self, report: str, who: str) -> None:
        """The broker reported that it refuses a subject; it says so late and to nobody in particular."""
        for subject, future, _ in list(self._waits.values()):
            # nats-py lower-cases the report.
            if f'"{subject.lower()}"' in report.lower():
                _fail(future, AuthRefused(f"the broker refuses {subject} to {who}"))

    def fail(self, why: str) -> None:
        """The link broke."""
        for _, future, _ in list(self._waits.values()):
            _fail(future, BusUnavailable(why))


def _fail(future: Wait, error: FedbusError) -> None:
    if not future.done():
        future.set_exception(error)
