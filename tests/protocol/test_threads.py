"""Calls in threads that give their results in order: the same whatever their number, and none is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

import pytest
from fedbus.base.errors import CodecError, StreamMissing
from fedbus.bus.threads import SMALL_BYTES, Call, in_order
from hypothesis import given
from hypothesis import strategies as st

LARGE = SMALL_BYTES + 1


async def given_in_turn(*calls: Callable[[], int], size: int = LARGE) -> AsyncGenerator[Call[int]]:
    for call in calls:
        yield size, call


async def taken(calls: AsyncGenerator[Call[int]], width: int) -> tuple[list[int], str | None]:
    """All results, and what ended them, if it was an error."""
    results: list[int] = []
    try:
        async with aclosing(in_order(calls, width)) as done:
            async for result in done:
                results += [result]  # those before an error, too
    except (CodecError, StreamMissing) as error:
        return results, error.message
    return results, None


Step = tuple[int, bool]  # how many bytes, and whether it fails


@given(st.lists(st.tuples(st.sampled_from([1, LARGE]), st.booleans()), max_size=9), st.booleans())
def test_results_and_the_first_error_are_the_same_for_any_width(steps: list[Step], is_cut: bool) -> None:
    def call(index: int, fails: bool) -> int:
        if fails:
            raise CodecError(f"call {index}")
        return index

    async def calls() -> AsyncGenerator[Call[int]]:
        for index, (size, fails) in enumerate(steps):
            yield size, partial(call, index, fails)
        if is_cut:
            raise StreamMissing("no more")

    first = next((index for index, (_, fails) in enumerate(steps) if fails), len(steps))
    said = f"call {first}" if first < len(steps) else "no more" if is_cut else None
    for width in (1, 2, 4, 16):
        assert asyncio.run(taken(calls(), width)) == (list(range(first)), said)


async def test_as_many_run_at_once_as_there_may() -> None:
    together = threading.Barrier(3)
    running, most = 0, 0
    lock = threading.Lock()

    def call() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10.0)  # breaks if fewer than three get here
        with lock:
            running -= 1
        together.wait(10.0)
        return 0

    assert await taken(given_in_turn(*[call] * 9), 3) == ([0] * 9, None)
    assert most == 3


async def test_what_is_small_stays_on_the_event_loop() -> None:
    here = threading.get_ident()
    assert await taken(given_in_turn(*[threading.get_ident] * 3, size=SMALL_BYTES), 4) == ([here] * 3, None)
    assert here not in (await taken(given_in_turn(*[threading.get_ident] * 3), 4))[0]


@pytest.mark.parametrize("width", [1, 2])
async def test_a_result_does_not_wait_for_a_slow_source(width: int) -> None:
    async def calls() -> AsyncGenerator[Call[int]]:
        yield LARGE, lambda: 1
        await asyncio.Event().wait()

    async with asyncio.timeout(10), aclosing(in_order(calls(), width)) as done:
        assert await anext(done) == 1


class Held:
    """A call that goes on until it is let go, and a source that waits after it, and is to be closed."""

    def __init__(self) -> None:
        self.began, self.goes_on = threading.Event(), threading.Event()
        self.ended: set[str] = set()

    def hold(self) -> int:
        self.began.set()
        assert self.goes_on.wait(10.0)
        self.ended.add("call")
        raise CodecError("too late to be told")

    async def calls(self, *before: Callable[[], int]) -> AsyncGenerator[Call[int]]:
        try:
            for call in (*before, self.hold):
                yield LARGE, call
            await asyncio.Event().wait()
        finally:
            self.ended.add("source")

    async def stays_until_let_go(self, task: asyncio.Task[None]) -> None:
        """However often it is cancelled; and then it leaves nothing running."""
        for _ in range(2):
            task.cancel()
            await asyncio.wait([task], timeout=0.01)
        assert not task.done()
        self.goes_on.set()
        await asyncio.wait([task])
        assert task.cancelled()
        assert self.ended == {"call", "source"}


@pytest.mark.parametrize("width", [1, 2])
async def test_who_is_cancelled_waits_for_the_threads(width: int) -> None:
    held = Held()
    lost: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))

    async def take() -> None:
        await taken(held.calls(), width)

    task = asyncio.create_task(take())
    await asyncio.to_thread(held.began.wait)
    await held.stays_until_let_go(task)
    assert lost == []


@pytest.mark.parametrize("fails", [False, True])
async def test_who_leaves_early_waits_for_the_threads_and_can_be_cancelled_meanwhile(fails: bool) -> None:
    """A cancellation that comes while it waits is not lost, whatever it leaves for."""
    held = Held()

    def first() -> int:
        assert held.began.wait(10.0)
        if fails:
            raise CodecError("the first")
        return 1

    async def take() -> None:
        async with aclosing(in_order(held.calls(first), 2)) as done:
            async for _ in done:
                leaves.set()
                return

    leaves = asyncio.Event()
    task = asyncio.create_task(take())
    await asyncio.to_thread(held.began.wait)
    if not fails:
        await leaves.wait()
    await held.stays_until_let_go(task)
