"""Being told to stop wins, also at the very moment at which what was waited for comes.

Python 3.11's `asyncio.wait_for` loses a cancellation that meets its result: a service at work would then
survive SIGTERM.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import NoReturn

import pytest
from fedbus.base.clock import random_token
from fedbus.base.errors import CodecError
from fedbus.bus import Bus, Credentials, Message
from fedbus.bus.log import RoundLog
from fedbus.bus.store import last_seq, put
from fedbus.bus.threads import SMALL_BYTES, apart
from fedbus_aggregator.service import Aggregator
from fedbus_planner.service import Planner
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from support.buses import buses, parties, until
from support.natsd import Stack
from support.raw import raw


class Unanswered(Bus):
    """Hears what it subscribed to, and gets no answers."""

    def __init__(self, credentials: Credentials, name: str) -> None:
        super().__init__(credentials, name)
        self.asked = asyncio.Event()

    async def request(self, *_: object, **__: object) -> NoReturn:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_request_is_cancelled_though_it_fails_just_then(stack: Stack) -> None:
    async with buses(stack.credentials("operator")) as (bus,), raw(stack.credentials("planner")) as planner:
        (asked,) = await planner.listen("fb.api.planner.never")
        request = asyncio.create_task(bus.request("fb.api.planner.never"))
        await asked.next_msg(timeout=10)
        await bus.close()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


async def test_a_flush_is_cancelled_though_it_fails_just_then(stack: Stack) -> None:
    async with buses(stack.credentials("operator")) as (bus,):
        flush = asyncio.create_task(bus.flush())
        await asyncio.sleep(0)  # it begins
        await bus.close()
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush


async def test_a_subscription_that_is_cancelled_hears_nothing(stack: Stack) -> None:
    """Who asked for it never got it, and could not end it."""
    async with parties(stack, "w-heard", "operator") as (worker, operator):
        heard: list[Message] = []
        subscribing = asyncio.create_task(operator.subscribe(subjects.ALL_PROGRESS, heard.append))
        await asyncio.sleep(0)  # it begins
        subscribing.cancel()
        await asyncio.wait([subscribing])
        assert subscribing.cancelled()
        await worker.publish(subjects.progress("w-heard"), b"x")
        await worker.flush()
        await operator.flush()
        assert heard == []


async def test_a_log_that_is_cancelled_while_it_reads_is_not_followed(stack: Stack) -> None:
    run = f"cancelled-{random_token()}"
    async with parties(stack, "planner") as (planner,):
        operator = await Unanswered.connect(stack.credentials("operator"))
        changed: list[RoundRef] = []
        following = RoundLog(operator, changed.append)
        starting = asyncio.create_task(following.start(await last_seq(planner, subjects.ROUNDS) + 1))
        await operator.asked.wait()
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()
        await put(planner, subjects.log_of(run, 1, "planner"), b"{}")
        await operator.flush()
        await operator.close()
        assert changed == []


@pytest.mark.parametrize("service", [Planner, Aggregator])
async def test_a_service_stops_though_it_is_woken_just_then(
    stack: Stack, service: type[Planner] | type[Aggregator]
) -> None:
    async with parties(stack, service.__name__.lower()) as (bus,):
        made = service(bus)
        task = asyncio.create_task(made.run())
        await until(lambda: _rests(made), "the service has nothing to do")
        made._wake.set()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=10)
        assert done == {task}, "it went on"
        assert task.cancelled()


def _rests(service: Planner | Aggregator) -> bool:
    """Whether it waits to be woken."""
    return bool(service._wake._waiters)  # asyncio says so nowhere else


async def test_connecting_is_cancelled(stack: Stack) -> None:
    absent = stack.credentials("operator").model_copy(update={"url": "nats://127.0.0.1:1"})
    task = asyncio.create_task(Bus.connect(absent, wait_s=None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_cancelled_waits_for_its_thread() -> None:
    """It has a descriptor, a file or memory that is closed, or used for something else, afterwards."""
    began, goes_on = threading.Event(), threading.Event()
    ended: list[bool] = []

    def work() -> None:
        began.set()
        ended.append(goes_on.wait(10.0))

    task = asyncio.create_task(apart(SMALL_BYTES + 1, work))
    await asyncio.to_thread(began.wait)
    for _ in range(2):  # a second time does not make it leave either
        task.cancel()
        await asyncio.wait([task], timeout=0.01)
    assert not task.done()
    goes_on.set()
    await asyncio.wait([task])
    assert (ended, task.cancelled()) == ([True], True)


async def test_what_fails_after_the_cancelling_is_not_reported_as_lost() -> None:
    began, goes_on = threading.Event(), threading.Event()
    lost: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))

    def work() -> None:
        began.set()
        goes_on.wait(10.0)
        raise CodecError("too late")

    task = asyncio.create_task(apart(SMALL_BYTES + 1, work))
    await asyncio.to_thread(began.wait)
    task.cancel()
    await asyncio.sleep(0)  # it is cancelled
    goes_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    del task
    gc.collect()  # asyncio reports at the end of a task's life
    assert lost == []
