"""Service commands as NATS micro endpoints (`nats micro ls` shows them), with our errors carried across."""

from __future__ import annotations

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
    bus: Bus, service: str, verb: str, request: Wire, answer: type[A], timeout_s: float = 10.0
) -> A:
    """Send a command and return its answer.

    Raises:
        BusUnavailable: the service does not run.
        FedbusError: what the service answered, as the same class.
    """
    try:
        reply = await bus.request(
            subjects.api(service, verb), request.model_dump_json().encode(), timeout_s=timeout_s
        )
    except BusUnavailable as error:
        if "nobody serves" in error.message:
            raise BusUnavailable(
                f"the {service} does not answer", hint=f"start it: python -m fedbus_{service}"
            ) from error
        raise
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
