"""When to leave the event loop: work on many bytes runs in a thread; beats and replies do not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# A hop to a thread and back takes about 0.15 ms of CPU: as much as hashing this.
SMALL_BYTES = 256 << 10


async def apart(size: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a plain function that works on `size` bytes: here if they are few, else in a thread.

    Nothing ends a thread. Who is cancelled waits for it, and only then closes, frees or uses again what it
    works on.
    """
    if size <= SMALL_BYTES:
        return call(*args, **kwargs)
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    finally:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        work.exception()  # who was cancelled has no more use for it; asyncio would report it as lost
