"""How much the broker can still take: what its stream may hold, or the account, whichever is less."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from fedbus.base.errors import StreamFull
from fedbus.bus import Bus
from fedbus.bus.provision import provision
from fedbus.bus.store import free_bytes, persist, put
from fedbus_schemas import subjects
from support.buses import buses
from support.natsd import Stack, broker

MIB = 1 << 20


def limit(stack: Stack, size: int) -> None:
    """Let the account store so many bytes, as a broker does that is started on a fuller disk."""
    (stack.folder / "broker" / "accounts.conf").write_text(stack.broker.accounts.render(size))
    os.kill(stack.broker.pid, signal.SIGHUP)


async def free(bus: Bus, stream: str) -> int:
    """A broker that reads its configuration again serves nobody for a moment."""
    return await persist(bus, lambda: free_bytes(bus, stream))


async def test_what_is_free_is_bounded_by_the_stream_and_by_the_account(tmp_path: Path) -> None:
    async with broker(tmp_path) as stack:
        identities = map(stack.credentials, ("planner", "aggregator", "operator"))
        async with buses(*identities) as (planner, aggregator, operator):
            await provision(planner)
            of_stream = await free(planner, subjects.MODELS)
            await put(aggregator, subjects.model_chunk("a"), bytes(MIB))
            assert of_stream - 2 * MIB < await free(planner, subjects.MODELS) <= of_stream - MIB
            limit(stack, 8 * MIB)
            async with asyncio.timeout(20):
                while (left := await free(planner, subjects.MODELS)) > 7 * MIB:
                    pass
            assert left > 6 * MIB, "what other streams hold is counted, and is little"
            assert left == await free(operator, subjects.UPDATES), "they share it"
            stack.broker.refuse_writes(True)

            async def ask_on() -> None:
                while True:
                    await free(operator, subjects.MODELS)

            with pytest.raises(StreamFull, match="no space for its store"):
                async with asyncio.timeout(20):
                    await ask_on()
