"""The bridge: every party's spans, cleaned, to the OTLP receiver that the operator named.

Workers need no way to the receiver, and the receiver none to them. It never holds up the federation:
the queue is bounded, and what the receiver does not take in a few tries is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from fedbus.base.settings import otel_variables
from fedbus.bus import Bus, Message
from fedbus.telemetry.endpoint import Endpoint, read_endpoint
from fedbus.telemetry.otlp import MOST_BYTES, decode, encode
from fedbus_schemas import subjects

from fedbus_enroll.post import AGAIN, post

log = logging.getLogger(__name__)

MOST_WAITING_BYTES = 8 << 20
MOST_IN_ONE_POST = 1 << 20
MOST_IN_ONE_BATCH = 512
COST_BYTES = 256  # what a waiting message takes beside its payload
PAUSES_S = (0.5, 1.0, 2.0, 4.0)


class Bridge:
    """Forwards `fb.otel.*`. Without a receiver it does nothing.

    Args:
        bus: the connection, as enroll.
        endpoint: where to; by default what OpenTelemetry's variables name.
        pauses_s: before each further try of one request.
    """

    def __init__(
        self, bus: Bus, endpoint: Endpoint | None = None, pauses_s: tuple[float, ...] = PAUSES_S
    ) -> None:
        """Read where to.

        Raises:
            ConfigError: a variable names no receiver.
        """
        self._bus = bus
        self._endpoint = endpoint or read_endpoint(otel_variables())
        self._pauses_s = pauses_s
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self.dropped = 0  # messages that never reached the receiver
        self.sent = 0  # messages that did

    async def run(self) -> None:
        """Forward until cancelled."""
        if self._endpoint is None:
            return
        log.info("spans go to %s", self._endpoint, extra={"action": "bridge"})
        await self._bus.subscribe(subjects.ALL_TELEMETRY, self._hear)
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                try:
                    await self._forward(self._endpoint)
                except Exception:  # what it was doing is lost, the bridge is not
                    log.exception("spans were not forwarded", extra={"action": "bridge"})

    def _hear(self, message: Message) -> None:
        data, party = bytes(message.data), message.subject.rpartition(".")[2]
        if len(data) > MOST_BYTES:
            self._drop(1, f"{party} sent {len(data)} bytes at once, allowed {MOST_BYTES}")
        elif not data:
            self._drop(1, f"{party} sent nothing")
        elif self._waiting_bytes + len(data) + COST_BYTES > MOST_WAITING_BYTES:
            self._drop(1, f"the receiver is too slow: {MOST_WAITING_BYTES >> 20} MiB wait for it")
        else:
            self._waiting.append((party, data))
            self._waiting_bytes += len(data) + COST_BYTES
            self._news.set()

    async def _forward(self, endpoint: Endpoint) -> None:
        """Send what waits, as much as fits into one request."""
        batch = [self._take()]
        size = len(batch[0][1])
        while self._waiting and len(batch) < MOST_IN_ONE_BATCH:
            size += len(self._waiting[0][1])
            if size > MOST_IN_ONE_POST:
                break
            batch.append(self._take())
        # In a thread: reading what anyone wrote may take milliseconds, and enroll has beats to hear.
        body, unsound = await asyncio.to_thread(_cleaned, batch)
        if unsound:
            self._drop(unsound, "they are no spans of that party")
        count = len(batch) - unsound
        if not count:
            return
        failure = None
        for pause in (*self._pauses_s, None):
            failure, again = await asyncio.to_thread(post, endpoint, body)
            if failure is None:
                self.sent += count
                return
            if again is not AGAIN or pause is None:
                break
            await asyncio.sleep(pause)
        self._drop(count, f"{endpoint} {failure}")

    def _take(self) -> tuple[str, bytes]:
        party, data = self._waiting.popleft()
        self._waiting_bytes -= len(data) + COST_BYTES
        return party, data

    def _drop(self, count: int, reason: str) -> None:
        # One line for each power of two: a receiver that is down, or a noisy worker, does not fill the log.
        before, self.dropped = self.dropped, self.dropped + count
        if before.bit_length() != self.dropped.bit_length():
            log.warning(
                "%d messages with spans dropped: %s", self.dropped, reason, extra={"action": "bridge"}
            )


def _cleaned(batch: list[tuple[str, bytes]]) -> tuple[bytes, int]:
    """One request with what may be passed on of many, and how many of them have nothing."""
    read = [decode(data, party) for party, data in batch]
    spans = [span for found in read for span in found]
    return encode(spans), sum(not found for found in read)
