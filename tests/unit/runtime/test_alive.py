"""Signs of life reach whoever asked for them, in the words of sd_notify."""

from __future__ import annotations

import asyncio
import os

import pytest
from fedbus.runtime.alive import Signs, keep_saying_alive, without_signs
from support.natsd import wait_until


async def test_signs_come_for_as_long_as_the_event_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = Signs()
    try:
        for name, value in (signs.environment("planner") | {"WATCHDOG_USEC": "20000"}).items():
            monkeypatch.setenv(name, value)
        speaking = asyncio.create_task(keep_saying_alive())
        for _ in range(3):
            await asyncio.to_thread(wait_until, lambda: signs.heard() == {"planner"}, "a sign")
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        signs.heard()
        assert signs.heard() == set()
    finally:
        signs.close()


async def test_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    await keep_saying_alive()


async def test_another_process_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = Signs()
    try:
        for name, value in signs.environment("planner").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
        await keep_saying_alive()
        assert signs.heard() == set()
    finally:
        signs.close()


async def test_whoever_wants_to_know_that_it_is_ready_hears_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signs = Signs()
    try:
        monkeypatch.setenv("NOTIFY_SOCKET", signs.environment("planner")["NOTIFY_SOCKET"])
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        await keep_saying_alive()
        assert signs.heard() == {"planner"}
    finally:
        signs.close()


def test_a_child_does_not_speak_for_its_parent() -> None:
    mine = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    assert without_signs(mine) == {"HOME": "/"}
