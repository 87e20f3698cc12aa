"""A connection that counts what a host downloads, and stops where a test wants it to."""

from __future__ import annotations

import asyncio

from fedbus.bus import Message
from support.buses import Ask, Tapped


class Counting(Tapped):
    """Counts the chunks that it is asked for, and stops before one of them where it is told to."""

    chunks = 0
    most: int | None = None

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        if "fb.model.c." in subject:
            if self.most is not None and self.chunks >= self.most:
                await asyncio.Event().wait()
            self.chunks += 1
        return await ask()
