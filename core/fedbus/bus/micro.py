"""Service commands as NATS micro endpoints (`nats micro ls` shows them), with our errors carried across.

Spec: ADR-32 of NATS. Discovery answers `$SRV.<PING|INFO|STATS>`, by service name and instance id too.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from fedbus_schemas import subjects
from fedbus_schemas.base import Wire
from fedbus_schemas.report import ErrorBody, ErrorReport
from pydantic import BaseModel, ValidationError

from fedbus.base.clock import SystemClock, random_token
from fedbus.base.errors import (
    BusError,
    BusUnavailable,
    FedbusError,
    NotAcked,
    RemoteContractError,
    by_code,
    describe,
)
from fedbus.bus.connection import Bus, Message

log = logging.getLogger(__name__)

QUEUE = "q"  # of instances of one service, each request goes to one
_TYPE = "io.nats.micro.v1.{}_response"

A = TypeVar("A", bound=BaseModel)
Verb = Callable[[bytes], Awaitable[Wire]]


@dataclass(eq=False)
class Endpoint:
    """One command that a service answers, one request after the other, and what it counted."""

    name: str
    subject: str
    verb: Verb
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    spent_ns: int = 0

    def info(self) -> dict[str, Any]:
        """What INFO says of it."""
        return {"name": self.name, "subject": self.subject, "queue_group": QUEUE, "metadata": None}

    def stats(self) -> dict[str, Any]:
        """What STATS says of it; times in nanoseconds."""
        return {
            "name": self.name,
            "subject": self.subject,
            "queue_group": QUEUE,
            "num_requests": self.requests,
            "num_errors": self.errors,
            "last_error": self.last_error,
            "processing_time": self.spent_ns,
            "average_processing_time": self.spent_ns // max(1, self.requests),
        }

    async def answer(self, data: bytes) -> Wire:
        """Run the command. Errors are answered, never raised."""
        async with self.turn:
            began = time.perf_counter_ns()
            answer = await _run(self.verb, data)
            self.requests += 1
            self.spent_ns += time.perf_counter_ns() - began
            if isinstance(answer, ErrorReport):
                self.errors += 1
                self.last_error = answer.error.message
            return answer


class Service:
    """One instance of a service: its endpoints, and what discovery says of them."""

    def __init__(self, bus: Bus, name: str, verbs: Mapping[str, Verb]) -> None:
        self._bus = bus
        self._name = name
        self._id = random_token()
        started = datetime.fromtimestamp(SystemClock().now(), UTC)
        self._started = started.isoformat().replace("+00:00", "Z")
        self._endpoints = [Endpoint(verb, subjects.api(name, verb), call) for verb, call in verbs.items()]
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Subscribe; the connection renews it.

        Raises:
            AuthRefused: this party may not answer for the service.
        """
        for endpoint in self._endpoints:
            await self._bus.subscribe(endpoint.subject, self._taker(endpoint), QUEUE)
        for subject in ("$SRV.*", f"$SRV.*.{self._name}", f"$SRV.*.{self._name}.{self._id}"):
            await self._bus.subscribe(subject, self._discover)

    def _taker(self, endpoint: Endpoint) -> Callable[[Message], None]:
        async def answer(message: Message) -> None:
            await self._reply(
                message, (await endpoint.answer(bytes(message.data))).model_dump_json().encode()
            )

        return lambda message: self._start(answer(message))

    def _discover(self, message: Message) -> None:
        verb = message.subject.split(".")[1]
        said: dict[str, Any] = {
            "type": _TYPE.format(verb.lower()),
            "name": self._name,
            "id": self._id,
            "version": importlib.metadata.version("fedbus"),
            "metadata": {},
        }
        if verb == "INFO":
            said |= {"description": "", "endpoints": [each.info() for each in self._endpoints]}
        elif verb == "STATS":
            said |= {"started": self._started, "endpoints": [each.stats() for each in self._endpoints]}
        elif verb != "PING":
            return
        self._start(self._reply(message, json.dumps(said).encode()))

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _reply(self, message: Message, data: bytes) -> None:
        try:
            if message.reply:
                await self._bus.publish(message.reply, data)
        except BusError as error:
            # Whoever asked sees its own time-out, or the broken connection.
            log.debug("not answered: %s", error, extra={"action": "command"})


async def serve(bus: Bus, service: str, verbs: Mapping[str, Verb]) -> None:
    """Answer `fb.api.<service>.<verb>`, now and after every reconnect. Errors are answered, never raised.

    Raises:
        AuthRefused: this party may not answer for the service.
    """
    await Service(bus, service, verbs).start()


async def _run(verb: Verb, data: bytes) -> Wire:
    try:
        return await verb(data)
    except FedbusError as error:
        return ErrorReport(error=ErrorBody(code=error.code, message=error.message, hint=error.hint))
    except ValidationError as error:
        body = ErrorBody(code="remote-contract-error", message=f"request refused: {describe(error)}")
        return ErrorReport(error=body)
    except Exception as error:
        log.exception("a command failed", extra={"action": "command"})
        return ErrorReport(error=ErrorBody(code="fedbus-error", message=f"{type(error).__name__}: {error}"))


async def ask(
    bus: Bus,
    service: str,
    verb: str,
    request: Wire,
    answer: type[A],
    timeout_s: float = 10.0,
    patience_s: float = 0.0,
    *,
    repeatable: bool = False,
) -> A:
    """Send a command and return its answer.

    A service that nobody serves yet may just be starting: it is tried for `patience_s` seconds.

    Args:
        bus: the connection.
        service: which.
        verb: its command.
        request: what is sent.
        answer: what comes back.
        timeout_s: how long the service may take.
        patience_s: how long to try again.
        repeatable: the command may be sent twice; so it is tried again also where it may have been heard.

    Raises:
        BusUnavailable: the service does not run, or the connection broke.
        NotAcked: it did not answer in time.
        FedbusError: what the service answered, as the same class.
    """
    loop, subject = asyncio.get_running_loop(), subjects.api(service, verb)
    ends, data = loop.time() + patience_s, request.model_dump_json().encode()
    while True:
        try:
            return _read(await bus.request(subject, data, timeout_s=timeout_s), subject, answer)
        except (BusUnavailable, NotAcked) as error:
            # A service may answer so too: the broker does not serve it while it reads its accounts anew.
            unserved, over = error.message.endswith(f"nobody serves {subject}"), loop.time() >= ends
            if unserved and over:
                hint = f"start it: fedbus up, or python -m fedbus_{service}"
                raise BusUnavailable(f"the {service} does not answer", hint=hint) from error
            if over or not (unserved or repeatable):
                raise
        await asyncio.sleep(0.1)


def _read(reply: Message, subject: str, answer: type[A]) -> A:
    try:
        return answer.model_validate_json(reply.data)
    except ValidationError as invalid:
        try:
            body = ErrorReport.model_validate_json(reply.data).error
        except ValidationError:
            said = f"{subject} was answered with something else: {describe(invalid)}"
            raise RemoteContractError(said) from None
    raise by_code(body.code, body.message, body.hint)
