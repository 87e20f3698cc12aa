"""Sending spans: a process publishes its finished ones on `fb.otel.<self>`. Nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from fedbus_schemas import subjects

from fedbus.base.clock import Clock
from fedbus.base.errors import BusError, BusUnavailable, ConfigError
from fedbus.base.settings import variable
from fedbus.bus import Bus
from fedbus.telemetry.otlp import MOST_BYTES, encode_in_parts
from fedbus.telemetry.spans import Spans

log = logging.getLogger(__name__)

FLUSH_S = 1.0
LEAST_S = 1.0  # between two flushes: short rounds share a message, which costs as much as their spans
LAST_S = 1.0  # how long a process that ends gives its last spans


class Tracer(Spans):
    """A process's spans and the way they leave it.

    Args:
        bus: the connection.
        service: `planner` and so on, or `worker`.
        clock: the machine's by default.
    """

    def __init__(self, bus: Bus, service: str, clock: Clock | None = None) -> None:
        super().__init__(service, bus.credentials.name, clock, on=telemetry_on())
        self._bus = bus
        self._subject = subjects.otel(bus.credentials.name)
        self._soon = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        if self.on:
            self._task = asyncio.create_task(self._send_on(), name="telemetry")

    async def close(self) -> None:
        """Send what is left, for a second at most, and stop."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        with suppress(BusError, TimeoutError):
            async with asyncio.timeout(LAST_S):
                await self.send()
                await self._bus.flush()

    def flush_soon(self) -> None:
        """Do not wait for the second to be over: a task or a round has ended."""
        self._soon.set()

    async def send(self) -> None:
        """Publish what has finished. While the broker is away it is kept, within bounds."""
        spans = self.take()
        try:
            for data in encode_in_parts(spans, min(MOST_BYTES, self._bus.max_message) if spans else 0):
                await self._bus.publish(self._subject, data)
        except BusUnavailable:
            self.add(*spans)  # what was sent already is sent again: ids tell

    async def _send_on(self) -> None:
        told = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._soon.wait()
            self._soon.clear()
            await self._bus.wait_up()
            try:
                await self.send()
            except Exception:
                log.exception("spans were not sent", extra={"action": "telemetry"})
            if self.dropped > told:
                told = self.dropped
                log.warning("%d spans dropped: too many at once", told, extra={"action": "telemetry"})
            await asyncio.sleep(LEAST_S)


def telemetry_on() -> bool:
    """Whether this process makes spans: `FEDBUS_TELEMETRY`.

    Raises:
        ConfigError: it is neither `on` nor `off`.
    """
    said = variable("FEDBUS_TELEMETRY") or "on"
    if said not in ("on", "off"):
        raise ConfigError(f"FEDBUS_TELEMETRY is {said!r}: use on or off")
    return said == "on"
