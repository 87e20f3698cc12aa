"""Connections of ours for tests, and waiting for what they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from fedbus.bus import Bus
from fedbus.bus.credentials import Credentials
from fedbus.bus.provision import provision
from support.natsd import Stack
from support.proxy import Proxy


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
