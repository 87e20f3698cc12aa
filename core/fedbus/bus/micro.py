"""Service commands as NATS micro endpoints (`nats micro ls` shows them), with our errors carried across."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import nats.micro
from fedbus_schemas import subjects
from fedbus_schemas.base import Wire
from fedbus_schemas.report import ErrorBody, ErrorReport
from nats.micro.request import Request
from pydantic import BaseModel, ValidationError

from fedbus.base.errors import BusUnavailable, FedbusError, RemoteContractError, by_code, describe
from fedbus.bus.connection import Bus

log = logging.getLogger(__name__)

A = TypeVar("A", bound=BaseModel)
Verb = Callable[[bytes], Awaitable[Wire]]


async def serve(bus: Bus, service: str, verbs: Mapping[str, Verb]) -> None:
    """Answer `fb.api.<service>.<verb>`, now and after every reconnect. Errors are answered, never raised."""

    def endpoint(verb: Verb) -> Callable[[Request], Awaitable[None]]:
        async def answer(request: Request) -> None:
            await request.respond((await _run(verb, request.data)).model_dump_json().encode())

        return answer

    async def register() -> None:
        version = importlib.metadata.version("fedbus")
        micro = await nats.micro.add_service(bus.client, name=service, version=version)
        for name, verb in verbs.items():
            await micro.add_endpoint(name=name, subject=subjects.api(service, name), handler=endpoint(verb))

    await bus.on_up(register)


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
) -> A:
    """Send a command and return its answer.

    A service that nobody serves yet may just be starting: it is tried for `patience_s` seconds.

    Raises:
        BusUnavailable: the service does not run.
        FedbusError: what the service answered, as the same class.
    """
    loop = asyncio.get_running_loop()
    ends, data = loop.time() + patience_s, request.model_dump_json().encode()
    while True:
        try:
            reply = await bus.request(subjects.api(service, verb), data, timeout_s=timeout_s)
            break
        except BusUnavailable as error:
            if "nobody serves" not in error.message:
                raise
            if loop.time() >= ends:
                hint = f"start it: fedbus up, or python -m fedbus_{service}"
                raise BusUnavailable(f"the {service} does not answer", hint=hint) from error
        await asyncio.sleep(0.1)
    try:
        return answer.model_validate_json(reply.data)
    except ValidationError as invalid:
        try:
            body = ErrorReport.model_validate_json(reply.data).error
        except ValidationError:
            raise RemoteContractError(
                f"{service} answered {verb} with something else: {describe(invalid)}"
            ) from None
    raise by_code(body.code, body.message, body.hint)
