"""A worker whose credential is refused: at its first connection that ends it, later it tries on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest
from fedbus.base.errors import AuthRefused
from fedbus.bus import Credentials, trying
from fedbus_worker.connecting import connect
from support.buses import until
from support.natsd import Stack, broker


def take_away(stack: Stack, worker: Credentials) -> str:
    """Let the broker forget a worker's secret; returns the accounts as they were."""
    config = stack.folder / "broker" / "accounts.conf"
    before = config.read_text()
    put_back(stack, before.replace(worker.password, "another-password"))
    return before


def put_back(stack: Stack, accounts: str) -> None:
    (stack.folder / "broker" / "accounts.conf").write_text(accounts)
    os.kill(stack.broker.pid, signal.SIGHUP)


async def test_a_first_connection_that_is_refused_again_and_again_is_an_error(stack: Stack) -> None:
    unknown = stack.credentials("taken-away").model_copy(update={"password": "of-another-federation"})
    with pytest.raises(AuthRefused, match="refuses the credential of taken-away again and again") as caught:
        await connect(unknown, refusals=4)
    assert "invitation" in (caught.value.hint or "")


async def test_a_broker_that_is_not_there_and_then_refuses_for_a_moment_ends_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker(tmp_path) as stack:
        worker = stack.credentials("patient")
        await asyncio.to_thread(stack.kill)
        connecting = asyncio.create_task(connect(worker))
        await until(lambda: "broker not available" in caplog.text, "it has met nobody")
        await asyncio.to_thread(stack.restart)
        before = take_away(stack, worker)
        await until(
            lambda: connecting.done() or "refuses the credential" in caplog.text,
            "it is refused, or was faster",
        )
        put_back(stack, before)
        bus = await connecting
        await bus.wait_up()  # it may have been let in before its credential was taken away
        await bus.flush()
        await bus.close()


async def test_a_worker_that_was_in_tries_on_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(trying, "REMIND_S", 0.01)
    async with broker(tmp_path) as stack:
        bus = await connect(stack.credentials("w"))
        before = take_away(stack, bus.credentials)
        said = f"broker not available, trying on: {stack.url} refuses the credential of w"
        await until(lambda: caplog.text.count(said) > 1, "it says so more than once")
        put_back(stack, before)
        await bus.wait_up()
        await bus.close()
