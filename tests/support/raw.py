"""A plain nats-py client, as an attacker would write it: nothing of ours between it and the broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import nats
from fedbus.bus.credentials import Credentials
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription


class Raw:
    """One party's connection; `refused` lists what the broker would not let it do."""

    def __init__(self) -> None:
        self.nc: Client = Client()
        self.refused: list[str] = []

    async def publish(self, subject: str, data: bytes = b"", reply: str = "") -> None:
        await self.nc.publish(subject, data, reply=reply)

    async def ask(self, subject: str, data: bytes = b"", **headers: str) -> Msg:
        """Request with a reply in the own inbox."""
        return await self.nc.request(subject, data, timeout=10, headers=headers or None)

    async def flush(self) -> None:
        """Return when the broker has processed all that was sent.

        nats-py writes a flush's PING ahead of publishes that still wait for its writer task; when the first
        PONG is here those are written, and the second PING is behind them.
        """
        await self.nc.flush()
        await self.nc.flush()

    async def api(self, subject: str, body: Any = None) -> dict[str, Any]:
        """Call JetStream's API and decode its answer."""
        answer = await self.ask(f"$JS.API.{subject}", json.dumps(body).encode() if body else b"")
        decoded: dict[str, Any] = json.loads(answer.data)
        return decoded

    async def listen(self, *subjects: str) -> list[Subscription]:
        """Subscribe, and return once the broker has taken or refused it."""
        made = [await self.nc.subscribe(subject) for subject in subjects]
        await self.flush()
        return made

    async def may_publish(self, subject: str, data: bytes = b"") -> bool:
        """Publish once, and tell whether the broker took it."""
        return await self._taken(self.nc.publish(subject, data), "publish", subject)

    async def may_subscribe(self, subject: str) -> bool:
        """Subscribe, and tell whether the broker took it."""
        return await self._taken(self.nc.subscribe(subject), "subscription", subject)

    async def _taken(self, action: Any, verb: str, subject: str) -> bool:
        before = len(self.refused)
        await action
        # The broker answers in order: a refusal comes before the answer to the flush.
        await self.flush()
        return not any(verb in text and f'"{subject.lower()}"' in text for text in self.refused[before:])


@asynccontextmanager
async def raw(credentials: Credentials) -> AsyncIterator[Raw]:
    """Connect one party."""
    party = Raw()

    async def note(error: Exception) -> None:
        party.refused.append(str(error).lower())

    party.nc = await nats.connect(
        credentials.url,
        user=credentials.user,
        password=credentials.password,
        inbox_prefix=credentials.inbox_prefix,
        allow_reconnect=False,
        error_cb=note,
    )
    try:
        yield party
    finally:
        await party.nc.close()


async def publish_bytes(credentials: Credentials, *subjects: bytes) -> None:
    """Publish a letter on subjects of any bytes, which no client does; return once it is processed."""
    await send_bytes(credentials, *(b"PUB " + subject + b" 1\r\nx\r\n" for subject in subjects))


async def send_bytes(credentials: Credentials, *lines: bytes) -> None:
    """Log in and write lines of the protocol; return once they are processed."""
    reader, writer = await asyncio.open_connection(credentials.host, credentials.port)
    login = {"user": credentials.user, "pass": credentials.password, "verbose": False, "headers": True}
    writer.write(b"CONNECT " + json.dumps(login).encode() + b"\r\n" + b"".join(lines) + b"PING\r\n")
    while (line := await reader.readline()) != b"PONG\r\n":
        assert line.startswith(b"INFO "), line
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def raws(*credentials: Credentials) -> AsyncIterator[list[Raw]]:
    """Connect several parties."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(raw(each)) for each in credentials]
