"""A JetStream that answers as a test wants: a plain responder on a subject that no stream keeps."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fedbus_schemas import subjects
from nats.aio.msg import Msg
from support.natsd import Stack
from support.raw import raw

STORED = {"stream": "TEST", "seq": 1}


def error(code: int, text: str = "as the test wants") -> dict[str, Any]:
    """An error answer of JetStream."""
    return {"error": {"code": 400, "err_code": code, "description": text}}


class Answers:
    """What was asked, and how much of it is unanswered."""

    def __init__(self, script: Callable[[str, int], dict[str, Any] | None]) -> None:
        self._script = script
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.held: list[Msg] = []  # answered by `release`
        self.gate: asyncio.Event | None = None

    async def take(self, msg: Msg) -> None:
        name = msg.subject.rsplit(".", 1)[1]
        self.asked[name] += 1
        self.headers.append(dict(msg.headers or {}))
        self.held.append(msg)
        if self.gate is None:
            await self.release()

    async def release(self) -> None:
        """Answer all that is held."""
        held, self.held = self.held, []
        for msg in held:
            name = msg.subject.rsplit(".", 1)[1]
            answer = self._script(name, self.asked[name])
            if answer is not None:
                await msg.respond(json.dumps(answer).encode())

    @property
    def held_bytes(self) -> int:
        return sum(len(msg.data) for msg in self.held)


def subject_of(name: str) -> str:
    """Where the operator asks, and the planner's plain client answers."""
    return subjects.api("planner", name)


@asynccontextmanager
async def answering(
    stack: Stack, script: Callable[[str, int], dict[str, Any] | None]
) -> AsyncIterator[Answers]:
    """Answer over the block.

    Args:
        stack: the broker.
        script: the answer to the n-th request (from 1) for a name; None leaves it unanswered.
    """
    answers = Answers(script)
    async with raw(stack.credentials("planner")) as party:
        await party.nc.subscribe(subject_of("*"), cb=answers.take)
        await party.flush()
        yield answers
