"""JetStream as fedbus uses it: write-once puts with acknowledgement, reads by subject, purge.

No consumers, no `Nats-Msg-Id`, no object store. The subject is the key; a put carries
expected last sequence 0 for its subject, so nothing can be overwritten and a repeat
after a lost acknowledgement is recognised.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from fedbus_schemas.base import Payload

from fedbus.base.errors import BusError, BusUnavailable, NotAcked, StreamFull, StreamMissing
from fedbus.bus.connection import Bus, Message

T = TypeVar("T")
log = logging.getLogger(__name__)

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_OVER = "Nats-Expected-Last-Subject-Sequence-Subject"
# Error codes of the JetStream API that mean something to us.
WRONG_LAST = 10071  # with expected sequence 0: already there
STREAM_FULL = 10077
NO_STORAGE = 10002  # the account's limit, which an embedded broker also lowers while its disk is full
TOO_BUSY = 10167
NO_MESSAGE = 10037
NO_STREAM = 10059

NO_WRITES = 1  # bytes that the account may store while its broker takes nothing; 0 would mean any number

ACK_TIMEOUT_S = 30.0  # an ack may queue behind a window of chunks on a slow link; a broken link fails at once
WINDOW_BYTES = 4 << 20
PAGE = 1024  # messages in the answer to one request
READS_IN_FLIGHT = 8  # about 2 MiB of broker memory each (research: 547 MB/s with 8)
FULL_PAUSE_S = 1.0
MOST_SUBJECTS = 300_000


class JetStreamError(BusError):
    """The broker answered with an error."""

    def __init__(self, err_code: int, message: str) -> None:
        super().__init__(f"{message} ({err_code})")
        self.err_code = err_code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.err_code, self.message))


class AnswerTooLarge(BusError):
    """The broker has more to say than is taken from it."""


def _rebuild(err_code: int, message: str) -> JetStreamError:
    error = JetStreamError(err_code, "")
    error.message, error.args = message, (message,)
    return error


def parse_answer(data: Payload) -> dict[str, Any]:
    """A JSON answer of the JetStream API.

    Raises:
        StreamFull, NotAcked, JetStreamError: what the broker says went wrong.
    """
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise BusError(f"unreadable answer from the broker: {data[:80]!r}") from error
    problem = answer.get("error")
    if problem is None:
        return answer
    code, text = int(problem.get("err_code", 0)), str(problem.get("description", "error"))
    if code == NO_STORAGE:
        raise StreamFull(f"the broker has no space for its store: {text}")
    if code == STREAM_FULL:
        raise StreamFull(f"the stream is full: {text}")
    raise JetStreamError(code, text)


async def call(
    bus: Bus, subject: str, body: dict[str, Any] | None = None, timeout_s: float = 5.0
) -> dict[str, Any]:
    """One call of the JetStream API (`$JS.API.<subject>`)."""
    data = json.dumps(body).encode() if body is not None else b""
    reply = await bus.request(f"$JS.API.{subject}", data, timeout_s=timeout_s)
    if reply.status == "413":
        raise AnswerTooLarge(f"the broker's answer to {subject} is too long to be taken")
    return parse_answer(reply.data)


async def persist(bus: Bus, attempt: Callable[[], Awaitable[T]], *, until_s: float | None = None) -> T:
    """Repeat an idempotent call while the broker is away, for `until_s` seconds or as long as it takes."""
    loop = asyncio.get_running_loop()
    ends = None if until_s is None else loop.time() + until_s
    pause = 0.02
    while True:
        try:
            return await attempt()
        except (BusUnavailable, NotAcked):
            if ends is not None and loop.time() >= ends:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, 1.0)
        await bus.wait_up()


async def put(
    bus: Bus,
    subject: str,
    data: bytes,
    *,
    expected: int | None = None,
    over: str | None = None,
    ttl_s: int | None = None,
) -> int:
    """Store a message; return its sequence.

    Args:
        bus: the connection.
        subject: where.
        data: what.
        expected: last sequence that the subject must have; 0: none yet.
        over: take `expected` over this subject filter instead.
        ttl_s: whole seconds after which the broker deletes it, where its stream allows that.

    Raises:
        JetStreamError: with `err_code` WRONG_LAST, the expectation failed.
        StreamFull: no room.
        NotAcked, BusUnavailable: unknown whether it was stored.
    """
    headers: dict[str, str] = {}
    if expected is not None:
        headers[EXPECTED] = str(expected)
    if over is not None:
        headers[EXPECTED_OVER] = over
    if ttl_s is not None:
        headers["Nats-TTL"] = f"{ttl_s}s"
    reply = await bus.request(subject, data, headers=headers, timeout_s=ACK_TIMEOUT_S)
    return int(parse_answer(reply.data)["seq"])


class Publisher:
    """Write-once puts with a window of bytes in flight; each one is acknowledged or repeated.

    10071 means that the subject holds our bytes already (its name is ours alone, or
    names their digest): success. 10077 means full: wait for room. 10167 means that the
    broker is too busy: halve the window, back off, grow again with each success.
    """

    def __init__(self, bus: Bus, window_bytes: int = WINDOW_BYTES) -> None:
        self._bus = bus
        self._most = window_bytes
        self.window = window_bytes
        self._flying = 0
        self._landed = asyncio.Event()
        self.full: str | None = None  # why we wait

    async def put_all(
        self,
        items: AsyncIterable[tuple[str, bytes]],
        on_stored: Callable[[str, int], None] | None = None,
    ) -> None:
        """Store all, in any order; return when every one is acknowledged.

        Args:
            items: subjects and payloads; taken one by one as the window opens.
            on_stored: called with subject and size of each payload that is acknowledged.

        Raises:
            AuthRefused, PayloadTooLarge, JetStreamError: the first that went wrong beyond repeating.
        """
        try:
            async with asyncio.TaskGroup() as group:
                async for subject, data in items:
                    await self._enter(len(data))
                    group.create_task(self._put_one(subject, data, on_stored))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def put(self, subject: str, data: bytes) -> None:
        """Store one message."""
        await self._enter(len(data))
        await self._put_one(subject, data, None)

    async def _enter(self, size: int) -> None:
        while self._flying and self._flying + size > self.window:
            self._landed.clear()
            await self._landed.wait()
        self._flying += size

    async def _put_one(self, subject: str, data: bytes, on_stored: Callable[[str, int], None] | None) -> None:
        try:
            await persist(self._bus, lambda: self._until_stored(subject, data))
        finally:
            self._flying -= len(data)
            self._landed.set()
        if on_stored:
            on_stored(subject, len(data))

    async def _until_stored(self, subject: str, data: bytes) -> None:
        pause = 0.05
        while True:
            try:
                await put(self._bus, subject, data, expected=0)
                self.window = min(self._most, self.window + len(data))
                self.full = None
                return
            except StreamFull as error:
                if self.full is None:
                    log.warning("waiting for room: %s", error.message, extra={"action": "full"})
                self.full = error.message
                await asyncio.sleep(FULL_PAUSE_S * random.uniform(0.5, 1.0))
            except JetStreamError as error:
                if error.err_code == WRONG_LAST:
                    return
                if error.err_code != TOO_BUSY:
                    raise
                self.window = max(len(data), self.window // 2)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 2.0)


class Discarding:
    """What a `Publisher` is to its callers, and stores nothing: for making again what is stored already."""

    async def put_all(
        self,
        items: AsyncIterable[tuple[str, bytes]],
        on_stored: Callable[[str, int], None] | None = None,
    ) -> None:
        """Take all, one by one."""
        async for subject, data in items:
            await self.put(subject, data)
            if on_stored:
                on_stored(subject, len(data))

    async def put(self, subject: str, data: bytes) -> None:
        """Take one message."""


async def get(bus: Bus, stream: str, subject: str) -> Message:
    """The last message of a subject, by direct get; repeated while the broker is away.

    Raises:
        StreamMissing: there is none.
    """
    reply = await persist(
        bus, lambda: bus.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", timeout_s=ACK_TIMEOUT_S)
    )
    if reply.status == "404":
        raise StreamMissing(f"{subject} is not stored in {stream}")
    if reply.status is not None:
        raise BusError(f"the broker answered {reply.status} to a read of {subject} in {stream}")
    return reply


async def get_last(bus: Bus, stream: str, pattern: str) -> list[Message]:
    """The last message of every subject that matches, by direct get (ADR-31); subject in `Nats-Subject`.

    For streams that keep one message of a subject, or few: all of them are read, a page in a request.
    `multi_last` would read the last ones alone, but says nothing at all of more than 1024 subjects.

    Raises:
        BusError: the broker does not answer it.
    """
    found: dict[str, Message] = {}
    query: dict[str, object] = {"next_by_subj": pattern, "batch": PAGE}
    while True:
        body = json.dumps(query).encode()
        *page, end = await persist(bus, partial(bus.request_all, f"$JS.API.DIRECT.GET.{stream}", body))
        if end.status not in ("204", "404"):  # the end of some, or none at all
            raise BusError(f"the broker answered {end.status} to a read of {pattern} in {stream}")
        # In the order of their sequences: one that is written over meanwhile comes again, later.
        found.update((message.headers["Nats-Subject"], message) for message in page)
        if not page or int(end.headers.get("Nats-Num-Pending", 0)) == 0:
            return list(found.values())
        query["seq"] = int(page[-1].headers["Nats-Sequence"]) + 1


async def get_all(
    bus: Bus, stream: str, subjects: Iterable[str], in_flight: int = READS_IN_FLIGHT
) -> AsyncGenerator[Payload]:
    """Payloads of many subjects, in order, with a bounded number of reads in flight.

    Raises:
        StreamMissing: one of them is not there.
    """
    ahead: deque[asyncio.Task[Message]] = deque()
    names = iter(subjects)
    try:
        while True:
            for subject in islice(names, in_flight - len(ahead)):
                ahead.append(asyncio.create_task(get(bus, stream, subject)))
            if not ahead:
                return
            yield (await ahead.popleft()).data
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


def get_chunks(
    bus: Bus, stream: str, subjects: Sequence[str], body: Payload | None
) -> AsyncGenerator[Payload]:
    """As `get_all`; but where the only chunk came inside its manifest, as `body`, nothing is read."""
    return get_all(bus, stream, subjects) if body is None else _as_read(body, len(subjects))


async def _as_read(body: Payload, times: int) -> AsyncGenerator[Payload]:
    for _ in range(times):
        yield body


async def leader_get(bus: Bus, stream: str, query: dict[str, Any]) -> tuple[int, str, bytes] | None:
    """A message read from the stream's leader (a replica may be stale); None: there is none.

    Args:
        bus: the connection.
        stream: which.
        query: `{"last_by_subj": s}`, or `{"seq": n, "next_by_subj": s}`.
    """
    try:
        message = (await call(bus, f"STREAM.MSG.GET.{stream}", query))["message"]
    except JetStreamError as error:
        if error.err_code == NO_MESSAGE:
            return None
        raise
    return int(message["seq"]), str(message["subject"]), base64.b64decode(message.get("data") or "")


async def last_seq(bus: Bus, stream: str) -> int:
    """The stream's last sequence."""
    return int((await call(bus, f"STREAM.INFO.{stream}"))["state"]["last_seq"])


async def free_bytes(bus: Bus, stream: str) -> int:
    """How much a stream can still take before it is full, or all that the account may store.

    Raises:
        StreamFull: the broker takes nothing at all now.
    """
    info, account = await call(bus, f"STREAM.INFO.{stream}"), await call(bus, "INFO")
    free = int(info["config"]["max_bytes"]) - int(info["state"]["bytes"])
    limit = int(account["limits"].get("max_storage", -1))
    if limit == NO_WRITES:
        raise StreamFull("the broker has no space for its store, and takes nothing until it has")
    return min(free, limit - int(account["storage"])) if limit > 0 else free


async def list_subjects(bus: Bus, stream: str, pattern: str) -> dict[str, int]:
    """Stored subjects that match a pattern, with their message counts.

    Raises:
        AnswerTooLarge: they are more than MOST_SUBJECTS, or so long that one answer of the broker is.
    """
    found: dict[str, int] = {}
    offset = 0
    while True:
        answer = await call(bus, f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": offset})
        if (total := int(answer.get("total", 0))) > MOST_SUBJECTS:
            raise AnswerTooLarge(f"{total} subjects are stored under {pattern}, more than {MOST_SUBJECTS}")
        page = answer["state"].get("subjects") or {}
        found.update(page)
        # Not by what was found: of subjects that are no UTF-8, several look the same in JSON.
        offset += int(answer.get("limit", 0)) or len(page)
        if not page or offset >= total:
            return found


async def purge(bus: Bus, stream: str, pattern: str, before: int = 0) -> int:
    """Remove all messages whose subject matches, or those before a sequence; return how many."""
    query = {"filter": pattern, **({"seq": before} if before else {})}
    return int((await call(bus, f"STREAM.PURGE.{stream}", query, timeout_s=30.0))["purged"])
