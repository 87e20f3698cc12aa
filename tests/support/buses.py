"""Connections of ours for tests, and waiting for what they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fedbus.bus import Bus, Message
from fedbus.bus.connection import REQUEST_TIMEOUT_S
from fedbus.bus.credentials import Credentials
from fedbus.bus.provision import provision
from support.natsd import Stack
from support.proxy import Proxy

Ask = Callable[[], Awaitable[Message]]


class Tapped(Bus):
    """A connection whose requests a test looks at, holds up, or answers itself, in `tap`."""

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        """The answer to a request; `ask` gets the broker's own."""
        return await ask()

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Message:
        ask = partial(super().request, subject, data, headers=headers, timeout_s=timeout_s)
        return await self.tap(subject, data, ask)


@asynccontextmanager
async def buses(*credentials: Credentials) -> AsyncIterator[list[Bus]]:
    """Connect several parties."""
    async with AsyncExitStack() as stack:
        made = []
        for each in credentials:
            bus = await Bus.connect(each)
            stack.push_async_callback(bus.close)
            made.append(bus)
        yield made


@asynccontextmanager
async def parties(stack: Stack, *names: str, through: Proxy | None = None) -> AsyncIterator[list[Bus]]:
    """Connect several parties, by name, to a broker whose streams exist."""
    async with buses(stack.credentials("planner")) as (planner,):
        await provision(planner)
    credentials = map(stack.credentials, names)
    async with buses(*(through.credentials(each) if through else each for each in credentials)) as made:
        yield made


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
    """Poll until the condition holds; fail with `what` when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.005)
