"""When to leave the event loop: work on many bytes runs in threads; beats and replies do not wait."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from itertools import chain
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
# A call, and on how many bytes it works.
Call = tuple[int, Callable[[], T]]

# A hop to a thread and back takes about 0.15 ms of CPU: as much as hashing this.
SMALL_BYTES = 256 << 10
_MOST_THREADS = 4  # each has a chunk or two in memory, and beyond these the memory is what limits


def _cores() -> int:
    """Cores that this process may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Calls that `in_order` has running at once.
WIDTH = min(_MOST_THREADS, _cores())


async def apart(size: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a plain function that works on `size` bytes: here if they are few, else in a thread.

    Nothing ends a thread. Who is cancelled waits for it, and only then closes, frees or uses again what it
    works on.
    """
    if size <= SMALL_BYTES:
        return call(*args, **kwargs)
    work = _in_thread(partial(call, *args, **kwargs))
    try:
        await asyncio.wait((work,))
        return work.result()
    finally:
        await _ended((work,))


async def in_order(calls: AsyncGenerator[Call[T]], width: int | None = None) -> AsyncGenerator[T]:
    """What calls return, in their order, while the next ones run: here on few bytes, else in threads.

    The first error is raised, of a call or of what gives the calls, after all results before it. As with
    `apart`, no thread runs on: however this ends, the calls that were begun have ended, too.

    Args:
        calls: plain functions that may run in any thread, several at a time. What gives them is closed with
            this generator, and must not free what they work on.
        width: how many at a time, including those that have ended and whose turn has not come; `WIDTH` by
            default.
    """
    most, flying = width or WIDTH, deque[asyncio.Future[T]]()
    coming: asyncio.Task[bool] | None = None
    more = True
    async with aclosing(calls):
        try:
            while True:
                if coming is not None and coming.done():
                    more, coming = coming.result(), None
                if flying and flying[0].done():
                    yield flying.popleft().result()
                elif flying:
                    # What gives the calls may be slow: a result does not wait for it.
                    if coming is None and more and len(flying) < most:
                        coming = asyncio.create_task(_begin(calls, flying))
                    waits = (flying[0], coming) if coming else (flying[0],)
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                elif coming is not None:
                    await asyncio.wait((coming,))
                elif more:
                    more = await _begin(calls, flying)
                else:
                    return
        finally:
            if coming is not None:
                coming.cancel()
            await _ended(chain((coming,) if coming else (), flying))


async def _begin(calls: AsyncGenerator[Call[T]], flying: deque[asyncio.Future[T]]) -> bool:
    """Begin the next call, if there is one; one that cannot be given counts as one that failed."""
    begun: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    try:
        size, call = await anext(calls)
        if size > SMALL_BYTES:
            begun = _in_thread(call)
        else:
            begun.set_result(call())
    except StopAsyncIteration:
        return False
    except Exception as error:
        begun.set_exception(error)
    flying.append(begun)
    return True


def _in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    # No task: a loop that ends cancels its tasks, also those whose thread runs on.
    return asyncio.get_running_loop().run_in_executor(None, partial(copy_context().run, call))


async def _ended(works: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until all have ended, also where who waits is cancelled meanwhile; only then that counts."""
    cancelled = None
    for work in works:
        while not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError as error:
                cancelled = error
        if not work.cancelled():
            work.exception()  # nobody has use for it any more; asyncio would report it as lost
    if cancelled is not None:
        raise cancelled
