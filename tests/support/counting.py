"""A connection that counts what a host downloads, and stops where a test wants it to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fedbus.bus import Bus, Message
from fedbus.bus.connection import REQUEST_TIMEOUT_S


class Counting(Bus):
    """Counts the chunks that it is asked for, and stops before one of them where it is told to."""

    chunks = 0
    most: int | None = None

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Message:
        if "fb.model.c." in subject:
            if self.most is not None and self.chunks >= self.most:
                await asyncio.Event().wait()
            self.chunks += 1
        return await super().request(subject, data, headers=headers, timeout_s=timeout_s)
