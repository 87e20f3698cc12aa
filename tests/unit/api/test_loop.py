"""A loop in a thread: what is left running there and fails is raised where somebody sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from fedbus.api.loop import LoopThread
from support.natsd import wait_until


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.stop()


async def fails(after: asyncio.Event) -> None:
    await after.wait()
    raise OSError("nobody looks after the processes any more")


async def nothing() -> None:
    pass


def test_a_call_that_waits_gets_the_error_of_what_runs_beside_it(loop: LoopThread) -> None:
    event, ended = asyncio.Event(), []

    async def waits() -> None:
        event.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    loop.begin(fails(event))
    with pytest.raises(OSError, match="nobody looks after"):
        loop.call(waits())
    loop.call(nothing())  # it is told once; and the loop is alive
    assert ended == [True]


def test_the_next_call_gets_an_error_that_nobody_waited_for(loop: LoopThread) -> None:
    failing = asyncio.Event()
    failing.set()
    loop.begin(fails(failing))
    wait_until(loop._failed.done, "it has failed")
    with pytest.raises(OSError, match="nobody looks after"):
        loop.call(nothing())


def test_what_ends_well_or_is_cancelled_is_no_error(loop: LoopThread) -> None:
    loop.begin(nothing())
    loop.begin(asyncio.Event().wait())
    for _ in range(10):
        loop.call(nothing())
    with pytest.raises(TimeoutError):
        loop.call(asyncio.sleep(60), timeout_s=0.01)
    loop.stop()
    assert not loop.running
